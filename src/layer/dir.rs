//! A directory that is held open: what was checked is what is used, whoever moves or replaces
//! names meanwhile.
//!
//! Invariant: after the directory has been opened, its path serves messages and records only.
//! Nothing is opened or decided by it.

use std::fmt;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;

/// Why a directory could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot open the directory {path:?}: {source}")]
pub struct OpenError {
    /// The path that was given.
    pub path: PathBuf,
    /// ENOENT, ENOTDIR, EACCES, or what else open(2) gives.
    pub source: Errno,
}

/// A directory held open. Copies share the descriptor, which is open for reading where that is
/// allowed, else `O_PATH`.
#[derive(Clone)]
pub struct OpenDir {
    fd: Arc<OwnedFd>,
    path: Arc<Path>,
}

impl OpenDir {
    /// Opens a directory, once. Its path is from then on the one the kernel knows.
    ///
    /// # Errors
    /// [`OpenError`] when there is none, or it cannot be opened.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, OpenError> {
        let path = path.as_ref();
        let fail = |source| OpenError {
            path: path.to_owned(),
            source,
        };
        let open = |flags| rustix::fs::openat(CWD, path, flags, Mode::empty());
        let fd = open_either(open).map_err(fail)?;
        let shown = match path_of(&fd) {
            Some(shown) => shown,
            None => std::path::absolute(path).map_err(|_| fail(Errno::INVAL))?,
        };
        Ok(Self::new(fd, &shown))
    }

    /// A directory that is open already; `path` is what messages and records call it.
    pub fn new(fd: OwnedFd, path: &Path) -> Self {
        Self {
            fd: Arc::new(fd),
            path: path.into(),
        }
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
        match rustix::fs::fcntl_getfl(&*self.fd)?.contains(OFlags::PATH) {
            true => self.reopen().map(Arc::new),
            false => Ok(Arc::clone(&self.fd)),
        }
    }

    /// Whether both are the same directory.
    ///
    /// # Errors
    /// Those of fstat(2).
    pub fn is_same(&self, other: &Self) -> Result<bool, Errno> {
        let identity = |dir: &Self| -> Result<_, Errno> {
            let stat = rustix::fs::statat(dir, "", AtFlags::EMPTY_PATH)?;
            debug_assert!(FileType::from_raw_mode(stat.st_mode) == FileType::Directory);
            Ok((stat.st_dev, stat.st_ino))
        };
        Ok(identity(self)? == identity(other)?)
    }
}

/// Opens a directory for reading; where that is not allowed, `O_PATH`.
pub(crate) fn open_either(
    open: impl Fn(OFlags) -> Result<OwnedFd, Errno>,
) -> Result<OwnedFd, Errno> {
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
    match open(flags | OFlags::RDONLY) {
        Err(Errno::ACCESS) => open(flags | OFlags::PATH),
        other => other,
    }
}

/// Where the kernel says a descriptor's directory is; `None` where it has no path from here.
pub(crate) fn path_of(fd: &OwnedFd) -> Option<PathBuf> {
    let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
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

/// By path, as records have it; [`OpenDir::is_same`] compares the directories.
impl PartialEq for OpenDir {
    fn eq(&self, other: &Self) -> bool {
        self.path == other.path
    }
}

impl Eq for OpenDir {}
