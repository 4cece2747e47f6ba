//! Taking in layers and images as one transaction: all of them stay, with their names, or none.

use super::{Exclusive, StagedLayer};
use crate::layer_tar::Unpacked;
use crate::oci::{Digest, Reference};
use crate::store::error::Result;
use crate::sys::interrupt::{self, AtWork};

/// What is new in the store. Dropping it takes that away again, unless it was finished. Not
/// to be dropped while this process has a [`crate::store::Stores`] of the same store, for
/// whom the removal would wait.
#[derive(Debug)]
#[must_use = "what is new is taken away when this is dropped"]
pub struct ImportTransaction<'e> {
    exclusive: &'e Exclusive<'e>,
    layers: Vec<Digest>,
    images: Vec<Digest>,
    /// A signal waits until they are taken away; `None`: it is there already, and nothing can be
    /// staged any more.
    _at_work: Option<AtWork>,
}

impl Exclusive<'_> {
    /// Begins to take in.
    pub fn begin_import(&self) -> ImportTransaction<'_> {
        ImportTransaction {
            exclusive: self,
            layers: Vec::new(),
            images: Vec::new(),
            _at_work: interrupt::begin().ok(),
        }
    }
}

impl ImportTransaction<'_> {
    /// Makes a layer of what was unpacked; its chain ID.
    ///
    /// # Errors
    /// Those of [`StagedLayer::commit`].
    pub fn layer(&mut self, staged: StagedLayer<'_>, unpacked: &Unpacked) -> Result<Digest> {
        let chain = staged.chain_with(&unpacked.diff_id);
        let is_repair = self.exclusive.is_distrusted(&chain);
        if !is_repair && !self.exclusive.has_layer(&chain)? {
            // Also when it is published and only its directory cannot be synced.
            self.layers.push(chain);
        }
        staged.commit(unpacked.diff_id, unpacked.size)
    }

    /// Adds an image, given its configuration; its layers must be there. Its ID.
    ///
    /// # Errors
    /// Those of [`Exclusive::register_image`].
    pub fn image(&mut self, config: &[u8]) -> Result<Digest> {
        let id = Digest::of(config);
        if !self.exclusive.store().imagedb().contains(&id)? {
            self.images.push(id);
        }
        self.exclusive.register_image(config)
    }

    /// The chain IDs of the layers that are new.
    pub fn new_layers(&self) -> &[Digest] {
        &self.layers
    }

    /// Gives the images their names, all by one rename, and keeps everything.
    ///
    /// # Errors
    /// Those of [`Exclusive::tag`].
    pub fn finish<'n>(
        &mut self,
        names: impl IntoIterator<Item = (&'n Reference, Digest)>,
    ) -> Result<()> {
        self.exclusive.tag_all(names)?;
        self.layers.clear();
        self.images.clear();
        Ok(())
    }

    fn discard(&mut self) -> Result<()> {
        for id in std::mem::take(&mut self.images).iter().rev() {
            // It has a name when only the directory of the names could not be synced.
            let exclusive = self.exclusive;
            if exclusive.store().imagedb().contains(id)? && exclusive.names(id)?.is_empty() {
                exclusive.remove_image(id, &|_| None)?;
            }
        }
        match self.layers.as_slice() {
            [] => Ok(()),
            layers => self.exclusive.discard_layers(layers),
        }
    }
}

impl Drop for ImportTransaction<'_> {
    fn drop(&mut self) {
        // The first failure is the one to report; what stays, prune finds.
        if let Err(later) = self.discard() {
            tracing::warn!(%later, "files of a failed intake stay");
        }
    }
}
