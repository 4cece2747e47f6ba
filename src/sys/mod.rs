//! The few system calls rustix lacks; the only place where `unsafe` is allowed.
//! Called by `layer` (file handles, private mounts), `fuse` (its device), `catalog` (its map),
//! `union` (memory) and by the cli (processes).

pub mod capabilities;
pub mod chmodat;
pub mod fileattr;
pub mod fuse;
pub mod handle;
pub mod landlock;
pub(crate) mod map;
pub mod memory;
pub mod mounts;
pub mod namespace;
pub mod narrow;
pub mod probe;
pub(crate) mod process;
pub mod schedule;
pub mod seccomp;
pub mod uring;
pub mod walk;
pub mod writeback;
pub mod xattrat;

/// Whether this architecture numbers new system calls as asm-generic does: the same number
/// everywhere. Where it does not, calls that libc has no number for count as missing.
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
