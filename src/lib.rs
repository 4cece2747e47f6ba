//! unionfs: overlay semantics in user space.
//!
//! Each part is usable without the parts above it:
//!
//! * [`union`] serves the union of a stack of layers through plain calls (inode numbers, name
//!   bytes, credentials), on top of [`lowers`] (what the lower layers have, merged), [`layer`] (one
//!   directory and its whiteout dialects) and [`sys`] (the few system calls rustix lacks).
//!   [`catalog`] writes the merged lowers to a file, and implements [`lowers`] from it.
//! * [`store`] turns an image name into a stack of layer directories, on top of [`oci`] (digests,
//!   references, configurations) and [`layer_tar`] (a layer as a tar). [`archive`] and [`registry`]
//!   are where images come from and go to.
//! * [`changes`] tells what was written to a union, and packs that or all of the union as a tar.
//! * [`fuse`] is the transport that connects [`union`] to the kernel.
//! * [`image_mounts`] mounts an image of a store by its name.
//! * [`sandbox`] confines a process that serves a mount or unpacks layers.
//! * [`progress`] is what the parts report of long work.
//!
//! The cargo features `fuse` (with `sandbox`), `store` (with `oci`, `layer_tar`, `archive` and
//! `changes`) and `registry` choose the parts; all are on by default. `image_mounts` is there with
//! both `fuse` and `store`. Without features, the library has `sys`, `progress`, `layer`, `lowers`,
//! `catalog` and `union`.
//!
//! The command line over all of them is no part of the library: it belongs to the program `unionfs`,
//! which the feature `cli` builds (also on by default).

#[cfg(feature = "store")]
pub mod archive;
pub mod catalog;
#[cfg(feature = "store")]
pub mod changes;
#[cfg(feature = "fuse")]
pub mod fuse;
#[cfg(all(feature = "fuse", feature = "store"))]
pub mod image_mounts;
pub mod layer;
#[cfg(feature = "store")]
pub mod layer_tar;
pub mod lowers;
#[cfg(feature = "store")]
pub mod oci;
pub mod progress;
#[cfg(feature = "registry")]
pub mod registry;
#[cfg(feature = "fuse")]
pub mod sandbox;
#[cfg(feature = "store")]
pub mod store;
pub mod sys;
pub mod union;
