//! Attacks on live mounts: users with and without user namespaces of their own act on a mount of
//! root, whose upper belongs to one of them. No user may gain a right.
//!
//! `hunt` compares every answer and every tree with kernel overlayfs. `behind` changes the upper at
//! the same time, so it can check safety only. Both use fixed and fresh seeds.
//!
//! `UNIONFS_ATTACK_CASES=n` sets the number of cases of each hunt (`just attack N`).
//! `UNIONFS_ATTACK_SEED=n` sets the seed of the fresh cases: the first case has exactly that seed.

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
