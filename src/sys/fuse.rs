//! The ioctls of a FUSE connection (linux/fuse.h).
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, IntoRawFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::FdFlags;

/// `_IOR(229, 0, uint32_t)` of linux/fuse.h.
const FUSE_DEV_IOC_CLONE: u32 = 0x8004_e500;

/// Opens /dev/fuse again, on the connection of `device`. A reply must be written to the descriptor
/// from which its request was read.
///
/// # Errors
/// Those of open(2) on /dev/fuse; EINVAL when `device` is not a FUSE connection, ENOTTY before
/// Linux 4.2.
pub fn clone_device(device: impl AsFd) -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let clone = rustix::fs::open("/dev/fuse", flags, Mode::empty())?;
    join_device(clone, device)
}

/// As [`clone_device`], for an open /dev/fuse without a connection.
///
/// # Errors
/// As [`clone_device`].
pub fn join_device(clone: OwnedFd, device: impl AsFd) -> io::Result<OwnedFd> {
    let source = device.as_fd().as_raw_fd().unsigned_abs();
    // SAFETY: both descriptors are open for the call, and the kernel reads one u32 at the
    // given address, which lives until the call has returned.
    let result = unsafe {
        libc::ioctl(
            clone.as_raw_fd(),
            FUSE_DEV_IOC_CLONE as libc::Ioctl,
            &raw const source,
        )
    };
    match result {
        0 => Ok(clone),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The device number of /dev/fuse: `MISC_MAJOR` and `FUSE_MINOR` of linux/major.h and
/// linux/miscdevice.h.
const FUSE_DEVICE: (u32, u32) = (10, 229);

/// Takes the open /dev/fuse with this number, which the program was started with. `None` if there
/// is no such descriptor. The descriptors of this process itself have FD_CLOEXEC, so they are never
/// taken; nor are the standard streams.
///
/// # Errors
/// Those of fcntl(2) and fstat(2).
pub fn take_inherited(number: i32) -> io::Result<Option<OwnedFd>> {
    if number <= libc::STDERR_FILENO {
        return Ok(None);
    }
    // SAFETY: F_GETFD reads the flags of any number, also of one that is not open.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    if flags == -1 || flags & libc::FD_CLOEXEC != 0 {
        return Ok(None);
    }
    // SAFETY: the number is open, and no code of this process owns it: all that this process opens
    // has FD_CLOEXEC, and what it takes here gets it below. It is given back if it is not taken.
    let taken = unsafe { OwnedFd::from_raw_fd(number) };
    let stat = rustix::fs::fstat(&taken);
    let is_device = stat.as_ref().is_ok_and(|stat| {
        let number = (
            rustix::fs::major(stat.st_rdev),
            rustix::fs::minor(stat.st_rdev),
        );
        FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && number == FUSE_DEVICE
    });
    if !is_device {
        let _ = taken.into_raw_fd();
        return Ok(None);
    }
    rustix::io::fcntl_setfd(&taken, FdFlags::CLOEXEC)?;
    Ok(Some(taken))
}

/// `struct fuse_backing_map`.
#[repr(C)]
struct BackingMap {
    fd: i32,
    flags: u32,
    padding: u64,
}

/// `_IOW(229, 1, struct fuse_backing_map)`.
const FUSE_DEV_IOC_BACKING_OPEN: u32 = 0x4010_e501;
/// `_IOW(229, 2, uint32_t)`.
const FUSE_DEV_IOC_BACKING_CLOSE: u32 = 0x4004_e502;

/// Registers `file` for passthrough and returns its number on the connection. The kernel keeps the
/// file until [`close_backing`].
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN in the first user namespace, or if the handshake did not agree on
/// passthrough; ELOOP if the file system of the file stacks others as deep as the handshake
/// allowed; ENOTTY before Linux 6.9.
pub fn open_backing(device: impl AsFd, file: impl AsFd) -> io::Result<i32> {
    let map = BackingMap {
        fd: file.as_fd().as_raw_fd(),
        flags: 0,
        padding: 0,
    };
    // SAFETY: both descriptors are open for the call, and the kernel reads one `BackingMap` at
    // the given address, which lives until the call has returned.
    let id = unsafe {
        libc::ioctl(
            device.as_fd().as_raw_fd(),
            FUSE_DEV_IOC_BACKING_OPEN as libc::Ioctl,
            &raw const map,
        )
    };
    match id {
        1.. => Ok(id),
        0 => Err(io::Error::from_raw_os_error(libc::EINVAL)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Gives a number of [`open_backing`] back. Open files stay passed through.
///
/// # Errors
/// ENOENT for a number that is not in use; EPERM as above.
pub fn close_backing(device: impl AsFd, id: i32) -> io::Result<()> {
    let id = id.cast_unsigned();
    // SAFETY: the descriptor is open for the call, and the kernel reads one u32 at the given
    // address, which lives until the call has returned.
    let result = unsafe {
        libc::ioctl(
            device.as_fd().as_raw_fd(),
            FUSE_DEV_IOC_BACKING_CLOSE as libc::Ioctl,
            &raw const id,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
