//! Translates each request of the kernel to one call of the union and one reply. Called
//! by fuser's worker threads; holds no state of files: the node id is the union's inode
//! number and there are no file handles (no-open, no-opendir).
//!
//! Work that would copy a file up, and every fsync, goes to the pool with its reply, so
//! that a worker is free for the next request.

mod handlers;
mod names;

use std::cell::RefCell;
use std::sync::Arc;

use fuser::{INodeNo, InitFlags};

use super::counters::{Counters, Op};
use super::pool::Pool;
use crate::union::Union;

/// The most bytes in one WRITE and in one READ.
const MAX_IO: u32 = 1 << 20;
/// Requests the kernel may have in flight for readahead and other background work.
const MAX_BACKGROUND: u16 = 64;
/// A copy of at least this many bytes is slow work.
const SLOW_COPY: u64 = 1 << 20;
/// The most one copy_file_range moves: the kernel's own limit for one call (MAX_RW_COUNT).
const MAX_COPY: u64 = 0x7fff_f000;

/// fuser's view of a union.
pub(super) struct Adapter {
    union: Arc<Union>,
    counters: Arc<Counters>,
    pool: Pool,
    /// The kernel takes ENOSYS to OPEN as "never ask again".
    no_open: bool,
    /// Likewise for OPENDIR.
    no_opendir: bool,
}

impl Adapter {
    pub(super) fn new(union: Arc<Union>, counters: Arc<Counters>, pool: Pool) -> Self {
        Self {
            union,
            counters,
            pool,
            no_open: false,
            no_opendir: false,
        }
    }

    fn count(&self, op: Op) {
        self.counters.count(op);
    }

    /// Runs `job` here, or in the pool when it is slow.
    fn run(&self, slow: bool, job: impl FnOnce(&Union) + Send + 'static) {
        if slow {
            let union = Arc::clone(&self.union);
            self.pool.submit(move || job(&union));
        } else {
            job(&self.union);
        }
    }

    /// Runs a modification of `ino` that may first have to copy it up.
    fn modify(&self, ino: INodeNo, job: impl FnOnce(&Union) + Send + 'static) {
        self.run(self.union.needs_copy_up(ino.0), job);
    }
}

/// What to ask of the kernel, each where it offers it. Never FUSE_ATOMIC_O_TRUNC (there is
/// no OPEN), FUSE_AUTO_INVAL_DATA (it would drop cached pages; files change through the
/// kernel only) or the lock flags (the kernel keeps locks itself). READDIRPLUS without
/// FUSE_READDIRPLUS_AUTO: with it, the pages of a listing after the first bring names only,
/// and each name of them costs a LOOKUP (318 more messages for a walk of 1,624 files).
fn wanted(acl: bool) -> InitFlags {
    let flags = InitFlags::FUSE_PARALLEL_DIROPS
        | InitFlags::FUSE_DO_READDIRPLUS
        | InitFlags::FUSE_CACHE_SYMLINKS
        | InitFlags::FUSE_NO_OPEN_SUPPORT
        | InitFlags::FUSE_NO_OPENDIR_SUPPORT
        | InitFlags::FUSE_EXPLICIT_INVAL_DATA
        | InitFlags::FUSE_ASYNC_DIO
        | InitFlags::FUSE_DONT_MASK
        | InitFlags::FUSE_HANDLE_KILLPRIV_V2;
    if acl {
        flags | InitFlags::FUSE_POSIX_ACL
    } else {
        flags
    }
}

/// Runs `job` with a buffer of this thread, reused between requests. The size is never
/// cut: a short answer would mean the end of the file to the kernel.
fn with_buffer<T>(size: u32, job: impl FnOnce(&mut [u8]) -> T) -> T {
    thread_local! {
        static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    }
    let size = size as usize;
    BUFFER.with_borrow_mut(|buffer| {
        if buffer.len() < size {
            buffer.resize(size, 0);
        }
        job(buffer.get_mut(..size).unwrap_or_default())
    })
}
