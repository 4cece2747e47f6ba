//! The union core without a mount: through the interface that a transport uses, against models, and
//! with exact counts of the inode table.

#![allow(clippy::unwrap_used, clippy::panic)]

mod allocations;
mod deadlocks;
mod inode_table;
mod listing;
mod lowers_in_memory;
mod model;
mod numbers_used_again;
mod support;
