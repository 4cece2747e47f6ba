//! What can be wrong with an image archive.

use std::io;

use crate::layer_tar;
use crate::oci::text::shown;
use crate::oci::{self, Digest};
use crate::store;
use crate::sys::interrupt::Interrupted;
use crate::sys::remedy::{io_is_full, io_remedy};

/// Result of reading or writing an image archive.
pub type Result<T> = std::result::Result<T, Error>;

/// A failure while an image archive is read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// It could not be read.
    #[error("cannot read {archive}: {source}{}", io_remedy(source))]
    Read {
        /// The archive.
        archive: String,
        /// Why.
        source: io::Error,
    },
    /// It could not be written.
    #[error("cannot write the archive: {}{}", .0, io_remedy(.0))]
    Write(io::Error),
    /// It is nothing that can be loaded.
    #[error(
        "{archive} is not an image archive: it has neither manifest.json nor index.json; a plain root file system is taken in by `unionfs import`"
    )]
    NotAnArchive {
        /// The archive.
        archive: String,
    },
    /// It holds something else than images.
    #[error(
        "{archive} has no image: it holds {kind}; get that with the tool that made it, such as helm, oras or cosign"
    )]
    NoImage {
        /// The archive.
        archive: String,
        /// What it holds.
        kind: String,
    },
    /// It has not the image, or not only the one, that was asked for.
    #[error("{archive} has {wanted}; there are: {offered}")]
    NoReference {
        /// The archive.
        archive: String,
        /// What was asked for.
        wanted: String,
        /// What the archive calls its images.
        offered: String,
    },
    /// Something it names is not in it.
    #[error("{archive}: {entry} is listed but missing; the archive is incomplete")]
    Missing {
        /// The archive.
        archive: String,
        /// The entry.
        entry: String,
    },
    /// An entry is not what it should be.
    #[error("{archive}, {entry}: {what}")]
    Entry {
        /// The archive.
        archive: String,
        /// The entry.
        entry: String,
        /// What is wrong with it.
        what: String,
    },
    /// Content is not what its digest says.
    #[error("{archive}, {entry}: its SHA-256 is {actual}, not {expected}; get the archive again")]
    Digest {
        /// The archive.
        archive: String,
        /// The entry.
        entry: String,
        /// What was declared.
        expected: Digest,
        /// What it is.
        actual: Digest,
    },
    /// A layer could not be taken in.
    #[error("{archive}, layer {entry} ({diff_id}): {source}")]
    Layer {
        /// The archive.
        archive: String,
        /// The entry.
        entry: String,
        /// The layer's diff ID.
        diff_id: Digest,
        /// Why.
        source: Box<store::Error>,
    },
    /// The store that it comes from or goes to fails.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The image's configuration or name is bad.
    #[error(transparent)]
    Oci(#[from] oci::Error),
    /// A signal ended it.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    /// A layer does not fit, or cannot be made again from its files.
    #[error(transparent)]
    Tar(#[from] layer_tar::Error),
}

impl Error {
    /// Tells whether there was no room for what was to be written.
    pub fn is_full(&self) -> bool {
        match self {
            Self::Write(source) => io_is_full(source),
            Self::Layer { source, .. } => source.is_full(),
            Self::Store(error) => error.is_full(),
            Self::Tar(error) => error.is_full(),
            _ => false,
        }
    }

    pub(super) fn read(archive: &str, source: io::Error) -> Self {
        // The messages of those who read tars quote the archive.
        let source = match source.raw_os_error() {
            Some(_) => source,
            None => io::Error::new(source.kind(), shown(&source.to_string())),
        };
        Self::Read {
            archive: archive.to_owned(),
            source,
        }
    }

    pub(super) fn entry(archive: &str, entry: &str, what: impl Into<String>) -> Self {
        Self::Entry {
            archive: archive.to_owned(),
            entry: entry.to_owned(),
            what: what.into(),
        }
    }
}
