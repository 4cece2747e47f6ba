//! Containers of podman, buildah and CRI-O: a writable layer on the layers of an image.
//!
//! The topmost layer of the image may be a copy with other owners, which podman makes for
//! containers with user namespaces: the parents of a container's own layer name the layers that are
//! used.

use std::collections::HashMap;
use std::path::PathBuf;

use serde::Deserialize;

use super::run_lists::Kind;
use super::{CONTAINERS, RawLayer, Records, VOLATILE_CONTAINERS, list};
use crate::oci::Digest;
use crate::store::error::{Error, Result};
use crate::store::imagedb;
use crate::store::layerdb::CacheId;
use crate::store::records::ContainerLayers;

/// A record of a container.
#[derive(Debug, Deserialize)]
pub(super) struct RawContainer {
    id: String,
    names: Option<Vec<String>>,
    image: Option<String>,
    pub(super) layer: Option<String>,
}

impl Records {
    /// Returns the records by ID; of records with the same ID, the last is valid.
    fn all_containers(&self) -> Result<&HashMap<String, RawContainer>> {
        if let Some(containers) = self.containers.get() {
            return Ok(containers);
        }
        let dir = dir(&self.driver);
        let mut containers = HashMap::new();
        for name in [CONTAINERS, VOLATILE_CONTAINERS] {
            let records = list::<RawContainer>(&self.root, &dir.join(name))?;
            let records = records.into_iter().flatten();
            containers.extend(records.map(|container| (container.id.clone(), container)));
        }
        for lists in &self.run_lists {
            let records = lists.read::<RawContainer>(&self.driver, Kind::Containers)?;
            let records = records.into_iter();
            containers.extend(records.map(|container| (container.id.clone(), container)));
        }
        Ok(self.containers.get_or_init(|| containers))
    }

    /// Returns the IDs of the containers, sorted. IDs that are not one plain path component are
    /// left out.
    ///
    /// # Errors
    /// Those of reading the files.
    pub(crate) fn containers(&self) -> Result<Vec<CacheId>> {
        let ids = self.all_containers()?.keys();
        let mut ids: Vec<CacheId> = ids.filter_map(|id| CacheId::parse(id.as_bytes())).collect();
        ids.sort_by(|a, b| a.as_str().cmp(b.as_str()));
        Ok(ids)
    }

    fn raw_container(&self, id: &CacheId) -> Result<Option<&RawContainer>> {
        Ok(self.all_containers()?.get(id.as_str()))
    }

    /// Returns the names of a container.
    ///
    /// # Errors
    /// As [`Records::containers`].
    pub(crate) fn container_names(&self, id: &CacheId) -> Result<Vec<&str>> {
        let container = self.raw_container(id)?;
        let names = container.and_then(|container| container.names.as_ref());
        Ok(names.into_iter().flatten().map(String::as_str).collect())
    }

    /// Returns the layers of a container.
    ///
    /// # Errors
    /// [`Error::UnknownContainer`], [`Error::ChainMismatch`] if its layers are not those of its
    /// image, and those of reading the files.
    pub(crate) fn container(&self, id: &CacheId) -> Result<ContainerLayers> {
        let container = self.raw_container(id)?;
        let container = container.ok_or_else(|| Error::UnknownContainer {
            name: id.to_string(),
            searched: vec![self.root.path().to_owned()],
        })?;
        let mut chain = self.chain_from(container.layer.as_deref())?;
        let own = chain.pop();
        let own = own.ok_or_else(|| self.mismatch("no layer".to_owned(), "one of its own"))?;
        let own = self.cache_id(own)?;
        let image = container.image.as_deref().and_then(Digest::from_hex);
        let layers = match &image {
            Some(image) if self.contains(image) => {
                let path = self.config_path(image);
                let config = imagedb::config_at(&self.root, &path, image)?;
                self.records(image, &chain, &config.diff_ids)?
            }
            // The container has no image, or the image is in an additional store or was removed
            // without its layers.
            _ => self.records(&Digest::of(b""), &chain, &self.diffs(&chain)?)?,
        };
        Ok(ContainerLayers {
            own,
            init: None,
            image,
            layers,
        })
    }

    fn diffs(&self, layers: &[&RawLayer]) -> Result<Vec<Digest>> {
        let diff = |layer: &&RawLayer| {
            let stated = layer.diff_digest.as_deref().and_then(Digest::parse);
            stated.ok_or_else(|| self.mismatch("no diff-digest".to_owned(), "one of each layer"))
        };
        layers.iter().map(diff).collect()
    }
}

/// Returns the directory of a driver's lists, below the root.
pub(super) fn dir(driver: &str) -> PathBuf {
    PathBuf::from(format!("{driver}-containers"))
}
