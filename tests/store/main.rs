//! The store against real and hostile directories: `sample` builds a valid store, `bad_input`
//! damages it in one way at a time, `fuzz` at random, `dockerd` reads a store that a real dockerd
//! wrote. These tests make no unionfs mounts: those are in `mounted.rs`.

// Tests may fail by panicking, also in their helpers.
#![allow(clippy::unwrap_used, clippy::panic)]

mod archive_images;
mod archives;
mod bad_drivers;
mod bad_input;
mod bad_layers;
mod bad_podman;
mod docker_fuse_overlayfs;
mod docker_store;
mod dockerd;
mod export;
mod fuzz;
mod fuzz_podman;
mod tarball;
mod tarball_gnu;
mod tarball_hostile;
mod tarball_random;
mod valid;
mod verify;
mod verify_metadata;
mod writable;
mod writable_dockerd;

use testkit::store::fixture::{Fixture, children, discover};
