//! Storage drivers: find a layer's files by its cache ID. One file per directory layout.

mod aufs;
pub(crate) mod devicemapper;
mod overlay;
mod overlay2;
mod snapshots;
mod whole_trees;

use std::fmt;
use std::sync::Arc;

use super::confined_dir::{ConfinedDir, SMALL};
use super::error::{Error, Result};
use super::layer_place::LayerPlace;
use super::layerdb::CacheId;
use crate::layer::{Dialect, OpenDir, Records};
use crate::layer_tar::layer_files::LayerFiles;
use devicemapper::PoolFiles;
use whole_trees::WholeTrees;

/// The drivers whose stores can be read, in the order of the search.
pub(crate) const NAMES: [&str; 8] = [
    "overlay2",
    "fuse-overlayfs",
    "overlay",
    "aufs",
    "vfs",
    "btrfs",
    "zfs",
    devicemapper::NAME,
];

/// The dialect of whole trees, which have no markers.
const PLAIN: Dialect = Dialect {
    trusted: false,
    user: false,
    fuse_overlayfs: false,
    wh_names: false,
    records: Records::Ignored,
};

/// The layers below a layer that are visible through it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Below {
    /// All layers: the layer contains the differences from the one below.
    Layers,
    /// The image without the init layer: the layer contains a copy of the init layer.
    Image,
    /// None: the layer is a whole tree.
    Nothing,
}

/// A layer found on disk and checked against its parent.
#[derive(Clone, Debug)]
pub(crate) struct LayerDir {
    pub(crate) place: LayerPlace,
    /// The chain of this layer and all below it, in the driver's own form, for a layer made on top.
    pub(crate) chain: String,
    pub(crate) below: Below,
}

/// A layout of layers in directories.
pub(crate) trait Driver: fmt::Debug + Send + Sync {
    /// Returns Docker's name of the driver; also the name of its directories.
    fn name(&self) -> &'static str;

    /// Returns the dialect of the markers in its layers.
    fn dialect(&self) -> Dialect;

    /// Returns the directory of a layer on top of `parent`, after checking that the driver's own
    /// records agree with that.
    fn layer(
        &self,
        root: &ConfinedDir,
        id: &CacheId,
        parent: Option<&LayerDir>,
    ) -> Result<LayerDir>;

    /// Returns the directory of a layer's files below `<name>/<cache id>`, if that is a directory
    /// of this layer only, with all that [`Self::layer`] reads of it; `None` otherwise.
    fn own_dir(&self) -> Option<&'static str> {
        None
    }

    /// Returns the files of a layer that is on a device and not in a directory.
    fn device_files(&self, root: &ConfinedDir, id: &CacheId) -> Result<Box<dyn LayerFiles>> {
        let path = root.full(id.as_str());
        Err(Error::LayerDirMissing { path })
    }

    /// Returns the work directory of a container's read-write layer; `None` if the driver's layers
    /// cannot be an upper.
    fn work(&self, root: &ConfinedDir, id: &CacheId) -> Result<Option<OpenDir>>;
}

/// The drivers of podman's stores that can be read.
pub(crate) const PODMAN: [&str; 2] = ["overlay", "vfs"];

/// Returns the driver of that name, of [`PODMAN`], for podman's store owned by `owner`.
pub(crate) fn of_podman(
    root: &ConfinedDir,
    name: &str,
    owner: u32,
) -> Result<Option<Box<dyn Driver>>> {
    if name != "overlay" {
        return Ok(by_name(name, owner));
    }
    // Podman writes the file when it knows whether it mounts through fuse-overlayfs.
    let program = root.read("overlay/.has-mount-program", SMALL)?;
    let dialect = if program.is_some_and(|text| text.trim_ascii() == b"true") {
        Dialect::ALL
    } else {
        overlay2::kernel_dialect(owner)
    };
    Ok(Some(Box::new(overlay2::Overlay2::podman(dialect))))
}

/// Returns the driver of containerd's snapshotter of that name, for a store owned by `owner`.
pub(crate) fn of_containerd(name: &'static str, owner: u32) -> Box<dyn Driver> {
    let dialect = match name {
        "fuse-overlayfs" => Dialect::ALL,
        _ => overlay2::kernel_dialect(owner),
    };
    Box::new(snapshots::Snapshots::new(name, dialect))
}

/// Returns the driver devicemapper for a pool with these files; `None` if they are in the store.
pub(crate) fn of_pool(files: Option<Arc<PoolFiles>>) -> Box<dyn Driver> {
    Box::new(devicemapper::DeviceMapper::new(files))
}

/// Returns the driver of that name for a store owned by `owner`; `None` if there is none.
pub(crate) fn by_name(name: &str, owner: u32) -> Option<Box<dyn Driver>> {
    match name {
        "overlay2" => Some(Box::new(overlay2::Overlay2::kernel(owner))),
        "fuse-overlayfs" => Some(Box::new(overlay2::Overlay2::fuse_overlayfs())),
        "overlay" => Some(Box::new(overlay::Overlay::new(owner))),
        "aufs" => Some(Box::new(aufs::Aufs)),
        "vfs" => Some(Box::new(WholeTrees::Vfs)),
        "btrfs" => Some(Box::new(WholeTrees::Btrfs)),
        "zfs" => Some(Box::new(WholeTrees::Zfs)),
        devicemapper::NAME => Some(of_pool(None)),
        _ => None,
    }
}
