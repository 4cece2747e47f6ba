//! The transport: serves a [`crate::union::Union`] to the kernel through FUSE.
//! Called by the cli and by whoever uses the library to mount a stack.
//!
//! ```text
//! kernel ─ /dev/fuse ─ wire's worker threads ─ adapter ─ union
//!                                                 └─ pool (copy-up, fsync) ─ union
//! ```
//!
//! [`mount()`] attaches the file system and shakes hands with the kernel;
//! [`Mounted::serve`] answers requests until it is unmounted. [`runtime`] records what
//! is mounted, [`unmount()`] takes it away.

mod adapter;
mod buffer;
mod config;
mod control;
mod convert;
mod counters;
mod error;
mod fusermount;
#[doc(hidden)]
pub mod fuzzing;
mod keeper;
mod mount;
pub mod mountinfo;
mod mountpoint;
mod operations;
mod own_mount;
mod passthrough;
mod pool;
mod request_scope;
pub mod runtime;
mod session;
pub mod stats;
pub mod unmount;
mod wire;

pub use config::{IoPolicy, MountConfig, Transport, offers_rings};
pub use error::{Error, Result};
pub use mount::preflight;
pub use mountpoint::{DirectoryId, Mountpoint};
pub use own_mount::{MountId, OwnMount};
pub use request_scope::{Request as CurrentRequest, current as current_request};
pub use runtime::{Description, MountRecord, MountState};
pub use session::{
    Background, Enter, Mounted, Sandboxed, mount, mount_sandboxed, raise_nofile_limit, wait_ready,
};
pub use unmount::{Mount, unmount};

/// The file system type shown in /proc/mounts.
pub const FS_TYPE: &str = "fuse.unionfs";

/// `f_type` of a FUSE file system in statfs(2): FUSE_SUPER_MAGIC of linux/magic.h.
pub const FUSE_MAGIC: u64 = 0x6573_5546;
