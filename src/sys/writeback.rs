//! Starts write-back early, with `sync_file_range(2)`.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd};

/// Asks the kernel to begin writing `len` bytes at `offset` to the disk, and waits for nothing.
/// This is a hint that some file systems ignore, so there is no error to report.
pub fn start(fd: impl AsFd, offset: u64, len: u64) {
    let (Ok(offset), Ok(len)) = (i64::try_from(offset), i64::try_from(len)) else {
        return;
    };
    // SAFETY: takes a valid descriptor and integers; touches no memory of ours.
    unsafe {
        libc::sync_file_range(
            fd.as_fd().as_raw_fd(),
            offset,
            len,
            libc::SYNC_FILE_RANGE_WRITE,
        );
    }
}
