//! Catalogs: the merged view of a stack's lower layers in one file, which is mapped into memory so
//! that a mount need not read the layers' directories. docs/CATALOG.md describes the format, and
//! when a catalog is trusted.
//!
//! [`build`] writes a catalog by walking the merged layers, [`Mounted`] answers a mount's lookups
//! from it, and [`directory`] knows where catalogs are stored.
//!
//! ```
//! use unionfs::catalog::{self, CatalogFile, Label};
//! use unionfs::layer::{Dialect, LayerSpec, StackSpec};
//! use unionfs::union::{Options, Union};
//!
//! let dir = tempfile::tempdir()?;
//! let lower = dir.path().join("lower");
//! std::fs::create_dir(&lower)?;
//! std::fs::write(lower.join("motd"), "hello")?;
//! let stack = StackSpec {
//!     lowers: vec![LayerSpec::open(lower, Dialect::ALL)?],
//!     data_only: Vec::new(),
//!     upper: None,
//! };
//! let path = dir.path().join("catalog");
//! let built = catalog::build(&stack, &Label::default(), &path, &mut |_| true)?;
//! assert_eq!(built.names, 1);
//!
//! let mut options = Options::default();
//! options.names = Some(CatalogFile::source(&path));
//! assert!(Union::new(&stack, options)?.is_catalogued());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod build;
mod compare;
pub mod directory;
mod file;
pub mod format;
mod mounted;
pub mod view;
mod write;

use std::path::PathBuf;

pub use build::{Built, Label, build, build_confined};
pub(crate) use compare::XATTR_FLAGS;
pub use compare::{Difference, compare};
pub use file::{Unusable, check_layers, describes, open};
pub use mounted::{CatalogFile, Mounted};

/// The reason why no catalog was built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The layers cannot be read.
    #[error(transparent)]
    Layers(#[from] crate::lowers::OpenError),
    /// The file cannot be written.
    #[error("cannot write the catalog {path:?}: {source}")]
    Write {
        /// The path of the catalog.
        path: PathBuf,
        /// The error of the file system.
        source: std::io::Error,
    },
    /// Another process is building the same catalog.
    #[error("another process is making the catalog {0:?}")]
    Busy(PathBuf),
    /// A layer was changed during the build.
    #[error("the layer {0:?} has been changed while its catalog was made")]
    Changed(PathBuf),
    /// `step` returned false.
    #[error("stopped")]
    Stopped,
}
