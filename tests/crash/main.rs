//! Servers that die and disks that fill: what is left must be the state before or after
//! each operation, and what the kernel sees must be what we see.

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
