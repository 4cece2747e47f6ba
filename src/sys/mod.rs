//! The base of all other parts: the system calls that rustix lacks, the signal that ends this
//! process ([`interrupt`]), and the free space of a file system. `unsafe` is allowed only here.

#[cfg(feature = "fuse")]
pub mod capabilities;
pub mod chmodat;
#[cfg(feature = "fuse")]
pub mod daemon;
pub mod fileattr;
#[cfg(feature = "store")]
pub(crate) mod free_space;
#[cfg(feature = "fuse")]
pub mod fuse;
pub mod handle;
#[cfg(feature = "store")]
pub mod interrupt;
#[cfg(feature = "fuse")]
pub mod landlock;
pub(crate) mod map;
pub mod memory;
mod missing;
#[cfg_attr(
    not(feature = "fuse"),
    allow(dead_code, reason = "only the walk of paths uses it")
)]
pub mod mountinfo;
pub mod mounts;
#[cfg(feature = "fuse")]
pub mod namespace;
#[cfg(feature = "fuse")]
pub mod narrow;
#[cfg(feature = "fuse")]
pub mod notify;
pub mod openat2;
#[cfg(feature = "fuse")]
pub(crate) mod passing;
#[cfg(feature = "fuse")]
pub mod probe;
pub mod process;
#[cfg(feature = "store")]
pub(crate) mod remedy;
#[cfg(feature = "fuse")]
pub mod schedule;
#[cfg(feature = "fuse")]
pub mod seccomp;
pub mod stat;
#[cfg(feature = "fuse")]
pub mod stat_bytes;
#[cfg(feature = "fuse")]
mod submounts;
pub(crate) mod sync;
#[cfg(feature = "fuse")]
pub mod terminal;
#[cfg(feature = "fuse")]
pub mod uring;
pub mod walk;
pub mod writeback;
pub mod xattrat;

/// Whether this architecture numbers new system calls as asm-generic does, with the same numbers
/// everywhere. Elsewhere, calls for which libc has no number count as missing.
const NUMBERS_AS_GENERIC: bool = cfg!(any(
    target_arch = "x86_64",
    target_arch = "x86",
    target_arch = "aarch64",
    target_arch = "arm",
    target_arch = "riscv64",
    target_arch = "powerpc64",
    target_arch = "s390x",
    target_arch = "loongarch64"
));
