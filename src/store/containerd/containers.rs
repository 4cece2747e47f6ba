//! Containers of containerd: a writable snapshot on the snapshots of an image.
//!
//! A container names its snapshot by a key. Writable snapshots without a container
//! (`ctr snapshots prepare`, Docker's own) are found by their keys. The parent of the snapshot is the image's
//! topmost layer, or one further snapshot, which Docker makes for its init layer.

use std::collections::{HashMap, HashSet};

use super::content;
use super::metadata::{Container, Snapshot};
use super::records::{Found, Records};
use crate::oci::Digest;
use crate::oci::text::excerpt;
use crate::store::error::{Error, Result};
use crate::store::imagedb;
use crate::store::layerdb::CacheId;
use crate::store::records::ContainerLayers;

impl Records {
    /// Returns the IDs of the containers, and the keys of other writable snapshots, sorted. IDs
    /// that are not one plain path component are left out.
    pub(crate) fn containers(&self) -> Vec<CacheId> {
        let containers = self.all_containers();
        let ids = containers.iter().map(|container| container.id.as_bytes());
        let mut ids: Vec<CacheId> = ids.filter_map(CacheId::parse).collect();
        ids.sort_by(|a, b| a.as_str().cmp(b.as_str()));
        ids.dedup();
        ids
    }

    /// Returns the containers that the metadata has for this snapshotter.
    fn recorded(&self) -> impl Iterator<Item = &Container> {
        let containers = self.store.metadata.containers.iter();
        containers.filter(|container| container.snapshotter.as_deref() == Some(self.snapshotter))
    }

    fn all_containers(&self) -> Vec<Container> {
        let key_of = |c: &'_ Container| (c.namespace.clone(), c.key.clone());
        let known: HashSet<(String, String)> = self.recorded().map(key_of).collect();
        let is_active = |name: &Vec<u8>| {
            self.snapshots
                .get(name)
                .is_some_and(|found| found.is_active)
        };
        let snapshots = self.store.metadata.all(self.snapshotter);
        let others = snapshots.filter(|(key, name)| !known.contains(key) && is_active(name));
        let others = others.map(|((namespace, key), _)| Container {
            namespace: namespace.clone(),
            id: key.clone(),
            name: None,
            snapshotter: Some(self.snapshotter.to_owned()),
            key: key.clone(),
        });
        self.recorded().cloned().chain(others).collect()
    }

    /// Returns the name that nerdctl has given a container.
    pub(crate) fn container_name(&self, id: &CacheId) -> Option<&str> {
        let at = *self.recorded_by_id().get(id.as_str())?;
        self.store.metadata.containers.get(at)?.name.as_deref()
    }

    /// Returns the positions of the containers of this snapshotter, by ID; of containers with the same
    /// ID, the first is valid.
    fn recorded_by_id(&self) -> &HashMap<String, usize> {
        self.recorded_by_id.get_or_init(|| {
            let mut positions = HashMap::new();
            for (at, container) in self.store.metadata.containers.iter().enumerate() {
                if container.snapshotter.as_deref() == Some(self.snapshotter) {
                    positions.entry(container.id.clone()).or_insert(at);
                }
            }
            positions
        })
    }

    /// Returns the layers of a container.
    ///
    /// # Errors
    /// [`Error::UnknownContainer`], [`Error::ChainMismatch`] if its snapshots are not those of an
    /// image of this store, and as [`Records::layers`].
    pub(crate) fn container(&self, id: &CacheId) -> Result<ContainerLayers> {
        let unknown = || Error::UnknownContainer {
            name: id.to_string(),
            searched: vec![self.store.root.path().to_owned()],
        };
        let mut containers = self.all_containers().into_iter();
        let container = containers.find(|container| container.id == id.as_str());
        let Container { namespace, key, .. } = container.ok_or_else(unknown)?;
        let key = (namespace, key);
        let name = self.store.metadata.snapshot(self.snapshotter, &key);
        let own = name.and_then(|name| self.snapshots.get(name));
        let own = own.ok_or_else(unknown)?;
        let mut layers = ContainerLayers {
            own: CacheId::number(own.id),
            init: None,
            image: None,
            layers: Vec::new(),
        };
        let (namespace, _) = &key;
        let keys: HashMap<&[u8], &str> = (self.store.metadata.all(self.snapshotter))
            .filter(|((other, _), _)| other == namespace)
            .map(|((_, key), name)| (name.as_slice(), key.as_str()))
            .collect();
        // The key of an image's layer is its chain ID.
        let chain_of = |name: &[u8]| Digest::parse(keys.get(name)?);
        let mut below = own.parent.as_ref();
        if let Some(name) = below
            && chain_of(name).is_none()
        {
            let init = self.below(id, name)?;
            layers.init = Some(CacheId::number(init.id));
            below = init.parent.as_ref();
        }
        let Some(name) = below else {
            return Ok(layers);
        };
        let image = chain_of(name).and_then(|chain| self.image_with_chain(namespace, &chain));
        let Some((image, count)) = image else {
            return Err(self.no_image(id, name));
        };
        let path = content::blob(&image);
        let config = imagedb::config_at(&self.store.root, &path, &image)?;
        let diffs = config.diff_ids.get(..count).unwrap_or_default();
        layers.layers = self.layers(&image, diffs)?;
        layers.image = Some(image);
        Ok(layers)
    }

    fn below(&self, id: &CacheId, name: &[u8]) -> Result<&Snapshot> {
        let found = self.snapshots.get(name);
        found.ok_or_else(|| self.no_image(id, name))
    }

    /// Finds an image of a namespace that has a layer with this chain ID. Returns the number of its
    /// layers up to there.
    fn image_with_chain(&self, namespace: &str, chain: &Digest) -> Option<(Digest, usize)> {
        let here = |found: &&Found| found.named.namespace == namespace;
        self.images().filter(here).find_map(|found| {
            let at = found.chains.iter().position(|known| known == chain)?;
            Some((found.manifest.as_ref()?.config, at + 1))
        })
    }

    fn no_image(&self, id: &CacheId, name: &[u8]) -> Error {
        Error::ChainMismatch {
            path: self.path.clone(),
            found: format!("snapshot {} below container {id}", excerpt(name)),
            expected: "a layer of an image that is still there".to_owned(),
        }
    }
}
