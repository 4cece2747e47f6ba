//! unionfs: overlay semantics in user space.
//!
//! Three parts, each usable alone and none knowing the one above it:
//!
//! * [`store`] turns an image name into a stack of layer directories;
//! * [`union`] serves the union of such a stack through plain calls (inode
//!   numbers, name bytes, credentials), on top of [`layer`] (one directory and
//!   its whiteout dialects) and [`sys`] (the few system calls rustix lacks);
//! * [`fuse`] is the transport that connects [`union`] to the kernel.
//!
//! [`changes`] tells what was written to such a union, and packs it or all of it as a tar.
//!
//! [`catalog`] writes the merged view of a stack's lower layers down, for `union` to read.
//!
//! [`sandbox`] confines a process that serves a mount or unpacks layers.
//!
//! [`cli`] is the command line over all of them.

pub mod catalog;
pub mod changes;
pub mod cli;
pub mod fuse;
pub mod layer;
pub mod sandbox;
pub mod store;
pub mod sys;
pub mod union;
