//! The few system calls rustix lacks; the only place where `unsafe` is allowed.
//! Called by `layer` (file handles), `fuse` (its device), `catalog` (its map) and by the cli
//! (processes).

pub mod fuse;
pub mod handle;
pub mod map;
pub mod process;
pub mod writeback;
