//! Whether layers of a store are complete: their record in `layers.json` has the digest of all their
//! files, and no container has them as its own, writable layer. containers/storage writes no files
//! of such a layer again; it can only be removed.
//!
//! ```text
//! <driver>-layers/layers.json   [{"id", "diff-digest", "flags": {"incomplete": true}}]
//! ```
//! The flag is there only while a layer is made. Older versions of containers/storage write no digest
//! for layers in the format zstd:chunked. Records in the volatile list are those of containers'
//! layers. (containers/storage, layers.go: `incompleteFlag`, `UncompressedDigest`.)

use std::collections::HashSet;
use std::path::PathBuf;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::containers::{self, RawContainer};
use super::open_list::OpenList;
use super::{CONTAINERS, LAYERS, VOLATILE_CONTAINERS, layers};
use crate::oci::Digest;
use crate::store::confined_dir::ConfinedDir;
use crate::store::error::Result;

/// What a record of a layer says of its state.
#[derive(Deserialize)]
struct LayerState {
    id: String,
    #[serde(rename = "diff-digest")]
    diff_digest: Option<String>,
    flags: Option<Flags>,
}

#[derive(Deserialize)]
struct Flags {
    incomplete: Option<IgnoredAny>,
}

impl LayerState {
    fn is_complete(&self) -> bool {
        let flags = self.flags.as_ref();
        let incomplete = flags.is_some_and(|flags| flags.incomplete.is_some());
        let digest = self.diff_digest.as_deref().and_then(Digest::parse);
        digest.is_some() && !incomplete
    }
}

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
        let dir = containers::dir(driver);
        let mut containers = Vec::new();
        for name in [CONTAINERS, VOLATILE_CONTAINERS] {
            containers.extend(OpenList::open(root, &dir.join(name))?);
        }
        Ok(Some(Self { layers, containers }))
    }

    /// Whether the lists and their directories belong to root or to this user, and no other user may
    /// write to them.
    ///
    /// # Errors
    /// Those of statx(2).
    pub(crate) fn belong_to_us(&self, root: &ConfinedDir, driver: &str) -> Result<bool> {
        for dir in [PathBuf::new(), layers::dir(driver), containers::dir(driver)] {
            if !root.belongs_to_us(&dir)? {
                return Ok(false);
            }
        }
        for list in std::iter::once(&self.layers).chain(&self.containers) {
            if !list.belongs_to_us()? {
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
        let (mut complete, mut others) = (HashSet::new(), HashSet::new());
        for layer in self.layers.read::<LayerState>()? {
            let set = if layer.is_complete() {
                &mut complete
            } else {
                &mut others
            };
            set.insert(layer.id);
        }
        for list in &self.containers {
            let records = list.read::<RawContainer>()?.into_iter();
            others.extend(records.filter_map(|container| container.layer));
        }
        complete.retain(|id| !others.contains(id));
        Ok(complete)
    }
}
