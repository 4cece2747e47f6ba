//! Known traps of union file systems, one file for each family. `same_as_kernel` compares with the
//! answers of kernel overlayfs; it also remounts (by both) and compares again. Tests of operations
//! that the kernel cannot do or does differently state their own expectation and remount
//! themselves.

#![allow(clippy::unwrap_used, clippy::panic)]

mod access_times;
mod creation_modes;
mod data;
mod direct_beside_cached;
mod durability;
mod leftovers;
mod limits;
mod listing;
mod mapped_times;
mod markers;
mod programs;
mod renames;
mod set_id;
mod set_id_namespaces;
mod times;

use testkit::layers::{self, Layer};
use testkit::mount::{KERNEL, subject};
use testkit::{runner, script};

/// Runs a script on kernel overlayfs and on unionfs over `layers`, on a tmpfs or on the disk:
/// answers, trees, uppers, trees after remounts by both, and lowers must agree.
fn same_as_kernel(layers: &[Layer], text: &str, tmpfs: bool) {
    let case = runner::Case {
        layers,
        script: &script::parse(text),
        uppers: true,
        tmpfs,
        made: None,
    };
    let found = runner::compare(&KERNEL, &subject(), &case);
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

/// Runs [`same_as_kernel`] over the standard layers, on the disk.
fn same_on_standard(text: &str) {
    same_as_kernel(&layers::standard(), text, false);
}
