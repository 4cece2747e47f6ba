//! The parts of images that do not depend on a store or registry: digests, references, chain IDs,
//! platforms, configurations and the instructions that change them.
//!
//! This module reads no file and no socket. It parses bytes and returns values or errors. All bytes
//! are hostile.
//!
//! ```
//! use unionfs::oci::{Digest, Platform, Reference, chain_id};
//!
//! let name = Reference::parse("busybox:1.36")?;
//! assert_eq!(name.to_string(), "docker.io/library/busybox:1.36");
//! assert!(Reference::parse("busybox:").is_err());
//!
//! let layers = [Digest::of(b"base"), Digest::of(b"top")];
//! let chain = chain_id::chain_ids(&layers);
//! assert_eq!(chain[0], layers[0]);
//! assert_eq!(chain[1], chain_id::next(Some(&layers[0]), &layers[1]));
//!
//! assert_eq!(Platform::parse("arm/v7"), Platform::parse("linux/arm/v7"));
//! # Ok::<(), unionfs::oci::Error>(())
//! ```

pub mod chain_id;
pub mod derived_config;
pub mod digest;
pub(crate) mod document;
mod error;
mod healthcheck;
pub mod image_config;
pub(crate) mod instructions;
pub(crate) mod json;
pub(crate) mod platform;
pub mod reference;
pub(crate) mod text;

pub use digest::Digest;
pub use error::{Error, Result};
pub use image_config::{Config, Step};
pub use platform::Platform;
pub use reference::{Query, Reference};
