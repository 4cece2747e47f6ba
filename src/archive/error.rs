//! Errors of image archives.

use std::io;

use crate::layer_tar;
use crate::oci::text::shown;
use crate::oci::{self, Digest};
use crate::store;
use crate::sys::interrupt::Interrupted;
use crate::sys::remedy::{io_is_full, io_remedy};

/// The result of reading or writing an image archive.
pub type Result<T> = std::result::Result<T, Error>;

/// A failure while an image archive is read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The archive cannot be read.
    #[error("cannot read {archive}: {source}{}", io_remedy(source))]
    Read {
        /// The archive.
        archive: String,
        /// The cause.
        source: io::Error,
    },
    /// The archive cannot be written.
    #[error("cannot write the archive: {}{}", .0, io_remedy(.0))]
    Write(io::Error),
    /// The file is not an image archive.
    #[error(
        "{archive} is not an image archive: it has neither manifest.json nor index.json; a plain root file system is taken in by `unionfs import`"
    )]
    NotAnArchive {
        /// The archive.
        archive: String,
    },
    /// The archive contains artifacts but no image.
    #[error(
        "{archive} has no image: it holds {kind}; get that with the tool that made it, such as helm, oras or cosign"
    )]
    NoImage {
        /// The archive.
        archive: String,
        /// The kind of its content.
        kind: String,
    },
    /// No image, or more than one, has the wanted reference.
    #[error("{archive} has {wanted}; there are: {offered}")]
    NoReference {
        /// The archive.
        archive: String,
        /// The wanted reference.
        wanted: String,
        /// The references of the archive's images.
        offered: String,
    },
    /// The archive names an entry that it does not have.
    #[error("{archive}: {entry} is listed but missing; the archive is incomplete")]
    Missing {
        /// The archive.
        archive: String,
        /// The entry.
        entry: String,
    },
    /// containerd does not have a blob of an image's name.
    #[error(
        "{name}: containerd does not have {digest}, because it pulls for one platform; `ctr images pull --all-platforms {name}` gets the others, or leave --all out"
    )]
    NotPulled {
        /// The image's name.
        name: String,
        /// The digest of the blob.
        digest: Digest,
    },
    /// Our own store does not have a blob of what it keeps of a name.
    #[error(
        "{name}: the store has kept its index without {digest}; `unionfs pull --all {name}` gets all images of it, or leave --all out"
    )]
    NotKept {
        /// The image's name.
        name: String,
        /// The digest of the blob.
        digest: Digest,
    },
    /// An entry is malformed.
    #[error("{archive}, {entry}: {what}")]
    Entry {
        /// The archive.
        archive: String,
        /// The entry.
        entry: String,
        /// The fault of the entry.
        what: String,
    },
    /// The content of an entry does not have its declared digest.
    #[error("{archive}, {entry}: its SHA-256 is {actual}, not {expected}; get the archive again")]
    Digest {
        /// The archive.
        archive: String,
        /// The entry.
        entry: String,
        /// The declared digest.
        expected: Digest,
        /// The digest of the content.
        actual: Digest,
    },
    /// A layer could not be unpacked into the store.
    #[error("{archive}, layer {entry} ({diff_id}): {source}")]
    Layer {
        /// The archive.
        archive: String,
        /// The entry.
        entry: String,
        /// The layer's diff ID.
        diff_id: Digest,
        /// The cause.
        source: Box<store::Error>,
    },
    /// The store that the image comes from or goes to reports an error.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The image's configuration or name is malformed.
    #[error(transparent)]
    Oci(#[from] oci::Error),
    /// A signal ended the operation.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    /// A layer does not fit, or cannot be rebuilt from its files.
    #[error(transparent)]
    Tar(#[from] layer_tar::Error),
}

impl Error {
    /// Whether the disk or quota had no space for the data.
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
        // The messages of the tar readers quote the archive.
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
