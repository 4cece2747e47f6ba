//! Errors of layer tars and of their tar-split.

use std::io;

use rustix::io::Errno;

use crate::oci::text::excerpt;
use crate::sys::remedy::{io_is_full, io_remedy, is_full};

/// A failure while a layer tar is read, unpacked or rebuilt.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A layer must not have such an entry.
    #[error("layer tar, entry {entry}: {what}")]
    Entry {
        /// The entry's name, quoted and shortened.
        entry: String,
        /// The fault, and the remedy.
        what: String,
    },
    /// The bytes are not a tar.
    #[error("layer tar, at byte {offset}: {what}; get the image again")]
    Stream {
        /// Offset in the uncompressed stream.
        offset: u64,
        /// The fault.
        what: &'static str,
    },
    /// The stream itself cannot be read: it is truncated, or its compression is damaged.
    #[error("layer tar, at byte {offset}: cannot read: {source}")]
    Read {
        /// Offset in the uncompressed stream.
        offset: u64,
        /// The cause.
        source: io::Error,
    },
    /// A file cannot be created or changed.
    #[error("layer tar, entry {entry}: cannot {action}: {source}{}", remedy(*source))]
    Place {
        /// The entry's name, quoted and shortened.
        entry: String,
        /// The failed action.
        action: &'static str,
        /// The errno.
        source: Errno,
    },
    /// The tar exceeds a limit of the caller.
    #[error("layer tar: more than {limit} {what}: refused as a possible bomb")]
    Limit {
        /// The unit: "bytes", "entries".
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// The content does not fit on the store's file system.
    #[error(
        "layer tar, entry {entry}: it needs {}, but only {} may be used on the store's file system, the reserve left out; free some space, or set UNIONFS_ROOT to a larger disk",
        crate::sys::free_space::shown(*needed), crate::sys::free_space::shown(*free)
    )]
    NoRoom {
        /// The entry's name, quoted and shortened.
        entry: String,
        /// The bytes that are to be written next.
        needed: u64,
        /// The bytes that may be used.
        free: u64,
    },
    /// A signal ended the operation.
    #[error(transparent)]
    Interrupted(#[from] crate::sys::interrupt::Interrupted),
    /// The tar-split is malformed.
    #[error("tar-split, line {line}: {what}; load or pull the image again with --repair")]
    Split {
        /// The line, from 1.
        line: u64,
        /// The fault.
        what: String,
    },
    /// A file of the layer differs from the tar-split.
    #[error("layer file {path}: {what}; load or pull the image again with --repair")]
    Damaged {
        /// The path in the layer, quoted and shortened.
        path: String,
        /// The damage.
        what: String,
    },
    /// The engine that unpacked the layer has not kept the content of an entry.
    #[error(
        "entry {path} of the layer's tar {what}: the tar cannot be made again, by the engine neither; get the image from its registry or archive"
    )]
    NotKept {
        /// The path in the tar, quoted and shortened.
        path: String,
        /// The reason.
        what: String,
    },
    /// The output cannot be written.
    #[error("cannot write the {what}: {source}{}", io_remedy(source))]
    Write {
        /// The kind of output: "tar", "tar-split" or data for the end.
        what: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// The hashing thread could not be started, or ended early.
    #[error("cannot hash the layer: {0}")]
    Hash(io::Error),
}

/// The result of reading or making a layer tar.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Whether the disk or quota had no space for the data.
    pub fn is_full(&self) -> bool {
        match self {
            Self::NoRoom { .. } => true,
            Self::Place { source, .. } => is_full(*source),
            Self::Write { source, .. } => io_is_full(source),
            _ => false,
        }
    }

    /// Returns the error for a tar, or a part of it, that could not be written.
    pub(crate) fn writing_tar(source: io::Error) -> Self {
        Self::Write {
            what: "tar",
            source,
        }
    }

    pub(super) fn entry(name: &[u8], what: impl Into<String>) -> Self {
        Self::Entry {
            entry: excerpt(name),
            what: what.into(),
        }
    }

    pub(super) fn place(name: &[u8], action: &'static str, source: Errno) -> Self {
        Self::Place {
            entry: excerpt(name),
            action,
            source,
        }
    }
}

fn remedy(errno: Errno) -> &'static str {
    match errno {
        Errno::PERM | Errno::ACCESS => "; this needs root",
        Errno::NOSPC | Errno::DQUOT => "; free some space",
        Errno::INVAL => "; in a user namespace, map the owner",
        _ => "",
    }
}
