//! `pull` and `push` with Debian's docker-registry on loopback, and with a proxy in between that
//! cuts, changes and counts answers. skopeo copies images there and inspects the pushed ones.
//! Without the programs the tests print a skip (with UNIONFS_REQUIRE_ALL=1 they fail).

// Tests may fail by panicking, also in their helpers.
#![allow(clippy::unwrap_used, clippy::panic)]

mod access;
mod broken;
mod chunked;
mod copy;
mod images;
mod kept;
mod killed;
mod login;
mod mirrors;
mod others_files;
mod policy;
mod proxy;
mod pull;
mod push;
mod remote;
mod server;
mod shared;
mod slow;
mod tls;
