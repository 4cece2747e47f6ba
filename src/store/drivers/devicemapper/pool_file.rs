//! The two files or block devices of a pool, opened before anything in them is read, and the device
//! that uses them.

use std::fs::File;
use std::io::{Seek as _, SeekFrom};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use super::block::unreadable;
use super::{DIR, bad, in_use};
use crate::layer::dir::path_of;
use crate::store::confined_dir::ConfinedDir;
use crate::store::error::{Error, Result};
use crate::sys::walk::{self, Trust};

const GIVE: &str = "give the files or devices of the pool with --pool-data and --pool-metadata";

/// A regular file or a block device.
#[derive(Debug)]
pub(super) struct PoolFile {
    pub(super) path: PathBuf,
    file: File,
}

impl PoolFile {
    fn new(path: PathBuf, file: File) -> Result<Self> {
        let kind = file.metadata().map_err(|e| unreadable(&path, &e))?;
        if !kind.is_file() && !kind.file_type().is_block_device() {
            let fault = "it is neither a file nor a block device".to_owned();
            return Err(bad(&path, fault, GIVE));
        }
        Ok(Self { path, file })
    }

    /// Opens a file that the user names.
    fn named(path: &Path) -> Result<Self> {
        let failed = |error| Error::opening(path, error);
        let found = walk::open(path, Trust::of_root(), |_| Ok::<_, std::io::Error>(false));
        let found = found.map_err(failed)?;
        // The type is checked before the file is opened: opening another kind of device may have
        // side effects.
        use rustix::fs::FileType::{BlockDevice, RegularFile};
        if !matches!(walk::kind(&found), Some(RegularFile | BlockDevice)) {
            let fault = "it is neither a file nor a block device".to_owned();
            return Err(bad(path, fault, GIVE));
        }
        let file = walk::open_again(&found).map_err(failed)?;
        Self::new(path_of(&found).unwrap_or_else(|| path.to_owned()), file)
    }

    /// Returns a file that is only in memory.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn in_memory(path: &str, bytes: &[u8]) -> Result<Self> {
        use std::io::Write as _;

        let path = PathBuf::from(path);
        let made = rustix::fs::memfd_create("pool", rustix::fs::MemfdFlags::CLOEXEC);
        let mut file = File::from(made.map_err(|errno| Error::io("make", &path, errno))?);
        file.write_all(bytes).map_err(|e| unreadable(&path, &e))?;
        Self::new(path, file)
    }

    /// Returns the length in bytes.
    pub(super) fn length(&self) -> Result<u64> {
        let end = (&self.file).seek(SeekFrom::End(0));
        end.map_err(|error| unreadable(&self.path, &error))
    }

    /// Returns another descriptor of the file.
    pub(super) fn reopened(&self) -> Result<File> {
        let file = self.file.try_clone();
        file.map_err(|error| unreadable(&self.path, &error))
    }

    fn holder(&self) -> Option<String> {
        let kind = self.file.metadata().ok()?;
        let device = kind.file_type().is_block_device().then(|| kind.rdev());
        in_use::holder(Path::new("/sys"), device, &self.path)
    }
}

/// The files or devices of a pool.
#[derive(Debug)]
pub struct PoolFiles {
    pub(super) data: PoolFile,
    pub(super) metadata: PoolFile,
    /// The device that uses them, if that can be found out.
    pub(super) holder: Option<String>,
}

impl PoolFiles {
    /// Opens the files at these paths.
    ///
    /// # Errors
    /// Those of opening them; [`Error::Pool`] if one is neither a file nor a block device.
    pub fn open(data: &Path, metadata: &Path) -> Result<Self> {
        Ok(Self::new(
            PoolFile::named(data)?,
            PoolFile::named(metadata)?,
        ))
    }

    /// Opens the files of a pool in the store itself (loop-lvm).
    ///
    /// # Errors
    /// [`Error::Pool`] if the store has none, and those of opening them.
    pub(crate) fn of_store(root: &ConfinedDir) -> Result<Self> {
        let open = |name: &str| {
            let path = Path::new(DIR).join("devicemapper").join(name);
            let full = root.full(&path);
            match root.file(&path)? {
                Some(file) => PoolFile::new(full, file),
                None => Err(bad(
                    &full,
                    "it is missing: the pool of this store is elsewhere".to_owned(),
                    GIVE,
                )),
            }
        };
        Ok(Self::new(open("data")?, open("metadata")?))
    }

    fn new(data: PoolFile, metadata: PoolFile) -> Self {
        let holder = metadata.holder().or_else(|| data.holder());
        Self {
            data,
            metadata,
            holder,
        }
    }
}
