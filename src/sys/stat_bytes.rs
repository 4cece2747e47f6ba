//! What stat(2) and statx(2) write into the memory of a program of this architecture, with another
//! owner.
#![allow(unsafe_code)]

use std::mem::{offset_of, size_of};
use std::os::fd::{AsFd, AsRawFd as _};

use rustix::io::Errno;

/// The flags of statx(2) that say how much a server is asked.
const SYNC: i32 = libc::AT_STATX_FORCE_SYNC | libc::AT_STATX_DONT_SYNC;

/// Returns the `struct stat` of an open file.
///
/// # Errors
/// Those of fstat(2).
pub fn stat(file: impl AsFd, uid: u32, gid: u32) -> Result<Vec<u8>, Errno> {
    let mut bytes = vec![0; size_of::<libc::stat>()];
    let file = file.as_fd().as_raw_fd();
    // SAFETY: the kernel writes a `struct stat`, for which the memory is long enough. On the
    // architectures of 64 bits, that of libc is that of the kernel.
    let result = unsafe { libc::syscall(libc::SYS_fstat, file, bytes.as_mut_ptr()) };
    checked(result)?;
    put(&mut bytes, offset_of!(libc::stat, st_uid), uid);
    put(&mut bytes, offset_of!(libc::stat, st_gid), gid);
    Ok(bytes)
}

/// Returns the `struct statx` of an open file. Of the flags, only those count that say how much a
/// server is asked.
///
/// # Errors
/// Those of statx(2).
pub fn statx(file: impl AsFd, flags: i32, mask: u32, uid: u32, gid: u32) -> Result<Vec<u8>, Errno> {
    let mut bytes = vec![0; size_of::<libc::statx>()];
    let file = file.as_fd().as_raw_fd();
    let flags = libc::AT_EMPTY_PATH | flags & SYNC;
    // SAFETY: the kernel reads an empty name, and writes a `struct statx`, for which the memory is
    // long enough.
    let result = unsafe {
        libc::syscall(
            libc::SYS_statx,
            file,
            c"".as_ptr(),
            flags,
            mask,
            bytes.as_mut_ptr(),
        )
    };
    checked(result)?;
    put(&mut bytes, offset_of!(libc::statx, stx_uid), uid);
    put(&mut bytes, offset_of!(libc::statx, stx_gid), gid);
    Ok(bytes)
}

fn checked(result: libc::c_long) -> Result<(), Errno> {
    if result == 0 {
        return Ok(());
    }
    let error = std::io::Error::last_os_error();
    Err(Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

fn put(bytes: &mut [u8], at: usize, id: u32) {
    bytes[at..at + size_of::<u32>()].copy_from_slice(&id.to_ne_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_those_of_the_kernel_but_for_the_owner() {
        let file = tempfile::tempfile().unwrap();
        let expected = rustix::fs::fstat(&file).unwrap();
        let bytes = stat(&file, 5, 6).unwrap();
        // SAFETY: a `struct stat` consists of numbers, and there are as many bytes.
        let read: libc::stat = unsafe { std::ptr::read_unaligned(bytes.as_ptr().cast()) };
        assert_eq!((read.st_uid, read.st_gid), (5, 6));
        assert_eq!(
            (read.st_ino, read.st_mode),
            (expected.st_ino, expected.st_mode)
        );
        assert_eq!(read.st_mtime, expected.st_mtime as i64);

        let bytes = statx(&file, SYNC, libc::STATX_BASIC_STATS, 7, 8);
        assert_eq!(bytes, Err(Errno::INVAL), "both ways of asking at once");
        let flags = libc::AT_STATX_DONT_SYNC | libc::AT_SYMLINK_NOFOLLOW;
        let bytes = statx(&file, flags, libc::STATX_BASIC_STATS, 7, 8).unwrap();
        // SAFETY: a `struct statx` consists of numbers, and there are as many bytes.
        let read: libc::statx = unsafe { std::ptr::read_unaligned(bytes.as_ptr().cast()) };
        assert_eq!((read.stx_uid, read.stx_gid), (7, 8));
        assert_eq!(read.stx_ino, expected.st_ino);
        assert_eq!(bytes.len(), 256);
    }
}
