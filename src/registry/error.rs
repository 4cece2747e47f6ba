//! What can go wrong with a registry. No message holds a password or token.

use std::path::PathBuf;
use std::time::Duration;

use crate::archive;
use crate::layer_tar;
use crate::oci::text::excerpt;
use crate::oci::{self, Digest};
use crate::store;
use crate::sys::{free_space, interrupt};

/// Result of asking a registry.
pub type Result<T> = std::result::Result<T, Error>;

/// A failure while images are taken from a registry or brought to one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No usable answer came, also after several attempts.
    #[error("cannot get an answer from {url}: {why}")]
    Unreachable {
        /// What was asked for.
        url: String,
        /// Why.
        why: String,
    },
    /// Nobody known says that it is who it should be.
    #[error(
        "{url}: {why}; if it is right, put the certificate of its authority among the system's or into /etc/docker/certs.d/HOST/ca.crt"
    )]
    Untrusted {
        /// What was asked for.
        url: String,
        /// What is wrong with its certificate.
        why: String,
    },
    /// It wants to know who we are before it talks.
    #[error(
        "{url}: {why}; put the one it knows and its key into /etc/docker/certs.d/HOST/ as client.cert and client.key"
    )]
    Unwelcome {
        /// What was asked for.
        url: String,
        /// What it says of ours.
        why: String,
    },
    /// It is something else than an image.
    #[error(
        "{what} is no image: it is {kind}; get it with the tool that made it, such as helm, oras or cosign"
    )]
    NoImage {
        /// The image's name.
        what: String,
        /// What it is.
        kind: String,
    },
    /// The registry has no such thing, or does not show it to this user.
    #[error(
        "{what}: the registry does not have it{message}; check the name, and that the user may see it"
    )]
    NotFound {
        /// Manifest or blob, with the image's name.
        what: String,
        /// What the registry says, in parentheses.
        message: String,
    },
    /// The registry wants other credentials, or any.
    #[error("{what}: the registry refuses {who}{message}; {remedy}")]
    Unauthorized {
        /// What was asked for.
        what: String,
        /// "anonymous access" or "the credentials of …".
        who: String,
        /// What the registry says, in parentheses.
        message: String,
        /// What to do.
        remedy: String,
    },
    /// Any other answer that is not a success.
    #[error("{what}: the registry answers {status}{message}{}", later(*after))]
    Status {
        /// What was asked for.
        what: String,
        /// HTTP status.
        status: u16,
        /// The registry's code of the error, or nothing (OCI distribution specification, "Error
        /// codes").
        code: String,
        /// What the registry says, in parentheses.
        message: String,
        /// When it wants to be asked again (Retry-After).
        after: Option<Duration>,
    },
    /// It does not fit on the store's file system.
    #[error(
        "{what}: it needs {}, but only {} may be used on the file system of {store:?}, the reserve left out; free some space, or set UNIONFS_ROOT to a larger disk",
        free_space::shown(*needed), free_space::shown(*free)
    )]
    NoRoom {
        /// The image or blob.
        what: String,
        /// Bytes to come.
        needed: u64,
        /// Bytes that may come.
        free: u64,
        /// The store's root.
        store: PathBuf,
    },
    /// A signal ended it.
    #[error(transparent)]
    Interrupted(#[from] interrupt::Interrupted),
    /// Content is not what its digest says.
    #[error("{what}: the SHA-256 of what the registry sends is {actual}, not {expected}; refused")]
    Digest {
        /// Manifest or blob, with the image's name.
        what: String,
        /// What was asked for.
        expected: Digest,
        /// What came.
        actual: Digest,
    },
    /// An answer makes no sense, or is of a kind that cannot be used.
    #[error("{what}: {why}")]
    Malformed {
        /// What was asked for.
        what: String,
        /// What is wrong.
        why: String,
    },
    /// The index has no such image.
    #[error("{what}: no image for {wanted}; there are {offered}: choose one with --platform")]
    NoPlatform {
        /// The image's name.
        what: String,
        /// os/arch/variant.
        wanted: String,
        /// Those there are.
        offered: String,
    },
    /// Stored credentials cannot be used.
    #[error("{what}: {why}")]
    Credentials {
        /// File or helper.
        what: String,
        /// Why.
        why: String,
    },
    /// The store that images come from or go to fails.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// What was pulled cannot be taken in.
    #[error(transparent)]
    Archive(#[from] archive::Error),
    /// A name is bad.
    #[error(transparent)]
    Oci(#[from] oci::Error),
    /// A layer cannot be made again from its files.
    #[error(transparent)]
    Tar(#[from] layer_tar::Error),
}

impl Error {
    /// Whether there was no room for what was to be written.
    pub(super) fn is_full(&self) -> bool {
        match self {
            Self::NoRoom { .. } => true,
            Self::Store(error) => error.is_full(),
            Self::Archive(error) => error.is_full(),
            Self::Tar(error) => error.is_full(),
            _ => false,
        }
    }

    pub(super) fn malformed(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Malformed {
            what: what.into(),
            why: why.into(),
        }
    }
}

fn later(after: Option<Duration>) -> String {
    after.map_or(String::new(), |after| {
        format!("; it asks for a new attempt in {} s", after.as_secs())
    })
}

/// Text of a registry for a message: on one line, shortened, in parentheses.
pub(super) fn said(text: &str) -> String {
    match text.trim() {
        "" => String::new(),
        text => format!(" ({})", excerpt(text.as_bytes())),
    }
}
