//! Tests of the command line from outside: the built program, its output, exit codes, and
//! leftovers. Mounting tests need root and /dev/fuse; without them they print a skip (with
//! UNIONFS_REQUIRE_ALL=1 they fail).

// Tests may fail by panicking, also in their helpers.
#![allow(clippy::unwrap_used, clippy::panic)]

mod archive_names;
mod bad_input;
mod bounded;
mod caged;
mod caller_mounts;
mod catalog;
mod commit;
mod completions;
mod compressions;
mod confined;
mod containerd;
mod dangling;
mod devicemapper;
mod doctor;
mod engines;
mod examples;
mod exchanged_mountpoint;
mod exchanged_store;
mod foreign_locks;
mod fstab;
mod fuse_overlayfs_call;
mod habits;
mod hostile_texts;
mod hung;
mod image_mounts;
mod in_use;
mod killed_intake;
mod killed_store;
mod layouts;
mod lifecycle;
mod listings;
mod manual;
mod mount_cost;
mod odd_layers;
mod others_paths;
mod output;
mod own_store;
mod plain_user;
mod podman;
mod probes;
mod progress;
mod recognised;
mod repair;
mod run;
mod sandbox;
mod scratch_images;
mod set_id_images;
mod signals;
mod stored_lowers;
mod system_log;
mod terminals;
mod tree_diff;
mod tree_files;
mod unnamed_layers;
mod unwritable_lowers;
mod verify;
mod whole_trees;
