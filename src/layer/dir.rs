//! A directory that is held open: what was checked is what is used, whoever moves or replaces
//! names meanwhile.
//!
//! Invariant: after the directory has been opened, its path serves messages and records only.
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

/// Why a directory could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot open the directory {path:?}: {source}")]
pub struct OpenError {
    /// The path that was given.
    pub path: PathBuf,
    /// ENOENT, ENOTDIR, EACCES, or what else open(2) gives.
    pub source: io::Error,
}

impl OpenError {
    /// Whether open(2) gave this error.
    pub fn is(&self, errno: Errno) -> bool {
        Errno::from_io_error(&self.source) == Some(errno)
    }
}

/// A directory held open. Copies share the descriptor, which is open for reading where that is
/// allowed, else `O_PATH`.
#[derive(Clone)]
pub struct OpenDir {
    fd: Arc<OwnedFd>,
    /// Whether `fd` is open for reading.
    readable: bool,
    path: Arc<Path>,
    /// Of one in a mount of its own.
    mount: Option<Arc<Private>>,
}

/// A mount that nobody else sees.
#[derive(Debug)]
pub(super) struct Private {
    /// Dropping it costs more than closing other descriptors: it waits for the end of the mount.
    pub(super) tree: OwnedFd,
    pub(super) like: Like,
}

impl OpenDir {
    /// Opens a directory, once. Its path is from then on the one the kernel knows. Root follows no
    /// symlink on the way that another user decides on ([`walk`]).
    ///
    /// # Errors
    /// [`OpenError`] when there is none, it cannot be opened, or another user decides where the path
    /// leads (EACCES).
    pub fn open(path: impl AsRef<Path>) -> Result<Self, OpenError> {
        let path = path.as_ref();
        let fail = |source: Errno| OpenError {
            path: path.to_owned(),
            source: source.into(),
        };
        let found = walk::open_directory(path, Trust::of_root()).map_err(|source| OpenError {
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

    /// Opens a directory for reading by a call that takes flags; where that is not allowed,
    /// `O_PATH`. `path` is what messages and records call it.
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

    /// This directory, reached in `mount`, which is its own; `open` opens it there.
    pub(super) fn moved_to(
        &self,
        mount: Arc<Private>,
        open: impl Fn(OFlags) -> Result<OwnedFd, Errno>,
    ) -> Result<Self, Errno> {
        let mut moved = Self::open_by(&self.path, open)?;
        moved.mount = Some(mount);
        Ok(moved)
    }

    /// Whether it is in a mount of its own through which nothing can be written, and reading
    /// changes no access time.
    pub fn is_sealed(&self) -> bool {
        let like = self.mount.as_ref().map(|mount| mount.like);
        like.is_some_and(|like| like.read_only && like.no_atime)
    }

    /// Whether it is in a mount of its own in which reading changes no access time.
    pub fn is_quiet(&self) -> bool {
        let like = self.mount.as_ref().map(|mount| mount.like);
        like.is_some_and(|like| like.no_atime)
    }

    /// What messages and records call it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What to open it by once more, for code that takes paths only: it leads to the
    /// descriptor, not to the name.
    pub fn by_descriptor(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.fd.as_raw_fd()))
    }

    /// The same directory, opened for reading once more: with locks of its own (flock).
    ///
    /// # Errors
    /// Those of open(2), such as EACCES.
    pub fn reopen(&self) -> Result<OwnedFd, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::openat(self, c".", flags, Mode::empty())
    }

    /// A descriptor for reading, perhaps one that others use too.
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

/// Where the kernel says that the file or directory of a descriptor is (`/proc/self/fd`). `None` where it
/// has no path from here, or /proc is missing. The path of one that was removed ends in ` (deleted)`.
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

/// By path, as records have it. Two that are equal may be different directories.
impl PartialEq for OpenDir {
    fn eq(&self, other: &Self) -> bool {
        self.path == other.path
    }
}

impl Eq for OpenDir {}
