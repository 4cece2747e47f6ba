//! Calls ioctl(2) with any number, including numbers that no driver handles.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// Calls ioctl(2) with the address of `room`, which is larger than the size that any number can
/// encode.
pub fn with_room(file: &File, number: u32, room: &mut [u64; 2048]) -> io::Result<()> {
    // SAFETY: the descriptor is open for the call; a number encodes a size of 16383 bytes at most,
    // and the room is larger.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), number as libc::Ioctl, room.as_mut_ptr()) };
    done(result)
}

/// Calls ioctl(2) with another open file as its argument.
pub fn with_file(file: &File, number: u32, other: &File) -> io::Result<()> {
    // SAFETY: both descriptors are open for the call, and no address is passed.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), number as libc::Ioctl, other.as_raw_fd()) };
    done(result)
}

fn done(result: libc::c_int) -> io::Result<()> {
    match result {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
