//! Where files are that have no name: what is spooled, or compressed on its way out.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::Writable;
use crate::store::beneath::Beneath;
use crate::store::error::{Error, Result};

/// A directory for files without a name.
#[derive(Clone, Debug)]
pub struct Staging(Place);

#[derive(Clone, Debug)]
enum Place {
    /// A directory below a store's root.
    Store(Arc<Beneath>, PathBuf),
    /// [`std::env::temp_dir`].
    Temporary,
}

impl Writable {
    /// On the store's file system.
    pub fn staging(&self) -> Staging {
        Staging(Place::Store(Arc::clone(self.beneath()), self.ours("tmp")))
    }
}

impl Staging {
    /// Where all programs have their temporary files.
    pub fn temporary() -> Self {
        Self(Place::Temporary)
    }

    /// A new file.
    ///
    /// # Errors
    /// Those of open(2).
    pub(crate) fn file(&self) -> Result<File> {
        match &self.0 {
            Place::Store(root, dir) => root.temporary(dir),
            Place::Temporary => tempfile::tempfile().map_err(|e| self.failed(&e)),
        }
    }

    /// A failure to write such a file.
    pub(crate) fn failed(&self, error: &io::Error) -> Error {
        let errno = rustix::io::Errno::from_io_error(error).unwrap_or(rustix::io::Errno::IO);
        let place = match &self.0 {
            Place::Store(root, dir) => root.full(dir),
            Place::Temporary => std::env::temp_dir(),
        };
        Error::io("write in", &place, errno)
    }
}
