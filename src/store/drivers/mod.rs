//! Storage drivers: where a layer's files are, given its cache ID. One file per directory layout.

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
use crate::layer::{Dialect, OpenDir};
use crate::layer_tar::layer_files::LayerFiles;
use devicemapper::PoolFiles;
use whole_trees::WholeTrees;

/// The drivers whose stores can be read, in the order they are searched.
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

/// Of whole trees: nothing in them is a marker.
const PLAIN: Dialect = Dialect {
    trusted: false,
    user: false,
    fuse_overlayfs: false,
    wh_names: false,
};

/// What of the layers below a layer shows through it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Below {
    /// All of them: it holds what differs from the one below.
    Layers,
    /// The image, but no init layer: of that it has a copy.
    Image,
    /// None: it is a whole tree.
    Nothing,
}

/// A layer found on disk and checked against its parent.
#[derive(Clone, Debug)]
pub(crate) struct LayerDir {
    pub(crate) place: LayerPlace,
    /// How a layer created on top names this one and all below it; the driver's own form.
    pub(crate) chain: String,
    pub(crate) below: Below,
}

/// One way of keeping layers in directories.
pub(crate) trait Driver: fmt::Debug + Send + Sync {
    /// As Docker calls it; also the name of its directories.
    fn name(&self) -> &'static str;

    /// Which markers its layers have.
    fn dialect(&self) -> Dialect;

    /// The directory of a layer on top of `parent`, after checking that the driver's
    /// own records agree with that.
    fn layer(
        &self,
        root: &ConfinedDir,
        id: &CacheId,
        parent: Option<&LayerDir>,
    ) -> Result<LayerDir>;

    /// The directory with a layer's files below `<name>/<cache id>`, where that is a directory
    /// of the layer's own with all that [`Self::layer`] reads of it; `None`: it is elsewhere.
    fn own_dir(&self) -> Option<&'static str> {
        None
    }

    /// The files of a layer that is on a device and in no directory.
    fn device_files(&self, root: &ConfinedDir, id: &CacheId) -> Result<Box<dyn LayerFiles>> {
        let path = root.full(id.as_str());
        Err(Error::LayerDirMissing { path })
    }

    /// The work directory that belongs to a container's read-write layer; `None` where
    /// the driver's layers cannot be an upper.
    fn work(&self, root: &ConfinedDir, id: &CacheId) -> Result<Option<OpenDir>>;
}

/// The drivers of podman's stores that can be read.
pub(crate) const PODMAN: [&str; 2] = ["overlay", "vfs"];

/// The driver of that name, of [`PODMAN`], for podman's store owned by `owner`.
pub(crate) fn of_podman(
    root: &ConfinedDir,
    name: &str,
    owner: u32,
) -> Result<Option<Box<dyn Driver>>> {
    if name != "overlay" {
        return Ok(by_name(name, owner));
    }
    // Written by podman once it knows whether it mounts through fuse-overlayfs.
    let program = root.read("overlay/.has-mount-program", SMALL)?;
    let fuse = program.is_some_and(|text| text.trim_ascii() == b"true");
    Ok(Some(Box::new(overlay2::Overlay2::podman(owner, fuse))))
}

/// The directories of containerd's snapshotter of that name, of a store owned by `owner`.
pub(crate) fn of_containerd(name: &'static str, owner: u32) -> Box<dyn Driver> {
    let dialect = match name {
        "fuse-overlayfs" => Dialect::ALL,
        _ => overlay2::kernel_dialect(owner),
    };
    Box::new(snapshots::Snapshots::new(name, dialect))
}

/// The driver devicemapper, of a pool with these files; `None`: the store has them.
pub(crate) fn of_pool(files: Option<Arc<PoolFiles>>) -> Box<dyn Driver> {
    Box::new(devicemapper::DeviceMapper::new(files))
}

/// The driver of that name for a store owned by `owner`; `None` if there is none.
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
