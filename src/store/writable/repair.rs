//! New files for layers whose files are damaged.
//!
//! ```text
//!  damaged_layers ─► distrust ─► the layer counts as missing: it is unpacked again, into a staged one
//!                                commit: overlay2/<staged>/diff ⇄ overlay2/<cache ID>/diff
//!                                        tar-split.json.gz and size of the record replaced
//! ```
//! The layer keeps its cache ID and its short name, so that layers and read-write layers above it go
//! on. Each step is one rename; after a crash between them the layer has whole files and an older record,
//! which fits or is found damaged again.

use std::collections::HashSet;
use std::path::Path;

use super::staged::Made;
use super::{DRIVER, Exclusive, InUse, Writable};
use crate::oci::{Digest, chain_id};
use crate::store::CacheId;
use crate::store::confined_dir::SMALL;
use crate::store::error::{Error, Result};
use crate::store::image_store::{Cache, layer_of};
use crate::store::verify::damage_of;
use crate::sys::interrupt;

/// Which layers are to be replaced, and which were.
#[derive(Debug, Default)]
pub(super) struct Distrusted {
    layers: HashSet<Digest>,
    repaired: Vec<Digest>,
}

impl Writable {
    /// Hashes and compares the files of those of these layers, base first, that are there and not among
    /// the `checked`, to which they are added. Gives the chain IDs of the damaged ones.
    ///
    /// # Errors
    /// [`Error::Io`] if a scratch file cannot be made; [`Error::Interrupted`] after a signal.
    pub fn damaged_layers(
        &self,
        diff_ids: &[Digest],
        checked: &mut HashSet<Digest>,
    ) -> Result<Vec<Digest>> {
        let scratch = self.staging();
        let file = || scratch.file();
        let scratch = [file()?, file()?, file()?, file()?, file()?, file()?];
        let present = self.present(diff_ids);
        let there = diff_ids.get(..present).unwrap_or_default();
        let mut damaged = Vec::new();
        for (layer, chain) in (self.store.layers(there, &mut Cache::new())?)
            .iter()
            .zip(chain_id::chain_ids(there))
        {
            if !checked.insert(chain) {
                continue;
            }
            interrupt::check()?;
            let found = damage_of(&self.store, &layer_of(layer), scratch.each_ref());
            for what in &found {
                tracing::debug!(%chain, what, "a layer is damaged");
            }
            if !found.is_empty() {
                damaged.push(chain);
            }
        }
        Ok(damaged)
    }
}

impl Exclusive<'_> {
    /// From now on these layers, given by chain ID, count as missing. Committing one of them gives the
    /// layer that is there new files.
    ///
    /// # Errors
    /// [`Error::InUse`] where one is a layer of a live mount, from which the files would go; those of
    /// [`Exclusive::image`].
    pub fn distrust(
        &self,
        layers: impl IntoIterator<Item = Digest>,
        in_use: InUse<'_>,
    ) -> Result<()> {
        for chain in layers {
            let cache_id = self.resolve(&chain)?.record.cache_id.clone();
            let diff = self.writable.layer_dir(cache_id.as_str()).join("diff");
            if let Some(mountpoint) = in_use(&self.confined_root().full(diff)) {
                let mountpoint = mountpoint.display();
                return Err(Error::InUse {
                    what: format!("damaged layer {chain}"),
                    by: format!(
                        "it is mounted on {mountpoint}, unmount it first (unionfs umount {mountpoint})"
                    ),
                });
            }
            self.distrusted.lock().layers.insert(chain);
        }
        Ok(())
    }

    /// The layers that got new files, by chain ID.
    pub fn repaired(&self) -> Vec<Digest> {
        self.distrusted.lock().repaired.clone()
    }

    pub(super) fn is_distrusted(&self, chain: &Digest) -> bool {
        self.distrusted.lock().layers.contains(chain)
    }

    /// Gives a staged layer the short name that the layer with this damaged record had: what lies above
    /// knows it by that. The old directory stays for live mounts, without a short name, until it is
    /// swept away.
    pub(super) fn take_short_name(&self, record: &Path, made: &mut Made) -> Result<()> {
        let root = self.confined_root();
        let cache_id = root.read(record.join("cache-id"), SMALL)?;
        let Some(old) = cache_id.and_then(|id| CacheId::parse(id.trim_ascii())) else {
            return Ok(());
        };
        let old_file = self.writable.layer_dir(old.as_str()).join("link");
        let bytes = root.read(&old_file, SMALL)?.unwrap_or_default();
        let name = std::str::from_utf8(&bytes).unwrap_or_default().trim();
        let leads_back = || -> Result<bool> {
            let target = root.link(&format!("{DRIVER}/l"), name)?;
            Ok(target.is_some_and(|target| target == format!("../{old}/diff").as_str()))
        };
        if CacheId::parse(name.as_bytes()).is_none() || !leads_back()? {
            return Ok(());
        }
        let tmp = self.writable.ours("tmp");
        root.replace(tmp, made.dir.join("link"), 0o644, name.as_bytes())?;
        let link = self.writable.short_link(name);
        root.publish(&made.link, &link)?;
        made.link = link;
        // Whoever sweeps the old directory away must not take the name along.
        root.remove_file(&old_file)
    }

    /// Gives a layer the files of a staged one, whose record is `record`; the old files are in the
    /// staged one then. All of it is synced.
    pub(super) fn replace_files(&self, chain: &Digest, made: &Made, record: &Path) -> Result<()> {
        let cache_id = self.resolve(chain)?.record.cache_id.clone();
        let diff = self.writable.layer_dir(cache_id.as_str()).join("diff");
        let target = self.writable.image_dir("layerdb/sha256").join(chain.hex());
        let root = self.confined_root();
        // Nobody is on the way to the old files.
        let readers = self.writable.exclude_readers()?;
        root.exchange(made.dir.join("diff"), &diff)?;
        root.sync_names(&diff)?;
        for name in ["tar-split.json.gz", "size"] {
            root.rename(record.join(name), target.join(name))?;
        }
        root.sync_names(target.join("size"))?;
        drop(readers);
        self.known.lock().remove(chain);
        let mut distrusted = self.distrusted.lock();
        distrusted.layers.remove(chain);
        distrusted.repaired.push(*chain);
        Ok(())
    }
}
