//! Where catalogs are kept: `unionfs/catalogs` in our own store, one file for each chain of
//! layers of each store. Called by `build` and the cli.
//!
//! ```text
//! catalogs/<chain ID>-<store>        a catalog; never changed, only replaced or removed
//! catalogs/<chain ID>-<store>.new    one being written; locked (flock) by who writes it
//! ```

use std::ffi::OsString;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use super::{Error, Label, Unusable};

/// Where catalogs are below the root of our own store.
const DIR: &str = "unionfs/catalogs";
/// What the name of a catalog that is being written ends in.
const NEW: &str = ".new";

/// The directory of all catalogs, which need not exist.
pub fn dir(own_root: &Path) -> PathBuf {
    own_root.join(DIR)
}

/// Where the catalog of a chain is. Stores have catalogs of their own, also of the same
/// chain: its files have other inode numbers there. So have user namespaces that map IDs
/// otherwise: its files have other owners there.
pub fn path(own_root: &Path, label: &Label) -> PathBuf {
    let mut store = Sha256::new();
    store.update(&label.store);
    store.update([0]);
    store.update(&label.driver);
    store.update(super::file::id_maps().to_le_bytes());
    let store = store.finalize();
    dir(own_root).join(format!("{}-{}", hex(&label.chain), hex(&store[..8])))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A file in the directory of catalogs.
#[derive(Debug)]
pub struct Kept {
    /// Where it is.
    pub path: PathBuf,
    /// Bytes on the disk.
    pub bytes: u64,
    /// Whose layers it is of; `None`: it is no catalog, or was never finished.
    pub label: Option<Label>,
}

/// Everything in the directory of catalogs, sorted; nothing where there is none.
pub fn list(own_root: &Path) -> io::Result<Vec<Kept>> {
    let entries = match std::fs::read_dir(dir(own_root)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut kept = Vec::new();
    for entry in entries {
        let path = entry?.path();
        // Gone meanwhile.
        let Ok(meta) = path.symlink_metadata() else {
            continue;
        };
        let being_written = path.as_os_str().as_bytes().ends_with(NEW.as_bytes());
        if being_written && is_locked(&path) {
            continue;
        }
        let label = (!being_written).then(|| label_of(&path).ok()).flatten();
        kept.push(Kept {
            bytes: meta.blocks().saturating_mul(512),
            label,
            path,
        });
    }
    kept.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(kept)
}

/// Whether somebody is writing it right now.
fn is_locked(path: &Path) -> bool {
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let open = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits() as i32)
        .open(path);
    let lock = |file| rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared);
    open.is_ok_and(|file| lock(file) == Err(Errno::WOULDBLOCK))
}

fn label_of(path: &Path) -> Result<Label, Unusable> {
    let view = super::open(path)?;
    let (store, driver) = view.store()?;
    Ok(Label {
        chain: view.chain(),
        store: store.to_vec(),
        driver: driver.to_vec(),
        notes: Vec::new(),
    })
}

/// A catalog being written; dropped without [`Staged::publish`], it is removed.
pub(super) struct Staged {
    file: File,
    staged: PathBuf,
    path: PathBuf,
    published: bool,
}

impl Staged {
    /// Starts a catalog that is to be at `path`, and locks others out.
    pub(super) fn new(path: &Path) -> Result<Self, Error> {
        let fail = |source: io::Error| Error::Write {
            path: path.to_owned(),
            source,
        };
        if let Some(dir) = path.parent() {
            let mut builder = DirBuilder::new();
            builder.recursive(true).mode(0o700);
            builder.create(dir).map_err(fail)?;
        }
        let mut staged = OsString::from(path);
        staged.push(NEW);
        let staged = PathBuf::from(staged);
        let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(flags.bits() as i32)
            .open(&staged)
            .map_err(fail)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(Error::Busy(path.to_owned())),
            Err(errno) => return Err(fail(errno.into())),
        }
        // Who had it has published or removed it: what is open here is a finished catalog.
        let same = |meta: std::fs::Metadata| -> io::Result<bool> {
            let mine = file.metadata()?;
            Ok((mine.dev(), mine.ino()) == (meta.dev(), meta.ino()))
        };
        match staged.symlink_metadata().and_then(same) {
            Ok(true) => {}
            _ => return Err(Error::Busy(path.to_owned())),
        }
        file.set_len(0).map_err(fail)?;
        Ok(Self {
            file,
            staged,
            path: path.to_owned(),
            published: false,
        })
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Makes it the catalog, durably; its length in bytes.
    pub(super) fn publish(mut self) -> io::Result<u64> {
        self.file.sync_all()?;
        std::fs::rename(&self.staged, &self.path)?;
        self.published = true;
        if let Some(dir) = self.path.parent() {
            File::open(dir)?.sync_all()?;
        }
        Ok(self.file.metadata()?.len())
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if !self.published {
            // What stays is found by prune, and by the next to make this catalog.
            let _ = std::fs::remove_file(&self.staged);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_writes_and_a_failure_leaves_nothing() {
        let root = tempfile::tempdir().unwrap();
        let path = path(root.path(), &Label::default());
        let one = Staged::new(&path).unwrap();
        assert!(matches!(Staged::new(&path), Err(Error::Busy(_))));
        assert!(list(root.path()).unwrap().is_empty(), "it is being written");
        drop(one);
        assert_eq!(std::fs::read_dir(dir(root.path())).unwrap().count(), 0);
        Staged::new(&path).unwrap().publish().unwrap();
        let kept = list(root.path()).unwrap();
        assert!(kept.len() == 1 && kept[0].label.is_none());
        // A killed writer's file is no obstacle.
        std::fs::write(root.path().join(format!("{}.new", path.display())), "x").unwrap();
        assert_eq!(list(root.path()).unwrap().len(), 2);
        Staged::new(&path).unwrap().publish().unwrap();
        assert_eq!(list(root.path()).unwrap().len(), 1);
    }

    #[test]
    fn stores_and_chains_have_catalogs_of_their_own() {
        let of = |chain: u8, store: &str, driver: &str| {
            let label = Label {
                chain: [chain; 32],
                store: store.into(),
                driver: driver.into(),
                notes: Vec::new(),
            };
            path(Path::new("/own"), &label)
        };
        let one = of(1, "/a", "overlay2");
        assert_ne!(one, of(2, "/a", "overlay2"));
        assert_ne!(one, of(1, "/b", "overlay2"));
        assert_ne!(one, of(1, "/a", "vfs"));
        assert_eq!(one.parent(), Some(Path::new("/own/unionfs/catalogs")));
    }
}
