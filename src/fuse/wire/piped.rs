//! The answer to a large READ without copying it: the pages of the layer's file go through a
//! pipe of the thread to /dev/fuse, which copies them to the reader's once. Called by `reply`.
//!
//! ```text
//! write(2) header ─► pipe ◄─ splice(2) of the file        short: read(2) back, answer that
//!                     └─ splice(2) ─► /dev/fuse
//! ```

use std::cell::RefCell;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags};
use zerocopy::IntoBytes;

use crate::fuse::wire::abi::OutHeader;

/// Bytes from which on it pays: a pipe costs two system calls more than a buffer.
pub(super) const WORTH: usize = 64 << 10;

/// What became of an answer.
pub(super) enum Piped {
    /// The kernel has it, or nobody waits for it any more.
    Sent(bool),
    /// Nothing was sent; it has to be copied.
    Not,
}

/// A pipe of this thread. Between two answers it is empty.
struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    /// Pages it takes, one of them for the header.
    pages: usize,
}

thread_local! {
    /// `Some(None)`: no pipe can be had here.
    static PIPE: RefCell<Option<Option<Pipe>>> = const { RefCell::new(None) };
}

/// Answers `unique` with `size` bytes of `file` from `offset` on, if all of them are there.
pub(super) fn send(
    device: &OwnedFd,
    unique: u64,
    file: BorrowedFd<'_>,
    (offset, size): (u64, usize),
) -> Piped {
    PIPE.with_borrow_mut(|kept| {
        let pipe = kept.get_or_insert_with(|| Pipe::new().ok());
        let Some(open) = pipe.as_ref().filter(|pipe| pipe.takes(offset, size)) else {
            return Piped::Not;
        };
        let sent = match open.fill(unique, file, (offset, size)) {
            Ok(true) => open.empty(device, size),
            _ => Err(Errno::AGAIN),
        };
        match sent {
            Ok(()) => Piped::Sent(true),
            // What is left in it must not come before the next answer.
            Err(error) => {
                *kept = None;
                match error {
                    // Aborted, or unmounted.
                    Errno::NOENT | Errno::NODEV => Piped::Sent(false),
                    _ => Piped::Not,
                }
            }
        }
    })
}

impl Pipe {
    /// As large as the largest READ and its header: without privileges it may be less.
    fn new() -> rustix::io::Result<Self> {
        let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        let page = rustix::param::page_size();
        let size = [2 << 20, 1 << 20]
            .into_iter()
            .find_map(|size| rustix::pipe::fcntl_setpipe_size(&write, size).ok())
            .ok_or(Errno::PERM)?;
        Ok(Self {
            read,
            write,
            pages: size / page,
        })
    }

    /// Data that begins or ends within a page takes one more.
    fn takes(&self, offset: u64, size: usize) -> bool {
        let page = rustix::param::page_size();
        let before = usize::try_from(offset % page as u64).unwrap_or_default();
        (before + size).div_ceil(page) < self.pages
    }

    /// Whether the header and all the data are in the pipe.
    fn fill(
        &self,
        unique: u64,
        file: BorrowedFd<'_>,
        (offset, size): (u64, usize),
    ) -> rustix::io::Result<bool> {
        let header = OutHeader {
            len: u32::try_from(size_of::<OutHeader>() + size).map_err(|_| Errno::INVAL)?,
            error: 0,
            unique,
        };
        rustix::io::write(&self.write, header.as_bytes())?;
        let (mut at, mut left) = (offset, size);
        while left > 0 {
            match rustix::pipe::splice(
                file,
                Some(&mut at),
                &self.write,
                None,
                left,
                SpliceFlags::empty(),
            ) {
                Ok(0) => return Ok(false),
                Ok(n) => left -= n,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// The device takes a message whole or not at all.
    fn empty(&self, device: &OwnedFd, size: usize) -> rustix::io::Result<()> {
        let whole = size_of::<OutHeader>() + size;
        let flags = SpliceFlags::empty();
        rustix::io::retry_on_intr(|| {
            rustix::pipe::splice(&self.read, None, device, None, whole, flags)
        })
        .map(drop)
    }
}
