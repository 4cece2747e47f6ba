//! A store that a real dockerd made, through `ci/make-docker-store.sh`. It is kept in
//! `target/docker-store/<driver>` until the script changes. Mounts are compared with kernel
//! overlayfs over its layers.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::FlockOperation;
use rustix::mount::{MountFlags, UnmountFlags};
use serde_json::Value;
use testkit::need::{Needed, has_tools, is_root};
use unionfs::layer::LayerSpec;
use unionfs::oci::Digest;

const SCRIPT: &str = include_str!("../../ci/make-docker-store.sh");

/// The script's OUTDIR.
pub(crate) struct DockerStore {
    dir: PathBuf,
}

/// Checks whether a dockerd can run (Debian: docker.io).
pub(crate) fn has_dockerd() -> Needed {
    is_root()?;
    has_tools(&["dockerd"])
}

impl DockerStore {
    /// Makes the store unless it exists; that needs root and dockerd.
    pub(crate) fn get() -> Needed<Self> {
        Self::of("overlay2")
    }

    /// Like [`DockerStore::get`], for another storage driver.
    pub(crate) fn of(driver: &str) -> Needed<Self> {
        has_dockerd()?;
        // Below the target directory, wherever that is.
        let base = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("docker-store");
        let base = base.join(driver);
        std::fs::create_dir_all(&base).unwrap();
        let lock = File::create(base.join("lock")).unwrap();
        rustix::fs::flock(&lock, FlockOperation::LockExclusive).unwrap();
        let dir = base.join(Digest::of(SCRIPT.as_bytes()).short());
        if !dir.join("complete").exists() {
            // A store of an older script, or of an interrupted run.
            for old in std::fs::read_dir(&base).unwrap() {
                let old = old.unwrap().path();
                if old.is_dir() {
                    std::fs::remove_dir_all(old).unwrap();
                }
            }
            let script = concat!(env!("CARGO_MANIFEST_DIR"), "/ci/make-docker-store.sh");
            let made = Command::new(script).arg(&dir).arg(driver).status().unwrap();
            assert!(made.success(), "{script} failed");
        }
        Ok(Self { dir })
    }

    /// Returns dockerd's data root.
    pub(crate) fn root(&self) -> PathBuf {
        self.file("docker")
    }

    /// Returns the path of one of the script's results, for example `truth/changed.tar`.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Returns the output of `docker inspect` for all images or all containers.
    pub(crate) fn facts(&self, name: &str) -> Vec<Value> {
        let text = std::fs::read_to_string(self.file("facts").join(name)).unwrap();
        let facts: Vec<Value> = serde_json::from_str(&text).unwrap();
        assert!(!facts.is_empty());
        facts
    }
}

/// Returns a text of the facts.
pub(crate) fn text<'v>(value: &'v Value, pointer: &str) -> &'v str {
    let found = value.pointer(pointer).and_then(Value::as_str);
    found.unwrap_or_else(|| panic!("no {pointer} in {value}"))
}

/// Layers mounted read-only by the kernel's overlayfs, until dropped.
pub(crate) struct KernelOverlay {
    // Names of the layers that are short enough for one page of mount options.
    temp: tempfile::TempDir,
    path: PathBuf,
}

impl KernelOverlay {
    /// Mounts the lowers, top first, as in [`unionfs::layer::StackSpec::lowers`].
    pub(crate) fn new(lowers: &[LayerSpec]) -> Self {
        let temp = tempfile::tempdir().unwrap();
        if let [only] = lowers {
            let path = only.path().to_owned();
            return Self { temp, path };
        }
        let mut names = Vec::new();
        for (number, layer) in lowers.iter().enumerate() {
            let name = temp.path().join(number.to_string());
            std::os::unix::fs::symlink(layer.path(), &name).unwrap();
            names.push(name.to_str().unwrap().to_owned());
        }
        let path = temp.path().join("mnt");
        std::fs::create_dir(&path).unwrap();
        let options = format!("lowerdir={}", names.join(":"));
        let options = std::ffi::CString::new(options).unwrap();
        rustix::mount::mount("overlay", &path, "overlay", MountFlags::RDONLY, &*options).unwrap();
        Self { temp, path }
    }

    /// Returns the path of the merged tree.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for KernelOverlay {
    fn drop(&mut self) {
        if self.path.starts_with(self.temp.path()) {
            let _ = rustix::mount::unmount(&self.path, UnmountFlags::DETACH);
        }
    }
}
