//! A further descriptor of a FUSE connection, by `ioctl(FUSE_DEV_IOC_CLONE)`. Called by
//! `fuse::wire`: each worker with one of its own has its own queue of running requests.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags};

/// `_IOR(229, 0, uint32_t)` of linux/fuse.h.
const FUSE_DEV_IOC_CLONE: u32 = 0x8004_e500;

/// Opens /dev/fuse again, on the connection of `device`. A reply must be written to the
/// descriptor its request was read from.
///
/// # Errors
/// Those of open(2) on /dev/fuse; EINVAL when `device` is no FUSE connection, ENOTTY before
/// Linux 4.2.
pub fn clone_device(device: impl AsFd) -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let clone = rustix::fs::open("/dev/fuse", flags, Mode::empty())?;
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
