//! The lists in a run root: podman keeps there the records of containers of a transient store
//! (`transient_store` of storage.conf, `podman --transient-store`), which a reboot removes. Images
//! and all files of layers are in the graph root as in other stores.
//!
//! ```text
//! <driver>-layers/volatile-layers.json          [{"id", "parent"}]
//! <driver>-containers/volatile-containers.json  [{"id", "names", "image", "layer"}]
//! ```
//! (containers/storage since 1.45, layers.go and containers.go: `layerspathPrefix`, `transient`.)
//! podman replaces a list by a rename, so an open file is a complete list. The run root also has
//! secrets of containers; a process that confines itself therefore opens the lists before, and keeps
//! no access to the run root.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use serde::de::DeserializeOwned;

use super::{LIMIT, VOLATILE_CONTAINERS, VOLATILE_LAYERS, layers, parse};
use crate::store::confined_dir::ConfinedDir;
use crate::store::drivers;
use crate::store::error::{Error, Result};

/// A kind of records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Layers,
    Containers,
}

impl Kind {
    const ALL: [Self; 2] = [Self::Layers, Self::Containers];

    /// Returns the path of the list, below the run root.
    fn path(self, driver: &str) -> PathBuf {
        match self {
            Self::Layers => layers::dir(driver).join(VOLATILE_LAYERS),
            Self::Containers => {
                PathBuf::from(format!("{driver}-containers")).join(VOLATILE_CONTAINERS)
            }
        }
    }
}

/// The lists of one run root: open files of which nothing has been read.
#[derive(Debug)]
pub(crate) struct RunLists(Vec<List>);

#[derive(Debug)]
struct List {
    driver: &'static str,
    kind: Kind,
    path: PathBuf,
    file: File,
}

impl RunLists {
    /// Opens the lists; `None` if the run root has none. `owner` is the owner of the store. Another
    /// user's run root says nothing of it.
    ///
    /// # Errors
    /// Those of opening a file, [`Error::NotAFile`], [`Error::ForeignRunRoot`].
    pub(crate) fn open(run_root: &Path, owner: u32) -> Result<Option<Self>> {
        let Some(dir) = ConfinedDir::existing(run_root)? else {
            return Ok(None);
        };
        let mut lists = Vec::new();
        for driver in drivers::PODMAN {
            for kind in Kind::ALL {
                let name = kind.path(driver);
                let path = dir.full(&name);
                let file = dir.file(&name)?;
                lists.extend(file.map(|file| List {
                    driver,
                    kind,
                    path,
                    file,
                }));
            }
        }
        if lists.is_empty() {
            return Ok(None);
        }
        let found = dir.owner()?;
        if found != owner && found != 0 {
            let path = dir.path().to_owned();
            return Err(Error::ForeignRunRoot { path, found, owner });
        }
        Ok(Some(Self(lists)))
    }

    /// Returns the records of a kind.
    ///
    /// # Errors
    /// Those of reading a file, [`Error::Oci`] if it is not JSON.
    pub(super) fn read<T: DeserializeOwned>(&self, driver: &str, kind: Kind) -> Result<Vec<T>> {
        let mut records = Vec::new();
        let fits = |list: &&List| list.driver == driver && list.kind == kind;
        for list in self.0.iter().filter(fits) {
            records.extend(parse::<T>(&list.path, &list.bytes()?)?);
        }
        Ok(records)
    }
}

impl List {
    /// Reads the file. Copies of this process share its position, so that is not used.
    fn bytes(&self) -> Result<Vec<u8>> {
        let failed = |error: std::io::Error| {
            let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
            Error::io("read", &self.path, errno)
        };
        let size = self.file.metadata().map_err(failed)?.len();
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
                Err(error) => return Err(failed(error)),
            }
        }
        bytes.truncate(at);
        Ok(bytes)
    }
}
