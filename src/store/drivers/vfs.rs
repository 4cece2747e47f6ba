//! The layout of the driver vfs: each layer is a whole tree. Called through
//! [`super::Driver`].
//!
//! ```text
//! vfs/dir/<cache id>/    the files of the layer and of all below it
//! ```
//! (moby, daemon/graphdriver/vfs/driver.go.) The driver keeps no record of parents.

use std::path::Path;

use super::{Below, Driver, LayerDir, PLAIN};
use crate::layer::{Dialect, LayerSpec, OpenDir};
use crate::store::confined_dir::ConfinedDir;
use crate::store::error::Result;
use crate::store::layer_place::LayerPlace;
use crate::store::layerdb::CacheId;

#[derive(Debug)]
pub(super) struct Vfs;

impl Driver for Vfs {
    fn name(&self) -> &'static str {
        "vfs"
    }

    fn dialect(&self) -> Dialect {
        PLAIN
    }

    fn layer(&self, root: &ConfinedDir, id: &CacheId, _: Option<&LayerDir>) -> Result<LayerDir> {
        let dir = root.layer_dir(Path::new("vfs/dir").join(id.as_str()))?;
        let dialect = PLAIN;
        Ok(LayerDir {
            place: LayerPlace::Dir(LayerSpec { dir, dialect }),
            chain: String::new(),
            below: Below::Nothing,
        })
    }

    fn work(&self, _: &ConfinedDir, _: &CacheId) -> Result<Option<OpenDir>> {
        Ok(None)
    }
}
