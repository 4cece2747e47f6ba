//! The layouts of the drivers whose layers are whole trees: vfs, btrfs and zfs.
//!
//! ```text
//! vfs/dir/<cache id>/              the files of the layer and of all below it
//! btrfs/subvolumes/<cache id>/     the same, in a subvolume
//! zfs/graph/<cache id>/            the same, where the layer's dataset is mounted
//! ```
//! (moby, daemon/graphdriver/{vfs/driver.go, btrfs/btrfs.go, zfs/zfs.go}.) The drivers keep no
//! record of parents in files. Docker mounts the datasets of zfs only while it uses them: a
//! directory that is not a mountpoint is not the layer.

use std::path::PathBuf;

use super::{Below, Driver, LayerDir, PLAIN};
use crate::layer::{Dialect, LayerSpec, OpenDir};
use crate::store::confined_dir::ConfinedDir;
use crate::store::error::{Error, Result};
use crate::store::layer_place::LayerPlace;
use crate::store::layerdb::CacheId;

/// The driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WholeTrees {
    Vfs,
    Btrfs,
    Zfs,
}

impl WholeTrees {
    fn dir(self, id: &CacheId) -> PathBuf {
        let trees = match self {
            Self::Vfs => "vfs/dir",
            Self::Btrfs => "btrfs/subvolumes",
            Self::Zfs => "zfs/graph",
        };
        PathBuf::from(trees).join(id.as_str())
    }
}

impl Driver for WholeTrees {
    fn name(&self) -> &'static str {
        match self {
            Self::Vfs => "vfs",
            Self::Btrfs => "btrfs",
            Self::Zfs => "zfs",
        }
    }

    fn dialect(&self) -> Dialect {
        PLAIN
    }

    fn layer(&self, root: &ConfinedDir, id: &CacheId, _: Option<&LayerDir>) -> Result<LayerDir> {
        let path = self.dir(id);
        if *self == Self::Zfs && !root.is_mount_root(&path) {
            let path = root.full(path);
            return Err(Error::NotMounted { path });
        }
        let dir = root.layer_dir(path)?;
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
