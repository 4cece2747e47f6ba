//! Making our own store, and telling it from everything else. Called by `Writable::open`.

use std::io;
use std::path::Path;

use super::{DRIVER, files};
use crate::store::beneath::{Beneath, SMALL};
use crate::store::error::{Error, Result, excerpt};

/// The directory that no other program's store has.
pub(super) const OURS: &str = "unionfs";

/// The version of the layout that this program reads and writes.
const FORMAT: &[u8] = b"1";

/// What may be in a root before it is a store: uppers of plain mounts, and what file
/// systems and we ourselves leave.
const HARMLESS: [&str; 3] = ["rw", "lost+found", OURS];

/// Which a dockerd makes in its data root and we do not.
const DOCKERS: [&str; 5] = ["engine-id", "containerd", "buildkit", "swarm", "runtimes"];

/// Files being written.
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

fn marker(root: &Path) -> std::path::PathBuf {
    root.join(OURS).join("format")
}

/// Whether `root` is a store of ours; false where there is nothing yet.
///
/// # Errors
/// [`Error::NotOurs`] where there is something else.
pub(super) fn is_ours(root: &Path) -> Result<bool> {
    let entries = match std::fs::read_dir(root) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(files::io("open", root)(error)),
    };
    let marker = marker(root);
    let marked = match marker.symlink_metadata() {
        Ok(_) => true,
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        // Such as somebody else's store.
        Err(error) => return Err(files::io("read", &marker)(error)),
    };
    for entry in entries {
        let name = entry.map_err(files::io("list", root))?.file_name();
        let name = name.to_string_lossy();
        let foreign = match marked {
            true => DOCKERS.contains(&&*name),
            false => !HARMLESS.contains(&&*name),
        };
        if foreign {
            return Err(Error::NotOurs {
                path: root.to_owned(),
                found: name.chars().take(100).collect(),
            });
        }
    }
    Ok(marked)
}

/// Makes what is missing of a store of ours. A crash leaves a root that this completes.
pub(super) fn prepare(root: &Path) -> Result<()> {
    let new = !is_ours(root)?;
    if new {
        std::fs::create_dir_all(root).map_err(files::io("create", root))?;
        files::make_dir(&root.join(OURS), 0o700)?;
        files::make_dir(&root.join(TMP), 0o700)?;
        let marker = marker(root);
        // First of all, so that whatever a crash leaves is known as ours.
        files::replace(&root.join(TMP), &marker, 0o600, FORMAT)?;
        files::sync_parent(&root.join(OURS))?;
    }
    let beneath = Beneath::open(root)?;
    let format = beneath.read(Path::new(OURS).join("format"), SMALL)?;
    if format.as_deref().map(<[u8]>::trim_ascii) != Some(FORMAT) {
        return Err(Error::NewerStore {
            path: marker(beneath.path()),
            found: excerpt(&format.unwrap_or_default()),
        });
    }
    for (dir, mode) in DIRS {
        files::make_dir(&root.join(dir), mode)?;
    }
    for lock in ["lock", "removing"] {
        let path = root.join(OURS).join(lock);
        match files::create(&path, 0o600) {
            Err(error) if error.errno() != Some(rustix::io::Errno::EXIST) => return Err(error),
            _ => (),
        }
    }
    let names = root.join("image").join(DRIVER).join("repositories.json");
    if names.symlink_metadata().is_err() {
        let empty = br#"{"Repositories":{}}"#;
        files::replace(&root.join(TMP), &names, 0o600, empty)?;
    }
    Ok(())
}

/// None of the directories may lead elsewhere: all that is written is written below them.
pub(super) fn check(root: &Beneath) -> Result<()> {
    root.layer_dir(OURS)?;
    for (dir, _) in DIRS {
        root.layer_dir(dir)?;
    }
    Ok(())
}
