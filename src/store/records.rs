//! The records of stores that are not laid out like Docker's: podman's and containerd's.

use std::path::PathBuf;
use std::sync::Arc;

use super::confined_dir::ConfinedDir;
use super::error::Result;
use super::layerdb::{CacheId, Record};
use super::repositories::Repositories;
use super::{containerd, containers_storage};
use crate::oci::Digest;

/// What such a store says of its images; single bad records are only errors when they are used.
#[derive(Debug)]
pub(crate) enum Records {
    Podman(containers_storage::Records),
    Containerd(containerd::Snapshotter),
}

/// The layers of a container.
pub(crate) struct ContainerLayers {
    /// Its own.
    pub(crate) own: CacheId,
    /// The layer between it and the image.
    pub(crate) init: Option<CacheId>,
    /// The image's ID; `None`: it lies on nothing.
    pub(crate) image: Option<Digest>,
    /// Those of the image, base first.
    pub(crate) layers: Vec<Record>,
}

impl Records {
    /// The IDs of all images, sorted.
    pub(crate) fn ids(&self) -> Result<Vec<Digest>> {
        match self {
            Self::Podman(records) => Ok(records.ids()),
            Self::Containerd(found) => Ok(found.records()?.ids()),
        }
    }

    /// The ID of the image that a digest means; `None`: none.
    pub(crate) fn meant_by(&self, digest: &Digest) -> Result<Option<Digest>> {
        match self {
            Self::Podman(records) => Ok(records.contains(digest).then_some(*digest)),
            Self::Containerd(found) => Ok(found.records()?.meant_by(digest)),
        }
    }

    /// All digests that mean an image, with its ID.
    pub(crate) fn digests(&self) -> Result<Vec<(Digest, Digest)>> {
        match self {
            Self::Podman(records) => Ok(records.ids().into_iter().map(|id| (id, id)).collect()),
            Self::Containerd(found) => Ok(found.records()?.digests().collect()),
        }
    }

    /// The IDs of the containers, sorted.
    pub(crate) fn containers(&self) -> Result<Vec<CacheId>> {
        match self {
            Self::Podman(records) => records.containers(),
            Self::Containerd(found) => Ok(found.records()?.containers()),
        }
    }

    /// The names of a container, the one that is shown first.
    pub(crate) fn container_names(&self, id: &CacheId) -> Result<Vec<&str>> {
        match self {
            Self::Podman(records) => records.container_names(id),
            Self::Containerd(found) => {
                Ok(found.records()?.container_name(id).into_iter().collect())
            }
        }
    }

    /// The layers of a container.
    pub(crate) fn container(&self, id: &CacheId) -> Result<ContainerLayers> {
        match self {
            Self::Podman(records) => records.container(id),
            Self::Containerd(found) => found.records()?.container(id),
        }
    }

    /// The layers of podman's store, for others of podman's.
    pub(crate) fn podmans_layers(&self) -> Option<containers_storage::LayerList> {
        match self {
            Self::Podman(records) => records.layer_list(),
            Self::Containerd(_) => None,
        }
    }

    /// The root that a layer's files are in, where that may be another one than the store's.
    pub(crate) fn root_of(&self, id: &CacheId) -> Option<&Arc<ConfinedDir>> {
        match self {
            Self::Podman(records) => Some(records.root_of(id)),
            Self::Containerd(_) => None,
        }
    }

    /// Where the names are.
    pub(crate) fn names_path(&self) -> PathBuf {
        match self {
            Self::Podman(records) => records.names_path(),
            Self::Containerd(found) => found.names_path(),
        }
    }

    /// The names of the images, as Docker would keep them.
    pub(crate) fn repositories(&self) -> Result<Repositories> {
        match self {
            Self::Podman(records) => Ok(records.repositories()),
            Self::Containerd(found) => Ok(found.records()?.repositories()),
        }
    }

    /// Whether a short name also means an image that was built here (`localhost/`).
    pub(crate) fn has_local_names(&self) -> bool {
        matches!(self, Self::Podman(_))
    }

    /// Where an image's configuration is, below the root.
    pub(crate) fn config_path(&self, id: &Digest) -> PathBuf {
        match self {
            Self::Podman(records) => records.config_path(id),
            Self::Containerd(_) => containerd::blob(id),
        }
    }

    /// The records of an image's layers, base first; they must have these diff IDs.
    pub(crate) fn layers(&self, id: &Digest, diffs: &[Digest]) -> Result<Vec<Record>> {
        match self {
            Self::Podman(records) => records.layers(id, diffs),
            Self::Containerd(found) => found.records()?.layers(id, diffs),
        }
    }
}
