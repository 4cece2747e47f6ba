//! One store: a root and one storage driver. Combines repositories, imagedb, layerdb and the
//! driver.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use super::Name;
use super::confined_dir::ConfinedDir;
use super::drivers::{Below, Driver, LayerDir};
use super::error::Result;
use super::image::{Image, ImageLayer};
use super::imagedb::{self, ImageDb, Metadata};
use super::layerdb::{CacheId, LayerDb, Record};
use super::records::Records;
use super::repositories::{self, Repositories};
use super::writable;
use crate::oci::{Config, Digest};

/// One image store with one driver: Docker's data root or one with its layout, podman's or
/// containerd's.
#[derive(Debug)]
pub struct Store {
    pub(crate) root: Arc<ConfinedDir>,
    pub(crate) driver: Box<dyn Driver>,
    /// The records of podman's or containerd's store; `None` if the store has Docker's files.
    pub(crate) records: Option<Records>,
    /// What [`Self::engine`] found.
    engine: OnceLock<&'static str>,
}

/// A layer that was resolved before, for stacks that share it.
#[derive(Clone, Debug)]
pub(crate) struct Resolved {
    pub(crate) record: Record,
    pub(crate) dir: LayerDir,
}

/// The layers that were resolved, by chain ID.
pub(crate) type Cache = HashMap<Digest, Arc<Resolved>>;

impl Store {
    pub(crate) fn new(
        root: Arc<ConfinedDir>,
        driver: Box<dyn Driver>,
        records: Option<Records>,
    ) -> Self {
        let engine = OnceLock::new();
        Self {
            root,
            driver,
            records,
            engine,
        }
    }

    /// Returns the store's root directory.
    pub fn root(&self) -> &Path {
        self.root.path()
    }

    /// Whether it is our own store and no engine has changed it.
    pub(crate) fn is_ours(&self) -> bool {
        self.records.is_none() && writable::is_ours(&self.root)
    }

    /// Returns the engine whose store it is: unionfs, docker, podman or containerd. The store is
    /// looked at once.
    pub fn engine(&self) -> &'static str {
        self.engine.get_or_init(|| match &self.records {
            Some(Records::Podman(_)) => "podman",
            Some(Records::Containerd(_)) => "containerd",
            None if writable::is_ours(&self.root) => "unionfs",
            None => "docker",
        })
    }

    /// Returns the storage driver's name.
    pub fn driver(&self) -> &'static str {
        self.driver.name()
    }

    fn dir(&self, name: &str) -> PathBuf {
        Path::new("image").join(self.driver.name()).join(name)
    }

    pub(crate) fn imagedb(&self) -> ImageDb<'_> {
        ImageDb {
            root: &self.root,
            dir: self.dir("imagedb"),
        }
    }

    pub(crate) fn layerdb(&self) -> LayerDb<'_> {
        LayerDb {
            root: &self.root,
            dir: self.dir("layerdb"),
        }
    }

    /// Returns the IDs of all images, sorted.
    pub(crate) fn ids(&self) -> Result<Vec<Digest>> {
        match &self.records {
            Some(records) => records.ids(),
            None => self.imagedb().ids(),
        }
    }

    /// Whether there is an image with that ID.
    pub(crate) fn contains(&self, id: &Digest) -> Result<bool> {
        Ok(self.meant_by(id, None)? == Some(*id))
    }

    /// Returns the ID of the image that a digest means. The digest is the image's ID, or in
    /// containerd's store that of its manifest or index. `namespace`: the only one of containerd's
    /// that counts.
    pub(crate) fn meant_by(
        &self,
        digest: &Digest,
        namespace: Option<&str>,
    ) -> Result<Option<Digest>> {
        match &self.records {
            Some(records) => records.meant_by(digest, namespace),
            None => Ok(self.imagedb().contains(digest)?.then_some(*digest)),
        }
    }

    /// Returns all digests that mean an image, each with the image's ID; of containerd's store those
    /// of a namespace if one is given.
    pub(crate) fn digests(&self, namespace: Option<&str>) -> Result<Vec<(Digest, Digest)>> {
        match &self.records {
            Some(records) => records.digests(namespace),
            None => Ok(self.ids()?.into_iter().map(|id| (id, id)).collect()),
        }
    }

    /// Returns the IDs of all containers whose layers can be read, sorted.
    pub(crate) fn containers(&self) -> Result<Vec<CacheId>> {
        match &self.records {
            None => self.layerdb().containers(),
            Some(records) => records.containers(),
        }
    }

    /// Returns the path of the store's file of names.
    pub(crate) fn repositories_path(&self) -> PathBuf {
        if let Some(records) = &self.records {
            return records.names_path();
        }
        self.root.full(self.dir("repositories.json"))
    }

    /// Returns the names of the images; `None` if the file is missing.
    pub(crate) fn repositories(&self) -> Result<Option<Repositories>> {
        self.repositories_in(None)
    }

    /// As [`Self::repositories`]; of containerd's store those of a namespace if one is given.
    pub(crate) fn repositories_in(&self, namespace: Option<&str>) -> Result<Option<Repositories>> {
        if let Some(records) = &self.records {
            return records.repositories(namespace).map(Some);
        }
        let bytes = self
            .root
            .read(self.dir("repositories.json"), repositories::LIMIT)?;
        bytes
            .map(|bytes| Repositories::parse(&self.repositories_path(), &bytes))
            .transpose()
    }

    /// Returns the image with that ID, with every layer verified.
    ///
    /// # Errors
    /// [`Error`](super::Error): `ConfigMissing`, `ConfigHash` or `Oci` for the configuration; `LayerMissing`,
    /// `ChainMismatch` and others for a layer that is missing or damaged; `Io`.
    pub fn image(&self, id: &Digest) -> Result<Image> {
        self.image_with(id, self.names_of(id)?, &mut Cache::new())
    }

    /// Returns the names of an image, sorted.
    pub(crate) fn names_of(&self, id: &Digest) -> Result<Vec<Name>> {
        let mut names = Vec::new();
        if let Some(repositories) = self.repositories()? {
            // Bad entries do not concern this image.
            let all = repositories.all().filter_map(Result::ok);
            names.extend(all.filter(|(_, i)| i == id).map(|(name, _)| name));
        }
        Ok(names)
    }

    /// Returns the bytes of an image's configuration, whose SHA-256 is its ID, and the file's path.
    ///
    /// # Errors
    /// [`Error`](super::Error): `ConfigMissing`, `ConfigHash`, `TooLarge`, `Io`.
    pub fn config_bytes(&self, id: &Digest) -> Result<(PathBuf, Vec<u8>)> {
        let file = self.config_file(id);
        let bytes = imagedb::bytes_at(&self.root, &file, id)?;
        Ok((self.root.full(file), bytes))
    }

    /// Returns the path of an image's configuration, below the root.
    fn config_file(&self, id: &Digest) -> PathBuf {
        match &self.records {
            Some(records) => records.config_path(id),
            None => self.imagedb().content(id),
        }
    }

    /// As [`Store::image`], with data that a listing already has.
    pub(crate) fn image_with(
        &self,
        id: &Digest,
        names: Vec<Name>,
        cache: &mut Cache,
    ) -> Result<Image> {
        let (config, metadata, layers) = match &self.records {
            None => {
                let imagedb = self.imagedb();
                let config = imagedb.config(id)?;
                let layers = self.layers(&config.diff_ids, cache)?;
                (config, imagedb.metadata(id)?, layers)
            }
            Some(records) => {
                let config = imagedb::config_at(&self.root, &records.config_path(id), id)?;
                let found = records.layers(id, &config.diff_ids)?;
                let layers = self.directories(found, cache)?;
                (config, Metadata::default(), layers)
            }
        };
        let layers = layers.iter().map(|layer| layer_of(layer)).collect();
        Ok(Image {
            parent: metadata.parent,
            last_updated: metadata.last_updated,
            ..self.made_of(id, names, config, layers)
        })
    }

    /// Returns an image whose layers are in the store only as blobs, not as directories.
    pub(super) fn packed_image(&self, id: &Digest, names: Vec<Name>) -> Result<Image> {
        let config = imagedb::config_at(&self.root, &self.config_file(id), id)?;
        Ok(Image {
            unpacked: false,
            ..self.made_of(id, names, config, Vec::new())
        })
    }

    fn made_of(
        &self,
        id: &Digest,
        names: Vec<Name>,
        config: Config,
        layers: Vec<ImageLayer>,
    ) -> Image {
        Image {
            id: *id,
            names,
            root: self.root().to_owned(),
            driver: self.driver(),
            engine: self.engine(),
            parent: None,
            last_updated: None,
            size: layers.iter().fold(0, |sum, l| sum.saturating_add(l.size)),
            config,
            unpacked: layers.iter().all(|layer| layer.place.dir().is_some()),
            layers,
        }
    }

    /// Finds and verifies the layers with these diff IDs, base first.
    pub(crate) fn layers(&self, diffs: &[Digest], cache: &mut Cache) -> Result<Vec<Arc<Resolved>>> {
        let layerdb = self.layerdb();
        let mut out: Vec<Arc<Resolved>> = Vec::with_capacity(diffs.len());
        for diff in diffs {
            let below = out.last();
            let parent = below.map(|below| below.record.chain_id);
            let chain = crate::oci::chain_id::next(parent.as_ref(), diff);
            if let Some(known) = cache.get(&chain) {
                out.push(known.clone());
                continue;
            }
            let record = layerdb.checked(parent.as_ref(), diff)?;
            let dir = self
                .driver
                .layer(&self.root, &record.cache_id, below.map(|b| &b.dir))?;
            let resolved = Arc::new(Resolved { record, dir });
            cache.insert(chain, resolved.clone());
            out.push(resolved);
        }
        Ok(out)
    }

    /// Returns the root that contains a layer's files.
    pub(super) fn root_of(&self, id: &CacheId) -> &ConfinedDir {
        let elsewhere = self
            .records
            .as_ref()
            .and_then(|records| records.root_of(id));
        elsewhere.unwrap_or(&self.root)
    }

    /// Finds the directories of layers whose records are known, base first.
    pub(super) fn directories(
        &self,
        records: Vec<Record>,
        cache: &mut Cache,
    ) -> Result<Vec<Arc<Resolved>>> {
        let mut out: Vec<Arc<Resolved>> = Vec::with_capacity(records.len());
        for record in records {
            // Podman may have the same layer twice, with different directories below.
            let known = cache.get(&record.chain_id);
            if let Some(known) = known.filter(|known| known.record.cache_id == record.cache_id) {
                out.push(known.clone());
                continue;
            }
            let below = out.last().map(|below| &below.dir);
            let root = self.root_of(&record.cache_id);
            let dir = self.driver.layer(root, &record.cache_id, below)?;
            let resolved = Arc::new(Resolved { record, dir });
            cache.insert(resolved.record.chain_id, resolved.clone());
            out.push(resolved);
        }
        Ok(out)
    }
}

/// Returns the public form of a resolved layer.
pub(crate) fn layer_of(resolved: &Resolved) -> ImageLayer {
    let record = &resolved.record;
    ImageLayer {
        chain_id: record.chain_id,
        diff_id: record.diff_id,
        parent: record.parent,
        cache_id: record.cache_id.clone(),
        size: record.size,
        place: resolved.dir.place.clone(),
        whole: resolved.dir.below == Below::Nothing,
        shared_by: None,
    }
}
