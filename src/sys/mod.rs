//! The few system calls rustix lacks; the only unsafe code of the crate.

pub mod process;
