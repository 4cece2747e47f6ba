//! The tar of a layer as it comes from an archive: decompressed in a thread of its own
//! (`blob`), with progress, and compared with the digests that the archive promises.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::blob::{Hashing, Pipeline};
use super::contents::LayerBlob;
use super::error::{Error, Result};
use super::source::{Section, Source};
use crate::oci::Digest;
use crate::oci::text::excerpt;
use crate::progress::Progress;

/// The blob of a layer, of which nothing is read yet.
pub(super) struct LayerEntry<'a> {
    source: &'a Source,
    blob: &'a LayerBlob,
    entry: Section,
}

impl<'a> LayerEntry<'a> {
    /// Opens the blob.
    ///
    /// # Errors
    /// [`Error::Missing`]; an error for another size than the archive declares.
    pub(super) fn open(source: &'a Source, blob: &'a LayerBlob) -> Result<Self> {
        let entry = source.required_section(&blob.path)?;
        if let Some(declared) = blob.size.filter(|declared| *declared != entry.len()) {
            let what = format!("{} bytes, not the {declared} declared", entry.len());
            let shown = excerpt(blob.path.as_bytes());
            return Err(Error::entry(source.name(), &shown, what));
        }
        Ok(Self {
            source,
            blob,
            entry,
        })
    }

    /// Returns the size of the blob in bytes, as it is in the archive.
    pub(super) fn size(&self) -> u64 {
        self.entry.len()
    }

    /// Begins to read. `progress` is called by the thread that reads.
    ///
    /// # Errors
    /// [`Error::Read`] if the thread that decompresses cannot be started.
    pub(super) fn start(
        self,
        diff_id: &'a Digest,
        progress: &'a dyn Fn(Progress<'_, &Digest>),
    ) -> Result<LayerStream<'a>> {
        progress(Progress::Begin {
            item: diff_id,
            size: self.size(),
            have: 0,
        });
        let hashing = match &self.blob.digest {
            None => Hashing::No,
            // The reader computes this digest, unless the data with this digest is compressed.
            Some(digest) if digest == diff_id => Hashing::Compressed,
            Some(_) => Hashing::Yes,
        };
        let passed = Arc::new(AtomicU64::new(0));
        let count = {
            let passed = Arc::clone(&passed);
            move |bytes| {
                passed.fetch_add(bytes, Ordering::Relaxed);
            }
        };
        let pipeline = Pipeline::start(self.entry, hashing, count);
        Ok(LayerStream {
            pipeline: pipeline.map_err(|error| Error::read(self.source.name(), error))?,
            source: self.source,
            blob: self.blob,
            diff_id,
            passed,
            progress,
        })
    }
}

/// The tar of a layer.
pub(super) struct LayerStream<'a> {
    source: &'a Source,
    blob: &'a LayerBlob,
    diff_id: &'a Digest,
    pipeline: Pipeline,
    /// The bytes of the blob that were read since the last report.
    passed: Arc<AtomicU64>,
    progress: &'a dyn Fn(Progress<'_, &Digest>),
}

impl Read for LayerStream<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        (self.progress)(Progress::Advance {
            item: self.diff_id,
            count: self.passed.swap(0, Ordering::Relaxed),
        });
        self.pipeline.read(buf)
    }
}

impl LayerStream<'_> {
    /// Ends the layer, whose tar has the digest `found`.
    ///
    /// # Errors
    /// [`Error::Digest`] if the blob or the tar has another digest than the archive says; those of
    /// reading what is left.
    pub(super) fn finish(self, found: Digest) -> Result<()> {
        let of_blob = self.pipeline.finish();
        let of_blob = of_blob.map_err(|error| Error::read(self.source.name(), error))?;
        let pairs = [
            (self.blob.digest, of_blob),
            (Some(*self.diff_id), Some(found)),
        ];
        for pair in pairs {
            if let (Some(expected), Some(actual)) = pair
                && expected != actual
            {
                return Err(Error::Digest {
                    archive: self.source.name().to_owned(),
                    entry: excerpt(self.blob.path.as_bytes()),
                    expected,
                    actual,
                });
            }
        }
        Ok(())
    }
}
