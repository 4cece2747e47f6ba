//! The union core's error: what was done, where, and the raw errno. The
//! transport maps it to an errno with [`Error::errno`]; the cli prints it.

use std::fmt;
use std::path::PathBuf;

/// Result of a union operation.
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
    /// The errno a system call on the union answers with; never 0.
    pub fn errno(&self) -> i32 {
        self.errno.raw_os_error()
    }

    /// Adds what was being done and on which path, for people; the errno stays.
    /// Not for the hot path: it allocates.
    pub fn context(mut self, operation: &'static str, path: impl Into<PathBuf>) -> Self {
        self.context = Some(Box::new(Context {
            operation,
            path: path.into(),
        }));
        self
    }

    /// Whether the operation failed because there is no such file.
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

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.context {
            Some(c) => write!(f, "{} {}: {}", c.operation, c.path.display(), self.errno),
            None => write!(f, "{}", self.errno),
        }
    }
}

impl std::error::Error for Error {}
