//! A private copy of a mount without access times, read-only if asked: `open_tree(2)`, and
//! `mount_setattr(2)`, which rustix lacks.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::io::Errno;
use rustix::mount::OpenTreeFlags;

/// `struct mount_attr` of linux/mount.h.
#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns: u64,
}

/// The directory `dir` in a mount of its own, which nobody else sees and which goes away with
/// the last descriptor on it, with what is mounted below: the kernel refuses to write through
/// it (EROFS), and reading changes no access time.
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN; EINVAL when the mount may not be copied (it is locked, or in
/// another mount namespace); ENOSYS before Linux 5.12.
pub fn sealed(dir: impl AsFd) -> Result<OwnedFd, Errno> {
    copy(
        dir,
        libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOATIME | libc::MOUNT_ATTR_NODEV,
    )
}

/// As [`sealed`], but files can be written through it.
///
/// # Errors
/// As [`sealed`].
pub fn quiet(dir: impl AsFd) -> Result<OwnedFd, Errno> {
    copy(dir, libc::MOUNT_ATTR_NOATIME)
}

fn copy(dir: impl AsFd, set: u64) -> Result<OwnedFd, Errno> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE
        | OpenTreeFlags::AT_EMPTY_PATH;
    let copy = rustix::mount::open_tree(dir, c"", flags)?;
    let attr = MountAttr {
        set,
        clear: libc::MOUNT_ATTR__ATIME,
        propagation: 0,
        userns: 0,
    };
    // SAFETY: the kernel reads `size` bytes at `attr`, which is a `struct mount_attr` of that
    // size and lives through the call, and an empty NUL-terminated path.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            copy.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    };
    match rc {
        0 => Ok(copy),
        _ => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)),
    }
}
