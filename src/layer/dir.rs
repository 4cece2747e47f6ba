//! A directory that is held open: the checked directory is the used one, even if names are moved or
//! replaced meanwhile.
//!
//! Invariant: after the directory has been opened, its path is only used in messages and records.
//! Nothing is opened or decided by it.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::sys::mounts::Like;
use crate::sys::walk::{self, Trust};

/// The failure to open a directory.
#[derive(Debug, thiserror::Error)]
#[error("cannot open the directory {path:?}: {source}")]
pub struct OpenError {
    /// The path that was given.
    pub path: PathBuf,
    /// ENOENT, ENOTDIR, EACCES, or another error of open(2).
    pub source: io::Error,
}

impl OpenError {
    /// Whether open(2) gave this error.
    pub fn is(&self, errno: Errno) -> bool {
        Errno::from_io_error(&self.source) == Some(errno)
    }
}

/// A directory that is held open. Copies share the descriptor. It is open for reading where that is
/// allowed, else with `O_PATH`.
#[derive(Clone)]
pub struct OpenDir {
    fd: Arc<OwnedFd>,
    /// Whether `fd` is open for reading.
    readable: bool,
    path: Arc<Path>,
    /// The private mount that contains it.
    mount: Option<Arc<Private>>,
}

/// A private mount, which no other process sees.
#[derive(Debug)]
pub(super) struct Private {
    /// The descriptor of the mount. Closing it takes longer than others, since it waits for the end
    /// of the mount.
    pub(super) tree: OwnedFd,
    pub(super) like: Like,
}

impl OpenDir {
    /// Opens a directory once. From then on it has the path that the kernel knows. Root follows no
    /// symlink on the way that another user controls ([`walk`]).
    ///
    /// # Errors
    /// [`OpenError`] if it does not exist, cannot be opened, or if another user decides where the
    /// path leads (EACCES).
    pub fn open(path: impl AsRef<Path>) -> Result<Self, OpenError> {
        Self::open_trusting(path, Trust::of_root())
    }

    /// As [`Self::open`], with the users whose symlinks are followed.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_trusting(path: impl AsRef<Path>, trust: Trust) -> Result<Self, OpenError> {
        let path = path.as_ref();
        let fail = |source: Errno| OpenError {
            path: path.to_owned(),
            source: source.into(),
        };
        let found = walk::open_directory(path, trust).map_err(|source| OpenError {
            path: path.to_owned(),
            source,
        })?;
        let open = |flags: OFlags| {
            if flags.contains(OFlags::PATH) {
                rustix::io::fcntl_dupfd_cloexec(&found, 0)
            } else {
                rustix::fs::openat(&found, c".", flags, Mode::empty())
            }
        };
        let mut dir = Self::open_by(path, open).map_err(fail)?;
        match path_of(&dir.fd) {
            Some(shown) => dir.path = shown.into(),
            None => {
                let shown = std::path::absolute(path).map_err(|_| fail(Errno::INVAL))?;
                dir.path = shown.into();
            }
        }
        Ok(dir)
    }

    /// Opens a directory for reading by a call that takes flags; with `O_PATH` where reading is not
    /// allowed. `path` is its name in messages and records.
    pub(crate) fn open_by(
        path: &Path,
        open: impl Fn(OFlags) -> Result<OwnedFd, Errno>,
    ) -> Result<Self, Errno> {
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let (fd, readable) = match open(flags | OFlags::RDONLY) {
            Err(Errno::ACCESS) => (open(flags | OFlags::PATH)?, false),
            opened => (opened?, true),
        };
        Ok(Self {
            fd: Arc::new(fd),
            readable,
            path: path.into(),
            mount: None,
        })
    }

    /// Returns this directory in `mount`, its private mount. `open` opens it there.
    pub(super) fn moved_to(
        &self,
        mount: Arc<Private>,
        open: impl Fn(OFlags) -> Result<OwnedFd, Errno>,
    ) -> Result<Self, Errno> {
        let mut moved = Self::open_by(&self.path, open)?;
        moved.mount = Some(mount);
        Ok(moved)
    }

    /// Whether it is in a private mount that allows no writes, and in which reads change no access
    /// time.
    pub fn is_sealed(&self) -> bool {
        let like = self.mount.as_ref().map(|mount| mount.like);
        like.is_some_and(|like| like.read_only && like.no_atime)
    }

    /// Whether it is in a private mount in which reads change no access time.
    pub fn is_quiet(&self) -> bool {
        let like = self.mount.as_ref().map(|mount| mount.like);
        like.is_some_and(|like| like.no_atime)
    }

    /// Returns its name for messages and records.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns a path for code that takes only paths. It leads to the descriptor, not to the name.
    pub fn by_descriptor(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.fd.as_raw_fd()))
    }

    /// Opens the same directory for reading once more, with its own locks (flock).
    ///
    /// # Errors
    /// Those of open(2), such as EACCES.
    pub fn reopen(&self) -> Result<OwnedFd, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::openat(self, c".", flags, Mode::empty())
    }

    /// Returns a descriptor for reading. It may be shared.
    ///
    /// # Errors
    /// Those of open(2), such as EACCES.
    pub fn readable(&self) -> Result<Arc<OwnedFd>, Errno> {
        if self.readable {
            Ok(Arc::clone(&self.fd))
        } else {
            self.reopen().map(Arc::new)
        }
    }
}

/// Returns the path of a descriptor's file in the kernel (`/proc/self/fd`). `None` if it has no
/// path from here, or if /proc is missing. The path of a removed file ends in ` (deleted)`.
pub fn path_of(fd: impl AsFd) -> Option<PathBuf> {
    let link = format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd());
    let path = std::fs::read_link(link).ok()?;
    path.is_absolute().then_some(path)
}

impl AsFd for OpenDir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl fmt::Debug for OpenDir {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path.fmt(f)
    }
}

/// Compares by path, as records do. Equal values may be different directories.
impl PartialEq for OpenDir {
    fn eq(&self, other: &Self) -> bool {
        self.path == other.path
    }
}

impl Eq for OpenDir {}
