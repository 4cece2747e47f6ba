//! An image that was found: configuration, layers on disk, history.

use std::path::{Path, PathBuf};

use serde::{Serialize, Serializer};

use super::Name;
use super::error::{Error, Result};
use super::layer_place::LayerPlace;
use super::layerdb::CacheId;
use crate::layer::LayerSpec;
use crate::oci::{Config, Digest, Step};

/// One layer of an image, verified and found on disk.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct ImageLayer {
    /// Names this layer with all below it.
    pub chain_id: Digest,
    /// The SHA-256 of the layer's tar.
    pub diff_id: Digest,
    /// The chain ID of the layer below; `None` for the base.
    pub parent: Option<Digest>,
    /// The name of the layer's directory.
    pub cache_id: CacheId,
    /// Bytes of the layer's files as Docker counts them: each inode once.
    pub size: u64,
    /// Where its files are.
    #[serde(rename = "path")]
    pub place: LayerPlace,
    /// Whether its directory holds the files of all layers below it too.
    #[serde(skip)]
    pub whole: bool,
    /// How many images of the store have this layer; only known in a [`super::Listing`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shared_by: Option<usize>,
}

/// An image of a store.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Image {
    /// The image ID.
    pub id: Digest,
    /// All its names in that store, sorted.
    pub names: Vec<Name>,
    /// The store's root.
    #[serde(serialize_with = "lossy")]
    pub root: PathBuf,
    /// The store's storage driver.
    pub driver: &'static str,
    /// The image this one was built on, where Docker's builder noted it.
    pub parent: Option<Digest>,
    /// When its name was last set, as Docker noted it.
    pub last_updated: Option<String>,
    /// Bytes of all layers.
    pub size: u64,
    /// Its configuration.
    #[serde(flatten)]
    pub config: Config,
    /// Its layers, base first; none where containerd has only pulled their blobs.
    pub layers: Vec<ImageLayer>,
    /// Whether its layers are directories; else there are only their blobs, or they are on devices.
    pub unpacked: bool,
}

/// A line of `unionfs history`.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct HistoryRow {
    /// What the configuration says of this step.
    #[serde(flatten)]
    pub step: Step,
    /// The layer it made; `None` for an empty step.
    pub chain_id: Option<Digest>,
    /// That layer's size in bytes; 0 for an empty step.
    pub size: u64,
}

/// What of these layers, base first, makes a union: top first, down to a whole tree. `None` where one of
/// them is no directory.
pub(crate) fn stack(layers: &[ImageLayer]) -> Option<Vec<LayerSpec>> {
    let whole = layers.iter().rposition(|layer| layer.whole).unwrap_or(0);
    let shown = layers.iter().skip(whole).rev();
    shown.map(|layer| layer.place.dir().cloned()).collect()
}

impl Image {
    /// The layers' directories, top first, for a union; none for an image without layers
    /// ([`super::temporary_upper::empty_layer`] is below the upper then).
    ///
    /// # Errors
    /// [`Error::NotUnpacked`] if they are no directories.
    pub fn stack(&self) -> Result<Vec<LayerSpec>> {
        stack(&self.layers).ok_or_else(|| Error::NotUnpacked {
            image: self.label(),
            root: self.root.clone(),
            remedy: "its layers are on thin devices; mount it once, which takes it into the own store",
        })
    }

    /// How the image was built, newest step first, as `docker history` shows it.
    /// Layers for which the configuration has no step come as rows without one.
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

    /// What to call the image in a message: its first name, or its short ID.
    pub fn label(&self) -> String {
        label(&self.names, &self.id)
    }
}

/// What to call an image with these names.
pub(crate) fn label(names: &[Name], id: &Digest) -> String {
    match names.first() {
        Some(name) => name.to_string(),
        None => id.short(),
    }
}

/// JSON has no bytes: a root that is not UTF-8 is shown as far as it is.
pub(crate) fn lossy<S: Serializer>(path: &Path, s: S) -> std::result::Result<S::Ok, S::Error> {
    s.serialize_str(&path.to_string_lossy())
}
