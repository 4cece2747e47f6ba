//! Gives new files to layers whose files are damaged.
//!
//! ```text
//!  damaged_layers ─► distrust ─► the layer counts as missing: it is unpacked again, into a staged one
//!                                commit: overlay2/<staged>/diff ⇄ overlay2/<cache ID>/diff
//!                                        tar-split.json.gz and size of the record replaced
//! ```
//! The layer keeps its cache ID and its short name, so that layers and read-write layers above it
//! remain valid. Each step is one rename. After a crash between the steps the layer has valid files
//! and an older record, which fits or is found damaged again.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::staged::Made;
use super::{DRIVER, Exclusive, Writable};
use crate::oci::{Digest, chain_id};
use crate::store::CacheId;
use crate::store::confined_dir::SMALL;
use crate::store::error::{Error, Result};
use crate::store::image_store::{Cache, layer_of};
use crate::store::verify::damage_of;
use crate::sys::interrupt;

/// As [`super::InUse`], for questions that are asked later: a mount may begin meanwhile.
pub type LiveUse = Arc<dyn Fn(&Path) -> Option<PathBuf> + Send + Sync>;

/// The layers that will be replaced, and those that were.
#[derive(Default)]
pub(super) struct Distrusted {
    /// Each with the function that finds its live mounts.
    layers: HashMap<Digest, LiveUse>,
    repaired: Vec<Digest>,
}

impl fmt::Debug for Distrusted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let layers = self.layers.keys().collect::<Vec<_>>();
        f.debug_struct("Distrusted")
            .field("layers", &layers)
            .field("repaired", &self.repaired)
            .finish()
    }
}

impl Writable {
    /// Hashes and compares the files of these layers, base first, if they exist and are not among
    /// the `checked`, to which they are added. Returns the chain IDs of the damaged ones.
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
    /// Makes these layers, given by chain ID, count as missing from now on. Committing one of them
    /// gives new files to the existing layer, unless it became a layer of a live mount meanwhile:
    /// `in_use` is asked now, and again while no reader can begin.
    ///
    /// # Errors
    /// [`Error::InUse`] if one is a layer of a live mount, which would lose the files; those of
    /// [`Exclusive::image`].
    pub fn distrust(
        &self,
        layers: impl IntoIterator<Item = Digest>,
        in_use: LiveUse,
    ) -> Result<()> {
        for chain in layers {
            let cache_id = self.resolve(&chain)?.record.cache_id.clone();
            let diff = self.writable.layer_dir(cache_id.as_str()).join("diff");
            require_unused(&chain, &self.confined_root().full(diff), &in_use)?;
            let in_use = Arc::clone(&in_use);
            self.distrusted.lock().layers.insert(chain, in_use);
        }
        Ok(())
    }

    /// Returns the layers that got new files, by chain ID.
    pub fn repaired(&self) -> Vec<Digest> {
        self.distrusted.lock().repaired.clone()
    }

    pub(super) fn is_distrusted(&self, chain: &Digest) -> bool {
        self.distrusted.lock().layers.contains_key(chain)
    }

    /// Gives a staged layer the short name of the layer with this damaged record, which the layers
    /// above refer to. The old directory stays for live mounts, without a short name, until the
    /// garbage collection removes it.
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
        // The removal of the old directory must not remove the short name.
        root.remove_file(&old_file)
    }

    /// Gives a layer the files of a staged one, whose record is `record`; the staged one gets the
    /// old files. All of it is synced.
    pub(super) fn replace_files(&self, chain: &Digest, made: &Made, record: &Path) -> Result<()> {
        let cache_id = self.resolve(chain)?.record.cache_id.clone();
        let diff = self.writable.layer_dir(cache_id.as_str()).join("diff");
        let target = self.writable.image_dir("layerdb/sha256").join(chain.hex());
        let root = self.confined_root();
        // No reader opens the old files meanwhile, and every mount that has opened them is recorded.
        let readers = self.writable.exclude_readers()?;
        let in_use = self.distrusted.lock().layers.get(chain).map(Arc::clone);
        if let Some(in_use) = in_use {
            require_unused(chain, &root.full(&diff), &in_use)?;
        }
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

/// # Errors
/// [`Error::InUse`] if a live mount has the layer.
fn require_unused(chain: &Digest, diff: &Path, in_use: &LiveUse) -> Result<()> {
    let Some(mountpoint) = in_use(diff) else {
        return Ok(());
    };
    let mountpoint = mountpoint.display();
    Err(Error::InUse {
        what: format!("damaged layer {chain}"),
        by: format!(
            "it is mounted on {mountpoint}, unmount it first (unionfs umount {mountpoint})"
        ),
    })
}
