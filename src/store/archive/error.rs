//! What can be wrong with an image archive. Part of [`crate::store::Error`].

use std::io;

use crate::store::Digest;
use crate::store::error::io_remedy;
use crate::store::json::shown;

/// A failure while an image archive is read or written.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
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
        "{archive} is no image archive: it has neither manifest.json nor index.json; a plain root file system is taken in by `unionfs import`"
    )]
    NotAnArchive {
        /// The archive.
        archive: String,
    },
    /// Something it names is not in it.
    #[error("{archive}: {entry} is named but not there; the archive is incomplete")]
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
        source: Box<crate::store::Error>,
    },
}

impl ArchiveError {
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
