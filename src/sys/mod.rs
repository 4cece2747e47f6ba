//! The few system calls rustix lacks; the only place where `unsafe` is allowed.
//! Called by `layer` (file handles) and by the cli (processes).

pub mod handle;
pub mod process;
pub mod writeback;
