//! The images of one snapshotter: names, IDs, layers.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use super::content::{self, PulledManifest};
use super::metadata::{self, Metadata, Named, Snapshot};
use super::{METADATA, SNAPSHOTTERS, snapshotter_dir};
use crate::oci::chain_id;
use crate::oci::text::excerpt;
use crate::oci::{Digest, Platform};
use crate::store::confined_dir::ConfinedDir;
use crate::store::error::{Error, Result};
use crate::store::imagedb;
use crate::store::layerdb::{CacheId, Record};
use crate::store::repositories::Repositories;

/// One snapshotter of a store. Its records are read when they are first asked for: most commands find
/// what they want in another store.
#[derive(Debug)]
pub(crate) struct Snapshotter {
    root: Arc<ConfinedDir>,
    /// One of [`SNAPSHOTTERS`].
    pub(crate) name: &'static str,
    /// The only namespace that is read; `None`: all.
    namespace: Option<String>,
    /// The snapshotter whose images are those that none has unpacked.
    first: &'static str,
    /// The same for all snapshotters of a store.
    shared: Arc<OnceLock<Arc<Shared>>>,
    records: OnceLock<Records>,
}

/// The records of one snapshotter; single bad ones are only errors when they are used.
#[derive(Debug)]
pub(crate) struct Records {
    pub(super) store: Arc<Shared>,
    /// One of [`SNAPSHOTTERS`].
    pub(super) snapshotter: &'static str,
    /// By their names in the snapshotter's file.
    pub(super) snapshots: HashMap<Vec<u8>, Snapshot>,
    /// That file.
    pub(super) path: PathBuf,
}

/// What all snapshotters of a store have in common.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) root: Arc<ConfinedDir>,
    pub(super) metadata: Metadata,
    /// As [`Snapshotter::first`].
    first: &'static str,
    /// What the names lead to; read when it is first asked for.
    images: OnceLock<Vec<Found>>,
}

/// An image's name, and what it leads to.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) named: Named,
    /// `None`: it is not in the content store, as a whole or for any platform.
    pub(super) manifest: Option<PulledManifest>,
    /// The chain IDs of its layers, base first; none where its configuration is damaged.
    pub(super) chains: Vec<Digest>,
    /// The snapshotter that has unpacked it, or the first one.
    snapshotter: &'static str,
    is_unpacked: bool,
}

/// The snapshotters of a store; none where there is no store of containerd.
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

/// The file of a snapshotter, below the root.
fn file_of(snapshotter: &str) -> PathBuf {
    snapshotter_dir(snapshotter).join("metadata.db")
}

impl Snapshotter {
    /// Its records.
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

    /// Where the names are.
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
        // Whatever is wrong with it is found again when the image is used.
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

    /// The snapshotter that has the layer of this chain ID.
    fn snapshotter_of(&self, namespace: &str, chain: &Digest) -> Option<&'static str> {
        let key = (namespace.to_owned(), chain.to_string());
        let has = |name: &&str| self.metadata.snapshot(name, &key).is_some();
        SNAPSHOTTERS.into_iter().find(|name| has(name))
    }
}

impl Records {
    /// The images that this snapshotter has.
    pub(super) fn images(&self) -> impl Iterator<Item = &Found> {
        let images = self.store.images().iter();
        images.filter(|found| found.snapshotter == self.snapshotter)
    }

    /// The image of that ID: of several namespaces the first that has unpacked it.
    fn image(&self, id: &Digest) -> Option<&Found> {
        let is_it = |found: &&Found| found.manifest.as_ref().is_some_and(|m| m.config == *id);
        let unpacked = self.images().filter(is_it).find(|found| found.is_unpacked);
        unpacked.or_else(|| self.images().find(is_it))
    }

    /// The IDs of all images, sorted.
    pub(crate) fn ids(&self) -> Vec<Digest> {
        let manifests = self.images().filter_map(|found| found.manifest.as_ref());
        let mut ids: Vec<Digest> = manifests.map(|manifest| manifest.config).collect();
        ids.sort();
        ids.dedup();
        ids
    }

    /// The ID of the image that a digest means: its configuration's, or that of the index or manifest
    /// to which a name leads, which Docker shows as the ID of an image in this store.
    pub(crate) fn meant_by(&self, digest: &Digest) -> Option<Digest> {
        let mut images = self.images();
        images.find_map(|found| {
            let config = found.manifest.as_ref()?.config;
            (config == *digest || found.named.target == *digest).then_some(config)
        })
    }

    /// All digests that mean an image, with its ID.
    pub(crate) fn digests(&self) -> impl Iterator<Item = (Digest, Digest)> {
        self.images().flat_map(|found| {
            let config = found.manifest.as_ref().map(|manifest| manifest.config);
            let meant = |config| [(config, config), (found.named.target, config)];
            config.map(meant).into_iter().flatten()
        })
    }

    /// The names of the images, as Docker would keep them. A name whose image is not there leads to the
    /// digest that it should have.
    pub(crate) fn repositories(&self) -> Repositories {
        let mut digests: Vec<(&str, Digest)> = self
            .images()
            // Kubernetes also names an image by its ID alone.
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
        // Of two namespaces the first counts, which `of_names` has to see last.
        let names = digests.iter().map(|(name, id)| (*name, id));
        Repositories::of_names(&self.store.root.full(METADATA), names)
    }

    /// The records of an image's layers, base first, whose diff IDs these are.
    ///
    /// # Errors
    /// [`Error::NotUnpacked`] where the snapshotter lacks a layer, [`Error::ChainMismatch`].
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

    /// The blob that a layer was unpacked from, below the root; `None`: no manifest here has it.
    pub(crate) fn layer_blob(&self, chain: &Digest) -> Option<PathBuf> {
        self.images().find_map(|found| {
            let at = found.chains.iter().position(|known| known == chain)?;
            found.manifest.as_ref()?.layers.get(at).map(content::blob)
        })
    }
}
