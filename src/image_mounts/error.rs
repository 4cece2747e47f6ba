//! The reasons why an image cannot be mounted.

use std::io;
use std::path::PathBuf;

/// Result of mounting an image.
pub type Result<T> = std::result::Result<T, Error>;

/// A failure of mounting an image or of listing catalogs.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No store has the image, or its layers are damaged.
    #[error(transparent)]
    Store(#[from] crate::store::Error),
    /// The layers cannot be stacked.
    #[error(transparent)]
    Union(#[from] crate::union::Error),
    /// The kernel refuses the mount.
    #[error(transparent)]
    Mount(#[from] crate::fuse::Error),
    /// The catalog of the layers cannot be built.
    #[error(transparent)]
    Catalog(#[from] crate::catalog::Error),
    /// The catalogs cannot be listed.
    #[error("cannot list {path:?}: {source}")]
    Catalogs {
        /// The directory of catalogs.
        path: PathBuf,
        /// The error of the file system.
        source: io::Error,
    },
    /// A relative path has no meaning.
    #[error("cannot make {path:?} absolute: {source}")]
    Path {
        /// The path as given.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
}
