//! The layers that Docker has committed: their cache IDs, from `image/<driver>/layerdb/sha256`. Docker
//! writes the record of a layer elsewhere and renames it to this place when the layer is complete; it
//! renames it away before it removes the layer (moby, layer/filestore.go).

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use super::confined_dir::{ConfinedDir, SMALL};
use super::error::Result;
use super::layerdb::{CacheId, LayerDb};
use crate::sys::walk;

/// The cache IDs of the committed layers, of one driver.
#[derive(Debug)]
pub(crate) struct CommittedLayers {
    /// The IDs.
    pub(crate) cache_ids: HashSet<String>,
    /// Whether all records belong to root or to this user, and no other user may write to them.
    pub(crate) are_ours: bool,
}

impl CommittedLayers {
    /// Reads the records; `None` if the root has none of this driver. Those that are no records are left
    /// out. A record is one word, so this is done before a process confines itself.
    ///
    /// # Errors
    /// Those of reading a directory or file.
    pub(crate) fn read(root: &ConfinedDir, driver: &str) -> Result<Option<Self>> {
        let dir = Path::new("image").join(driver).join("layerdb");
        let records = dir.join("sha256");
        if !root.exists(&records)? {
            return Ok(None);
        }
        let mut are_ours = root.belongs_to_us(&PathBuf::new())?;
        for above in records
            .ancestors()
            .filter(|dir| !dir.as_os_str().is_empty())
        {
            are_ours &= root.belongs_to_us(above)?;
        }
        let layers = LayerDb { root, dir };
        let mut cache_ids = HashSet::new();
        for chain in layers.ids()? {
            let record = layers.layer(&chain);
            let name = record.join("cache-id");
            let Some(file) = root.file(&name)? else {
                continue;
            };
            let ours = walk::belongs_to_us(&file);
            are_ours &= ours.map_err(|error| root.failed("stat", &name, &error))?;
            are_ours &= root.belongs_to_us(&record)?;
            let id = root.read(&name, SMALL)?;
            let id = id.and_then(|id| CacheId::parse(id.trim_ascii()));
            cache_ids.extend(id.map(|id| id.as_str().to_owned()));
        }
        Ok(Some(Self {
            cache_ids,
            are_ours,
        }))
    }
}
