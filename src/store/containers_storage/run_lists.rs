//! The lists in a run root: podman keeps there the records of containers of a transient store
//! (`transient_store` of storage.conf, `podman --transient-store`), which a reboot removes. Images
//! and all files of layers are in the graph root as in other stores.
//!
//! ```text
//! <driver>-layers/volatile-layers.json          [{"id", "parent"}]
//! <driver>-containers/volatile-containers.json  [{"id", "names", "image", "layer"}]
//! ```
//! (containers/storage since 1.45, layers.go and containers.go: `layerspathPrefix`, `transient`.)
//! The run root also has secrets of containers; a process that confines itself therefore opens the
//! lists before ([`OpenList`]), and keeps no access to the run root.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use super::open_list::OpenList;
use super::{VOLATILE_CONTAINERS, VOLATILE_LAYERS, containers, layers};
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
            Self::Containers => containers::dir(driver).join(VOLATILE_CONTAINERS),
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
    list: OpenList,
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
                let list = OpenList::open(&dir, &kind.path(driver))?;
                lists.extend(list.map(|list| List { driver, kind, list }));
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
            records.extend(list.list.read::<T>()?);
        }
        Ok(records)
    }
}
