//! The layout of the driver aufs. Used through [`super::Driver`].
//!
//! ```text
//! aufs/diff/<cache id>/    the layer's files; whiteouts are `.wh.NAME`, `.wh..wh..opq`
//! aufs/layers/<cache id>   the cache ids below, nearest first, one a line; empty for a base
//! aufs/mnt/<cache id>/     where it is mounted
//! ```
//! (moby 20.10, daemon/graphdriver/aufs.) AUFS keeps `.wh..wh.aufs`, `.wh..wh.plnk` and
//! `.wh..wh.orph` in a layer's root. They are hidden, because their names begin with `.wh.`.

use std::path::Path;

use super::{Below, Driver, LayerDir};
use crate::layer::{Dialect, LayerSpec, OpenDir, Records};
use crate::oci::chain_id::MAX_LAYERS;
use crate::oci::text::excerpt;
use crate::store::confined_dir::ConfinedDir;
use crate::store::error::{Error, Result};
use crate::store::layer_place::LayerPlace;
use crate::store::layerdb::CacheId;

/// The size limit of a list of layers, in bytes: lines of 255 characters.
const LIMIT: u64 = MAX_LAYERS as u64 * 256;

const DIALECT: Dialect = Dialect {
    trusted: false,
    user: false,
    fuse_overlayfs: false,
    wh_names: true,
    records: Records::Ignored,
};

#[derive(Debug)]
pub(super) struct Aufs;

impl Driver for Aufs {
    fn name(&self) -> &'static str {
        "aufs"
    }

    fn dialect(&self) -> Dialect {
        DIALECT
    }

    fn layer(
        &self,
        root: &ConfinedDir,
        id: &CacheId,
        parent: Option<&LayerDir>,
    ) -> Result<LayerDir> {
        let dir = root.layer_dir(Path::new("aufs/diff").join(id.as_str()))?;
        let file = Path::new("aufs/layers").join(id.as_str());
        let found = root.read(&file, LIMIT)?;
        let expected = parent.map_or("", |parent| parent.chain.as_str());
        let lines = |bytes: &[u8]| -> Vec<Vec<u8>> {
            let lines = bytes.split(|b| *b == b'\n').map(<[u8]>::trim_ascii);
            let lines = lines.filter(|line| !line.is_empty());
            lines.map(<[u8]>::to_vec).collect()
        };
        if found.as_deref().map(lines) != Some(lines(expected.as_bytes())) {
            let text = |bytes: &[u8]| match bytes {
                b"" => "no parent".to_owned(),
                bytes => excerpt(bytes),
            };
            return Err(Error::ChainMismatch {
                path: root.full(file),
                found: found.as_deref().map_or("nothing".to_owned(), text),
                expected: text(expected.as_bytes()),
            });
        }
        let dialect = DIALECT;
        Ok(LayerDir {
            place: LayerPlace::Dir(LayerSpec { dir, dialect }),
            chain: format!("{id}\n{expected}"),
            below: Below::Layers,
        })
    }

    fn work(&self, _: &ConfinedDir, _: &CacheId) -> Result<Option<OpenDir>> {
        Ok(None)
    }
}
