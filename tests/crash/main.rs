//! Servers that die and disks that fill. The state that is left must be the one before or after
//! each operation, and kernel overlayfs must read it as unionfs does.

#![allow(clippy::unwrap_used, clippy::panic)]

mod disks;
mod fault_rows;
mod faults;
mod frozen;
mod full_disk;
mod full_file_systems;
mod killed;
mod power;
mod shut_down;
mod unreadable;
