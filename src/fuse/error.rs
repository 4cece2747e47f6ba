//! What can go wrong around a mount: each message says what failed, where, and the
//! remedy; the system's own words are the error's source. Returned by [`super::mount()`], [`super::unmount`] and [`super::runtime`];
//! printed by the cli.

use std::io;
use std::path::PathBuf;

/// Result of mounting, serving and unmounting.
pub type Result<T> = std::result::Result<T, Error>;

/// A failure to mount, serve, unmount, or to read or write the runtime files.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no FUSE device.
    #[error(
        "there is no /dev/fuse: load the module (modprobe fuse), or in a container pass the device in (--device /dev/fuse)"
    )]
    NoDevice,
    /// The device exists but may not be opened.
    #[error(
        "cannot open /dev/fuse: allow the device for this user or container (--device /dev/fuse)"
    )]
    Device(#[source] io::Error),
    /// The mountpoint cannot be used.
    #[error("mountpoint {}", path.display())]
    Mountpoint {
        /// The mountpoint as given.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// mount(2) refused.
    #[error("cannot mount on {}", path.display())]
    Mount {
        /// The mountpoint.
        path: PathBuf,
        /// The answer of mount(2).
        source: io::Error,
    },
    /// This user may not mount, and the helper that could is not installed.
    #[error(
        "cannot mount on {} without privileges: fusermount3 is not installed (install the package fuse3)",
        path.display()
    )]
    NoFusermount {
        /// The mountpoint.
        path: PathBuf,
    },
    /// fusermount3 failed; its own words.
    #[error("cannot mount on {}: {text}", path.display())]
    Fusermount {
        /// The mountpoint.
        path: PathBuf,
        /// What fusermount3 wrote to stderr.
        text: String,
    },
    /// A mount option holds a byte that no option can hold.
    #[error("mount option {option}: {problem}")]
    Option {
        /// The option's name.
        option: &'static str,
        /// What is wrong with its value.
        problem: &'static str,
    },
    /// The kernel and the server could not agree, or a worker could not be started.
    #[error("FUSE session on {}", path.display())]
    Session {
        /// The mountpoint.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// `transport=fuser` was asked for and cannot be had, or does not go with other options.
    #[error("transport=fuser is not possible on {}: {why}", path.display())]
    Fuser {
        /// The mountpoint.
        path: PathBuf,
        /// What is in its way.
        why: &'static str,
    },
    /// `io=passthrough` was asked for and cannot be had.
    #[error("io=passthrough is not possible on {}: {why}; use io=auto", path.display())]
    Passthrough {
        /// The mountpoint.
        path: PathBuf,
        /// What is missing.
        why: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The sandbox could not be entered.
    #[error("cannot mount on {}", path.display())]
    Sandbox {
        /// The mountpoint.
        path: PathBuf,
        /// What is missing.
        source: io::Error,
    },
    /// The mount did not answer once it was mounted.
    #[error("the mount on {} does not answer", path.display())]
    NotReady {
        /// The mountpoint.
        path: PathBuf,
        /// The answer of statfs(2).
        source: io::Error,
    },
    /// A mount did not answer in time.
    #[error(
        "the mount on {0} does not answer, its daemon is stopped or hangs: \
         unionfs umount --force {0} ends it for all its users, unionfs umount --lazy {0} detaches it",
        path.display()
    )]
    Silent {
        /// The mountpoint.
        path: PathBuf,
    },
    /// The connection of a mount could not be aborted.
    #[error(
        "cannot abort the connection of {0}: it needs root or the user who mounted it, and fusectl \
         (mount -t fusectl none /sys/fs/fuse/connections); unionfs umount --lazy {0} detaches it",
        path.display()
    )]
    Abort {
        /// The mountpoint.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Something else lies on the mountpoint.
    #[error("{} is not a FUSE mount", path.display())]
    NotFuse {
        /// The mountpoint.
        path: PathBuf,
    },
    /// Unmounting failed.
    #[error("cannot unmount {}: {text}", path.display())]
    Unmount {
        /// The mountpoint.
        path: PathBuf,
        /// The answer of umount2(2) or of fusermount3.
        text: String,
    },
    /// A runtime file could not be written or read.
    #[error("runtime file {}", path.display())]
    Runtime {
        /// The file or directory.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// No directory for runtime files can be used.
    #[error("no runtime directory can be used ({reasons}); set UNIONFS_RUNTIME_DIR")]
    NoRuntimeDir {
        /// Each candidate with its problem.
        reasons: String,
    },
}
