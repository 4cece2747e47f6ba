//! Which layers Docker has committed, by their cache IDs in `image/<driver>/layerdb/sha256`. Docker
//! writes the record of a layer elsewhere and renames it to this place when the layer is complete; it
//! renames it away before it removes the layer (moby, layer/filestore.go).

use std::collections::HashSet;
use std::io::Read as _;
use std::path::Path;

use super::confined_dir::{ConfinedDir, SMALL};
use super::error::Result;
use super::layerdb::{CacheId, LayerDb};
use crate::sys::walk;

/// The records of one driver's layers.
#[derive(Debug)]
pub(crate) enum CommittedLayers {
    /// The root has no records of this driver.
    None,
    /// Another user than root and this one may write to them.
    Foreign,
    /// The cache IDs of those layers that were asked for and are committed.
    Ours(HashSet<String>),
}

impl CommittedLayers {
    /// Looks for records of the layers with these cache IDs. A record is one word, so this is done before
    /// a process confines itself.
    ///
    /// # Errors
    /// Those of reading a directory or file.
    pub(crate) fn read(root: &ConfinedDir, driver: &str, wanted: &HashSet<&str>) -> Result<Self> {
        let dir = Path::new("image").join(driver).join("layerdb");
        let records = dir.join("sha256");
        if !root.exists(&records)? {
            return Ok(Self::None);
        }
        // The last one is the root itself.
        for above in records.ancestors() {
            if !root.belongs_to_us(above)? {
                return Ok(Self::Foreign);
            }
        }
        let layers = LayerDb { root, dir };
        let mut found = HashSet::new();
        for chain in layers.ids()? {
            if found.len() == wanted.len() {
                break;
            }
            let record = layers.layer(&chain);
            let name = record.join("cache-id");
            let Some(file) = root.file(&name)? else {
                continue;
            };
            let ours = walk::belongs_to_us(&file);
            let ours = ours.map_err(|error| root.failed("stat", &name, &error))?;
            if !ours || !root.belongs_to_us(&record)? {
                return Ok(Self::Foreign);
            }
            let mut id = Vec::new();
            let read = file.take(SMALL).read_to_end(&mut id);
            read.map_err(|error| root.failed("read", &name, &error))?;
            let id = CacheId::parse(id.trim_ascii());
            let id = id.filter(|id| wanted.contains(id.as_str()));
            found.extend(id.map(|id| id.as_str().to_owned()));
        }
        Ok(Self::Ours(found))
    }
}
