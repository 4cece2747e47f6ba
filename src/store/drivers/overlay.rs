//! The layout of the first overlay driver, for kernels with one lower directory: an image's layer
//! is a whole tree that shares files with its parent's as hard links. Used through
//! [`super::Driver`].
//!
//! ```text
//! overlay/<cache id>/root/       an image's layer: its files and all below
//! overlay/<cache id>/lower-id    a container's layer: the cache id whose root/ it lies on
//!                    upper/      what differs from that; begins as a copy of the init layer's
//!                    work/ merged/
//! ```
//! (moby 20.10, daemon/graphdriver/overlay/overlay.go.)

use std::path::{Path, PathBuf};

use super::{Below, Driver, LayerDir, PLAIN, overlay2};
use crate::layer::{Dialect, LayerSpec, OpenDir};
use crate::oci::text::excerpt;
use crate::store::confined_dir::{ConfinedDir, SMALL};
use crate::store::error::{Error, Result};
use crate::store::layer_place::LayerPlace;
use crate::store::layerdb::CacheId;

#[derive(Debug)]
pub(super) struct Overlay {
    /// The dialect that kernel overlayfs writes for the store's owner.
    dialect: Dialect,
}

impl Overlay {
    pub(super) fn new(owner: u32) -> Self {
        let dialect = overlay2::kernel_dialect(owner);
        Self { dialect }
    }
}

fn path(id: &CacheId, file: &str) -> PathBuf {
    Path::new("overlay").join(id.as_str()).join(file)
}

impl Driver for Overlay {
    fn name(&self) -> &'static str {
        "overlay"
    }

    fn dialect(&self) -> Dialect {
        self.dialect
    }

    fn layer(
        &self,
        root: &ConfinedDir,
        id: &CacheId,
        parent: Option<&LayerDir>,
    ) -> Result<LayerDir> {
        let tree = path(id, "root");
        let file = path(id, "lower-id");
        let lower = root.read(&file, SMALL)?;
        // An empty layer of an image may still be an overlay, as it was during the build.
        if lower.is_none() || root.exists(&tree)? {
            let dir = root.layer_dir(tree)?;
            let dialect = PLAIN;
            return Ok(LayerDir {
                place: LayerPlace::Dir(LayerSpec { dir, dialect }),
                chain: id.to_string(),
                below: Below::Nothing,
            });
        }
        let expected = parent.map(|parent| parent.chain.as_str());
        if lower.as_deref().map(<[u8]>::trim_ascii) != expected.map(str::as_bytes) {
            return Err(Error::ChainMismatch {
                path: root.full(file),
                found: lower.as_deref().map_or("nothing".to_owned(), excerpt),
                expected: expected.unwrap_or("no parent").to_owned(),
            });
        }
        let dir = root.layer_dir(path(id, "upper"))?;
        let dialect = self.dialect;
        Ok(LayerDir {
            place: LayerPlace::Dir(LayerSpec { dir, dialect }),
            chain: expected.unwrap_or_default().to_owned(),
            below: Below::Image,
        })
    }

    fn work(&self, root: &ConfinedDir, id: &CacheId) -> Result<Option<OpenDir>> {
        root.layer_dir(path(id, "work")).map(Some)
    }
}
