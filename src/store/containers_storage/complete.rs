//! Whether layers of a store are complete: their record in `layers.json` has the digest of all their
//! files, and no container has them as its own, writable layer. Nothing writes to such a layer again;
//! it can only be removed.
//!
//! Records of layers in the volatile lists are those of containers. (containers/storage, layers.go:
//! `incompleteFlag`, `UncompressedDigest`.)

use std::collections::HashSet;
use std::path::Path;

use super::containers::RawContainer;
use super::layers::{self, RawLayer};
use super::open_list::OpenList;
use super::{CONTAINERS, LAYERS, VOLATILE_CONTAINERS};
use crate::store::confined_dir::ConfinedDir;
use crate::store::error::Result;

/// The lists of a driver, of which nothing has been read.
#[derive(Debug)]
pub(crate) struct CompleteLayers {
    layers: OpenList,
    containers: Vec<OpenList>,
}

impl CompleteLayers {
    /// Opens the lists; `None` if the root has none.
    ///
    /// # Errors
    /// Those of opening a file.
    pub(crate) fn open(root: &ConfinedDir, driver: &str) -> Result<Option<Self>> {
        let Some(layers) = OpenList::open(root, &layers::dir(driver).join(LAYERS))? else {
            return Ok(None);
        };
        let dir = format!("{driver}-containers");
        let mut containers = Vec::new();
        for name in [CONTAINERS, VOLATILE_CONTAINERS] {
            containers.extend(OpenList::open(root, &Path::new(&dir).join(name))?);
        }
        Ok(Some(Self { layers, containers }))
    }

    /// Whether only root and this user can change the lists.
    ///
    /// # Errors
    /// Those of statx(2).
    pub(crate) fn are_trusted(&self) -> Result<bool> {
        for list in std::iter::once(&self.layers).chain(&self.containers) {
            if !list.is_trusted()? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Returns the IDs of the complete layers.
    ///
    /// # Errors
    /// Those of reading a file, [`Error::Oci`](crate::store::Error::Oci) if it is not JSON.
    pub(crate) fn ids(&self) -> Result<HashSet<String>> {
        let records = self.layers.read::<RawLayer>()?.into_iter();
        let complete = records.filter(RawLayer::is_complete);
        let mut ids: HashSet<String> = complete.map(|layer| layer.id).collect();
        for list in &self.containers {
            for container in list.read::<RawContainer>()? {
                if let Some(own) = container.layer {
                    ids.remove(&own);
                }
            }
        }
        Ok(ids)
    }
}
