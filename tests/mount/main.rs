//! Tests of real unionfs mounts: one file for each family of operations, each stating the expected
//! result. `tests/parity` compares with kernel overlayfs where that gives the answer; these tests
//! check the promises of unionfs itself.

#![allow(clippy::unwrap_used, clippy::panic)]

mod acl;
mod attr;
mod believed;
mod budgets;
mod buildah;
mod bystanders;
mod copy_file_range;
mod create;
mod descriptors;
mod dialects;
mod differences;
mod fallocate;
mod flooded;
mod forget;
mod fsync;
mod fuser;
mod giving_way;
mod handles;
mod hardlinks;
mod hostile;
mod inode_flags;
mod inode_numbers;
mod io_policies;
mod ioctls;
mod leases;
mod link;
mod lookup;
mod lower_unchanged;
mod lseek;
mod mkdir;
mod mknod;
mod non_root;
mod open_unlinked;
mod owners;
mod peers;
mod podman;
mod queued;
mod read_only;
mod read_write;
mod readdir;
mod recorded;
mod rename;
mod rmdir;
mod several_file_systems;
mod statfs;
mod swapped;
mod symlink;
mod syscalls;
mod unlink;
mod uring;
mod whiteout_forms;
mod xattr;
