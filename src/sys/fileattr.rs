//! The flags of a file that chattr(1) changes (ioctl_iflags(2)), and their wider form, `struct
//! fsxattr`.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd};

use rustix::fs::IFlags;
use rustix::io::Errno;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `struct fsxattr` of linux/fs.h.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct FsxAttr {
    /// `FS_XFLAG_` bits.
    pub xflags: u32,
    /// Hint for the size of extents.
    pub extsize: u32,
    /// The number of extents. It can only be read.
    pub nextents: u32,
    /// The project for quotas.
    pub projid: u32,
    /// Hint for the size of extents that are copied on write.
    pub cowextsize: u32,
    /// Zero.
    pub pad: [u8; 8],
}

/// `_IOR('X', 31, struct fsxattr)`.
pub const FSGETXATTR: u32 = 0x801c_581f;
/// `_IOW('X', 32, struct fsxattr)`.
pub const FSSETXATTR: u32 = 0x401c_5820;

/// Returns the `FS_` flags of an open file or directory.
///
/// # Errors
/// ENOTTY or EOPNOTSUPP if the file system has none.
pub fn flags(fd: impl AsFd) -> Result<u32, Errno> {
    rustix::fs::ioctl_getflags(fd).map(|flags| flags.bits())
}

/// Sets the `FS_` flags of an open file or directory.
///
/// # Errors
/// As [`flags`]; EPERM, EROFS, EINVAL for flags that the file system does not take.
pub fn set_flags(fd: impl AsFd, flags: u32) -> Result<(), Errno> {
    rustix::fs::ioctl_setflags(fd, IFlags::from_bits_retain(flags))
}

/// Returns the flags as `struct fsxattr`.
///
/// # Errors
/// As [`flags`].
pub fn fsx(fd: impl AsFd) -> Result<FsxAttr, Errno> {
    let mut attr = FsxAttr::default();
    // SAFETY: the descriptor is open for the call, and the kernel writes one `struct fsxattr`,
    // 28 bytes, to the given address, which lives until the call has returned.
    let result = unsafe {
        libc::ioctl(
            fd.as_fd().as_raw_fd(),
            FSGETXATTR as libc::Ioctl,
            &raw mut attr,
        )
    };
    done(result).map(|()| attr)
}

/// Sets the flags from `struct fsxattr`.
///
/// # Errors
/// As [`set_flags`].
pub fn set_fsx(fd: impl AsFd, attr: &FsxAttr) -> Result<(), Errno> {
    // SAFETY: the descriptor is open for the call, and the kernel reads one `struct fsxattr`, 28
    // bytes, from the given address, which lives until the call has returned.
    let result = unsafe {
        libc::ioctl(
            fd.as_fd().as_raw_fd(),
            FSSETXATTR as libc::Ioctl,
            std::ptr::from_ref(attr),
        )
    };
    done(result)
}

fn done(result: libc::c_int) -> Result<(), Errno> {
    match result {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()
            .raw_os_error()
            .map_or(Errno::IO, Errno::from_raw_os_error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_is_the_kernels() {
        assert_eq!(size_of::<FsxAttr>(), 28);
        assert_eq!(FSGETXATTR >> 16 & 0x3fff, 28);
        assert_eq!(FSSETXATTR >> 16 & 0x3fff, 28);
    }
}
