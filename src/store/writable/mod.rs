//! A writable store: our own, with the layout of Docker's data root and the driver overlay2.
//!
//! ```text
//! <root>/unionfs/format            "1": marks our own store; nothing is written without it
//!                lock              flock: one writer at a time
//!                removing          flock: readers shared, removals exclusive
//!                containers/NAME   JSON: a named read-write layer (see `named_layer`)
//!                tmp/              files being written
//!                downloads/        blobs from registries, partial or complete
//!                kept/             objects of registries, kept whole (see `kept`)
//!        image/overlay2/           repositories.json, imagedb, layerdb: as in Docker's
//!        overlay2/                 the layers' directories and l/
//! ```
//! dockerd ignores `unionfs/`. Everything that is published is written beside its place, synced,
//! and moved there by one rename, in the order layer directory, layerdb entry, image, name.
//! Removals have the reverse order. So readers never see what a crash leaves, and
//! [`Exclusive::garbage`] finds it; see docs/ARCHITECTURE.md.

mod containers;
mod distribution;
mod downloads;
mod garbage;
mod images;
mod import_transaction;
mod kept;
mod layout;
mod remove;
mod repair;
mod staged;
mod staged_content;
mod staging;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::fs::FlockOperation;
use rustix::io::Errno;

pub use distribution::{KnownBlob, seen};
pub use downloads::Download;
pub use garbage::{Garbage, GarbageKind, Unused};
pub use import_transaction::ImportTransaction;
pub use kept::{Kept, StagedKept};
pub use remove::{InUse, LiveMounts, NoMounts, Removed, in_use_on};
pub use repair::LiveUse;
pub use staged::StagedLayer;
pub use staging::Staging;

use super::confined_dir::ConfinedDir;
use super::error::{Error, Result};
use super::image_store::{Cache, Store};
use super::{Image, drivers};
use crate::layer::Dialect;
use crate::oci::Digest;

/// The driver whose layout our own store has.
pub const DRIVER: &str = "overlay2";

/// Our own store.
#[derive(Debug)]
pub struct Writable {
    store: Store,
}

/// The exclusive right to change a store, until dropped. May be shared between threads.
#[derive(Debug)]
#[must_use = "the store is unlocked when this is dropped"]
pub struct Exclusive<'s> {
    writable: &'s Writable,
    /// Layers known to be valid.
    known: Mutex<Cache>,
    /// Layers that will get new files.
    distrusted: Mutex<repair::Distrusted>,
    lock: File,
}

/// The time limit of waits for the lock between readers (mounts until they are live, listings until
/// they are printed) and removals. The process that holds the lock may belong to another user and
/// never end.
const PATIENCE: Duration = Duration::from_secs(60);

/// Keeps the content of our own store from being removed. `None` if the store is not ours, or if
/// this process may not open the lock file: the owner's removals then do not wait for it.
///
/// # Errors
/// [`Error::InUse`] if another process holds the removal lock too long.
pub(super) fn hold(root: &ConfinedDir) -> Result<Option<File>> {
    let relative = Path::new(layout::OURS).join("removing");
    let Ok(Some(file)) = root.file(&relative) else {
        return Ok(None);
    };
    let path = root.full(relative);
    with_patience(root.path(), "removes from it", || {
        flock(&file, &path, FlockOperation::NonBlockingLockShared)
    })?;
    Ok(Some(file))
}

/// A lock for readers of our own store that this process may take later, and that a copy of this
/// process may take for it. While it is held, nothing is removed. A process that holds it must not
/// wait for the store itself: another one that has it may wait for the readers.
#[derive(Debug)]
pub struct Lease {
    file: File,
    root: PathBuf,
}

impl Lease {
    /// Takes the lock.
    ///
    /// # Errors
    /// [`Error::InUse`] if another process holds the removal lock too long.
    pub fn hold(&self) -> Result<()> {
        with_patience(&self.root, "removes from it", || {
            flock(
                &self.file,
                &self.root,
                FlockOperation::NonBlockingLockShared,
            )
        })
    }

    /// Gives the lock back.
    ///
    /// # Errors
    /// Those of flock(2).
    pub fn release(&self) -> Result<()> {
        flock(&self.file, &self.root, FlockOperation::Unlock)
    }

    /// Returns the file that keeps the lock until it is closed.
    pub fn into_file(self) -> File {
        self.file
    }
}

/// Tries to get a lock for a limited time.
fn with_patience<T>(
    root: &Path,
    doing: &'static str,
    mut lock: impl FnMut() -> Result<T>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        match lock() {
            Err(error) if error.errno() == Some(Errno::WOULDBLOCK) => (),
            other => return other,
        }
        if start.elapsed() >= PATIENCE {
            return Err(Error::InUse {
                what: format!("the store {root:?}"),
                by: format!("another command {doing}, try again when that has ended"),
            });
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn flock(file: &File, path: &Path, operation: FlockOperation) -> Result<()> {
    loop {
        match rustix::fs::flock(file, operation) {
            Ok(()) => return Ok(()),
            Err(Errno::INTR) => (),
            Err(errno) => return Err(Error::io("lock", path, errno)),
        }
    }
}

/// Whether a store is ours and no engine has changed it.
pub(super) fn is_ours(root: &ConfinedDir) -> bool {
    matches!(layout::is_ours(root), Ok(true))
}

impl Writable {
    /// Opens the store in `root`, and makes it if `root` does not exist or is empty.
    ///
    /// # Errors
    /// [`Error::NotOurs`] if `root` contains something else, such as a dockerd's data root,
    /// [`Error::NewerStore`] for a layout of a later version, [`Error::NotSafe`] if this process is
    /// root and another user could change what is written.
    pub fn open(root: &Path) -> Result<Self> {
        Self::at(ConfinedDir::make(root)?)
    }

    fn at(root: ConfinedDir) -> Result<Self> {
        let root = Arc::new(root);
        layout::prepare(&root)?;
        Self::of(root)
    }

    fn of(root: Arc<ConfinedDir>) -> Result<Self> {
        let owner = root.owner()?;
        let unknown = || Error::UnknownDriver {
            path: root.path().to_owned(),
            driver: DRIVER.to_owned(),
        };
        let driver = drivers::by_name(DRIVER, owner).ok_or_else(unknown)?;
        Ok(Self {
            store: Store::new(root, driver, None),
        })
    }

    /// As [`Writable::open`], but makes nothing: `None` if there is no store yet.
    ///
    /// # Errors
    /// Those of [`Writable::open`].
    pub fn existing(root: &Path) -> Result<Option<Self>> {
        match ConfinedDir::existing(root)? {
            Some(root) if layout::is_ours(&root)? => Self::at(root).map(Some),
            _ => Ok(None),
        }
    }

    /// As [`Writable::existing`], for a process that cannot write: does not make missing parts.
    ///
    /// # Errors
    /// Those of reading the store.
    pub fn to_look_at(root: &Path) -> Result<Option<Self>> {
        match ConfinedDir::existing(root)? {
            Some(root) if layout::is_ours(&root)? => Self::of(Arc::new(root)).map(Some),
            _ => Ok(None),
        }
    }

    /// Returns the store's root, absolute and without symlinks.
    pub fn root(&self) -> &Path {
        self.store.root()
    }

    /// Returns the store for reading.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Returns the dialect of this store's layers: that of kernel overlayfs as root, that of its
    /// `userxattr` form otherwise.
    pub fn dialect(&self) -> Dialect {
        self.store.driver.dialect()
    }

    /// Locks the store, and waits until no other process changes it.
    ///
    /// # Errors
    /// [`Error::Io`] if the lock file cannot be opened or locked.
    pub fn lock(&self) -> Result<Exclusive<'_>> {
        let lock = self.flock("lock", FlockOperation::LockExclusive)?;
        Ok(self.exclusive(lock))
    }

    /// As [`Writable::lock`], but does not wait: `None` while another process has the lock.
    ///
    /// # Errors
    /// Those of [`Writable::lock`].
    pub fn try_lock(&self) -> Result<Option<Exclusive<'_>>> {
        match self.flock("lock", FlockOperation::NonBlockingLockExclusive) {
            Ok(lock) => Ok(Some(self.exclusive(lock))),
            Err(error) if error.errno() == Some(Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// As [`Writable::lock`], with the lock that [`Exclusive::into_lock`] returned.
    ///
    /// # Errors
    /// [`Error::Io`] with ESTALE if that is the lock of another store.
    pub fn locked_by(&self, lock: File) -> Result<Exclusive<'_>> {
        let relative = self.ours("lock");
        if downloads::is_at(&lock, self.confined_root(), &relative)? {
            return Ok(self.exclusive(lock));
        }
        let path = self.confined_root().full(&relative);
        Err(Error::io("lock", &path, Errno::STALE))
    }

    fn exclusive(&self, lock: File) -> Exclusive<'_> {
        Exclusive {
            writable: self,
            known: Mutex::new(Cache::new()),
            distrusted: Mutex::default(),
            lock,
        }
    }

    /// Takes a lock that belongs to the descriptor. Each call opens the file anew, so threads
    /// exclude each other too.
    /// Returns a lock for readers that is not held yet.
    ///
    /// # Errors
    /// Those of open(2).
    pub fn lease(&self) -> Result<Lease> {
        Ok(Lease {
            file: self.lock_file("removing")?,
            root: self.root().to_owned(),
        })
    }

    fn lock_file(&self, name: &str) -> Result<File> {
        let relative = self.ours(name);
        let path = self.confined_root().full(&relative);
        let missing = || Error::io("open", &path, Errno::NOENT);
        self.confined_root().file(&relative)?.ok_or_else(missing)
    }

    fn flock(&self, name: &str, operation: FlockOperation) -> Result<File> {
        let file = self.lock_file(name)?;
        flock(
            &file,
            &self.confined_root().full(self.ours(name)),
            operation,
        )?;
        Ok(file)
    }

    /// Returns the root of all writes. All paths below are relative to it.
    fn confined_root(&self) -> &Arc<ConfinedDir> {
        &self.store.root
    }

    /// Returns a path in `unionfs/`.
    fn ours(&self, name: &str) -> PathBuf {
        Path::new(layout::OURS).join(name)
    }

    /// Returns a path in `image/overlay2/`.
    fn image_dir(&self, name: &str) -> PathBuf {
        ["image", DRIVER, name].iter().collect()
    }

    /// Returns a layer's directory.
    fn layer_dir(&self, cache_id: &str) -> PathBuf {
        Path::new(DRIVER).join(cache_id)
    }

    /// Returns the link of a layer's short name.
    fn short_link(&self, link: &str) -> PathBuf {
        Path::new(DRIVER).join("l").join(link)
    }
}

impl Exclusive<'_> {
    /// Returns only the lock, for [`Writable::locked_by`]: it holds no directory open.
    pub fn into_lock(self) -> File {
        self.lock
    }

    /// Returns the store that is locked.
    pub fn writable(&self) -> &Writable {
        self.writable
    }

    fn store(&self) -> &Store {
        &self.writable.store
    }

    fn confined_root(&self) -> &Arc<ConfinedDir> {
        self.writable.confined_root()
    }

    /// Whether the layer with this chain ID and all layers below it exist and are consistent. A
    /// damaged layer counts as missing: committing it again replaces it.
    ///
    /// # Errors
    /// [`Error::Io`] if that cannot be checked.
    pub fn has_layer(&self, chain: &Digest) -> Result<bool> {
        if self.is_distrusted(chain) {
            return Ok(false);
        }
        if self.known.lock().contains_key(chain) {
            return Ok(true);
        }
        match self.resolve(chain) {
            Ok(_) => Ok(true),
            Err(error @ Error::Io { .. }) => Err(error),
            Err(_) => Ok(false),
        }
    }

    /// Returns the image with that ID, with every layer verified.
    ///
    /// # Errors
    /// Those of [`Store::image`].
    pub fn image(&self, id: &Digest) -> Result<Image> {
        self.store().image(id)
    }
}
