//! Storage drivers: where a layer's files are, given its cache ID. One file per
//! directory layout. Called by `store` and `containers`.

mod overlay2;

use std::fmt;
use std::path::PathBuf;

use super::beneath::Beneath;
use super::error::Result;
use super::layerdb::CacheId;
use crate::layer::{Dialect, LayerSpec};

/// The drivers whose stores can be read, in the order they are searched.
pub(crate) const NAMES: [&str; 2] = ["overlay2", "fuse-overlayfs"];

/// A layer found on disk and checked against its parent.
#[derive(Clone, Debug)]
pub(crate) struct LayerDir {
    pub(crate) spec: LayerSpec,
    /// How a layer created on top names this one and all below it; the driver's own form.
    pub(crate) chain: String,
}

/// One way of keeping layers in directories.
pub(crate) trait Driver: fmt::Debug + Send + Sync {
    /// As Docker calls it; also the name of its directories.
    fn name(&self) -> &'static str;

    /// Which markers its layers have.
    fn dialect(&self) -> Dialect;

    /// The directory of a layer on top of `parent`, after checking that the driver's
    /// own records agree with that.
    fn layer(&self, root: &Beneath, id: &CacheId, parent: Option<&LayerDir>) -> Result<LayerDir>;

    /// The work directory that belongs to a container's read-write layer.
    fn work(&self, root: &Beneath, id: &CacheId) -> Result<PathBuf>;
}

/// The driver of that name for a store owned by `owner`; `None` if there is none.
pub(crate) fn by_name(name: &str, owner: u32) -> Option<Box<dyn Driver>> {
    match name {
        "overlay2" => Some(Box::new(overlay2::Overlay2::kernel(owner))),
        "fuse-overlayfs" => Some(Box::new(overlay2::Overlay2::fuse_overlayfs())),
        _ => None,
    }
}
