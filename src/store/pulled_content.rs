//! What a store keeps of an image's name besides its image: the index or manifest of the name, and blobs by
//! digest. containerd's stores keep that of each name, our own of the names that were pulled or loaded
//! whole ([`super::kept`]).
//!
//! Nothing is checked here: a reader compares each blob with its digest.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use super::confined_dir::ConfinedDir;
use super::error::Result;
use super::image_name::ImageName;
use super::image_store::Store;
use super::kept::{self, KeptPlatform};
use super::records::Records;
use super::store_set::Stores;
use super::{Error, containerd};
use crate::oci::document::MAX_DOCUMENT;
use crate::oci::{Digest, Query, Reference};

/// The content of a name. Content of other platforms than that of this machine may be missing.
#[derive(Debug)]
pub struct PulledContent {
    root: Arc<ConfinedDir>,
    is_containerds: bool,
    target: Digest,
    name: String,
}

impl PulledContent {
    /// Returns the digest of the index or manifest.
    pub fn target(&self) -> Digest {
        self.target
    }

    /// Returns the image's name in the store.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it is in a store of containerd, not in one of ours.
    pub fn is_containerds(&self) -> bool {
        self.is_containerds
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        if self.is_containerds {
            containerd::blob(digest)
        } else {
            kept::blob(&self.target, digest)
        }
    }

    /// Opens a blob; `None` if the store does not have it.
    ///
    /// # Errors
    /// Those of opening a file.
    pub(crate) fn blob(&self, digest: &Digest) -> Result<Option<File>> {
        self.root.file(self.path(digest))
    }

    /// Returns the platforms of an index, and which of them are there; none of a manifest.
    ///
    /// # Errors
    /// Those of reading the index; [`Error::ConfigHash`] if it is damaged.
    pub fn platforms(&self) -> Result<Vec<KeptPlatform>> {
        let path = self.path(&self.target);
        let Some(top) = self.root.read(&path, MAX_DOCUMENT)? else {
            return Ok(Vec::new());
        };
        let actual = Digest::of(&top);
        if actual != self.target {
            let path = self.root.full(path);
            return Err(Error::ConfigHash { path, actual });
        }
        kept::platforms(&top, |digest| self.root.exists(self.path(digest)))
    }
}

impl Stores {
    /// Returns the content of an image that a store of containerd has, or that our own store has kept
    /// whole; `None` if only the image is there.
    ///
    /// # Errors
    /// Those of [`Stores::locate`].
    pub fn pulled_content(&self, text: &str) -> Result<Option<PulledContent>> {
        let (store, id) = self.locate(text)?;
        let wanted = ImageName::parse(text)?;
        match &store.records {
            Some(Records::Containerd(found)) => {
                let found = found
                    .records()?
                    .named(wanted.name(), &id, wanted.namespace());
                Ok(found.map(|(name, target)| PulledContent {
                    root: Arc::clone(&store.root),
                    is_containerds: true,
                    target,
                    name: name.to_owned(),
                }))
            }
            Some(Records::Podman(_)) => Ok(None),
            None => {
                let name = match Query::parse(wanted.name())? {
                    Query::Name { reference, .. } => Some(reference),
                    Query::Id(_) => None,
                };
                store.kept_content(wanted.name(), name.as_ref(), &id)
            }
        }
    }
}

impl Store {
    /// As [`Stores::pulled_content`], of one of our own stores.
    fn kept_content(
        &self,
        shown: &str,
        name: Option<&Reference>,
        id: &Digest,
    ) -> Result<Option<PulledContent>> {
        let object = self.kept_object(name, id)?;
        Ok(object.map(|target| PulledContent {
            root: Arc::clone(&self.root),
            is_containerds: false,
            target,
            name: shown.to_owned(),
        }))
    }
}
