//! The error type of the union core: an errno, and for messages the failed operation and its path.
//!
//! A transport replies with [`Error::errno`]. The command line prints the whole error.

use std::fmt;
use std::path::PathBuf;

/// The result of a union operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failed operation of the union.
#[derive(Debug)]
pub struct Error {
    errno: rustix::io::Errno,
    context: Option<Box<Context>>,
}

#[derive(Debug)]
struct Context {
    operation: &'static str,
    path: PathBuf,
}

impl Error {
    /// Returns the errno for the reply to a system call; never 0.
    pub fn errno(&self) -> i32 {
        self.errno.raw_os_error()
    }

    /// Adds the operation and the path for messages; the errno stays. Allocates, so it is not for
    /// frequent errors.
    #[must_use]
    pub fn context(mut self, operation: &'static str, path: impl Into<PathBuf>) -> Self {
        self.context = Some(Box::new(Context {
            operation,
            path: path.into(),
        }));
        self
    }

    /// Whether the errno is ENOENT.
    pub fn is_not_found(&self) -> bool {
        self.errno == rustix::io::Errno::NOENT
    }
}

impl From<rustix::io::Errno> for Error {
    fn from(errno: rustix::io::Errno) -> Self {
        Self {
            errno,
            context: None,
        }
    }
}

impl From<crate::lowers::OpenError> for Error {
    fn from(error: crate::lowers::OpenError) -> Self {
        Self::from(error.errno).context(error.what, error.path)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.context {
            Some(c) => write!(f, "{} {}: {}", c.operation, c.path.display(), self.errno),
            None => write!(f, "{}", self.errno),
        }
    }
}

impl std::error::Error for Error {}
