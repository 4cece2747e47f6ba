//! A private mount of a directory, with `open_tree_attr(2)`, or with `open_tree(2)` and
//! `mount_setattr(2)`; and which mounts there are, with `statmount(2)` and `listmount(2)`. rustix lacks
//! most of these.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::Errno;

use super::mountinfo;
use super::stat::{mount_id, unique_mount_id};
use rustix::mount::OpenTreeFlags;

/// `struct mount_attr` of linux/mount.h.
#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns: u64,
}

/// Properties of a private mount. No private mount allows opening devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Like {
    /// The kernel refuses all writes through it (EROFS).
    pub read_only: bool,
    /// Reads change no access times.
    pub no_atime: bool,
    /// Mounts below the directory are included.
    pub recursive: bool,
}

/// Returns `dir` as the root of a mount of its own, which no other process sees. Its `..` leads
/// nowhere. The mount disappears with its last descriptor.
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN, and where access times may not be changed (user namespaces); EINVAL
/// if the mount may not be copied (it is locked, or in another mount namespace); ENOSYS before
/// Linux 5.12.
pub fn private(dir: impl AsFd, like: Like) -> Result<OwnedFd, Errno> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    flags.set(OpenTreeFlags::AT_RECURSIVE, like.recursive);
    let mut attr = MountAttr {
        set: libc::MOUNT_ATTR_NODEV,
        clear: 0,
        propagation: libc::MS_PRIVATE,
        userns: 0,
    };
    if like.read_only {
        attr.set |= libc::MOUNT_ATTR_RDONLY;
    }
    if like.no_atime {
        attr.set |= libc::MOUNT_ATTR_NOATIME;
        attr.clear |= libc::MOUNT_ATTR__ATIME;
    }
    if IN_ONE_CALL.load(Ordering::Relaxed) {
        match open_tree_with(dir.as_fd(), flags, &attr) {
            // Linux before 6.15, or a filter of system calls. If this process lacks the right, the
            // calls below say so.
            Err(Errno::NOSYS | Errno::PERM) => IN_ONE_CALL.store(false, Ordering::Relaxed),
            other => return other,
        }
    }
    let copy = rustix::mount::open_tree(dir, c"", flags)?;
    let recursive = if like.recursive {
        libc::AT_RECURSIVE
    } else {
        0
    };
    // SAFETY: the kernel reads `size` bytes at `attr`, which is a `struct mount_attr` of that
    // size and lives through the call, and an empty NUL-terminated path.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            copy.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | recursive,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    };
    match rc {
        0 => Ok(copy),
        _ => Err(last_error()),
    }
}

/// Whether `open_tree_attr(2)` has not failed yet. A failed try is expensive, as it ends a mount.
static IN_ONE_CALL: AtomicBool = AtomicBool::new(true);

/// The number is the same on all architectures; the libc crate lacks it.
const SYS_OPEN_TREE_ATTR: libc::c_long = 467;

/// Copies the mount of `dir` and sets its attributes, in one call.
///
/// # Errors
/// Those of open_tree(2) and mount_setattr(2); ENOSYS before Linux 6.15.
fn open_tree_with(
    dir: BorrowedFd<'_>,
    flags: OpenTreeFlags,
    attr: &MountAttr,
) -> Result<OwnedFd, Errno> {
    // SAFETY: the kernel reads `size` bytes at `attr`, which is a `struct mount_attr` of that
    // size and lives through the call, and an empty NUL-terminated path.
    let fd = unsafe {
        libc::syscall(
            SYS_OPEN_TREE_ATTR,
            dir.as_raw_fd(),
            c"".as_ptr(),
            flags.bits(),
            &raw const *attr,
            size_of::<MountAttr>(),
        )
    };
    match RawFd::try_from(fd) {
        // SAFETY: the call has returned a new descriptor, which nobody else owns.
        Ok(fd @ 0..) => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(last_error()),
    }
}

fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// `struct mnt_id_req` of linux/mount.h, first version.
#[repr(C)]
struct MountRequest {
    size: u32,
    spare: u32,
    mount: u64,
    param: u64,
}

/// The numbers are the same on all architectures for which the libc crate lacks them.
const SYS_STATMOUNT: libc::c_long = 457;
const SYS_LISTMOUNT: libc::c_long = 458;

/// `LSMT_ROOT`: all mounts below the root directory of the process.
const BELOW_ROOT: u64 = u64::MAX;

/// `STATMOUNT_MNT_BASIC`: the numbers of the mount.
const STATMOUNT_MNT_BASIC: u64 = 2;

/// The beginning of `struct statmount` of linux/mount.h, and room for the whole answer.
#[repr(C)]
struct MountAnswer {
    size: u32,
    options: u32,
    mask: u64,
    device_major: u32,
    device_minor: u32,
    magic: u64,
    superblock_flags: u32,
    kind: u32,
    mount: u64,
    parent: u64,
    old_id: u32,
    old_parent: u32,
    attributes: u64,
    rest: [u64; 63],
}

/// `MOUNT_ATTR_IDMAP` of linux/mount.h.
const IDMAPPED: u64 = 0x0010_0000;

/// Returns the number in mountinfo of the mount with this unique number (`STATX_MNT_ID_UNIQUE`), if
/// it is in this mount namespace. `statmount(2)` asks no file system.
///
/// # Errors
/// ENOENT if there is no such mount; EPERM if it cannot be reached from the root directory of this
/// process; ENOSYS before Linux 6.8.
pub fn number_of(unique: u64) -> Result<u64, Errno> {
    Ok(answer_of(unique)?.old_id.into())
}

/// Whether files on the mount of `dir` have other owners there than on their file system
/// (`MOUNT_ATTR_IDMAP`). True if the kernel does not tell.
pub fn is_idmapped(dir: impl AsFd) -> bool {
    if let Some(unique) = unique_mount_id(&dir)
        && let Ok(answer) = answer_of(unique)
    {
        return answer.attributes & IDMAPPED != 0;
    }
    let listed = || {
        let id = mount_id(&dir).ok()?;
        let mounts = mountinfo::list().ok()?;
        let found = mounts.iter().find(|mount| mount.id == id)?;
        Some(found.is_idmapped())
    };
    listed().unwrap_or(true)
}

/// Asks for the numbers and attributes of a mount; see [`number_of`].
fn answer_of(unique: u64) -> Result<MountAnswer, Errno> {
    let request = MountRequest {
        size: 24,
        spare: 0,
        mount: unique,
        param: STATMOUNT_MNT_BASIC,
    };
    let mut answer = MountAnswer {
        size: 0,
        options: 0,
        mask: 0,
        device_major: 0,
        device_minor: 0,
        magic: 0,
        superblock_flags: 0,
        kind: 0,
        mount: 0,
        parent: 0,
        old_id: 0,
        old_parent: 0,
        attributes: 0,
        rest: [0; 63],
    };
    // SAFETY: the kernel reads `request`, whose size it is told in its first field, and writes no
    // more than the given size at `answer`; both live through the call. Any bytes are a valid
    // `MountAnswer`.
    let rc = unsafe {
        libc::syscall(
            SYS_STATMOUNT,
            &raw const request,
            &raw mut answer,
            size_of::<MountAnswer>(),
            0,
        )
    };
    match rc {
        0 if answer.mask & STATMOUNT_MNT_BASIC != 0 => Ok(answer),
        0 => Err(Errno::NOSYS),
        _ => Err(last_error()),
    }
}

/// Returns the unique numbers (`STATX_MNT_ID_UNIQUE`) of all mounts that this process can reach.
///
/// # Errors
/// ENOSYS before Linux 6.8.
pub fn unique_numbers() -> Result<Vec<u64>, Errno> {
    const AT_ONCE: usize = 256;
    let mut all = Vec::new();
    loop {
        let request = MountRequest {
            size: 24,
            spare: 0,
            mount: BELOW_ROOT,
            // The list goes on after this number.
            param: all.last().copied().unwrap_or(0),
        };
        let mut found = [0_u64; AT_ONCE];
        // SAFETY: the kernel reads `request`, whose size it is told in its first field, and writes
        // no more than `AT_ONCE` numbers at `found`; both live through the call.
        let rc = unsafe {
            libc::syscall(
                SYS_LISTMOUNT,
                &raw const request,
                found.as_mut_ptr(),
                AT_ONCE,
                0,
            )
        };
        let count = usize::try_from(rc).map_err(|_| last_error())?;
        all.extend_from_slice(found.get(..count).ok_or(Errno::IO)?);
        if count < AT_ONCE {
            return Ok(all);
        }
    }
}
