//! The few system calls rustix lacks; the only place where `unsafe` is allowed.
//! Called by `layer` (file handles, private mounts), `fuse` (its device), `catalog` (its map),
//! `union` (memory) and by the cli (processes).

pub mod capabilities;
pub mod chmodat;
pub mod fileattr;
pub mod fuse;
pub mod handle;
pub mod landlock;
pub(crate) mod map;
pub mod memory;
pub mod mounts;
pub mod namespace;
pub mod probe;
pub(crate) mod process;
pub mod schedule;
pub mod seccomp;
pub mod uring;
pub mod walk;
pub mod writeback;
pub mod xattrat;
