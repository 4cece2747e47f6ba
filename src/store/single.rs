//! One store: a root and one storage driver. Ties repositories, imagedb, layerdb and
//! the driver together. Made by `roots`, used by `stores`, `listing`, `containers`.

use std::collections::HashMap;
use std::fs::File;
use std::io::BufReader;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flate2::bufread::MultiGzDecoder;

use super::beneath::Beneath;
use super::containers_storage::Records;
use super::drivers::{Below, Driver, LayerDir};
use super::error::{Error, Result};
use super::image::{Image, Layer};
use super::imagedb::{self, ImageDb, Metadata};
use super::layerdb::{LayerDb, Record};
use super::repositories::{self, Repositories};
use super::{Digest, Name};

/// One image store: Docker's data root or one laid out like it, or podman's; one driver.
#[derive(Debug)]
pub struct Store {
    pub(crate) root: Arc<Beneath>,
    pub(crate) driver: Box<dyn Driver>,
    /// The records of podman's store; `None`: they are Docker's files.
    pub(crate) records: Option<Records>,
}

/// A layer's tar-split, unzipped.
pub(crate) type TarSplit = BufReader<MultiGzDecoder<BufReader<File>>>;

/// A layer that has been resolved before, for stacks that share it.
#[derive(Clone, Debug)]
pub(crate) struct Resolved {
    pub(crate) record: Record,
    pub(crate) dir: LayerDir,
}

/// Layers already resolved, by chain ID.
pub(crate) type Cache = HashMap<Digest, Arc<Resolved>>;

impl Store {
    /// The store's root directory.
    pub fn root(&self) -> &Path {
        self.root.path()
    }

    /// The storage driver's name.
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

    /// The IDs of all images, sorted.
    pub(crate) fn ids(&self) -> Result<Vec<Digest>> {
        match &self.records {
            Some(records) => Ok(records.ids()),
            None => self.imagedb().ids(),
        }
    }

    /// Whether there is an image of that ID.
    pub(crate) fn contains(&self, id: &Digest) -> Result<bool> {
        match &self.records {
            Some(records) => Ok(records.contains(id)),
            None => self.imagedb().contains(id),
        }
    }

    /// Where the store keeps its names.
    pub(crate) fn repositories_path(&self) -> PathBuf {
        if let Some(records) = &self.records {
            return records.names_path();
        }
        self.root.full(self.dir("repositories.json"))
    }

    /// The names of the images; `None` if the file is missing.
    pub(crate) fn repositories(&self) -> Result<Option<Repositories>> {
        if let Some(records) = &self.records {
            return Ok(Some(records.repositories()));
        }
        let bytes = self
            .root
            .read(self.dir("repositories.json"), repositories::LIMIT)?;
        bytes
            .map(|bytes| Repositories::parse(&self.repositories_path(), &bytes))
            .transpose()
    }

    /// The image of that ID, with every layer verified.
    pub fn image(&self, id: &Digest) -> Result<Image> {
        self.image_with(id, self.names_of(id)?, &mut Cache::new())
    }

    /// The names of an image, sorted.
    pub(crate) fn names_of(&self, id: &Digest) -> Result<Vec<Name>> {
        let mut names = Vec::new();
        if let Some(repositories) = self.repositories()? {
            // Other entries' faults are none of this image's.
            let all = repositories.all().filter_map(Result::ok);
            names.extend(all.filter(|(_, i)| i == id).map(|(name, _)| name));
        }
        Ok(names)
    }

    /// The bytes of an image's configuration, which hash to its ID, and the file's path.
    pub fn config_bytes(&self, id: &Digest) -> Result<(PathBuf, Vec<u8>)> {
        let file = self.config_file(id);
        let bytes = imagedb::bytes_at(&self.root, &file, id)?;
        Ok((self.root.full(file), bytes))
    }

    /// Where an image's configuration is, below the root.
    fn config_file(&self, id: &Digest) -> PathBuf {
        match &self.records {
            Some(records) => records.config_path(id),
            None => self.imagedb().content(id),
        }
    }

    /// What a layer's tar is made from again: the directory with its files, `diff`, and its
    /// tar-split, unzipped.
    pub(crate) fn tar_sources(&self, layer: &Layer) -> Result<(Arc<OwnedFd>, TarSplit)> {
        let dir = layer.spec.dir.readable();
        let dir = dir.map_err(|errno| Error::io("open", layer.spec.path(), errno))?;
        let file = self.tar_split(layer);
        let split = self.root.file(&file)?.ok_or_else(|| Error::LayerMissing {
            chain: layer.chain_id,
            path: self.root.full(&file),
        })?;
        let split = MultiGzDecoder::new(BufReader::new(split));
        Ok((dir, BufReader::with_capacity(64 << 10, split)))
    }

    /// Where a layer's tar-split is, below the root.
    pub(crate) fn tar_split(&self, layer: &Layer) -> PathBuf {
        match &self.records {
            Some(records) => records.tar_split(&layer.cache_id),
            None => self.layerdb().tar_split(&layer.chain_id),
        }
    }

    /// As [`Store::image`], with what a listing already knows.
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
        let layers: Vec<Layer> = layers.iter().map(|layer| layer_of(layer)).collect();
        Ok(Image {
            id: *id,
            names,
            root: self.root().to_owned(),
            driver: self.driver(),
            parent: metadata.parent,
            last_updated: metadata.last_updated,
            size: layers.iter().fold(0, |sum, l| sum.saturating_add(l.size)),
            config,
            layers,
        })
    }

    /// Finds and verifies the layers with these diff IDs, base first.
    pub(crate) fn layers(&self, diffs: &[Digest], cache: &mut Cache) -> Result<Vec<Arc<Resolved>>> {
        let layerdb = self.layerdb();
        let mut out: Vec<Arc<Resolved>> = Vec::with_capacity(diffs.len());
        for diff in diffs {
            let below = out.last();
            let parent = below.map(|below| below.record.chain_id);
            let chain = super::chain::next(parent.as_ref(), diff);
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

    /// Finds the directories of layers whose records are known, base first.
    fn directories(&self, records: Vec<Record>, cache: &mut Cache) -> Result<Vec<Arc<Resolved>>> {
        let mut out: Vec<Arc<Resolved>> = Vec::with_capacity(records.len());
        for record in records {
            // Podman may have the same layer twice, with other directories below.
            let known = cache.get(&record.chain_id);
            if let Some(known) = known.filter(|known| known.record.cache_id == record.cache_id) {
                out.push(known.clone());
                continue;
            }
            let below = out.last().map(|below| &below.dir);
            let dir = self.driver.layer(&self.root, &record.cache_id, below)?;
            let resolved = Arc::new(Resolved { record, dir });
            cache.insert(resolved.record.chain_id, resolved.clone());
            out.push(resolved);
        }
        Ok(out)
    }
}

/// What is shown and used of a resolved layer.
pub(crate) fn layer_of(resolved: &Resolved) -> Layer {
    let record = &resolved.record;
    Layer {
        chain_id: record.chain_id,
        diff_id: record.diff_id,
        parent: record.parent,
        cache_id: record.cache_id.clone(),
        size: record.size,
        spec: resolved.dir.spec.clone(),
        whole: resolved.dir.below == Below::Nothing,
        shared_by: None,
    }
}
