//! The records of podman's and containerd's stores, whose layout differs from Docker's.

use std::path::PathBuf;
use std::sync::Arc;

use super::confined_dir::ConfinedDir;
use super::error::Result;
use super::layerdb::{CacheId, Record};
use super::repositories::Repositories;
use super::{containerd, containers_storage};
use crate::oci::Digest;

/// The records of such a store. A bad record is an error only when it is used.
#[derive(Debug)]
pub(crate) enum Records {
    Podman(containers_storage::Records),
    Containerd(containerd::Snapshotter),
}

/// The layers of a container.
pub(crate) struct ContainerLayers {
    /// The container's own layer.
    pub(crate) own: CacheId,
    /// The layer between it and the image.
    pub(crate) init: Option<CacheId>,
    /// The image's ID; `None` if the container has no image.
    pub(crate) image: Option<Digest>,
    /// The layers of the image, base first.
    pub(crate) layers: Vec<Record>,
}

impl Records {
    /// Returns the IDs of all images, sorted.
    pub(crate) fn ids(&self) -> Result<Vec<Digest>> {
        match self {
            Self::Podman(records) => Ok(records.ids()),
            Self::Containerd(found) => Ok(found.records()?.ids()),
        }
    }

    /// Returns the ID of the image that a digest means; `None` if there is no such image.
    /// `namespace`: the only one of containerd's that counts.
    pub(crate) fn meant_by(
        &self,
        digest: &Digest,
        namespace: Option<&str>,
    ) -> Result<Option<Digest>> {
        match self {
            Self::Podman(records) => Ok(records.contains(digest).then_some(*digest)),
            Self::Containerd(found) => Ok(found.records()?.meant_by(digest, namespace)),
        }
    }

    /// Returns all digests that mean an image, each with the image's ID.
    pub(crate) fn digests(&self, namespace: Option<&str>) -> Result<Vec<(Digest, Digest)>> {
        match self {
            Self::Podman(records) => Ok(records.ids().into_iter().map(|id| (id, id)).collect()),
            Self::Containerd(found) => Ok(found.records()?.digests(namespace).collect()),
        }
    }

    /// Returns the IDs of the containers, sorted.
    pub(crate) fn containers(&self) -> Result<Vec<CacheId>> {
        match self {
            Self::Podman(records) => records.containers(),
            Self::Containerd(found) => Ok(found.records()?.containers()),
        }
    }

    /// Returns the names of a container; the first is the one that is shown.
    pub(crate) fn container_names(&self, id: &CacheId) -> Result<Vec<&str>> {
        match self {
            Self::Podman(records) => records.container_names(id),
            Self::Containerd(found) => {
                Ok(found.records()?.container_name(id).into_iter().collect())
            }
        }
    }

    /// Returns the layers of a container.
    pub(crate) fn container(&self, id: &CacheId) -> Result<ContainerLayers> {
        match self {
            Self::Podman(records) => records.container(id),
            Self::Containerd(found) => found.records()?.container(id),
        }
    }

    /// Returns the layers of podman's store, for other stores of podman's.
    pub(crate) fn podmans_layers(&self) -> Option<containers_storage::LayerList> {
        match self {
            Self::Podman(records) => records.layer_list(),
            Self::Containerd(_) => None,
        }
    }

    /// Returns the root that contains a layer's files, if it may be another one than the store's.
    pub(crate) fn root_of(&self, id: &CacheId) -> Option<&Arc<ConfinedDir>> {
        match self {
            Self::Podman(records) => Some(records.root_of(id)),
            Self::Containerd(_) => None,
        }
    }

    /// Returns the path of the file of names.
    pub(crate) fn names_path(&self) -> PathBuf {
        match self {
            Self::Podman(records) => records.names_path(),
            Self::Containerd(found) => found.names_path(),
        }
    }

    /// Returns the names of the images, in the form in which Docker keeps them.
    pub(crate) fn repositories(&self, namespace: Option<&str>) -> Result<Repositories> {
        match self {
            Self::Podman(records) => Ok(records.repositories()),
            Self::Containerd(found) => Ok(found.records()?.repositories(namespace)),
        }
    }

    /// Whether a short name also means an image that was built locally (`localhost/`).
    pub(crate) fn has_local_names(&self) -> bool {
        matches!(self, Self::Podman(_))
    }

    /// Returns the path of an image's configuration, below the root.
    pub(crate) fn config_path(&self, id: &Digest) -> PathBuf {
        match self {
            Self::Podman(records) => records.config_path(id),
            Self::Containerd(_) => containerd::blob(id),
        }
    }

    /// Returns the records of an image's layers, base first; they must have these diff IDs.
    pub(crate) fn layers(&self, id: &Digest, diffs: &[Digest]) -> Result<Vec<Record>> {
        match self {
            Self::Podman(records) => records.layers(id, diffs),
            Self::Containerd(found) => found.records()?.layers(id, diffs),
        }
    }
}
