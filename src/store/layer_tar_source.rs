//! Makes a layer's tar from its files and its tar-split, or from its blob.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Seek as _, Write};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;
use sha2::{Digest as _, Sha256};

use super::error::{Error, Result};
use super::image::ImageLayer;
use super::image_store::Store;
use super::records::Records;
use crate::layer_tar::compression::decompress;
use crate::layer_tar::layer_files::{DirFiles, LayerFiles};
use crate::layer_tar::tar_split::{TarSplitLine, TarSplitReader};
use crate::layer_tar::{self, Limits, rebuild_from};
use crate::oci::Digest;
use crate::progress::Counted;
use crate::sys::interrupt;

/// The number of bytes copied at a time.
const CHUNK: usize = 256 << 10;

/// A layer's tar-split, decompressed.
pub(super) type TarSplit = BufReader<MultiGzDecoder<BufReader<File>>>;

/// The source of a tar.
enum Source {
    /// The tar-split, in Docker's and podman's stores.
    Split(Box<TarSplit>),
    /// The blob, in containerd's store.
    Blob(BlobTar),
}

/// A layer's tar, decompressed from its blob.
struct BlobTar {
    /// The path of the blob.
    path: PathBuf,
    tar: Box<dyn Read + Send>,
}

/// A tar-split that can be read several times.
pub(super) enum Splits<'s> {
    Kept(&'s Store, &'s ImageLayer),
    Made(&'s File),
}

impl Splits<'_> {
    /// Returns the lines, from the first one on.
    pub(super) fn open(&self) -> Result<Box<dyn BufRead + '_>> {
        match self {
            Self::Kept(store, layer) => Ok(Box::new(store.kept_split(layer)?)),
            Self::Made(file) => {
                let reader = FromStart { file, offset: 0 };
                Ok(Box::new(BufReader::with_capacity(CHUNK, reader)))
            }
        }
    }
}

/// Reads a file from its beginning. Other readers of the file do not matter.
struct FromStart<'f> {
    file: &'f File,
    offset: u64,
}

impl Read for FromStart<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(bytes, self.offset)?;
        self.offset += read as u64;
        Ok(read)
    }
}

impl Store {
    /// Returns the path of the source, below the root that contains the layer.
    pub(super) fn tar_source_path(&self, layer: &ImageLayer) -> Result<PathBuf> {
        match &self.records {
            Some(Records::Podman(records)) => Ok(records.tar_split(&layer.cache_id)),
            Some(Records::Containerd(found)) => {
                let blob = found.records()?.layer_blob(&layer.chain_id);
                blob.ok_or_else(|| self.layer_missing(&layer.chain_id, self.root().to_owned()))
            }
            None => Ok(self.layerdb().tar_split(&layer.chain_id)),
        }
    }

    fn layer_missing(&self, chain: &Digest, path: PathBuf) -> Error {
        let chain = *chain;
        Error::LayerMissing { chain, path }
    }

    /// Returns the files of a layer.
    pub(super) fn files_of(&self, layer: &ImageLayer) -> Result<Box<dyn LayerFiles>> {
        let Some(spec) = layer.place.dir() else {
            return self.driver.device_files(&self.root, &layer.cache_id);
        };
        let dir = spec.dir.readable();
        let dir = dir.map_err(|errno| Error::io("open", spec.path(), errno))?;
        Ok(Box::new(DirFiles(dir)))
    }

    /// Returns a layer's tar-split, which can be read several times. If the store keeps the tar
    /// itself, the tar-split is made from it and written to `made`; data that does not fit into
    /// memory meanwhile is written to `paths`.
    pub(super) fn tar_splits<'s>(
        &'s self,
        layer: &'s ImageLayer,
        made: &'s File,
        paths: &File,
    ) -> Result<Splits<'s>> {
        let Source::Blob(blob) = self.tar_source(layer)? else {
            return Ok(Splits::Kept(self, layer));
        };
        made.set_len(0).map_err(layer_tar::Error::writing_tar)?;
        let mut made_at = made;
        let begin = made_at.rewind();
        begin.map_err(layer_tar::Error::writing_tar)?;
        let out = BufWriter::with_capacity(CHUNK, made_at);
        let digest = layer_tar::write_split(blob.tar, paths, out, &Limits::default())?;
        expect_tar(&digest, &layer.diff_id, &blob.path)?;
        Ok(Splits::Made(made))
    }

    fn tar_source(&self, layer: &ImageLayer) -> Result<Source> {
        match self.blob_tar(&layer.chain_id)? {
            Some(blob) => Ok(Source::Blob(blob)),
            None => Ok(Source::Split(Box::new(self.kept_split(layer)?))),
        }
    }

    /// Returns the tar-split from a store that keeps it.
    fn kept_split(&self, layer: &ImageLayer) -> Result<TarSplit> {
        let root = self.root_of(&layer.cache_id);
        let path = self.tar_source_path(layer)?;
        let file = root.file(&path)?;
        let file = file.ok_or_else(|| self.layer_missing(&layer.chain_id, root.full(path)))?;
        let split = MultiGzDecoder::new(BufReader::new(file));
        Ok(BufReader::with_capacity(64 << 10, split))
    }

    /// Returns the tar of a layer, unpacked or not, from a store that keeps blobs; `None` in
    /// others.
    fn blob_tar(&self, chain: &Digest) -> Result<Option<BlobTar>> {
        let Some(Records::Containerd(found)) = &self.records else {
            return Ok(None);
        };
        let blob = found.records()?.layer_blob(chain);
        let blob = blob.ok_or_else(|| self.layer_missing(chain, self.root().to_owned()))?;
        let path = self.root.full(&blob);
        let file = self.root.file(&blob)?;
        let file = file.ok_or_else(|| self.layer_missing(chain, path.clone()))?;
        let tar = decompress(file).map_err(|error| unreadable(&path, &error))?;
        Ok(Some(BlobTar { path, tar }))
    }

    /// Writes a layer's tar and returns its digest, which the caller compares with the diff ID.
    ///
    /// # Errors
    /// [`Error::LayerMissing`] if the tar-split or blob is missing; [`Error::Tar`] for damaged
    /// files, and if `out` fails.
    pub fn write_layer_tar(&self, layer: &ImageLayer, out: impl Write) -> Result<Digest> {
        match self.tar_source(layer)? {
            Source::Split(split) => {
                let mut files = self.files_of(layer)?;
                Ok(rebuild_from(split, &mut *files, out)?)
            }
            Source::Blob(blob) => blob.copy_to(out),
        }
    }

    /// Writes the tar of a layer that need not be unpacked, from its blob, and returns its digest.
    ///
    /// # Errors
    /// [`Error::LayerMissing`] if there is no blob, also in stores without blobs; else as
    /// [`Store::write_layer_tar`].
    pub(super) fn write_blob_tar(&self, chain: &Digest, out: impl Write) -> Result<Digest> {
        match self.blob_tar(chain)? {
            Some(blob) => blob.copy_to(out),
            None => Err(self.layer_missing(chain, self.root().to_owned())),
        }
    }

    /// Returns the length of a layer's tar in bytes.
    ///
    /// # Errors
    /// As [`Store::write_layer_tar`].
    pub fn layer_tar_size(&self, layer: &ImageLayer) -> Result<u64> {
        let split = match self.tar_source(layer)? {
            Source::Split(split) => split,
            Source::Blob(blob) => {
                let mut length = 0;
                blob.copy_to(Counted::new(io::sink(), |count| length += count))?;
                return Ok(length);
            }
        };
        let mut lines = TarSplitReader::new(split);
        let mut sum = 0_u64;
        while let Some(line) = lines.next_line()? {
            sum = sum.saturating_add(match line {
                TarSplitLine::Segment(bytes) => bytes.len() as u64,
                TarSplitLine::File { size, .. } => size,
            });
        }
        Ok(sum)
    }
}

impl BlobTar {
    /// Writes the tar and returns its digest.
    fn copy_to(mut self, mut out: impl Write) -> Result<Digest> {
        let mut hash = Sha256::new();
        let mut buffer = vec![0; CHUNK];
        loop {
            interrupt::check()?;
            let read = match self.tar.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(unreadable(&self.path, &error)),
            };
            hash.update(&buffer[..read]);
            let written = out.write_all(&buffer[..read]);
            written.map_err(layer_tar::Error::writing_tar)?;
        }
        out.flush().map_err(layer_tar::Error::writing_tar)?;
        Ok(Digest::from_hash(hash))
    }
}

/// Compares the digest of a tar from the source `from` with the diff ID.
pub(super) fn expect_tar(actual: &Digest, diff: &Digest, from: &Path) -> Result<()> {
    if actual == diff {
        return Ok(());
    }
    Err(Error::ChainMismatch {
        path: from.to_owned(),
        found: format!("a layer whose tar has the digest {actual}"),
        expected: diff.to_string(),
    })
}

fn unreadable(path: &Path, error: &io::Error) -> Error {
    layer_tar::Error::Damaged {
        path: path.display().to_string(),
        what: format!("it cannot be decompressed: {error}"),
    }
    .into()
}
