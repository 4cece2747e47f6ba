//! The few system calls rustix lacks; the only place where `unsafe` is allowed.
//! Called by `layer` (file handles), `fuse` (its device) and by the cli (processes).

pub mod fuse;
pub mod handle;
pub mod process;
pub mod uring;
pub mod writeback;
pub mod xattrat;
