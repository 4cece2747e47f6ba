//! An image with every kind of change, packed by umoci, and the tree that umoci unpacks from it.
//! podman's stores are compared with this tree.

use std::path::{Path, PathBuf};
use std::process::Command;

use testkit::need::{Needed, has_tools, is_root};
use testkit::store::listing;
use testkit::store::listing::Listing;

use super::{export, run};

/// The image's name in podman's stores.
pub(crate) const NAME: &str = "localhost/demo:1";

/// The changes of each layer. Directories get fixed times: containers/storage creates a directory
/// that has no entry of its own in the tar.
const CHANGES: [&str; 3] = [
    "mkdir -p a/b gone opaque/sub hidden/sub; echo 1 > a/keep; echo 1 > a/delete; echo 1 > gone/in
     ln a/keep a/linked; ln -s keep a/symlink; mkfifo a/fifo; chmod 4711 a/delete
     echo old > opaque/old; echo old > opaque/sub/old; chown 12:34 a/b
     echo old > hidden/old; echo old > hidden/sub/old",
    "rm a/delete; rm -r gone; echo 2 >> a/b/new; rm -r opaque; mkdir opaque; echo 2 > opaque/new",
    "echo back > gone; chmod 700 a/b; touch -d @0 a/b/new",
];

/// The directory with the image (`oci`), the tree (`truth`) and stores.
pub(crate) struct Demo {
    temp: tempfile::TempDir,
}

impl Demo {
    /// Makes the image; needs root and the tools.
    pub(crate) fn make() -> Needed<Self> {
        is_root()?;
        has_tools(&["skopeo", "umoci", "podman", "unshare", "setpriv", "tar"])?;
        let temp = tempfile::tempdir().unwrap();
        let made = Self { temp };
        made.sh("umoci init --layout oci; umoci new --image oci:demo");
        for (number, change) in CHANGES.iter().enumerate() {
            made.sh(&format!(
                "umoci unpack --image oci:demo b{number}
                 (cd b{number}/rootfs; {change}; find . -type d -exec touch -d @{number}000 {{}} +)
                 umoci repack --image oci:demo b{number}"
            ));
        }
        // Written as .wh..wh..opq, where umoci repack writes a whiteout for each name.
        made.sh("mkdir extra; echo new > extra/new; touch -d @5000 extra
             umoci insert --image oci:demo --opaque extra /hidden
             umoci unpack --image oci:demo truth");
        Ok(made)
    }

    pub(crate) fn at(&self, name: impl AsRef<Path>) -> PathBuf {
        self.temp.path().join(name)
    }

    /// Runs a script in the directory, which must succeed.
    pub(crate) fn sh(&self, script: &str) {
        let mut command = Command::new("sh");
        run(command.current_dir(self.temp.path()).args(["-ec", script]));
    }

    /// Returns the tree of the image as an export keeps it: umoci keeps whole seconds, and
    /// containers/storage has its own mode for the root.
    pub(crate) fn truth(&self) -> Listing {
        let truth = as_compared(&self.at("truth/rootfs"));
        assert_eq!(truth.len(), 12, "{:?}", truth.keys());
        truth
    }
}

/// Returns the part of a directory's listing that is compared.
pub(crate) fn as_compared(path: &Path) -> Listing {
    export::as_exported(listing::of_dir(path))
}
