//! The layers of one store of podman's: `layers.json` and the files beside it.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use serde::Deserialize;

use super::run_lists::{Kind, RunLists};
use super::{LAYERS, VOLATILE_LAYERS, list};
use crate::store::confined_dir::ConfinedDir;
use crate::store::error::Result;

/// A record of a layer.
#[derive(Debug, Deserialize)]
pub(super) struct RawLayer {
    pub(super) id: String,
    pub(super) parent: Option<String>,
    #[serde(rename = "diff-digest")]
    pub(super) diff_digest: Option<String>,
    #[serde(rename = "diff-size")]
    pub(super) diff_size: Option<u64>,
}

/// The layers of a store.
#[derive(Debug)]
pub(super) struct Layers {
    root: Arc<ConfinedDir>,
    by_id: HashMap<String, RawLayer>,
}

impl Layers {
    /// Reads the lists of a driver; of records with the same ID, the last is valid.
    ///
    /// # Errors
    /// Those of reading a file, [`Error::Oci`](crate::store::Error::Oci) if it is not JSON.
    pub(super) fn read(
        root: &Arc<ConfinedDir>,
        driver: &str,
        run_lists: &[Arc<RunLists>],
    ) -> Result<Self> {
        let mut by_id = HashMap::new();
        for name in [LAYERS, VOLATILE_LAYERS] {
            let layers = list::<RawLayer>(root, &dir(driver).join(name))?;
            let layers = layers.into_iter().flatten();
            by_id.extend(layers.map(|layer| (layer.id.clone(), layer)));
        }
        for lists in run_lists {
            let layers = lists.read::<RawLayer>(driver, Kind::Layers)?;
            by_id.extend(layers.into_iter().map(|layer| (layer.id.clone(), layer)));
        }
        let root = root.clone();
        Ok(Self { root, by_id })
    }

    pub(super) fn get(&self, id: &str) -> Option<&RawLayer> {
        self.by_id.get(id)
    }

    pub(super) fn root(&self) -> &Arc<ConfinedDir> {
        &self.root
    }
}

/// Returns the directory of a driver's lists, below the root.
pub(super) fn dir(driver: &str) -> PathBuf {
    PathBuf::from(format!("{driver}-layers"))
}
