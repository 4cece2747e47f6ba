//! The failures of mounts. Each message names the failed action, its object, and the remedy. The
//! source of the error has the text of the system.

use std::io;
use std::path::PathBuf;

use super::config::IoPolicy;

/// The result of mounting, serving and unmounting.
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
        /// The mountpoint, as given.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// mount(2) failed.
    #[error("cannot mount on {}", path.display())]
    Mount {
        /// The mountpoint.
        path: PathBuf,
        /// The error of mount(2).
        source: io::Error,
    },
    /// The user may not mount, and the helper that may is not installed.
    #[error(
        "cannot mount on {} without privileges: fusermount3 is not installed (install the package fuse3)",
        path.display()
    )]
    NoFusermount {
        /// The mountpoint.
        path: PathBuf,
    },
    /// fusermount3 failed.
    #[error("cannot mount on {}: {text}", path.display())]
    Fusermount {
        /// The mountpoint.
        path: PathBuf,
        /// The text that fusermount3 wrote to stderr.
        text: String,
    },
    /// A mount option contains a byte that no option may contain.
    #[error("mount option {option}: {problem}")]
    Option {
        /// The name of the option.
        option: &'static str,
        /// The fault of its value.
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
    /// `transport=fuser` was asked for and is not possible, or not together with other options.
    #[error("transport=fuser is not possible on {}: {why}", path.display())]
    Fuser {
        /// The mountpoint.
        path: PathBuf,
        /// The reason.
        why: &'static str,
    },
    /// `io=passthrough` or `io=shared` was asked for and is not possible.
    #[error("io={} is not possible on {}: {why}; use io=auto", policy.name(), path.display())]
    Passthrough {
        /// What was asked for.
        policy: IoPolicy,
        /// The mountpoint.
        path: PathBuf,
        /// The missing part.
        why: &'static str,
        /// The error of the kernel.
        source: io::Error,
    },
    /// The sandbox could not be entered.
    #[error("cannot mount on {}", path.display())]
    Sandbox {
        /// The mountpoint.
        path: PathBuf,
        /// The missing part.
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
    /// The flags of a mount could not be changed.
    #[error("cannot remount {}: {source}{}", path.display(), hint_of_remount(source))]
    Remount {
        /// The mountpoint.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Another file system is mounted on the mountpoint.
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
        /// The error of umount2(2) or of fusermount3.
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
        /// Each candidate with the reason.
        reasons: String,
    },
}

fn hint_of_remount(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EBUSY) => " (files are open for writing: close them first)",
        Some(libc::EPERM) => " (only root may remount)",
        _ => "",
    }
}
