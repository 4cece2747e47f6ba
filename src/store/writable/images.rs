//! Images and their names.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Exclusive;
use crate::oci::{Digest, Reference, image_config};
use crate::store::error::{Error, Result};
use crate::store::image_store::Resolved;
use crate::store::random;
use crate::store::repositories::Repositories;

impl Exclusive<'_> {
    /// Returns a layer, checked with all layers below it.
    pub(super) fn resolve(&self, chain: &Digest) -> Result<Arc<Resolved>> {
        let mut known = self.known.lock();
        if let Some(layer) = known.get(chain) {
            return Ok(layer.clone());
        }
        let layerdb = self.store().layerdb();
        let diffs = layerdb.diffs_below(chain)?;
        let layers = self.store().layers(&diffs, &mut known)?;
        let top = layers.last().filter(|top| top.record.chain_id == *chain);
        top.cloned().ok_or_else(|| Error::LayerMissing {
            chain: *chain,
            path: self.store().root.full(layerdb.layer(chain)),
        })
    }

    /// Adds an image by its configuration. Its layers must exist.
    ///
    /// Returns its ID, the SHA-256 of the configuration.
    ///
    /// # Errors
    /// [`Error::Oci`] if it is not a configuration; those of [`Exclusive::image`] if a layer is missing or damaged;
    /// [`Error::Io`].
    pub fn register_image(&self, config: &[u8]) -> Result<Digest> {
        let id = Digest::of(config);
        let path = self.writable.image_dir("imagedb/content/sha256");
        let path = path.join(id.hex());
        let parsed = image_config::parse(&self.confined_root().full(&path), config)?;
        self.store()
            .layers(&parsed.diff_ids, &mut self.known.lock())?;
        if self.store().imagedb().config(&id).is_err() {
            let tmp = self.writable.ours("tmp");
            self.confined_root().replace(tmp, &path, 0o600, config)?;
        }
        Ok(id)
    }

    /// Records that `image` was made from `parent`, as `docker commit` does.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn set_parent(&self, image: &Digest, parent: &Digest) -> Result<()> {
        let dir = self.writable.image_dir("imagedb/metadata/sha256");
        let dir = dir.join(image.hex());
        let root = self.confined_root();
        root.make_dir(&dir, 0o700)?;
        let text = parent.to_string();
        let tmp = self.writable.ours("tmp");
        root.replace(tmp, dir.join("parent"), 0o600, text.as_bytes())
    }

    pub(super) fn repositories(&self) -> Result<Repositories> {
        let path = self.store().repositories_path();
        let names = self.store().repositories()?;
        names.map_or_else(|| Repositories::parse(&path, b"{}"), Ok)
    }

    pub(super) fn write_repositories(&self, names: &Repositories) -> Result<()> {
        let path = self.writable.image_dir("repositories.json");
        let tmp = self.writable.ours("tmp");
        self.confined_root()
            .replace(tmp, path, 0o600, &names.to_json())
    }

    /// Gives images names, which other images lose, all by one rename.
    pub(super) fn tag_all<'n>(
        &self,
        names: impl IntoIterator<Item = (&'n Reference, Digest)>,
    ) -> Result<()> {
        let mut all = self.repositories()?;
        let mut changed = false;
        for (name, id) in names {
            self.store().imagedb().config(&id)?;
            changed |= all.set(name, &id) != Some(id);
        }
        if changed {
            self.write_repositories(&all)
        } else {
            Ok(())
        }
    }

    /// Gives an image a name. Returns the image that had the name before and loses it.
    ///
    /// # Errors
    /// [`Error::ConfigMissing`] and others if there is no such image, or it is damaged; [`Error::Io`] and
    /// [`Error::Malformed`] for the file of names.
    pub fn tag(&self, name: &Reference, id: &Digest) -> Result<Option<Digest>> {
        // A damaged image must not get a name.
        self.store().imagedb().config(id)?;
        let mut names = self.repositories()?;
        let previous = names.set(name, id);
        if previous != Some(*id) {
            self.write_repositories(&names)?;
        }
        Ok(previous)
    }

    /// Moves a damaged layer's record away to make room for a valid one. Its directory is then an
    /// orphan, which prune removes.
    pub(super) fn set_aside_damaged(&self, record: &Path) -> Result<()> {
        if self.confined_root().look(record)?.is_none() {
            return Ok(());
        }
        let aside = removing_name(record)?;
        self.confined_root().rename(record, aside)
    }
}

/// Returns the name of a layer's record during its removal, as in Docker:
/// `<chain ID>-<random>-removing`.
pub(super) fn removing_name(record: &Path) -> Result<PathBuf> {
    let mut name = record.file_name().unwrap_or_default().to_owned();
    name.push(format!("-{}-removing", random::hex(8)?));
    Ok(record.with_file_name(name))
}
