//! What containerd keeps of an image's name: the index or manifest of the name, and blobs by digest.
//!
//! Nothing is checked here: a reader compares each blob with its digest.

use std::fs::File;
use std::sync::Arc;

use super::confined_dir::ConfinedDir;
use super::containerd;
use super::error::Result;
use super::image_name::ImageName;
use super::records::Records;
use super::store_set::Stores;
use crate::oci::Digest;

/// The content of a name. Content of other platforms than that of this machine may be missing.
#[derive(Debug)]
pub struct PulledContent {
    root: Arc<ConfinedDir>,
    target: Digest,
    name: String,
}

impl PulledContent {
    /// Returns the digest of the index or manifest.
    pub fn target(&self) -> Digest {
        self.target
    }

    /// Returns the image's name in containerd.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Opens a blob; `None` if the store does not have it.
    ///
    /// # Errors
    /// Those of opening a file.
    pub(crate) fn blob(&self, digest: &Digest) -> Result<Option<File>> {
        self.root.file(containerd::blob(digest))
    }
}

impl Stores {
    /// Returns the content of an image that a store of containerd has; `None` if the image is in
    /// another store, which keeps no index.
    ///
    /// # Errors
    /// Those of [`Stores::locate`].
    pub fn pulled_content(&self, text: &str) -> Result<Option<PulledContent>> {
        let (store, id) = self.locate(text)?;
        let Some(Records::Containerd(found)) = &store.records else {
            return Ok(None);
        };
        let wanted = ImageName::parse(text)?;
        let found = found
            .records()?
            .named(wanted.name(), &id, wanted.namespace());
        Ok(found.map(|(name, target)| PulledContent {
            root: Arc::clone(&store.root),
            target,
            name: name.to_owned(),
        }))
    }
}
