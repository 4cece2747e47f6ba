//! Attacks on live mounts: users with and without user namespaces of their own act on root's
//! mount, whose upper belongs to one of them. Nobody may gain a right by it.
//!
//! `hunt` compares every answer and every tree with kernel overlayfs; `behind` changes the upper
//! meanwhile, where only safety can be asked for. Seeds are fixed and fresh ones.
//!
//! `UNIONFS_ATTACK_CASES=n` sets the number of cases of each hunt (`just attack N`),
//! `UNIONFS_ATTACK_SEED=n` the seed of the fresh ones: the first case has exactly that seed.

#![allow(clippy::unwrap_used, clippy::panic)]

mod act;
mod actor;
mod behind;
mod case;
mod data;
mod decoys;
mod generate;
mod hunt;
mod oracle;
mod shrink;
