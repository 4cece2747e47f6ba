//! A file mapped into memory for reading.
#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::ptr::NonNull;

use rustix::io::Errno;

/// The bytes of a file at the time when it was mapped. The caller that maps it guarantees that no
/// process shortens or rewrites the file: reading behind a new end kills the process.
#[derive(Debug)]
pub struct ReadOnly {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is only ever read, and unmapped once, when it is dropped.
unsafe impl Send for ReadOnly {}
// SAFETY: as above.
unsafe impl Sync for ReadOnly {}

impl ReadOnly {
    /// Maps the first `len` bytes. EINVAL for no bytes; ENOMEM.
    pub fn new(file: &File, len: usize) -> Result<Self, Errno> {
        if len == 0 {
            return Err(Errno::INVAL);
        }
        // SAFETY: a new mapping at an address the kernel chooses; nothing else is touched.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            let error = std::io::Error::last_os_error();
            return Err(Errno::from_io_error(&error).unwrap_or(Errno::NOMEM));
        }
        let start = NonNull::new(start.cast()).ok_or(Errno::NOMEM)?;
        Ok(Self { start, len })
    }
}

impl AsRef<[u8]> for ReadOnly {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: `len` bytes from `start` are mapped for reading until `self` is dropped,
        // and whoever mapped them vouches that they do not change.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl Drop for ReadOnly {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`, to which no reference is left.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_the_bytes_of_a_file() {
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, b"mapped").unwrap();
        let map = ReadOnly::new(&file, 6).unwrap();
        drop(file);
        assert_eq!(map.as_ref(), b"mapped");
    }

    #[test]
    fn an_empty_file_cannot_be_mapped() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(ReadOnly::new(&file, 0).unwrap_err(), Errno::INVAL);
    }
}
