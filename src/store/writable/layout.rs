//! Makes our own store, and recognizes it.

use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::DRIVER;
use crate::oci::text::excerpt;
use crate::store::confined_dir::{ConfinedDir, SMALL};
use crate::store::error::{Error, Result};

/// The directory that only our own stores have.
pub(super) const OURS: &str = "unionfs";

/// The version of the layout that this program reads and writes.
const FORMAT: &[u8] = b"1";

/// Names that a root may have before it is a store: uppers of plain mounts, and names that file
/// systems and this program make.
const HARMLESS: [&str; 3] = ["rw", "lost+found", OURS];

/// Names that a dockerd makes in its data root and this program does not.
const DOCKERS: [&str; 5] = ["engine-id", "containerd", "buildkit", "swarm", "runtimes"];

/// The directory of files that are being written.
const TMP: &str = "unionfs/tmp";

/// Directories below the root, parents first, with Docker's modes.
const DIRS: [(&str, u32); 15] = [
    (TMP, 0o700),
    ("unionfs/containers", 0o700),
    ("image", 0o700),
    ("image/overlay2", 0o700),
    ("image/overlay2/imagedb", 0o700),
    ("image/overlay2/imagedb/content", 0o700),
    ("image/overlay2/imagedb/content/sha256", 0o700),
    ("image/overlay2/imagedb/metadata", 0o700),
    ("image/overlay2/imagedb/metadata/sha256", 0o700),
    ("image/overlay2/layerdb", 0o700),
    ("image/overlay2/layerdb/sha256", 0o755),
    ("image/overlay2/layerdb/mounts", 0o755),
    ("image/overlay2/layerdb/tmp", 0o755),
    ("overlay2", 0o710),
    ("overlay2/l", 0o700),
];

fn marker() -> PathBuf {
    Path::new(OURS).join("format")
}

/// Whether `root` is our own store; false if there is nothing yet.
///
/// # Errors
/// [`Error::NotOurs`] if there is something else.
pub(super) fn is_ours(root: &ConfinedDir) -> Result<bool> {
    let marked = root.look(marker())?.is_some();
    for name in root.list(".")? {
        let name = name.to_string_lossy();
        let foreign = if marked {
            DOCKERS.contains(&&*name)
        } else {
            !HARMLESS.contains(&&*name)
        };
        if foreign {
            return Err(Error::NotOurs {
                path: root.path().to_owned(),
                found: name.chars().take(100).collect(),
            });
        }
    }
    Ok(marked)
}

/// Makes the missing parts of our own store, and checks that no other user can change its content.
/// If a crash left an incomplete store, this completes it.
///
/// None of the directories may lead elsewhere, because all files are written below them.
pub(super) fn prepare(root: &ConfinedDir) -> Result<()> {
    let new = !is_ours(root)?;
    root.require_ours("")?;
    if new {
        make(root, OURS, 0o700)?;
        make(root, TMP, 0o700)?;
        // This comes first, so that a root after a crash is known as ours.
        root.replace(TMP, marker(), 0o600, FORMAT)?;
        root.sync_names(OURS)?;
    }
    let format = root.read(marker(), SMALL)?;
    if format.as_deref().map(<[u8]>::trim_ascii) != Some(FORMAT) {
        return Err(Error::NewerStore {
            path: root.full(marker()),
            found: excerpt(&format.unwrap_or_default()),
        });
    }
    make(root, OURS, 0o700)?;
    for (dir, mode) in DIRS {
        make(root, dir, mode)?;
    }
    for lock in ["lock", "removing"] {
        match root.create(Path::new(OURS).join(lock), 0o600) {
            Err(error) if error.errno() != Some(Errno::EXIST) => return Err(error),
            _ => (),
        }
    }
    let names = Path::new("image").join(DRIVER).join("repositories.json");
    if root.look(&names)?.is_none() {
        let empty = br#"{"Repositories":{}}"#;
        root.replace(TMP, &names, 0o600, empty)?;
    }
    Ok(())
}

/// Makes a directory; if it exists, it must be ours.
fn make(root: &ConfinedDir, dir: &str, mode: u32) -> Result<()> {
    if !root.make_dir(dir, mode)? {
        root.layer_dir(dir)?;
        root.require_ours(dir)?;
    }
    Ok(())
}
