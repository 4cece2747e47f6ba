//! The merged view of a stack's lower layers in one file that is mapped into memory, so that
//! a mount asks nothing of the layers' directories, however many there are. docs/CATALOG.md
//! has the format and says when a catalog is believed.
//!
//! [`build`] writes one by walking a union of the layers; `union::mounted_catalog` reads it;
//! [`place`] knows where catalogs are kept. Called by the cli and the union.

mod build;
mod compare;
mod file;
pub mod format;
pub mod place;
pub mod view;
mod write;

use std::path::PathBuf;

pub use build::{Built, Label, Progress, build};
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
        /// Where it was to be.
        path: PathBuf,
        /// What failed.
        source: std::io::Error,
    },
    /// Another process is making the same catalog.
    #[error("another process is making the catalog {0:?}")]
    Busy(PathBuf),
    /// A layer was changed meanwhile.
    #[error("the layer {0:?} has been changed while its catalog was made")]
    Changed(PathBuf),
    /// It was told to stop.
    #[error("stopped")]
    Stopped,
}
