//! A layer that is being written: its directory below `overlay2/` and its record in `layerdb/tmp/`.
//! Both are removed unless committed.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flate2::Compression;
use flate2::write::GzEncoder;
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::Exclusive;
use crate::layer::Dialect;
use crate::oci::{Digest, chain_id};
use crate::store::confined_dir::ConfinedDir;
use crate::store::error::{Error, Result};
use crate::store::random;
use crate::sys::interrupt::{self, AtWork};

/// A layer that readers do not see yet. Dropping it removes everything.
#[derive(Debug)]
#[must_use = "the layer is removed when this is dropped"]
pub struct StagedLayer<'e> {
    exclusive: &'e Exclusive<'e>,
    parent: Option<Digest>,
    made: Made,
    diff: OwnedFd,
    /// Writes `tar-split.json.gz`.
    split: GzEncoder<BufWriter<File>>,
}

/// A directory of the driver, before anything refers to it. Paths are relative to the store's
/// root.
#[derive(Debug)]
pub(super) struct Made {
    root: Arc<ConfinedDir>,
    /// The name of the directory, 64 hexadecimal digits.
    pub(super) cache_id: String,
    /// `overlay2/<cache ID>`, relative to the store's root.
    pub(super) dir: PathBuf,
    pub(super) link: PathBuf,
    /// The record in `layerdb/tmp/`, which belongs to it.
    pub(super) record: Option<PathBuf>,
    keep: bool,
    /// After a signal the process ends when the directory is removed.
    _at_work: AtWork,
}

impl Made {
    /// Keeps the directory, because something refers to it now.
    pub(super) fn keep(mut self) {
        self.keep = true;
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        // What cannot be removed is an orphan, which prune finds.
        let _ = self.root.remove_file(&self.link);
        for dir in self.record.iter().chain([&self.dir]) {
            if let Err(error) = self.root.remove_tree(dir) {
                tracing::warn!(%error, "staging left behind");
            }
        }
    }
}

impl<'e> Exclusive<'e> {
    /// Makes an empty layer above the layer `parent`; a base layer if `None`.
    ///
    /// # Errors
    /// Those of [`Exclusive::image`], for the layers below; [`Error::Io`] if the layer cannot be
    /// made.
    pub fn stage_layer(&'e self, parent: Option<&Digest>) -> Result<StagedLayer<'e>> {
        let below = parent.map(|parent| self.resolve(parent)).transpose()?;
        let mut made = self.make_layer_dir(below.as_ref().map(|b| b.dir.chain.as_str()))?;
        let tmp = self.writable.image_dir("layerdb/tmp");
        let record = tmp.join(format!("write-set-{}", random::hex(16)?));
        // From here on the record is removed with the rest.
        let record: &Path = made.record.insert(record);
        let root = self.confined_root();
        root.new_dir(record, 0o755)?;
        let split = root.create(record.join("tar-split.json.gz"), 0o644)?;
        let path = made.dir.join("diff");
        let gone = || Error::io("open", &root.full(&path), Errno::NOENT);
        let diff = root.dir(&path, OFlags::RDONLY)?.ok_or_else(gone)?;
        Ok(StagedLayer {
            exclusive: self,
            parent: parent.copied(),
            made,
            diff,
            split: GzEncoder::new(BufWriter::new(split), Compression::default()),
        })
    }

    /// Makes `overlay2/<new>/` with `diff`, `link`, and above other layers `lower` and `work`, and
    /// the link in `overlay2/l/`.
    pub(super) fn make_layer_dir(&self, lower: Option<&str>) -> Result<Made> {
        let cache_id = random::hex(32)?;
        let link = random::link()?;
        let root = self.confined_root();
        let made = Made {
            root: Arc::clone(root),
            dir: self.writable.layer_dir(&cache_id),
            link: self.writable.short_link(&link),
            record: None,
            keep: false,
            _at_work: interrupt::begin()?,
            cache_id,
        };
        root.new_dir(&made.dir, 0o710)?;
        root.new_dir(made.dir.join("diff"), 0o755)?;
        root.make_link(&format!("../{}/diff", made.cache_id), &made.link)?;
        root.write_new(made.dir.join("link"), 0o644, link.as_bytes())?;
        if let Some(lower) = lower {
            root.write_new(made.dir.join("lower"), 0o644, lower.as_bytes())?;
            root.new_dir(made.dir.join("work"), 0o700)?;
        }
        Ok(made)
    }

    /// Marks a layer as one with other layers on top, as Docker does.
    pub(super) fn mark_committed(&self, layer: &Digest) -> Result<()> {
        let cache_id = self.resolve(layer)?.record.cache_id.clone();
        let path = self.writable.layer_dir(cache_id.as_str()).join("committed");
        match self.confined_root().create(&path, 0o600) {
            Err(error) if error.errno() != Some(Errno::EXIST) => Err(error),
            _ => Ok(()),
        }
    }
}

impl StagedLayer<'_> {
    /// Returns the directory of the layer's files.
    pub fn diff(&self) -> BorrowedFd<'_> {
        self.diff.as_fd()
    }

    /// Returns its path, for messages.
    pub fn diff_path(&self) -> PathBuf {
        self.made.root.full(self.made.dir.join("diff"))
    }

    /// Returns the dialect for whiteouts and opaque directories.
    pub fn dialect(&self) -> Dialect {
        self.exclusive.writable.dialect()
    }

    /// Returns the writer of the tar-split lines, which compresses them.
    pub fn split(&mut self) -> &mut (impl Write + Send + use<>) {
        &mut self.split
    }

    /// Returns the chain ID that the layer will have with this diff ID.
    pub fn chain_with(&self, diff_id: &Digest) -> Digest {
        chain_id::next(self.parent.as_ref(), diff_id)
    }

    /// Returns [`StagedLayer::diff`] and [`StagedLayer::split`], for use at the same time.
    pub fn parts(&mut self) -> (BorrowedFd<'_>, &mut (impl Write + Send + use<>)) {
        (self.diff.as_fd(), &mut self.split)
    }

    /// Makes this a layer of the store: syncs everything, then does one rename. If the store has
    /// that layer already, the staged one is removed; a damaged one is replaced.
    ///
    /// `size` is the bytes of its files as Docker counts them.
    ///
    /// Returns the chain ID.
    ///
    /// # Errors
    /// [`Error::Io`] if something cannot be written, synced or renamed.
    pub fn commit(self, diff_id: Digest, size: u64) -> Result<Digest> {
        let Self {
            exclusive,
            parent,
            mut made,
            diff,
            split,
        } = self;
        let chain = chain_id::next(parent.as_ref(), &diff_id);
        if exclusive.has_layer(&chain)? {
            return Ok(chain);
        }
        let root = exclusive.confined_root();
        let record = made.record.clone().unwrap_or_default();
        let split_file = record.join("tar-split.json.gz");
        let written = split.finish().and_then(|mut file| file.flush());
        written.map_err(|e| root.failed("write", &split_file, &e))?;
        let text = |name: &str, text: String| {
            let path = record.join(name);
            let mut file = root.create(&path, 0o644)?;
            file.write_all(text.as_bytes())
                .map_err(|e| root.failed("write", &path, &e))
        };
        let damaged = exclusive.is_distrusted(&chain);
        text("diff", diff_id.to_string())?;
        text("cache-id", made.cache_id.clone())?;
        text("size", size.to_string())?;
        if let Some(parent) = &parent {
            text("parent", parent.to_string())?;
            exclusive.mark_committed(parent)?;
        }
        // One sync for everything: a layer may have a million files.
        rustix::fs::syncfs(&diff)
            .map_err(|errno| Error::io("sync", &root.full(&made.dir), errno))?;
        if damaged {
            exclusive.replace_files(&chain, &made, &record)?;
            return Ok(chain);
        }
        let target = exclusive.writable.image_dir("layerdb/sha256");
        let target = target.join(chain.hex());
        exclusive.take_short_name(&target, &mut made)?;
        exclusive.set_aside_damaged(&target)?;
        root.rename(&record, &target)?;
        made.keep();
        root.sync_names(&target)?;
        Ok(chain)
    }
}
