//! An image that was found: its configuration, layers on disk, history.

use std::path::{Path, PathBuf};

use serde::{Serialize, Serializer};

use super::error::{Error, Result};
use super::layer_place::LayerPlace;
use super::layerdb::CacheId;
use super::{ImageName, Name};
use crate::layer::LayerSpec;
use crate::oci::{Config, Digest, Reference, Step};

/// One layer of an image, verified and found on disk.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct ImageLayer {
    /// The chain ID: identifies this layer with all layers below it.
    pub chain_id: Digest,
    /// The SHA-256 of the layer's tar.
    pub diff_id: Digest,
    /// The chain ID of the layer below; `None` for the base.
    pub parent: Option<Digest>,
    /// The name of the layer's directory.
    pub cache_id: CacheId,
    /// The bytes of the layer's files as Docker counts them: each inode once.
    pub size: u64,
    /// The place of its files.
    #[serde(rename = "path")]
    pub place: LayerPlace,
    /// Whether its directory also holds the files of all layers below it.
    #[serde(skip)]
    pub whole: bool,
    /// The number of images of the store that have this layer; only known in a [`super::Listing`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shared_by: Option<usize>,
}

/// An image of a store.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Image {
    /// The image ID.
    pub id: Digest,
    /// All names of the image in that store, sorted.
    pub names: Vec<Name>,
    /// The store's root.
    #[serde(serialize_with = "lossy")]
    pub root: PathBuf,
    /// The store's storage driver.
    pub driver: &'static str,
    /// The engine whose store it is: unionfs, docker, podman or containerd.
    pub engine: &'static str,
    /// The image from which this one was built, if Docker's builder recorded it.
    pub parent: Option<Digest>,
    /// The time when a name was last set, if Docker recorded it.
    pub last_updated: Option<String>,
    /// The bytes of all layers.
    pub size: u64,
    /// Its configuration.
    #[serde(flatten)]
    pub config: Config,
    /// The layers, base first; none if containerd has only pulled their blobs.
    pub layers: Vec<ImageLayer>,
    /// Whether the layers are directories; if not, the store has only their blobs, or they are on
    /// devices.
    pub unpacked: bool,
}

/// A line of `unionfs history`.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct HistoryRow {
    /// The step, as the configuration describes it.
    #[serde(flatten)]
    pub step: Step,
    /// The layer that the step made; `None` for an empty step.
    pub chain_id: Option<Digest>,
    /// The layer's size in bytes; 0 for an empty step.
    pub size: u64,
}

/// Returns the layers of a union: those of `layers`, base first, from the top down to a whole tree.
/// `None` if one of them is not a directory.
pub(crate) fn stack(layers: &[ImageLayer]) -> Option<Vec<LayerSpec>> {
    let whole = layers.iter().rposition(|layer| layer.whole).unwrap_or(0);
    let shown = layers.iter().skip(whole).rev();
    shown.map(|layer| layer.place.dir().cloned()).collect()
}

impl Image {
    /// Returns the layers' directories for a union, top first; none for an image without layers
    /// (the union's lower is then [`super::temporary_upper::empty_layer`]).
    ///
    /// # Errors
    /// [`Error::NotUnpacked`] if they are not directories.
    pub fn stack(&self) -> Result<Vec<LayerSpec>> {
        stack(&self.layers).ok_or_else(|| Error::NotUnpacked {
            image: self.label(),
            root: self.root.clone(),
            remedy: "its layers are on thin devices; mount it once, which takes it into the own store",
        })
    }

    /// Returns the build steps of the image, newest first, as `docker history` shows them. Layers
    /// for which the configuration has no step are rows without a step.
    pub fn history(&self) -> Vec<HistoryRow> {
        let mut layers = self.layers.iter();
        let mut row = |step: &Step| {
            let layer = if step.empty_layer {
                None
            } else {
                layers.next()
            };
            HistoryRow {
                step: step.clone(),
                chain_id: layer.map(|l| l.chain_id),
                size: layer.map_or(0, |l| l.size),
            }
        };
        let mut rows: Vec<HistoryRow> = self.config.history.iter().map(&mut row).collect();
        rows.extend(layers.map(|layer| HistoryRow {
            step: Step::default(),
            chain_id: Some(layer.chain_id),
            size: layer.size,
        }));
        rows.reverse();
        rows
    }

    /// Returns a label of the image for messages: its first name, or its short ID.
    pub fn label(&self) -> String {
        label(&self.names, &self.id)
    }

    /// Puts the name by which the image was asked for before its other names: it becomes the label.
    #[must_use]
    pub fn called(mut self, text: &str) -> Self {
        put_first(&mut self.names, text);
        self
    }
}

/// Puts the name that a user has typed before the others, if it is one of them.
pub(crate) fn put_first(names: &mut [Name], text: &str) {
    let typed = ImageName::parse(text).ok();
    let typed = typed.and_then(|typed| Reference::parse(typed.name()).ok());
    let at = typed.and_then(|typed| names.iter().position(|name| name.is(&typed)));
    if let Some(front) = at.and_then(|at| names.get_mut(..=at)) {
        front.rotate_right(1);
    }
}

/// Returns the label of an image with these names.
pub(crate) fn label(names: &[Name], id: &Digest) -> String {
    match names.first() {
        Some(name) => name.to_string(),
        None => id.short(),
    }
}

/// Serializes a path. JSON has no raw bytes: bytes that are not UTF-8 are replaced.
pub(crate) fn lossy<S: Serializer>(path: &Path, s: S) -> std::result::Result<S::Ok, S::Error> {
    s.serialize_str(&path.to_string_lossy())
}
