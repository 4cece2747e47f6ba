//! Layers and images on their way in: all of them stay, with their names, or nothing does.
//! Called by whoever takes images in: `load`, `import`, `commit`.

use super::{Exclusive, StagedLayer};
use crate::store::error::Result;
use crate::store::interrupt::{self, AtWork};
use crate::store::tarball::Unpacked;
use crate::store::{Digest, Reference};

/// What is new in the store. Dropping it takes that away again, unless it was finished. Not
/// to be dropped while this process has a [`crate::store::Stores`] of the same store, for
/// whom the removal would wait.
#[derive(Debug)]
pub struct Intake<'e> {
    exclusive: &'e Exclusive<'e>,
    layers: Vec<Digest>,
    images: Vec<Digest>,
    /// A signal waits until they are taken away; `None`: it is there already, and nothing can be
    /// staged any more.
    _at_work: Option<AtWork>,
}

impl<'s> Exclusive<'s> {
    /// Begins to take in.
    pub fn intake(&self) -> Intake<'_> {
        Intake {
            exclusive: self,
            layers: Vec::new(),
            images: Vec::new(),
            _at_work: interrupt::begin().ok(),
        }
    }
}

impl Intake<'_> {
    /// Makes a layer of what was unpacked; its chain ID.
    pub fn layer(&mut self, staged: StagedLayer<'_>, unpacked: &Unpacked) -> Result<Digest> {
        let chain = staged.chain_with(&unpacked.diff_id);
        if !self.exclusive.has_layer(&chain)? {
            // Also when it is published and only its directory cannot be synced.
            self.layers.push(chain);
        }
        staged.commit(unpacked.diff_id, unpacked.size)
    }

    /// Adds an image, given its configuration; its layers must be there. Its ID.
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

impl Drop for Intake<'_> {
    fn drop(&mut self) {
        // The first failure is the one to report; what stays, prune finds.
        if let Err(later) = self.discard() {
            tracing::warn!(%later, "what was taken in for nothing stays");
        }
    }
}
