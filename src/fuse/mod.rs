//! The transport: serves a [`crate::union::Union`] to the kernel through FUSE.
//!
//! ```text
//! kernel ─ /dev/fuse ─ wire's worker threads ─ adapter ─ union
//!                                                 └─ pool (copy-up, fsync) ─ union
//! ```
//!
//! [`mount()`] attaches the file system and does the handshake with the kernel. [`Mounted::serve`]
//! answers requests until it is unmounted. [`runtime`] records mounts. [`unmount()`] and
//! [`detach()`] remove them.
//!
//! ```no_run
//! use unionfs::fuse::{self, MountConfig};
//! use unionfs::layer::{Dialect, LayerSpec, StackSpec};
//! use unionfs::union::{Options, Union};
//!
//! let stack = StackSpec {
//!     lowers: vec![
//!         LayerSpec::open("/layers/top", Dialect::ALL)?,
//!         LayerSpec::open("/layers/bottom", Dialect::ALL)?,
//!     ],
//!     data_only: Vec::new(),
//!     upper: None,
//! };
//! let mut config = MountConfig::new("/mnt");
//! config.apply_option("ro".as_ref());
//! let union = Union::new(&stack, Options::default())?;
//! fuse::mount(union, &config)?.serve()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod adapter;
mod buffer;
mod busy;
mod config;
mod connection_control;
mod counters;
mod error;
mod flag_ioctls;
#[cfg(feature = "fuser")]
mod fuser;
mod fusermount;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod keeper;
mod kept_registrations;
mod mount;
mod mountpoint;
mod operations;
mod own_mount;
mod passthrough;
mod pool;
mod protocol_values;
mod remount;
mod request_scope;
pub mod runtime;
mod session;
pub mod stats;
mod successors;
mod thread;
mod transport;
pub mod unmount;
mod wire;

pub use crate::sys::mountinfo;
pub use config::{IoPolicy, MountConfig, Permissions, Transport, offers_rings};
pub use error::{Error, Result};
pub use keeper::{Afterwards, MountEnd};
pub use mount::{caller_mount, preflight};
pub use mountpoint::{DirectoryId, Mountpoint};
pub use own_mount::{Connectedness, MountId, OwnMount};
pub use request_scope::{Request as CurrentRequest, current as current_request};
pub use runtime::{Description, MountRecord, MountState};
pub use session::{
    Background, Enter, Mounted, Sandboxed, mount, mount_sandboxed, raise_nofile_limit, wait_ready,
};
pub use unmount::{Mount, detach, unmount};

/// The file system type shown in /proc/mounts.
pub const FS_TYPE: &str = mountinfo::UNIONFS;

/// `f_type` of a FUSE file system in statfs(2): FUSE_SUPER_MAGIC of linux/magic.h.
pub const FUSE_MAGIC: u64 = 0x6573_5546;
