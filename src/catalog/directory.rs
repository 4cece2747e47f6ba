//! The place of catalogs: `unionfs/catalogs` in the own store, one file for each chain of layers of
//! each store.
//!
//! Invariant: the directory is opened once, through no symlink that another user controls. All
//! further calls use its descriptor.
//!
//! ```text
//! catalogs/<chain ID>-<store>        a catalog; never changed, only replaced or removed
//! catalogs/<chain ID>-<store>.new    one being written; its writer holds a lock (flock) on it
//! ```

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, Dir, FlockOperation, Mode, OFlags, ResolveFlags, Timespec, Timestamps, UTIME_NOW,
};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use super::{Error, Label, Unusable};
use crate::layer::dir::path_of;
use crate::sys::openat2::openat2;
use crate::sys::walk::{self, Trust};

/// The path of the catalogs below the root of the own store.
const DIR: &str = "unionfs/catalogs";
/// The suffix of a catalog that is being written.
const NEW: &str = ".new";

/// Returns the directory of all catalogs. It need not exist.
pub fn dir(own_root: &Path) -> PathBuf {
    own_root.join(DIR)
}

/// Returns the root of the own store, absolute and without symlinks, if it contains a directory of
/// catalogs.
pub fn existing(own_root: &Path) -> Option<PathBuf> {
    let own = walk::open_directory(own_root, Trust::of_root()).ok()?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let plain = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    openat2(&own, DIR, flags, Mode::empty(), plain).ok()?;
    path_of(&own)
}

/// Returns the path of the catalog of a chain. Each store has its own catalogs, also for the same
/// chain, because its files have other inode numbers. So has each user namespace with another ID
/// mapping, because the files have other owners there.
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
    /// The path.
    pub path: PathBuf,
    /// The disk space in bytes.
    pub bytes: u64,
    /// The label of its layers. `None` if the file is not a catalog, or was never finished.
    pub label: Option<Label>,
}

/// Lists the directory of catalogs, sorted; empty if it does not exist.
///
/// # Errors
/// Those of opening and reading it.
pub fn list(own_root: &Path) -> io::Result<Vec<Kept>> {
    let path = dir(own_root);
    let found = match walk::open_directory(&path, Trust::of_root()) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut kept = Vec::new();
    for entry in Dir::new(readable(&found)?).map_err(io::Error::from)? {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name == "." || name == ".." {
            continue;
        }
        // The file was removed meanwhile.
        let Ok(stat) = rustix::fs::statat(&found, name, AtFlags::SYMLINK_NOFOLLOW) else {
            continue;
        };
        let being_written = name.as_bytes().ends_with(NEW.as_bytes());
        if being_written && is_locked(&found, name) {
            continue;
        }
        let label = (!being_written).then(|| label_of(&found, name).ok());
        kept.push(Kept {
            bytes: u64::try_from(stat.st_blocks).map_or(0, |blocks| blocks.saturating_mul(512)),
            label: label.flatten(),
            path: path.join(name),
        });
    }
    kept.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(kept)
}

/// Opens the same directory for reading.
fn readable(dir: &OwnedFd) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(dir, c".", flags, Mode::empty())?)
}

/// Removes a catalog. Returns whether there was one. A symlink is removed, not followed.
///
/// # Errors
/// Those of unlink(2), and of opening the directory that contains it.
pub fn remove(path: &Path) -> io::Result<bool> {
    let removed = walk::open_parent(path, Trust::of_root())
        .and_then(|(dir, name)| Ok(rustix::fs::unlinkat(dir, name, AtFlags::empty())?));
    match removed {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        other => other.map(|()| true),
    }
}

/// Notes that a catalog is used now: it is not the first to be removed. A symlink is not followed.
///
/// # Errors
/// Those of utimensat(2), and of opening the directory that contains it.
pub fn touch(path: &Path) -> io::Result<()> {
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: UTIME_NOW,
    };
    let times = Timestamps {
        last_access: now,
        last_modification: now,
    };
    let (dir, name) = walk::open_parent(path, Trust::of_root())?;
    Ok(rustix::fs::utimensat(
        dir,
        name,
        &times,
        AtFlags::SYMLINK_NOFOLLOW,
    )?)
}

/// Opens a file for reading and for locks, without waiting.
fn open_for_lock(dir: &OwnedFd, name: &OsStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::empty())
}

/// Whether another process is writing the file.
fn is_locked(dir: &OwnedFd, name: &OsStr) -> bool {
    let lock = |file| rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared);
    open_for_lock(dir, name).is_ok_and(|file| lock(file) == Err(Errno::WOULDBLOCK))
}

fn label_of(dir: &OwnedFd, name: &OsStr) -> Result<Label, Unusable> {
    let view = super::file::open_at(dir, name)?;
    let (store, driver) = view.store()?;
    Ok(Label {
        chain: view.chain(),
        store: store.to_vec(),
        driver: driver.to_vec(),
        notes: view.notes()?.to_vec(),
    })
}

/// A catalog that is being written. If it is dropped without [`Staged::publish`], it is removed.
pub(super) struct Staged {
    file: File,
    /// The directory of both names.
    dir: OwnedFd,
    staged: OsString,
    name: OsString,
    published: bool,
}

impl Staged {
    /// Starts a catalog for `path`, and locks it. The file is always a new one: a file that a
    /// killed writer or another user has left there is removed first.
    pub(super) fn new(path: &Path) -> Result<Self, Error> {
        let fail = |source: io::Error| Error::Write {
            path: path.to_owned(),
            source,
        };
        let name = path.file_name().ok_or_else(|| fail(Errno::INVAL.into()))?;
        let above = match path.parent() {
            Some(above) if !above.as_os_str().is_empty() => above,
            _ => Path::new("."),
        };
        let dir = walk::make_directory(above, Trust::of_root(), 0o700).map_err(fail)?;
        let mut staged = name.to_owned();
        staged.push(NEW);
        let busy = || Error::Busy(path.to_owned());
        let file = match create(&dir, &staged) {
            Err(Errno::EXIST) => {
                if !remove_stale(&dir, &staged).map_err(|errno| fail(errno.into()))? {
                    return Err(busy());
                }
                create(&dir, &staged)
            }
            other => other,
        };
        let file = match file {
            // Another process was faster.
            Err(Errno::EXIST) => return Err(busy()),
            other => other.map_err(|errno| fail(errno.into()))?,
        };
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            // Another process checks whether it is stale.
            Err(Errno::WOULDBLOCK) => return Err(busy()),
            Err(errno) => return Err(fail(errno.into())),
        }
        if !is_at(&file, &dir, &staged) {
            // It was removed as stale before it was locked.
            return Err(busy());
        }
        Ok(Self {
            file: File::from(file),
            dir,
            staged,
            name: name.to_owned(),
            published: false,
        })
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Returns the directory that contains it.
    pub(super) fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Makes it the catalog, durably. Returns its length in bytes.
    pub(super) fn publish(mut self) -> io::Result<u64> {
        self.file.sync_all()?;
        rustix::fs::renameat(&self.dir, &self.staged, &self.dir, &self.name)?;
        self.published = true;
        rustix::fs::fsync(readable(&self.dir)?)?;
        Ok(self.file.metadata()?.len())
    }
}

fn create(dir: &OwnedFd, name: &OsStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(0o600))
}

/// Removes a file that no process is writing. Returns false if one is.
fn remove_stale(dir: &OwnedFd, name: &OsStr) -> Result<bool, Errno> {
    let held = match open_for_lock(dir, name) {
        Ok(file) => match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) if is_at(&file, dir, name) => Some(file),
            // It was published or removed meanwhile, and there is a catalog.
            Ok(()) | Err(Errno::WOULDBLOCK) => return Ok(false),
            Err(errno) => return Err(errno),
        },
        Err(Errno::NOENT) => return Ok(true),
        // No writer creates such a file: it is a symlink, a socket, or a file of another user.
        Err(Errno::LOOP | Errno::NXIO | Errno::ACCESS) => None,
        Err(errno) => return Err(errno),
    };
    let removed = rustix::fs::unlinkat(dir, name, AtFlags::empty());
    drop(held);
    match removed {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(errno) => Err(errno),
    }
}

/// Whether the open file has that name.
fn is_at(file: &OwnedFd, dir: &OwnedFd, name: &OsStr) -> bool {
    let there = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW);
    let id = |stat: rustix::fs::Stat| (stat.st_dev, stat.st_ino);
    there.is_ok_and(|there| rustix::fs::fstat(file).is_ok_and(|held| id(held) == id(there)))
}

impl Drop for Staged {
    fn drop(&mut self) {
        if !self.published {
            // The next builder of this catalog, or `prune`, removes a file that stays.
            let _ = rustix::fs::unlinkat(&self.dir, &self.staged, AtFlags::empty());
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
        // The file of a killed writer does not prevent a build.
        std::fs::write(root.path().join(format!("{}.new", path.display())), "x").unwrap();
        assert_eq!(list(root.path()).unwrap().len(), 2);
        Staged::new(&path).unwrap().publish().unwrap();
        assert_eq!(list(root.path()).unwrap().len(), 1);
    }

    #[test]
    fn what_is_in_the_place_of_a_new_catalog_is_removed_and_not_written_to() {
        let root = tempfile::tempdir().unwrap();
        let path = path(root.path(), &Label::default());
        std::fs::create_dir_all(dir(root.path())).unwrap();
        let victim = root.path().join("victim");
        std::fs::write(&victim, "content").unwrap();
        let staged = PathBuf::from(format!("{}.new", path.display()));
        for (round, in_place) in [
            |victim: &Path, staged: &Path| std::os::unix::fs::symlink(victim, staged),
            |victim: &Path, staged: &Path| std::fs::hard_link(victim, staged),
        ]
        .into_iter()
        .enumerate()
        {
            in_place(&victim, &staged).unwrap();
            let catalog = Staged::new(&path).unwrap();
            rustix::io::write(catalog.file(), b"catalog").unwrap();
            catalog.publish().unwrap();
            assert_eq!(std::fs::read(&victim).unwrap(), b"content", "{round}");
            assert_eq!(std::fs::read(&path).unwrap(), b"catalog", "{round}");
            assert!(staged.symlink_metadata().is_err());
        }
        assert!(remove(&path).unwrap() && !remove(&path).unwrap());
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
