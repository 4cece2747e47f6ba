//! The directories of containerd's snapshotters. containerd's metadata has the snapshot of each
//! layer and its parents ([`crate::store::containerd`]). Used through [`super::Driver`].
//!
//! ```text
//! io.containerd.snapshotter.v1.overlayfs/snapshots/<n>/fs      what differs from the layer below
//! io.containerd.snapshotter.v1.overlayfs/snapshots/<n>/work    of a snapshot that is written to
//! io.containerd.snapshotter.v1.native/snapshots/<n>/           the whole tree
//! ```
//! (containerd: snapshots/overlay/overlay.go, snapshots/native/native.go; fuse-overlayfs-snapshotter
//! has the directories of overlayfs.)

use std::path::PathBuf;

use super::{Below, Driver, LayerDir, PLAIN};
use crate::layer::{Dialect, LayerSpec, OpenDir};
use crate::store::confined_dir::ConfinedDir;
use crate::store::containerd::snapshotter_dir;
use crate::store::error::Result;
use crate::store::layer_place::LayerPlace;
use crate::store::layerdb::CacheId;

/// A snapshotter.
#[derive(Debug)]
pub(super) struct Snapshots {
    name: &'static str,
    /// The dialect of its layers.
    dialect: Dialect,
}

impl Snapshots {
    /// Returns the snapshotter of this name, whose layers have this dialect unless they are whole
    /// trees.
    pub(super) fn new(name: &'static str, dialect: Dialect) -> Self {
        let dialect = if name == "native" { PLAIN } else { dialect };
        Self { name, dialect }
    }

    fn is_whole(&self) -> bool {
        self.name == "native"
    }

    fn snapshot(&self, id: &CacheId) -> PathBuf {
        let snapshots = snapshotter_dir(self.name).join("snapshots");
        snapshots.join(id.as_str())
    }
}

impl Driver for Snapshots {
    fn name(&self) -> &'static str {
        self.name
    }

    fn dialect(&self) -> Dialect {
        self.dialect
    }

    fn layer(&self, root: &ConfinedDir, id: &CacheId, _: Option<&LayerDir>) -> Result<LayerDir> {
        let snapshot = self.snapshot(id);
        let (dir, below) = if self.is_whole() {
            (snapshot, Below::Nothing)
        } else {
            (snapshot.join("fs"), Below::Layers)
        };
        let spec = LayerSpec {
            dir: root.layer_dir(dir)?,
            dialect: self.dialect,
        };
        Ok(LayerDir {
            place: LayerPlace::Dir(spec),
            chain: String::new(),
            below,
        })
    }

    fn work(&self, root: &ConfinedDir, id: &CacheId) -> Result<Option<OpenDir>> {
        if self.is_whole() {
            Ok(None)
        } else {
            root.layer_dir(self.snapshot(id).join("work")).map(Some)
        }
    }
}
