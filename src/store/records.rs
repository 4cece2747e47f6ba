//! The records of stores that are not laid out like Docker's: podman's and containerd's.

use std::path::PathBuf;

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

    /// The IDs of the containers whose layers can be read, sorted.
    pub(crate) fn containers(&self) -> Result<Vec<CacheId>> {
        match self {
            Self::Podman(_) => Ok(Vec::new()),
            Self::Containerd(found) => Ok(found.records()?.containers()),
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
