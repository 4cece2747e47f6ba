//! A union as a file system for a transport: each operation is one call of the union and one answer.
//! It holds no state of files: the node id is the union's inode number and there are no file handles
//! (no-open, no-opendir). Only under the policy `passthrough` files are opened by message (`opens`).
//!
//! Work that would copy a file up, and every fsync, is slow. As long as enough other workers
//! are free for the next request it is done where it was read: to hand it on would cost
//! another thread's wake-up. Else it goes to the pool with its reply. Other changes go there only
//! where all workers but one are busy with changes, so that a disk that takes no writes does not
//! keep others from reading. Over io_uring all slow work goes there, and other changes where no
//! thread of the CPU would be left.

mod freed_room;
mod leases;
mod opens;
mod operations;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::counters::{Counters, Op};
use super::keeper::Keeper;
use super::operations::{Context, Ino, Notices};
use super::passthrough::Opens;
use super::pool::{Pool, Room};
use super::protocol_values;
use super::request_scope;
use super::thread::{self, Thread};
use super::transport::Agreed;
use super::wire::Limits;
use super::wire::abi::init;
use crate::sys::process::administers_machine;
use crate::union::{Caller, SetIdLoss, Union};

/// The most bytes in one WRITE and in one READ.
pub(super) const MAX_IO: u32 = 1 << 20;
/// Requests the kernel may have in flight for readahead and other background work.
const MAX_BACKGROUND: u16 = 64;
/// A copy of at least this many bytes is slow work.
const SLOW_COPY: u64 = 1 << 20;

/// What is answered at all; where not, by ENOSYS, which is "never ask again".
#[derive(Clone, Copy)]
pub(super) struct Told {
    /// STATX.
    pub(super) births: bool,
    /// GETXATTR, LISTXATTR, SETXATTR, REMOVEXATTR.
    pub(super) xattrs: bool,
}

/// How many workers that read /dev/fuse may be busy at the same time; further work goes to the pool.
#[derive(Clone, Copy)]
pub(super) struct Workers {
    /// With slow work.
    pub(super) slow: usize,
    /// With any change. Fewer than there are: a disk that takes no writes for a while (frozen,
    /// hung, throttled) must not keep everybody else from reading.
    pub(super) busy: usize,
}

/// The kernel's view of a union.
pub(super) struct Adapter {
    union: Arc<Union>,
    counters: Arc<Counters>,
    pool: Pool,
    workers: Workers,
    /// Workers that do slow work now.
    slow_now: AtomicUsize,
    /// Workers that change something now.
    busy_now: AtomicUsize,
    /// The kernel takes ENOSYS to OPEN as "never ask again".
    no_open: bool,
    /// Likewise for OPENDIR.
    no_opendir: bool,
    /// The kernel collects writes, so that we do not know where data is; ENOSYS to LSEEK makes it
    /// take all of a file for data.
    no_lseek: bool,
    /// The kernel says with each change whether it takes a file its set-id bits. One that does not
    /// takes them itself before, all but set-group-ID without group execution.
    says_kills: bool,
    told: Told,
    /// For what is told to the kernel unasked.
    notices: Arc<dyn Notices>,
    /// What is open, under the policy `passthrough`.
    opens: Option<Arc<Opens>>,
    /// Of a server in a sandbox.
    keeper: Option<Arc<Keeper>>,
}

impl Adapter {
    /// `workers`: how many of them may be busy beside the `pool`.
    pub(super) fn new(
        union: Arc<Union>,
        counters: Arc<Counters>,
        pool: Pool,
        workers: Workers,
        agreed: Agreed,
        told: Told,
        opens: Option<Arc<Opens>>,
    ) -> Self {
        counters.count(Op::Init);
        let Agreed { notices, flags } = agreed;
        Self {
            union,
            counters,
            pool,
            workers,
            slow_now: AtomicUsize::new(0),
            busy_now: AtomicUsize::new(0),
            no_open: flags & init::NO_OPEN_SUPPORT != 0,
            no_opendir: flags & init::NO_OPENDIR_SUPPORT != 0,
            no_lseek: flags & init::WRITEBACK_CACHE != 0,
            says_kills: flags & init::HANDLE_KILLPRIV_V2 != 0,
            told,
            notices,
            opens,
            keeper: None,
        }
    }

    /// Of a server in a sandbox.
    pub(super) fn with_keeper(mut self, keeper: Option<Arc<Keeper>>) -> Self {
        self.keeper = keeper;
        self
    }

    /// Whether the thread that waits for our answer has CAP_SYS_ADMIN over the machine.
    fn is_administrator(&self, thread: u32) -> bool {
        match &self.keeper {
            Some(keeper) => keeper.administers_machine(thread),
            None => administers_machine(thread),
        }
    }

    /// How long the kernel may keep an inode's attributes, in seconds.
    fn lifetime(&self, ino: u64) -> u64 {
        lifetime(self.opens.as_deref(), ino)
    }

    /// Whether what takes the lock of this inode's file may wait for others, who write to it past us.
    /// Most of it waits in the kernel already, for the lock of the inode: opens, reads and what is
    /// copied from it do not.
    fn may_wait(&self, ino: Ino) -> bool {
        self.opens
            .as_ref()
            .is_some_and(|opens| opens.may_wait(ino.0))
    }

    /// Runs a change here, or in the pool when no worker can be spared for it.
    fn run(&self, slow: bool, job: impl FnOnce(&Union) + Send + 'static) {
        self.run_with(slow, &[], |union, _| job(union));
    }

    /// As [`Adapter::run`], with data or a name that lies in the worker's buffer: it is only copied
    /// where the pool has room for it.
    fn run_with(&self, slow: bool, data: &[u8], job: impl FnOnce(&Union, &[u8]) + Send + 'static) {
        if let Some(_here) = self.may_run_here(slow) {
            return job(&self.union, data);
        }
        // Where too much waits already it is done here: no further request is read meanwhile.
        let Some((room, copy)) = self.room_for(data) else {
            return job(&self.union, data);
        };
        let union = Arc::clone(&self.union);
        let request = request_scope::current();
        self.pool.submit(room, user_of(request), move || {
            let _scope = request_scope::enter(request);
            job(&union, &copy);
        });
    }

    /// Whether this thread may do the work itself, for which it is busy until the answer is dropped.
    fn may_run_here(&self, slow: bool) -> Option<Busy<'_>> {
        let uncounted = Busy {
            adapter: None,
            slow,
        };
        match thread::current() {
            Thread::Pool => Some(uncounted),
            Thread::Ring { may_wait } => (may_wait && !slow).then_some(uncounted),
            Thread::Worker => self.spare_worker(slow),
        }
    }

    /// Room in the pool for a job with data, and a copy of that.
    fn room_for(&self, data: &[u8]) -> Option<(Room, Vec<u8>)> {
        let mut copy = Vec::new();
        let room = self.pool.admit(data.len())?;
        copy.try_reserve_exact(data.len()).ok()?;
        copy.extend_from_slice(data);
        Some((room, copy))
    }

    /// Whether this worker may be busy; it counts as such until the answer is dropped.
    fn spare_worker(&self, slow: bool) -> Option<Busy<'_>> {
        let busy = Busy {
            adapter: Some(self),
            slow,
        };
        let busy_before = self.busy_now.fetch_add(1, Ordering::Relaxed);
        let slow_before = if slow {
            self.slow_now.fetch_add(1, Ordering::Relaxed)
        } else {
            0
        };
        let spare = busy_before < self.workers.busy && (!slow || slow_before < self.workers.slow);
        spare.then_some(busy)
    }

    /// Runs a modification of `ino` that may first have to copy it up.
    fn modify(&self, ino: Ino, job: impl FnOnce(&Union) + Send + 'static) {
        self.run(self.union.needs_copy_up(ino.0), job);
    }
}

/// Whose request it is.
fn user_of(request: Option<request_scope::Request>) -> u32 {
    request.map_or(0, |request| request.user())
}

/// A thread that does work. A worker is counted in [`Adapter::busy_now`], and in
/// [`Adapter::slow_now`] if `slow`; others are not.
struct Busy<'a> {
    adapter: Option<&'a Adapter>,
    slow: bool,
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        let Some(adapter) = self.adapter else {
            return;
        };
        adapter.busy_now.fetch_sub(1, Ordering::Relaxed);
        if self.slow {
            adapter.slow_now.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Calls `job` with what takes a file its set-id bits, if `kills`: the kernel, which goes on with
/// the mode it knows, hears of it before the data changes.
fn with_loss<T>(
    notices: &dyn Notices,
    context: Context,
    kills: bool,
    job: impl FnOnce(Option<&SetIdLoss<'_>>) -> T,
) -> T {
    let fell = |ino| notices.attributes_changed(ino);
    let loss = SetIdLoss {
        caller: caller(context),
        fell: &fell,
    };
    job(kills.then_some(&loss))
}

fn caller(context: Context) -> Caller {
    Caller {
        uid: context.uid,
        gid: context.gid,
    }
}

fn lifetime(opens: Option<&Opens>, ino: u64) -> u64 {
    opens.map_or(protocol_values::FOREVER, |opens| opens.lifetime(ino))
}

/// What to ask of the kernel, each where it offers it. FUSE_ATOMIC_O_TRUNC only together with
/// passthrough (else there is no OPEN); never FUSE_AUTO_INVAL_DATA (it would drop cached pages;
/// files change through the kernel only) or the lock flags (the kernel keeps locks itself).
/// FUSE_ASYNC_DIO only where files are passed through, whose pages the kernel's FUSE does not hold:
/// it drops cached pages before a write of aio(7), and not once more when that is done, so that
/// what others read meanwhile stays. READDIRPLUS without
/// FUSE_READDIRPLUS_AUTO: with it, the pages of a listing after the first bring names only,
/// and each name of them costs a LOOKUP (318 more messages for a walk of 1,624 files).
pub(super) fn wanted(acl: bool, writeback: bool, stack_depth: u32) -> Limits {
    let flags = init::ASYNC_READ
        | init::EXPORT_SUPPORT
        | init::PARALLEL_DIROPS
        | init::DO_READDIRPLUS
        | init::CACHE_SYMLINKS
        | init::NO_OPEN_SUPPORT
        | init::NO_OPENDIR_SUPPORT
        | init::EXPLICIT_INVAL_DATA
        | init::DONT_MASK
        | init::HANDLE_KILLPRIV_V2
        | init::SETXATTR_EXT;
    let when = |wanted, flag| if wanted { flag } else { 0 };
    Limits {
        flags: flags
            | when(acl, init::POSIX_ACL)
            | when(writeback, init::WRITEBACK_CACHE)
            | when(stack_depth != 0, init::ASYNC_DIO),
        max_io: MAX_IO,
        max_background: MAX_BACKGROUND,
        transport: None,
        stack_depth,
    }
}
