//! An open list of records of which nothing has been read. A process that confines itself opens such
//! files before, and reads them, which are hostile data, afterwards. podman replaces a list by a
//! rename, so an open file is a complete list.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use serde::de::DeserializeOwned;

use super::{LIMIT, parse};
use crate::store::confined_dir::ConfinedDir;
use crate::store::error::{Error, Result};
use crate::sys::walk;

#[derive(Debug)]
pub(super) struct OpenList {
    path: PathBuf,
    file: File,
}

impl OpenList {
    /// Opens a list; `None` if there is no such file.
    ///
    /// # Errors
    /// Those of opening a file, [`Error::NotAFile`].
    pub(super) fn open(dir: &ConfinedDir, name: &Path) -> Result<Option<Self>> {
        let path = dir.full(name);
        Ok(dir.file(name)?.map(|file| Self { path, file }))
    }

    /// Whether the list belongs to root or to this user, and no other user may write to it.
    ///
    /// # Errors
    /// Those of statx(2).
    pub(super) fn belongs_to_us(&self) -> Result<bool> {
        walk::belongs_to_us(&self.file).map_err(|error| self.failed(&error))
    }

    /// Returns the records.
    ///
    /// # Errors
    /// Those of reading a file, [`Error::TooLarge`], [`Error::Oci`] if it is not JSON.
    pub(super) fn read<T: DeserializeOwned>(&self) -> Result<Vec<T>> {
        parse(&self.path, &self.bytes()?)
    }

    /// Reads the file. Copies of this process share its position, so that is not used.
    fn bytes(&self) -> Result<Vec<u8>> {
        let size = self
            .file
            .metadata()
            .map_err(|error| self.failed(&error))?
            .len();
        let too_large = || Error::TooLarge {
            path: self.path.clone(),
            limit: LIMIT,
        };
        let size = usize::try_from(size).ok().filter(|_| size <= LIMIT);
        let mut bytes = vec![0; size.ok_or_else(too_large)?];
        let mut at = 0;
        while at < bytes.len() {
            match self.file.read_at(&mut bytes[at..], at as u64) {
                Ok(0) => break,
                Ok(count) => at += count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.failed(&error)),
            }
        }
        bytes.truncate(at);
        Ok(bytes)
    }

    fn failed(&self, error: &std::io::Error) -> Error {
        let errno = Errno::from_io_error(error).unwrap_or(Errno::IO);
        Error::io("read", &self.path, errno)
    }
}
