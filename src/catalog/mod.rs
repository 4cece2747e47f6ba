//! Catalogs: the merged view of a stack's lower layers in one file, which is mapped into memory so
//! that a mount need not read the layers' directories. docs/CATALOG.md describes the format, and
//! when a catalog is trusted.
//!
//! [`build`] writes a catalog by walking a union of the layers, `union::mounted_catalog` reads it,
//! and [`place`] knows where catalogs are stored.

mod build;
mod compare;
mod file;
pub mod format;
pub mod place;
pub mod view;
mod write;

use std::path::PathBuf;

pub use build::{Built, Label, Progress, build, build_confined};
pub(crate) use compare::XATTR_FLAGS;
pub use compare::{Difference, compare};
pub use file::{Unusable, check_layers, open};

/// Why no catalog was made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The layers cannot be read.
    #[error(transparent)]
    Layers(#[from] crate::union::Error),
    /// The file cannot be written.
    #[error("cannot write the catalog {path:?}: {source}")]
    Write {
        /// The path of the catalog.
        path: PathBuf,
        /// The error of the file system.
        source: std::io::Error,
    },
    /// Another process is making the same catalog.
    #[error("another process is making the catalog {0:?}")]
    Busy(PathBuf),
    /// A layer was changed during the build.
    #[error("the layer {0:?} has been changed while its catalog was made")]
    Changed(PathBuf),
    /// `step` returned false.
    #[error("stopped")]
    Stopped,
}
