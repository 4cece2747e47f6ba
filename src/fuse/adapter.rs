//! Translates each request of the kernel to one call of the union and one reply. Called
//! by the workers of `wire`; holds no state of files: the node id is the union's inode
//! number and there are no file handles (no-open, no-opendir). Only under the policy
//! `passthrough` files are opened by message (`opens`).
//!
//! Work that would copy a file up, and every fsync, goes to the pool with its reply, so
//! that a worker is free for the next request.

mod handlers;
mod names;
mod opens;

use std::cell::RefCell;
use std::sync::Arc;

use super::convert;
use super::counters::{Counters, Op};
use super::passthrough::Opens;
use super::pool::Pool;
use super::wire::Limits;
use super::wire::abi::init;
use crate::union::Union;

/// The most bytes in one WRITE and in one READ.
pub(super) const MAX_IO: u32 = 1 << 20;
/// Requests the kernel may have in flight for readahead and other background work.
const MAX_BACKGROUND: u16 = 64;
/// A copy of at least this many bytes is slow work.
const SLOW_COPY: u64 = 1 << 20;
/// The most one copy_file_range moves: the kernel's own limit for one call (MAX_RW_COUNT).
const MAX_COPY: u64 = 0x7fff_f000;

/// The kernel's view of a union.
pub(super) struct Adapter {
    union: Arc<Union>,
    counters: Arc<Counters>,
    pool: Pool,
    /// The kernel takes ENOSYS to OPEN as "never ask again".
    no_open: bool,
    /// Likewise for OPENDIR.
    no_opendir: bool,
    /// What is open, under the policy `passthrough`.
    opens: Option<Arc<Opens>>,
}

impl Adapter {
    /// `flags`: what the handshake agreed on.
    pub(super) fn new(
        union: Arc<Union>,
        counters: Arc<Counters>,
        pool: Pool,
        flags: u32,
        opens: Option<Arc<Opens>>,
    ) -> Self {
        counters.count(Op::Init);
        Self {
            union,
            counters,
            pool,
            no_open: flags & init::NO_OPEN_SUPPORT != 0,
            no_opendir: flags & init::NO_OPENDIR_SUPPORT != 0,
            opens,
        }
    }

    fn count(&self, op: Op) {
        self.counters.count(op);
    }

    /// How long the kernel may keep an inode's attributes, in seconds.
    fn lifetime(&self, ino: u64) -> u64 {
        lifetime(self.opens.as_deref(), ino)
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
    fn modify(&self, ino: u64, job: impl FnOnce(&Union) + Send + 'static) {
        self.run(self.union.needs_copy_up(ino), job);
    }
}

fn lifetime(opens: Option<&Opens>, ino: u64) -> u64 {
    opens.map_or(convert::FOREVER, |opens| opens.lifetime(ino))
}

/// What to ask of the kernel, each where it offers it. FUSE_ATOMIC_O_TRUNC only together with
/// passthrough (else there is no OPEN), never FUSE_AUTO_INVAL_DATA (it would drop cached pages; files change through the
/// kernel only), FUSE_EXPORT_SUPPORT (what the kernel forgot, the union may not find by
/// number) or the lock flags (the kernel keeps locks itself). READDIRPLUS without
/// FUSE_READDIRPLUS_AUTO: with it, the pages of a listing after the first bring names only,
/// and each name of them costs a LOOKUP (318 more messages for a walk of 1,624 files).
pub(super) fn wanted(acl: bool, writeback: bool, stack_depth: u32) -> Limits {
    let flags = init::ASYNC_READ
        | init::PARALLEL_DIROPS
        | init::DO_READDIRPLUS
        | init::CACHE_SYMLINKS
        | init::NO_OPEN_SUPPORT
        | init::NO_OPENDIR_SUPPORT
        | init::EXPLICIT_INVAL_DATA
        | init::ASYNC_DIO
        | init::DONT_MASK
        | init::HANDLE_KILLPRIV_V2;
    let when = |wanted, flag| if wanted { flag } else { 0 };
    Limits {
        flags: flags | when(acl, init::POSIX_ACL) | when(writeback, init::WRITEBACK_CACHE),
        max_io: MAX_IO,
        max_background: MAX_BACKGROUND,
        stack_depth,
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
