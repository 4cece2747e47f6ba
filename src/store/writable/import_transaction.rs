//! Adds layers and images in one transaction: all of them stay, with their names, or none.

use super::{Exclusive, NoMounts, StagedKept, StagedLayer};
use crate::layer_tar::Unpacked;
use crate::oci::{Digest, Reference};
use crate::store::error::Result;
use crate::sys::interrupt::{self, AtWork};

/// The new layers and images. Dropping the transaction removes them, unless it was finished. It
/// must not be dropped while this process has a [`crate::store::Stores`] of the same store: the
/// removal would wait for its lock.
#[derive(Debug)]
#[must_use = "what is new is taken away when this is dropped"]
pub struct ImportTransaction<'e> {
    exclusive: &'e Exclusive<'e>,
    layers: Vec<Digest>,
    images: Vec<Digest>,
    /// Whether an object was kept whole.
    has_kept: bool,
    /// After a signal the process ends when the layers and images are removed. `None` if a signal
    /// came before; then nothing can be staged any more.
    _at_work: Option<AtWork>,
}

impl Exclusive<'_> {
    /// Begins a transaction.
    pub fn begin_import(&self) -> ImportTransaction<'_> {
        ImportTransaction {
            exclusive: self,
            layers: Vec::new(),
            images: Vec::new(),
            has_kept: false,
            _at_work: interrupt::begin().ok(),
        }
    }
}

impl ImportTransaction<'_> {
    /// Commits a staged layer; returns its chain ID.
    ///
    /// # Errors
    /// Those of [`StagedLayer::commit`].
    pub fn layer(&mut self, staged: StagedLayer<'_>, unpacked: &Unpacked) -> Result<Digest> {
        let chain = staged.chain_with(&unpacked.diff_id);
        let is_repair = self.exclusive.is_distrusted(&chain);
        if !is_repair && !self.exclusive.has_layer(&chain)? {
            // The layer counts as new also if it is published and only its directory cannot be
            // synced.
            self.layers.push(chain);
        }
        staged.commit(unpacked.diff_id, unpacked.size)
    }

    /// Adds an image by its configuration. Its layers must exist. Returns its ID.
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

    /// Keeps an object whole, of names that the image will get.
    ///
    /// # Errors
    /// [`crate::store::Error::Io`], and [`crate::store::Error::Oci`] for the file of names.
    pub fn keep(
        &mut self,
        staged: &StagedKept<'_>,
        names: &[Reference],
        image: &Digest,
    ) -> Result<()> {
        self.has_kept = true;
        staged.publish()?;
        self.exclusive.keep_names(names, image, &staged.object())
    }

    /// Records the object that names of the image have in the registry or archive: what is kept of them
    /// as another object does not count any more.
    ///
    /// # Errors
    /// As [`ImportTransaction::keep`].
    pub fn names_object(&self, names: &[Reference], image: &Digest, object: &Digest) -> Result<()> {
        let mut names = names.iter();
        names.try_for_each(|name| self.exclusive.keep_only(name, image, object))
    }

    /// Returns the chain IDs of the new layers.
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
        self.has_kept = false;
        Ok(())
    }

    fn discard(&mut self) -> Result<()> {
        for id in std::mem::take(&mut self.images).iter().rev() {
            // The image has a name if only the sync of the directory of the names failed.
            let exclusive = self.exclusive;
            if exclusive.store().imagedb().contains(id)? && exclusive.names(id)?.is_empty() {
                exclusive.remove_image(id, &NoMounts)?;
            }
        }
        if std::mem::take(&mut self.has_kept) {
            self.exclusive.drop_unnamed_kept()?;
        }
        match self.layers.as_slice() {
            [] => Ok(()),
            layers => self.exclusive.discard_layers(layers),
        }
    }
}

impl Drop for ImportTransaction<'_> {
    fn drop(&mut self) {
        // The first failure is the one to report; prune finds what stays.
        if let Err(later) = self.discard() {
            tracing::warn!(%later, "files of a failed intake stay");
        }
    }
}
