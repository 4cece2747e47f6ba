//! O_DIRECT: a second descriptor of a file's data that bypasses the page cache, and buffers that
//! are aligned for it.
//!
//! Offsets and sizes reach the backing file system unchanged, so its rules apply: it returns EINVAL
//! for what it considers misaligned. If it does not support O_DIRECT, the page cache is used.
//! Kernel overlayfs fails the open(2) with EINVAL then. The server cannot do that, because the
//! kernel opens files without asking it.

use std::cell::RefCell;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};

use super::inode::DataFd;
use super::types::Caching;
use crate::layer::fds::with_spare;

/// Alignment in bytes; no block device needs more.
const ALIGN: usize = 4096;

impl DataFd {
    /// Returns the descriptor for I/O, which bypasses the page cache if asked and possible.
    pub(crate) fn for_io(&self, caching: Caching) -> BorrowedFd<'_> {
        if caching == Caching::Cached {
            return self.fd.as_fd();
        }
        self.reopened().as_ref().unwrap_or(&self.fd).as_fd()
    }

    /// Whether the file can be read and written with O_DIRECT.
    pub(crate) fn has_direct(&self) -> bool {
        self.reopened().is_some()
    }

    fn reopened(&self) -> &Option<OwnedFd> {
        self.direct.get_or_init(|| reopen(&self.fd))
    }
}

/// Opens the file again: O_DIRECT on the cached descriptor would apply to all its users.
fn reopen(fd: &OwnedFd) -> Option<OwnedFd> {
    let mode = rustix::fs::fcntl_getfl(fd).ok()? & (OFlags::ACCMODE | OFlags::NOATIME);
    // Opening through the descriptor works for a file without a name too.
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let flags = mode | OFlags::DIRECT | OFlags::NONBLOCK | OFlags::CLOEXEC;
    with_spare(|| rustix::fs::open(&*path, flags, Mode::empty())).ok()
}

/// Calls `job` with `data`, copied to an aligned buffer of this thread if it is not aligned.
pub(crate) fn aligned<T>(data: &[u8], job: impl FnOnce(&[u8]) -> T) -> T {
    if is_aligned(data) {
        return job(data);
    }
    with_aligned(data.len(), |buffer| {
        buffer.copy_from_slice(data);
        job(buffer)
    })
}

/// Calls `fill` with `into` if that is aligned, else with an aligned buffer of this thread, from
/// which the bytes counted by `fill` are copied.
pub(crate) fn aligned_into<E>(
    into: &mut [u8],
    fill: impl FnOnce(&mut [u8]) -> Result<usize, E>,
) -> Result<usize, E> {
    if is_aligned(into) {
        return fill(into);
    }
    with_aligned(into.len(), |buffer| {
        let count = fill(buffer)?;
        into[..count].copy_from_slice(&buffer[..count]);
        Ok(count)
    })
}

fn is_aligned(data: &[u8]) -> bool {
    data.as_ptr().addr().is_multiple_of(ALIGN)
}

fn with_aligned<T>(len: usize, job: impl FnOnce(&mut [u8]) -> T) -> T {
    thread_local! {
        static SPACE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    }
    SPACE.with_borrow_mut(|space| {
        if space.len() < len + ALIGN {
            space.resize(len + ALIGN, 0);
        }
        let start = space.as_ptr().align_offset(ALIGN);
        job(&mut space[start..start + len])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_aligned_and_copied_only_where_it_is_not() {
        let mut space = vec![7; 3 * ALIGN];
        let start = space.as_ptr().align_offset(ALIGN);
        for (from, in_place) in [(start, true), (start + 1, false)] {
            let data = &mut space[from..from + ALIGN];
            let place = data.as_ptr();
            aligned(data, |seen| {
                assert!(is_aligned(seen) && seen.iter().all(|byte| *byte == 7));
                assert_eq!(seen.as_ptr() == place, in_place);
            });
            let filled = aligned_into(data, |seen| {
                assert!(is_aligned(seen));
                assert_eq!(seen.as_ptr() == place, in_place);
                seen[..2].copy_from_slice(b"ab");
                Ok::<_, ()>(2)
            });
            assert_eq!((filled, &data[..3]), (Ok(2), &b"ab\x07"[..]));
            data[..2].fill(7);
        }
    }
}
