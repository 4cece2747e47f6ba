//! Shared mappings of files for the scripts. An access beyond the end of a file gives an error
//! instead of a signal, because the memory is read and written through /proc/self/mem.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

/// The maximum number of bytes that are mapped. Longer files are mapped in part.
const LEN: usize = 1 << 20;

/// Opens the memory of this process. The first caller must be root, since other users may not open
/// it.
pub fn memory() -> &'static File {
    static MEMORY: OnceLock<File> = OnceLock::new();
    let open = || {
        File::options()
            .read(true)
            .write(true)
            .open("/proc/self/mem")
    };
    MEMORY.get_or_init(|| open().unwrap())
}

/// A mapping of the first megabyte of a file, which ends on drop.
pub struct Map {
    start: *mut libc::c_void,
}

// SAFETY: the mapping is only named by address, to the kernel.
unsafe impl Sync for Map {}

impl Map {
    pub fn shared(file: &File, writable: bool) -> io::Result<Self> {
        let write = if writable { libc::PROT_WRITE } else { 0 };
        // SAFETY: a new mapping at an address the kernel picks; nothing refers into it, it is
        // only named by address to /proc/self/mem.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                LEN,
                libc::PROT_READ | write,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { start })
    }

    fn address(&self, offset: u64, len: usize) -> io::Result<u64> {
        let inside = offset
            .checked_add(len as u64)
            .is_some_and(|end| end <= LEN as u64);
        if inside {
            Ok(self.start as u64 + offset)
        } else {
            Err(io::Error::from_raw_os_error(libc::EINVAL))
        }
    }

    pub fn read(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut data = vec![0; len];
        memory().read_exact_at(&mut data, self.address(offset, len)?)?;
        Ok(data)
    }

    /// Writes the first page to a file, directly from the mapping. The call waits as long as the
    /// page is not available.
    pub fn write_to(&self, file: &File) -> io::Result<usize> {
        // SAFETY: the mapping is longer than a page, and the kernel reads it only.
        let done = unsafe { libc::write(file.as_raw_fd(), self.start, 4096) };
        usize::try_from(done).map_err(|_| io::Error::last_os_error())
    }

    /// Writes data and syncs it (msync).
    pub fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        memory().write_all_at(data, self.address(offset, data.len())?)?;
        // SAFETY: exactly the mapping made above; msync changes no memory.
        match unsafe { libc::msync(self.start, LEN, libc::MS_SYNC) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping made above, which nothing refers to any more.
        unsafe { libc::munmap(self.start, LEN) };
    }
}
