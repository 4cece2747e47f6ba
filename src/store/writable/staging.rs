//! The places of files without a name: spooled data, or data that is compressed for a push.

use std::fs::File;
use std::io::{self, Seek as _};
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;

use super::Writable;
use crate::store::confined_dir::ConfinedDir;
use crate::store::error::{Error, Result};

/// A directory for files without a name.
#[derive(Clone, Debug)]
pub struct Staging(SpoolLocation);

#[derive(Clone, Debug)]
enum SpoolLocation {
    /// A directory below a store's root.
    Store(Arc<ConfinedDir>, PathBuf),
    /// [`std::env::temp_dir`].
    Temporary,
    /// Files that were made in advance in [`std::env::temp_dir`].
    Files(Arc<Mutex<Vec<File>>>),
}

impl Writable {
    /// Returns a directory on the store's file system.
    pub fn staging(&self) -> Staging {
        Staging(SpoolLocation::Store(
            Arc::clone(self.confined_root()),
            self.ours("tmp"),
        ))
    }
}

impl Staging {
    /// Returns the directory of all programs' temporary files.
    pub fn temporary() -> Self {
        Self(SpoolLocation::Temporary)
    }

    /// Makes this number of files at once in the directory of temporary files, because a confined
    /// process cannot make any there later.
    ///
    /// # Errors
    /// Those of open(2).
    pub fn of_files(count: usize) -> Result<Self> {
        let staging = Self(SpoolLocation::Files(Arc::default()));
        if let SpoolLocation::Files(files) = &staging.0 {
            for _ in 0..count {
                let file = tempfile::tempfile().map_err(|e| staging.failed(&e))?;
                files.lock().push(file);
            }
        }
        Ok(staging)
    }

    /// Returns an empty file.
    ///
    /// # Errors
    /// Those of open(2); EMFILE if all files are in use.
    pub fn file(&self) -> Result<File> {
        let files = match &self.0 {
            SpoolLocation::Store(root, dir) => return root.temporary(dir),
            SpoolLocation::Temporary => return tempfile::tempfile().map_err(|e| self.failed(&e)),
            SpoolLocation::Files(files) => files,
        };
        let file = files.lock().pop();
        let mut file = file.ok_or_else(|| self.failed(&rustix::io::Errno::MFILE.into()))?;
        let emptied = file.set_len(0).and_then(|()| file.rewind());
        emptied.map_err(|e| self.failed(&e))?;
        Ok(file)
    }

    /// Takes back a file that is not needed any more.
    pub fn done_with(&self, file: File) {
        if let SpoolLocation::Files(files) = &self.0 {
            files.lock().push(file);
        }
    }

    /// Returns the error of a failed write to such a file.
    pub(crate) fn failed(&self, error: &io::Error) -> Error {
        let errno = rustix::io::Errno::from_io_error(error).unwrap_or(rustix::io::Errno::IO);
        let place = match &self.0 {
            SpoolLocation::Store(root, dir) => root.full(dir),
            SpoolLocation::Temporary | SpoolLocation::Files(_) => std::env::temp_dir(),
        };
        Error::io("write in", &place, errno)
    }
}
