//! The records of podman's, buildah's and skopeo's store (containers/storage): which
//! images there are, which layers they have.
//!
//! ```text
//! <driver>-images/images.json           [{"id", "names", "layer"}]
//! <driver>-images/<id>/=<base64(key)>   the configuration, key `sha256:<id>`
//! <driver>-layers/layers.json           [{"id", "parent", "diff-digest", "diff-size"}]
//! <driver>-layers/volatile-layers.json  more of them; may be absent
//! <driver>-layers/<id>.tar-split.gz     as Docker's
//! ```
//! (containers/storage, images.go and layers.go; docs/containers-storage-layers.md.) A
//! layer's ID is not a digest of anything; the directories are those of overlay2 and vfs.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::confined_dir::ConfinedDir;
use super::error::{Error, Result};
use super::layerdb::{CacheId, Record};
use super::repositories::Repositories;
use crate::oci::chain_id::{self, MAX_LAYERS};
use crate::oci::text::excerpt;
use crate::oci::{Digest, json};

/// The most that is read of images.json or layers.json, in bytes.
const LIMIT: u64 = 64 << 20;

#[derive(Debug, Deserialize)]
struct RawImage {
    id: String,
    names: Option<Vec<String>>,
    layer: Option<String>,
}

#[derive(Debug, Deserialize)]
struct RawLayer {
    id: String,
    parent: Option<String>,
    #[serde(rename = "diff-digest")]
    diff_digest: Option<String>,
    #[serde(rename = "diff-size")]
    diff_size: Option<u64>,
}

/// What the records say; single bad ones are only errors when they are used.
#[derive(Debug)]
pub(crate) struct Records {
    images_json: PathBuf,
    layers_json: PathBuf,
    /// Both below the root.
    images_dir: PathBuf,
    layers_dir: PathBuf,
    /// As in the file; of records with one ID, and of images with one name, the last counts.
    images: Vec<(Digest, RawImage)>,
    by_id: HashMap<Digest, usize>,
    layers: HashMap<String, RawLayer>,
}

impl Records {
    /// Reads the records of a driver; `None` if the root has none.
    pub(crate) fn open(root: &ConfinedDir, driver: &str) -> Result<Option<Self>> {
        let images_dir = PathBuf::from(format!("{driver}-images"));
        let layers_dir = PathBuf::from(format!("{driver}-layers"));
        let images_json = images_dir.join("images.json");
        let Some(bytes) = root.read(&images_json, LIMIT)? else {
            return Ok(None);
        };
        let images: Option<Vec<RawImage>> = json::parse(&root.full(&images_json), &bytes)?;
        let images = images.into_iter().flatten();
        let images = images.filter_map(|image| Some((Digest::from_hex(&image.id)?, image)));
        let images: Vec<(Digest, RawImage)> = images.collect();
        let mut layers = HashMap::new();
        for name in ["layers.json", "volatile-layers.json"] {
            let file = layers_dir.join(name);
            let Some(bytes) = root.read(&file, LIMIT)? else {
                continue;
            };
            let more: Option<Vec<RawLayer>> = json::parse(&root.full(&file), &bytes)?;
            let more = more.into_iter().flatten();
            layers.extend(more.map(|layer| (layer.id.clone(), layer)));
        }
        Ok(Some(Self {
            images_json: root.full(images_json),
            layers_json: root.full(layers_dir.join("layers.json")),
            images_dir,
            layers_dir,
            by_id: images.iter().map(|(id, _)| *id).zip(0..).collect(),
            images,
            layers,
        }))
    }

    /// The IDs of all images, sorted. What has no digest for an ID is none.
    pub(crate) fn ids(&self) -> Vec<Digest> {
        let mut ids: Vec<Digest> = self.by_id.keys().copied().collect();
        ids.sort();
        ids
    }

    pub(crate) fn contains(&self, id: &Digest) -> bool {
        self.by_id.contains_key(id)
    }

    /// Where the names are.
    pub(crate) fn names_path(&self) -> PathBuf {
        self.images_json.clone()
    }

    /// The names of the images, as Docker would keep them.
    pub(crate) fn repositories(&self) -> Repositories {
        let images = self.images.iter().enumerate();
        let counted = images.filter(|(at, (id, _))| self.by_id.get(id) == Some(at));
        let named = counted.flat_map(|(_, (id, image))| {
            let names = image.names.iter().flatten();
            names.map(move |name| (name.as_str(), id))
        });
        Repositories::of_names(&self.images_json, named)
    }

    /// Where an image's configuration is, below the root.
    pub(crate) fn config_path(&self, id: &Digest) -> PathBuf {
        let file = format!("={}", STANDARD.encode(id.to_string()));
        self.images_dir.join(id.hex()).join(file)
    }

    /// Where a layer's tar-split is, below the root.
    pub(crate) fn tar_split(&self, id: &CacheId) -> PathBuf {
        self.layers_dir.join(format!("{id}.tar-split.gz"))
    }

    /// The records of an image's layers, base first; they must have these diff IDs.
    pub(crate) fn layers(&self, id: &Digest, diffs: &[Digest]) -> Result<Vec<Record>> {
        let image = self.by_id.get(id).and_then(|at| self.images.get(*at));
        let top = image.and_then(|(_, image)| image.layer.as_deref());
        let mut below = Vec::new();
        let mut seen = HashSet::new();
        let mut next = top.filter(|id| !id.is_empty());
        while let Some(layer) = next {
            let record = self.layer(layer)?;
            if !seen.insert(layer) || seen.len() > MAX_LAYERS {
                return Err(self.mismatch(
                    format!(
                        "more layers below {} than can be",
                        excerpt(layer.as_bytes())
                    ),
                    "a base layer",
                ));
            }
            below.push(record);
            next = record.parent.as_deref().filter(|id| !id.is_empty());
        }
        below.reverse();
        if below.len() != diffs.len() {
            return Err(self.mismatch(
                format!("{} layers for image {}", below.len(), id.short()),
                &diffs.len().to_string(),
            ));
        }
        let mut parent = None;
        let mut records = Vec::with_capacity(diffs.len());
        for (layer, diff) in below.iter().zip(diffs) {
            let record = self.record(layer, parent, diff)?;
            parent = Some(record.chain_id);
            records.push(record);
        }
        Ok(records)
    }

    fn layer(&self, id: &str) -> Result<&RawLayer> {
        self.layers.get(id).ok_or_else(|| {
            let id = excerpt(id.as_bytes());
            self.mismatch("no such layer".to_owned(), &format!("layer {id}"))
        })
    }

    fn record(&self, layer: &RawLayer, parent: Option<Digest>, diff: &Digest) -> Result<Record> {
        let cache_id = CacheId::parse(layer.id.as_bytes()).ok_or_else(|| Error::BadCacheId {
            path: self.layers_json.clone(),
            found: excerpt(layer.id.as_bytes()),
        })?;
        let stated = layer.diff_digest.as_deref();
        if stated.and_then(Digest::parse) != Some(*diff) {
            let stated = stated.map_or("nothing".to_owned(), |s| excerpt(s.as_bytes()));
            return Err(self.mismatch(
                format!("{stated} as diff-digest of layer {cache_id}"),
                &diff.to_string(),
            ));
        }
        Ok(Record {
            chain_id: chain_id::next(parent.as_ref(), diff),
            diff_id: *diff,
            parent,
            cache_id,
            size: layer.diff_size.unwrap_or(0),
        })
    }

    fn mismatch(&self, found: String, expected: &str) -> Error {
        Error::ChainMismatch {
            path: self.layers_json.clone(),
            found,
            expected: expected.to_owned(),
        }
    }
}
