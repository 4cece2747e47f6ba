//! The memory of one entry of a ring: the header of a request, two `struct iovec` that tell the
//! kernel the places of header and payload, and the payload.
//!
//! An entry belongs to no ring. The owner of its [`Payload`] may answer the request in it, by any
//! ring of the process. While a command is running, its ring has the payload.

use std::io;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use super::{HEADER, Header};

/// The offset of the payload in the memory of an entry. The header and the two `struct iovec` are
/// before it.
const PAYLOAD_AT: usize = 4096;
const IOVECS_AT: usize = 1024;

/// The data of a request (names, values, data to write), then of its answer. Each entry has exactly
/// one. Its owner knows that the kernel does not touch the memory of the entry.
#[derive(Debug)]
pub struct Payload {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: plain memory of this process; there is one `Payload` of each map, so that it is accessed
// through one owner at a time.
unsafe impl Send for Payload {}
// SAFETY: a shared `Payload` gives shared access to plain bytes only.
unsafe impl Sync for Payload {}

impl Payload {
    /// Allocates memory for an entry that the kernel does not know yet, with a payload of `size`
    /// bytes. It is zeroed and page-aligned. Pages that are never touched take no memory.
    ///
    /// # Errors
    /// Those of mmap(2): ENOMEM, also where the address space is limited.
    pub fn new(size: usize) -> io::Result<Self> {
        let len = PAYLOAD_AT + size;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: new memory wherever the kernel likes; nothing of ours is replaced.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), len, access, kind, -1, 0) };
        match NonNull::new(start) {
            Some(mapped) if start != libc::MAP_FAILED => Ok(Self {
                start: mapped.cast(),
                len,
            }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Returns the memory of the data to the system. The payload is then zeroes.
    pub fn release(&mut self) {
        let start = self.as_mut_ptr().cast();
        // SAFETY: private anonymous pages of this map, to which nobody else has a reference: they
        // read as zeroes afterwards. Where the call fails they stay as they are.
        unsafe { libc::madvise(start, self.len - PAYLOAD_AT, libc::MADV_DONTNEED) };
    }

    /// Stores the header where the kernel reads it.
    pub(super) fn set_header(&mut self, header: &Header) {
        // SAFETY: the first `HEADER` bytes of the map, of which we are the only owner.
        unsafe { std::ptr::copy_nonoverlapping(header.as_ptr(), self.start.as_ptr(), HEADER) };
    }

    /// Returns the header that the kernel has written.
    pub(super) fn read_header(&self, header: &mut Header) {
        // SAFETY: as above.
        unsafe { std::ptr::copy_nonoverlapping(self.start.as_ptr(), header.as_mut_ptr(), HEADER) };
    }

    /// Writes the places of header and payload; returns the address of the two.
    pub(super) fn iovecs(&mut self) -> u64 {
        let start = self.start.as_ptr();
        // SAFETY: the offsets lie in the map (its length is `PAYLOAD_AT` plus the payload),
        // IOVECS_AT is aligned for `iovec` and behind the header; nobody else is there.
        unsafe {
            let iovecs = start.add(IOVECS_AT).cast::<libc::iovec>();
            iovecs.write(libc::iovec {
                iov_base: start.cast(),
                iov_len: HEADER,
            });
            iovecs.add(1).write(libc::iovec {
                iov_base: start.add(PAYLOAD_AT).cast(),
                iov_len: self.len - PAYLOAD_AT,
            });
            iovecs as u64
        }
    }
}

impl Deref for Payload {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the map is initialised and at least this long; this is its only owner, and the
        // kernel writes to it only while a ring has it.
        unsafe {
            std::slice::from_raw_parts(self.start.as_ptr().add(PAYLOAD_AT), self.len - PAYLOAD_AT)
        }
    }
}

impl DerefMut for Payload {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `self` is borrowed exclusively.
        unsafe {
            std::slice::from_raw_parts_mut(
                self.start.as_ptr().add(PAYLOAD_AT),
                self.len - PAYLOAD_AT,
            )
        }
    }
}

impl Drop for Payload {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this length, and nobody has a pointer into it left. The kernel
        // copies through the page tables: an entry without memory is a request that fails (EFAULT).
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}
