//! What can be wrong with a layer tar or its tar-split.

use std::io;

use rustix::io::Errno;

use crate::oci::text::excerpt;
use crate::sys::remedy::{io_is_full, io_remedy, is_full};

/// A failure while a layer tar is read, unpacked or rebuilt.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An entry that no layer may have.
    #[error("layer tar, entry {entry}: {what}")]
    Entry {
        /// The entry's name, quoted and shortened.
        entry: String,
        /// What is wrong, and what to do.
        what: String,
    },
    /// Bytes that are no tar.
    #[error("layer tar, at byte {offset}: {what}; get the image again")]
    Stream {
        /// Offset in the uncompressed stream.
        offset: u64,
        /// What is wrong there.
        what: &'static str,
    },
    /// The stream itself failed: truncated, or not what its compression promises.
    #[error("layer tar, at byte {offset}: cannot read: {source}")]
    Read {
        /// Offset in the uncompressed stream.
        offset: u64,
        /// Why.
        source: io::Error,
    },
    /// A file could not be created or changed.
    #[error("layer tar, entry {entry}: cannot {action}: {source}{}", remedy(*source))]
    Place {
        /// The entry's name, quoted and shortened.
        entry: String,
        /// What was being done.
        action: &'static str,
        /// The errno.
        source: Errno,
    },
    /// More than the caller allows.
    #[error("layer tar: more than {limit} {what}: refused as a possible bomb")]
    Limit {
        /// Of what: "bytes", "entries".
        what: &'static str,
        /// How many are allowed.
        limit: u64,
    },
    /// It does not fit on the store's file system.
    #[error(
        "layer tar, entry {entry}: it needs {}, but only {} may be used on the store's file system, the reserve left out; free some space, or set UNIONFS_ROOT to a larger disk",
        crate::sys::free_space::shown(*needed), crate::sys::free_space::shown(*free)
    )]
    NoRoom {
        /// The entry's name, quoted and shortened.
        entry: String,
        /// Bytes that are to be written next.
        needed: u64,
        /// Bytes that may be.
        free: u64,
    },
    /// A signal ended it.
    #[error(transparent)]
    Interrupted(#[from] crate::sys::interrupt::Interrupted),
    /// Malformed tar-split.
    #[error("tar-split, line {line}: {what}; load or pull the image again with --repair")]
    Split {
        /// Line, from 1.
        line: u64,
        /// What is wrong there.
        what: String,
    },
    /// A layer's file is not what the tar-split says.
    #[error("layer file {path}: {what}; load or pull the image again with --repair")]
    Damaged {
        /// The path in the layer, quoted and shortened.
        path: String,
        /// What is wrong with it.
        what: String,
    },
    /// What was made could not be written.
    #[error("cannot write the {what}: {source}{}", io_remedy(source))]
    Write {
        /// "tar", "tar-split" or notes for the end.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The thread that hashes could not be started, or ended early.
    #[error("cannot hash the layer: {0}")]
    Hash(io::Error),
}

/// Result of reading or making a layer tar.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Tells whether there was no room for what was to be written.
    pub fn is_full(&self) -> bool {
        match self {
            Self::NoRoom { .. } => true,
            Self::Place { source, .. } => is_full(*source),
            Self::Write { source, .. } => io_is_full(source),
            _ => false,
        }
    }

    /// A tar, or a part of it, that could not be written.
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
        Errno::NOSYS => "; openat2 is needed: Linux 5.6 or newer, not blocked by a sandbox",
        _ => "",
    }
}
