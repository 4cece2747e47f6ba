//! The records of podman's, buildah's, skopeo's and CRI-O's store (containers/storage): the images,
//! their layers, and the containers.
//!
//! ```text
//! <driver>-images/images.json                   [{"id", "names", "layer"}]
//! <driver>-images/<id>/=<base64(key)>           the configuration, key `sha256:<id>`
//! <driver>-layers/layers.json                   [{"id", "parent", "diff-digest", "diff-size"}]
//! <driver>-layers/volatile-layers.json          more of them; may be absent
//! <driver>-layers/<id>.tar-split.gz             as Docker's
//! <driver>-containers/containers.json           [{"id", "names", "image", "layer"}]
//! <driver>-containers/volatile-containers.json  more of them; may be absent
//! ```
//! In a transient store the two volatile lists are in the run root, see [`run_lists`].
//! (containers/storage, images.go, layers.go and containers.go; docs/containers-storage-layers.md.)
//! A layer's ID is not a digest. The directories are those of overlay2 and vfs. Images may lie on
//! layers of additional stores (`additionalimagestores` of storage.conf), which have the same
//! layout in other roots.

mod complete;
mod containers;
mod layers;
mod open_list;
mod run_lists;

pub(crate) use complete::CompleteLayers;
pub(crate) use run_lists::RunLists;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use self::containers::RawContainer;
use self::layers::{Layers, RawLayer};
use super::confined_dir::ConfinedDir;
use super::error::{Error, Result};
use super::layerdb::{CacheId, Record};
use super::repositories::Repositories;
use crate::oci::chain_id::{self, MAX_LAYERS};
use crate::oci::text::excerpt;
use crate::oci::{Digest, json};

/// The size limit of images.json or layers.json, in bytes.
const LIMIT: u64 = 64 << 20;

const LAYERS: &str = "layers.json";
const CONTAINERS: &str = "containers.json";
const VOLATILE_LAYERS: &str = "volatile-layers.json";
const VOLATILE_CONTAINERS: &str = "volatile-containers.json";

#[derive(Debug, Deserialize)]
struct RawImage {
    id: String,
    names: Option<Vec<String>>,
    layer: Option<String>,
}

/// The records of a store. A bad record is an error only when it is used.
#[derive(Debug)]
pub(crate) struct Records {
    root: Arc<ConfinedDir>,
    driver: String,
    images_json: PathBuf,
    /// The directory of images.json, below the root.
    images_dir: PathBuf,
    /// The images as in the file; of records with the same ID or the same name, the last is valid.
    images: Vec<(Digest, RawImage)>,
    by_id: HashMap<Digest, usize>,
    /// The layers of this store, then those of stores that its images may lie on.
    layers: Vec<Arc<Layers>>,
    /// The containers; read when they are first needed.
    containers: OnceLock<HashMap<String, RawContainer>>,
    /// The lists of the store's run roots.
    run_lists: Vec<Arc<RunLists>>,
}

impl Records {
    /// Reads the records of a driver; `None` if the root has none.
    pub(crate) fn open(
        root: &Arc<ConfinedDir>,
        driver: &str,
        run_lists: &[Arc<RunLists>],
    ) -> Result<Option<Self>> {
        let images_dir = PathBuf::from(format!("{driver}-images"));
        let images_json = images_dir.join("images.json");
        let Some(images) = list::<RawImage>(root, &images_json)? else {
            return Ok(None);
        };
        let images = images.into_iter();
        let images = images.filter_map(|image| Some((Digest::from_hex(&image.id)?, image)));
        let images: Vec<(Digest, RawImage)> = images.collect();
        Ok(Some(Self {
            root: root.clone(),
            driver: driver.to_owned(),
            images_json: root.full(images_json),
            images_dir,
            by_id: images.iter().map(|(id, _)| *id).zip(0..).collect(),
            images,
            layers: vec![Arc::new(Layers::read(root, driver, run_lists)?)],
            containers: OnceLock::new(),
            run_lists: run_lists.to_vec(),
        }))
    }

    /// Allows images to lie on layers of these other stores of podman's, if they have the same
    /// driver.
    pub(crate) fn add_layers_of<'r>(&mut self, others: impl Iterator<Item = &'r LayerList>) {
        for other in others.filter(|other| other.driver == self.driver) {
            if !self
                .layers
                .iter()
                .any(|own| Arc::ptr_eq(own, &other.layers))
            {
                self.layers.push(other.layers.clone());
            }
        }
    }

    /// Returns the layers of this store, for other stores whose images lie on them.
    pub(crate) fn layer_list(&self) -> Option<LayerList> {
        let layers = self.layers.first()?.clone();
        let driver = self.driver.clone();
        Some(LayerList { driver, layers })
    }

    /// Returns the root that contains a layer's directory and tar-split.
    pub(crate) fn root_of(&self, id: &CacheId) -> &Arc<ConfinedDir> {
        let mut lists = self.layers.iter();
        let found = lists.find(|layers| layers.get(id.as_str()).is_some());
        found.map_or(&self.root, |layers| layers.root())
    }

    /// Returns the IDs of all images, sorted. Images whose ID is not a digest are left out.
    pub(crate) fn ids(&self) -> Vec<Digest> {
        let mut ids: Vec<Digest> = self.by_id.keys().copied().collect();
        ids.sort();
        ids
    }

    pub(crate) fn contains(&self, id: &Digest) -> bool {
        self.by_id.contains_key(id)
    }

    /// Returns the path of the file of names.
    pub(crate) fn names_path(&self) -> PathBuf {
        self.images_json.clone()
    }

    /// Returns the names of the images, in the form in which Docker keeps them.
    pub(crate) fn repositories(&self) -> Repositories {
        let images = self.images.iter().enumerate();
        let counted = images.filter(|(at, (id, _))| self.by_id.get(id) == Some(at));
        let named = counted.flat_map(|(_, (id, image))| {
            let names = image.names.iter().flatten();
            names.map(move |name| (name.as_str(), id))
        });
        Repositories::of_names(&self.images_json, named)
    }

    /// Returns the path of an image's configuration, below the root.
    pub(crate) fn config_path(&self, id: &Digest) -> PathBuf {
        let file = format!("={}", STANDARD.encode(id.to_string()));
        self.images_dir.join(id.hex()).join(file)
    }

    /// Returns the path of a layer's tar-split, below the root.
    pub(crate) fn tar_split(&self, id: &CacheId) -> PathBuf {
        layers::dir(&self.driver).join(format!("{id}.tar-split.gz"))
    }

    /// Returns the records of an image's layers, base first; they must have these diff IDs.
    pub(crate) fn layers(&self, id: &Digest, diffs: &[Digest]) -> Result<Vec<Record>> {
        let image = self.by_id.get(id).and_then(|at| self.images.get(*at));
        let top = image.and_then(|(_, image)| image.layer.as_deref());
        self.records(id, &self.chain_from(top)?, diffs)
    }

    /// Returns a layer and all layers below it, base first.
    fn chain_from(&self, top: Option<&str>) -> Result<Vec<&RawLayer>> {
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
        Ok(below)
    }

    /// Returns the records of layers, base first, which must be those of an image with these diff
    /// IDs.
    fn records(
        &self,
        image: &Digest,
        layers: &[&RawLayer],
        diffs: &[Digest],
    ) -> Result<Vec<Record>> {
        if layers.len() != diffs.len() {
            return Err(self.mismatch(
                format!("{} layers for image {}", layers.len(), image.short()),
                &diffs.len().to_string(),
            ));
        }
        let mut parent = None;
        let mut records = Vec::with_capacity(diffs.len());
        for (layer, diff) in layers.iter().zip(diffs) {
            let record = self.record(layer, parent, diff)?;
            parent = Some(record.chain_id);
            records.push(record);
        }
        Ok(records)
    }

    fn layer(&self, id: &str) -> Result<&RawLayer> {
        let mut lists = self.layers.iter();
        lists.find_map(|layers| layers.get(id)).ok_or_else(|| {
            let id = excerpt(id.as_bytes());
            self.mismatch("no such layer".to_owned(), &format!("layer {id}"))
        })
    }

    fn layers_json(&self) -> PathBuf {
        self.root.full(layers::dir(&self.driver).join(LAYERS))
    }

    fn record(&self, layer: &RawLayer, parent: Option<Digest>, diff: &Digest) -> Result<Record> {
        let cache_id = self.cache_id(layer)?;
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

    fn cache_id(&self, layer: &RawLayer) -> Result<CacheId> {
        CacheId::parse(layer.id.as_bytes()).ok_or_else(|| Error::BadCacheId {
            path: self.layers_json(),
            found: excerpt(layer.id.as_bytes()),
        })
    }

    fn mismatch(&self, found: String, expected: &str) -> Error {
        Error::ChainMismatch {
            path: self.layers_json(),
            found,
            expected: expected.to_owned(),
        }
    }
}

/// The layers of a store, for other stores.
#[derive(Clone, Debug)]
pub(crate) struct LayerList {
    driver: String,
    layers: Arc<Layers>,
}

/// Reads a file with a list of records; `None` if there is no such file.
fn list<T: DeserializeOwned>(root: &ConfinedDir, file: &Path) -> Result<Option<Vec<T>>> {
    let Some(bytes) = root.read(file, LIMIT)? else {
        return Ok(None);
    };
    parse(&root.full(file), &bytes).map(Some)
}

fn parse<T: DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<Vec<T>> {
    // Go writes an empty list as null.
    let records: Option<Vec<T>> = json::parse(path, bytes)?;
    Ok(records.unwrap_or_default())
}
