//! The images of one snapshotter: names, IDs, layers.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use super::content::{self, PulledManifest};
use super::metadata::{self, Metadata, Named, Snapshot};
use super::{METADATA, SNAPSHOTS, SNAPSHOTTERS, snapshotter_dir};
use crate::oci::chain_id;
use crate::oci::text::excerpt;
use crate::oci::{Digest, Platform, Reference};
use crate::store::confined_dir::ConfinedDir;
use crate::store::error::{Error, Result};
use crate::store::imagedb;
use crate::store::layerdb::{CacheId, Record};
use crate::store::repositories::Repositories;

/// One snapshotter of a store. Its records are read when they are first needed: most commands find
/// their image in another store.
#[derive(Debug)]
pub(crate) struct Snapshotter {
    root: Arc<ConfinedDir>,
    /// One of [`SNAPSHOTTERS`].
    pub(crate) name: &'static str,
    /// The only namespace that is read; `None`: all.
    namespace: Option<String>,
    /// The snapshotter whose images are those that none has unpacked.
    first: &'static str,
    /// The data that all snapshotters of a store share.
    shared: Arc<OnceLock<Arc<Shared>>>,
    records: OnceLock<Records>,
}

/// The records of one snapshotter. A bad record is an error only when it is used.
#[derive(Debug)]
pub(crate) struct Records {
    pub(super) store: Arc<Shared>,
    /// One of [`SNAPSHOTTERS`].
    pub(super) snapshotter: &'static str,
    /// The snapshots by their names in the snapshotter's file.
    pub(super) snapshots: HashMap<Vec<u8>, Snapshot>,
    /// The path of that file.
    pub(super) path: PathBuf,
    /// See [`Records::container_name`].
    pub(super) recorded_by_id: OnceLock<HashMap<String, usize>>,
}

/// The data that all snapshotters of a store share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) root: Arc<ConfinedDir>,
    pub(super) metadata: Metadata,
    /// As [`Snapshotter::first`].
    first: &'static str,
    /// The images of the names; read when they are first needed.
    images: OnceLock<Vec<Found>>,
}

/// An image's name, and its manifest.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) named: Named,
    /// The manifest; `None` if the content store does not have the image completely for any
    /// platform.
    pub(super) manifest: Option<PulledManifest>,
    /// The chain IDs of its layers, base first; none if its configuration is damaged.
    pub(super) chains: Vec<Digest>,
    /// The snapshotter that has unpacked the image, or the first one.
    snapshotter: &'static str,
    is_unpacked: bool,
}

/// Opens the snapshotters of a store; none if the root is not a store of containerd.
///
/// # Errors
/// Those of opening the files.
pub(crate) fn open(root: &Arc<ConfinedDir>, namespace: Option<&str>) -> Result<Vec<Snapshotter>> {
    if !root.exists(METADATA)? {
        return Ok(Vec::new());
    }
    let mut names = Vec::new();
    for name in SNAPSHOTTERS {
        if root.exists(file_of(name))? {
            names.push(name);
        }
    }
    // A snapshotter makes its file when it is used for the first time.
    if names.is_empty() {
        names.push(SNAPSHOTTERS[0]);
    }
    let (first, shared) = (names[0], Arc::default());
    let snapshotter = |name| Snapshotter {
        root: Arc::clone(root),
        name,
        namespace: namespace.map(str::to_owned),
        first,
        shared: Arc::clone(&shared),
        records: OnceLock::new(),
    };
    Ok(names.into_iter().map(snapshotter).collect())
}

/// Returns the path of a snapshotter's file, below the root.
fn file_of(snapshotter: &str) -> PathBuf {
    snapshotter_dir(snapshotter).join(SNAPSHOTS)
}

impl Snapshotter {
    /// Returns the records, and reads them first if necessary.
    ///
    /// # Errors
    /// [`Error::Bolt`], and those of reading the files.
    pub(crate) fn records(&self) -> Result<&Records> {
        if let Some(records) = self.records.get() {
            return Ok(records);
        }
        let path = self.root.full(file_of(self.name));
        let snapshots = match self.root.file(file_of(self.name))? {
            Some(file) => metadata::read_snapshots(&file, &path)?,
            None => HashMap::new(),
        };
        let store = self.shared()?;
        Ok(self.records.get_or_init(|| Records {
            store,
            snapshotter: self.name,
            snapshots,
            path,
            recorded_by_id: OnceLock::new(),
        }))
    }

    fn shared(&self) -> Result<Arc<Shared>> {
        if let Some(shared) = self.shared.get() {
            return Ok(Arc::clone(shared));
        }
        let metadata = match self.root.file(METADATA)? {
            Some(file) => {
                let only = self.namespace.as_deref();
                metadata::read_metadata(&file, &self.names_path(), only)?
            }
            None => Metadata::default(),
        };
        let shared = self.shared.get_or_init(|| {
            Arc::new(Shared {
                root: Arc::clone(&self.root),
                metadata,
                first: self.first,
                images: OnceLock::new(),
            })
        });
        Ok(Arc::clone(shared))
    }

    /// Returns the path of the file of names.
    pub(crate) fn names_path(&self) -> PathBuf {
        self.root.full(METADATA)
    }
}

impl Shared {
    fn images(&self) -> &[Found] {
        self.images.get_or_init(|| {
            let platform = Platform::host();
            let images = self.metadata.images.iter();
            images.map(|named| self.find(named, &platform)).collect()
        })
    }

    fn find(&self, named: &Named, platform: &Platform) -> Found {
        // An error of the image is found again when the image is used.
        let manifest = content::manifest(&self.root, &named.target, platform);
        let manifest = manifest.ok().flatten();
        let config = manifest.as_ref().and_then(|manifest| {
            let config = content::blob(&manifest.config);
            imagedb::config_at(&self.root, &config, &manifest.config).ok()
        });
        let chains = config.map_or_else(Vec::new, |config| chain_id::chain_ids(&config.diff_ids));
        let unpacked = chains
            .last()
            .and_then(|top| self.snapshotter_of(&named.namespace, top));
        Found {
            named: named.clone(),
            manifest,
            chains,
            snapshotter: unpacked.unwrap_or(self.first),
            is_unpacked: unpacked.is_some(),
        }
    }

    /// Returns the snapshotter that has the layer with this chain ID.
    fn snapshotter_of(&self, namespace: &str, chain: &Digest) -> Option<&'static str> {
        let key = (namespace.to_owned(), chain.to_string());
        let has = |name: &&str| self.metadata.snapshot(name, &key).is_some();
        SNAPSHOTTERS.into_iter().find(|name| has(name))
    }
}

impl Records {
    /// Returns the images of this snapshotter.
    pub(super) fn images(&self) -> impl Iterator<Item = &Found> {
        let images = self.store.images().iter();
        images.filter(|found| found.snapshotter == self.snapshotter)
    }

    /// As [`Self::images`]; with a namespace, only its images.
    fn images_in(&self, namespace: Option<&str>) -> impl Iterator<Item = &Found> {
        let namespace = namespace.map(str::to_owned);
        self.images().filter(move |found| {
            let only = namespace.as_ref();
            only.is_none_or(|only| found.named.namespace == *only)
        })
    }

    /// Returns the image with that ID: of several namespaces, the first that has unpacked it.
    fn image(&self, id: &Digest) -> Option<&Found> {
        let is_it = |found: &&Found| found.manifest.as_ref().is_some_and(|m| m.config == *id);
        let unpacked = self.images().filter(is_it).find(|found| found.is_unpacked);
        unpacked.or_else(|| self.images().find(is_it))
    }

    /// Returns the IDs of all images, sorted.
    pub(crate) fn ids(&self) -> Vec<Digest> {
        let manifests = self.images().filter_map(|found| found.manifest.as_ref());
        let mut ids: Vec<Digest> = manifests.map(|manifest| manifest.config).collect();
        ids.sort();
        ids.dedup();
        ids
    }

    /// Returns the ID of the image that a digest means. The digest is that of the configuration, or
    /// of the index or manifest of a name, which Docker shows as the ID of an image in this store.
    pub(crate) fn meant_by(&self, digest: &Digest, namespace: Option<&str>) -> Option<Digest> {
        let mut images = self.images_in(namespace);
        images.find_map(|found| {
            let config = found.manifest.as_ref()?.config;
            (config == *digest || found.named.target == *digest).then_some(config)
        })
    }

    /// Returns the name and the digest of the index or manifest that a text means, of those with the
    /// image's ID: that of the name or digest, else the first.
    pub(crate) fn named(
        &self,
        text: &str,
        id: &Digest,
        namespace: Option<&str>,
    ) -> Option<(&str, Digest)> {
        let is_it = |found: &&Found| found.manifest.as_ref().is_some_and(|m| m.config == *id);
        let images: Vec<&Found> = self.images_in(namespace).filter(is_it).collect();
        let key = |text: &str| Some(Reference::parse(text).ok()?.key());
        let (wanted, digest) = (key(text), Digest::parse(text));
        let by_name = |found: &&&Found| wanted.is_some() && key(&found.named.name) == wanted;
        let by_digest = |found: &&&Found| Some(found.named.target) == digest;
        let mut all = images.iter();
        let found = all.find(by_digest);
        let found = found.or_else(|| images.iter().find(by_name));
        let named = &found.or(images.first())?.named;
        Some((&named.name, named.target))
    }

    /// Returns all digests that mean an image, each with the image's ID.
    pub(crate) fn digests(
        &self,
        namespace: Option<&str>,
    ) -> impl Iterator<Item = (Digest, Digest)> {
        self.images_in(namespace).flat_map(|found| {
            let config = found.manifest.as_ref().map(|manifest| manifest.config);
            let meant = |config| [(config, config), (found.named.target, config)];
            config.map(meant).into_iter().flatten()
        })
    }

    /// Returns the names of the images, in the form in which Docker keeps them. A name whose image
    /// does not exist has the digest that the image should have.
    pub(crate) fn repositories(&self, namespace: Option<&str>) -> Repositories {
        let mut digests: Vec<(&str, Digest)> = self
            .images_in(namespace)
            // Kubernetes also has names that are only the image's ID.
            .filter(|found| Digest::parse(&found.named.name).is_none())
            .map(|found| {
                let config = found.manifest.as_ref().map(|manifest| manifest.config);
                (
                    found.named.name.as_str(),
                    config.unwrap_or(found.named.target),
                )
            })
            .collect();
        digests.reverse();
        // The first of several namespaces wins, so its names come last: `of_names` keeps the last.
        let names = digests.iter().map(|(name, id)| (*name, id));
        Repositories::of_names(&self.store.root.full(METADATA), names)
    }

    /// Returns the records of an image's layers, base first, which have these diff IDs.
    ///
    /// # Errors
    /// [`Error::NotUnpacked`] if the snapshotter lacks a layer, [`Error::ChainMismatch`].
    pub(crate) fn layers(&self, id: &Digest, diffs: &[Digest]) -> Result<Vec<Record>> {
        let Some(found) = self.image(id) else {
            let path = self.store.root.full(content::blob(id));
            return Err(Error::ConfigMissing { id: *id, path });
        };
        let mut below: Option<(Digest, Vec<u8>)> = None;
        let mut records = Vec::with_capacity(diffs.len());
        for diff in diffs {
            let parent = below.as_ref().map(|(chain, _)| *chain);
            let chain = chain_id::next(parent.as_ref(), diff);
            let key = (found.named.namespace.clone(), chain.to_string());
            let name = self.store.metadata.snapshot(self.snapshotter, &key);
            let snapshot = name.and_then(|name| Some((name, self.snapshots.get(name)?)));
            let Some((name, snapshot)) = snapshot else {
                return Err(Error::NotUnpacked {
                    image: found.named.name.clone(),
                    root: self.store.root.path().to_owned(),
                    remedy: "mount it once, or unpack it there (ctr run, nerdctl run)",
                });
            };
            let expected = below.as_ref().map(|(_, name)| name);
            if snapshot.parent.as_ref() != expected || !snapshot.is_committed {
                return Err(self.mismatch(snapshot, expected));
            }
            records.push(Record {
                chain_id: chain,
                diff_id: *diff,
                parent,
                cache_id: CacheId::number(snapshot.id),
                size: snapshot.size,
            });
            below = Some((chain, name.clone()));
        }
        Ok(records)
    }

    fn mismatch(&self, snapshot: &Snapshot, expected: Option<&Vec<u8>>) -> Error {
        let name = |name: Option<&Vec<u8>>| {
            let no_parent = "no parent".to_owned();
            name.map_or(no_parent, |name| format!("parent {}", excerpt(name)))
        };
        Error::ChainMismatch {
            path: self.path.clone(),
            found: format!(
                "snapshot {} with {}",
                snapshot.id,
                name(snapshot.parent.as_ref())
            ),
            expected: format!("a committed one with {}", name(expected)),
        }
    }

    /// Returns the blob of a layer, below the root; `None` if no manifest of this store has it.
    pub(crate) fn layer_blob(&self, chain: &Digest) -> Option<PathBuf> {
        self.images().find_map(|found| {
            let at = found.chains.iter().position(|known| known == chain)?;
            found.manifest.as_ref()?.layers.get(at).map(content::blob)
        })
    }
}
