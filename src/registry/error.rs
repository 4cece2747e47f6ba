//! Errors of registries. No message contains a password or token.

use std::path::PathBuf;
use std::time::Duration;

use crate::archive;
use crate::layer_tar;
use crate::oci::text::excerpt;
use crate::oci::{self, Digest};
use crate::store;
use crate::sys::{free_space, interrupt};

/// The result of a request to a registry.
pub type Result<T> = std::result::Result<T, Error>;

/// A failure while images are pulled or pushed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No usable response was received, even after several attempts.
    #[error("cannot get an answer from {url}: {why}")]
    Unreachable {
        /// The URL of the request.
        url: String,
        /// The cause.
        why: String,
    },
    /// No trusted authority confirms the registry's certificate.
    #[error(
        "{url}: {why}; if it is right, put the certificate of its authority among the system's or into /etc/docker/certs.d/HOST/ca.crt"
    )]
    Untrusted {
        /// The URL of the request.
        url: String,
        /// The fault of the certificate.
        why: String,
    },
    /// The registry requires a client certificate, or rejects ours.
    #[error(
        "{url}: {why}; put the one it knows and its key into /etc/docker/certs.d/HOST/ as client.cert and client.key"
    )]
    Unwelcome {
        /// The URL of the request.
        url: String,
        /// The registry's reason.
        why: String,
    },
    /// The object is not an image.
    #[error(
        "{what} is no image: it is {kind}; get it with the tool that made it, such as helm, oras or cosign"
    )]
    NoImage {
        /// The image's name.
        what: String,
        /// The kind of the object.
        kind: String,
    },
    /// The registry does not have the object, or hides it from this user.
    #[error(
        "{what}: the registry does not have it{message}; check the name, and that the user may see it"
    )]
    NotFound {
        /// The manifest or blob, with the image's name.
        what: String,
        /// The registry's message, in parentheses.
        message: String,
    },
    /// The registry requires credentials, or rejects these.
    #[error("{what}: the registry refuses {who}{message}; {remedy}")]
    Unauthorized {
        /// The object of the request.
        what: String,
        /// "anonymous access" or "the credentials of …".
        who: String,
        /// The registry's message, in parentheses.
        message: String,
        /// The remedy.
        remedy: String,
    },
    /// Any other response that is not a success.
    #[error("{what}: the registry answers {status}{message}{}", later(*after))]
    Status {
        /// The object of the request.
        what: String,
        /// HTTP status.
        status: u16,
        /// The registry's code of the error, or nothing (OCI distribution specification, "Error
        /// codes").
        code: String,
        /// The registry's message, in parentheses.
        message: String,
        /// The time after which the registry accepts the next request (Retry-After).
        after: Option<Duration>,
    },
    /// The data does not fit on the store's file system.
    #[error(
        "{what}: it needs {}, but only {} may be used on the file system of {store:?}, the reserve left out; free some space, or set UNIONFS_ROOT to a larger disk",
        free_space::shown(*needed), free_space::shown(*free)
    )]
    NoRoom {
        /// The image or blob.
        what: String,
        /// The bytes that are still to be downloaded.
        needed: u64,
        /// The bytes that may be used.
        free: u64,
        /// The store's root.
        store: PathBuf,
    },
    /// A signal ended the operation.
    #[error(transparent)]
    Interrupted(#[from] interrupt::Interrupted),
    /// The content does not have its digest.
    #[error("{what}: the SHA-256 of what the registry sends is {actual}, not {expected}; refused")]
    Digest {
        /// The manifest or blob, with the image's name.
        what: String,
        /// The digest that was requested.
        expected: Digest,
        /// The digest of the content.
        actual: Digest,
    },
    /// A response is malformed, or is of a kind that is not supported.
    #[error("{what}: {why}")]
    Malformed {
        /// The object of the request.
        what: String,
        /// The fault.
        why: String,
    },
    /// The index has no image for the platform.
    #[error("{what}: no image for {wanted}; there are {offered}: choose one with --platform")]
    NoPlatform {
        /// The image's name.
        what: String,
        /// The wanted platform: os/arch/variant.
        wanted: String,
        /// The platforms of the index.
        offered: String,
    },
    /// A file that configures registries cannot be used.
    #[error("{path:?}: {why}")]
    Configuration {
        /// The file.
        path: PathBuf,
        /// The fault.
        why: String,
    },
    /// The configuration blocks the registry of the image.
    #[error("{what} is blocked: the configuration of registries ({path:?}) blocks {prefix}")]
    Blocked {
        /// The image's name.
        what: String,
        /// The prefix of names that is blocked.
        prefix: String,
        /// A file of the configuration.
        path: PathBuf,
    },
    /// The signature policy does not accept the image.
    #[error("{what} is refused by the signature policy {path:?}: {why}")]
    Policy {
        /// The image's name.
        what: String,
        /// The policy.
        path: PathBuf,
        /// The requirement that is not fulfilled.
        why: String,
    },
    /// A copy cannot be written.
    #[error("{what}: {why}")]
    Destination {
        /// The file.
        what: String,
        /// The cause.
        why: String,
    },
    /// Stored credentials cannot be used.
    #[error("{what}: {why}")]
    Credentials {
        /// The file or helper.
        what: String,
        /// The cause.
        why: String,
    },
    /// The store that images come from or go to reports an error.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The pulled image cannot be stored.
    #[error(transparent)]
    Archive(#[from] archive::Error),
    /// A name is malformed.
    #[error(transparent)]
    Oci(#[from] oci::Error),
    /// A layer cannot be rebuilt from its files.
    #[error(transparent)]
    Tar(#[from] layer_tar::Error),
}

impl Error {
    /// Whether the disk or quota had no space for the data.
    pub(super) fn is_full(&self) -> bool {
        match self {
            Self::NoRoom { .. } => true,
            Self::Store(error) => error.is_full(),
            Self::Archive(error) => error.is_full(),
            Self::Tar(error) => error.is_full(),
            _ => false,
        }
    }

    /// Whether the fault is on this machine, so that another registry cannot do better.
    pub(super) fn is_local(&self) -> bool {
        match self {
            Self::NoRoom { .. }
            | Self::Interrupted(_)
            | Self::Configuration { .. }
            | Self::Policy { .. }
            | Self::Blocked { .. }
            | Self::Credentials { .. }
            | Self::Destination { .. }
            | Self::Store(_) => true,
            _ => self.is_full() || interrupt::signal().is_some(),
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

/// Formats a registry's text for a message: on one line, shortened, in parentheses.
pub(super) fn said(text: &str) -> String {
    match text.trim() {
        "" => String::new(),
        text => format!(" ({})", excerpt(text.as_bytes())),
    }
}
