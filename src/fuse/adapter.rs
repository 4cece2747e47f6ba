//! A union as a file system for a transport. Each operation is one call of the union and one
//! answer. The adapter has no state of files: the node ID is the union's inode number (but see
//! `successors`), and there are no file handles (no-open, no-opendir). Only where files are passed
//! through they are opened by message (`opens`).
//!
//! Work that may copy a file up, and every fsync, is slow. While enough other workers are free for
//! the next request, the worker that has read the request does it, because another thread would
//! have to wake up first. Otherwise it goes to the pool with its reply. Other changes go to the
//! pool only if all workers but one are busy with changes, so that a disk that takes no writes does
//! not prevent reads. Over io_uring all slow work goes to the pool, and other changes if no thread
//! of the CPU would be left.

mod freed_room;
mod leases;
mod opens;
mod operations;

use std::sync::Arc;

use self::opens::UnneededOpens;
use super::busy::{self, Busy, Work, Workers};
use super::counters::{Counters, Op};
use super::keeper::Keeper;
use super::operations::{Context, Ino, KnownAs, Node, Notices, SetIdBits};
use super::passthrough::Opens;
use super::pool::{Pool, Room};
use super::protocol_values;
use super::request_scope;
use super::thread::{self, Thread};
use super::transport::Agreed;
use super::wire::Limits;
use super::wire::abi::{init, init2};
use crate::sys::process::administers_machine;
use crate::union::{Caller, Change, SetIdLoss, Union};

/// The maximum number of bytes in one WRITE and in one READ.
pub(super) const MAX_IO: u32 = 1 << 20;
/// The maximum number of requests in flight for readahead and other background work.
const MAX_BACKGROUND: u16 = 64;
/// A copy of at least this many bytes is slow work.
const SLOW_COPY: u64 = 1 << 20;

/// Operations that are answered. Others get ENOSYS, after which the kernel does not send them
/// again.
#[derive(Clone, Copy)]
pub(super) struct Told {
    /// STATX.
    pub(super) births: bool,
    /// GETXATTR, LISTXATTR, SETXATTR, REMOVEXATTR.
    pub(super) xattrs: bool,
    /// The answers about ACLs.
    pub(super) acls: Acls,
}

/// Why the kernel asks for ACLs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Acls {
    /// The layers keep them.
    AsInLayers,
    /// The caller has mounted, maybe without `default_permissions`. A server that keeps ACLs makes
    /// the kernel check permissions (`process_init_reply` of fs/fuse/inode.c), so this one says
    /// that it does. Files of layers that have no ACLs have none here.
    Forced,
}

/// The ID of a caller that the kernel does not tell (`FUSE_INVALID_UIDGID`): of all requests to a
/// mount that may be idmapped, except those that create files.
const UNKNOWN_ID: u32 = u32::MAX;

/// The union as the kernel sees it.
pub(super) struct Adapter {
    union: Arc<Union>,
    counters: Arc<Counters>,
    pool: Pool,
    workers: Arc<Workers>,
    /// Opens of files for which passthrough is not used.
    open_files: UnneededOpens,
    /// Opens of directories.
    open_dirs: UnneededOpens,
    /// Whether the kernel collects writes, so that the positions of data and holes are not known.
    /// After ENOSYS to LSEEK the kernel treats the whole file as data.
    no_lseek: bool,
    /// Whether the kernel reports with each change if the change drops the set-id bits. A kernel
    /// that does not report it drops them itself before the change, except set-group-ID without
    /// group execution.
    says_kills: bool,
    told: Told,
    /// Sends notifications to the kernel.
    notices: Arc<dyn Notices>,
    /// The open files, under the policy `passthrough`.
    opens: Option<Arc<Opens>>,
    /// The keeper of a server in a sandbox.
    keeper: Option<Arc<Keeper>>,
}

impl Adapter {
    /// Creates the file system of a union. `workers` limits how many workers may be busy beside the
    /// `pool`.
    pub(super) fn new(
        union: Arc<Union>,
        counters: Arc<Counters>,
        pool: Pool,
        workers: busy::Limits,
        agreed: Agreed,
        told: Told,
        opens: Option<Arc<Opens>>,
    ) -> Self {
        counters.count(Op::Init);
        let Agreed { notices, flags } = agreed;
        let notices = match &opens {
            Some(opens) => Arc::<Opens>::clone(opens),
            None => notices,
        };
        Self {
            union,
            counters,
            pool,
            workers: Arc::new(Workers::new(workers)),
            open_files: UnneededOpens::agreed(flags, init::NO_OPEN_SUPPORT),
            open_dirs: UnneededOpens::agreed(flags, init::NO_OPENDIR_SUPPORT),
            no_lseek: flags & init::WRITEBACK_CACHE != 0,
            says_kills: flags & init::HANDLE_KILLPRIV_V2 != 0,
            told,
            notices,
            opens,
            keeper: None,
        }
    }

    /// Sets the keeper of a server in a sandbox.
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

    /// Returns how long the kernel may keep the attributes of an inode, in seconds.
    fn lifetime(&self, ino: u64) -> u64 {
        lifetime(self.opens.as_deref(), ino)
    }

    /// Returns how the kernel knows an inode that it looks up.
    fn known(&self, ino: u64) -> KnownAs {
        known(self.opens.as_deref(), ino)
    }

    /// Whether work that takes the lock of this inode's file may wait for programs that write to it
    /// by passthrough. Most such work waits in the kernel already, for the lock of the inode.
    /// Opens, reads and copies from the file do not.
    fn may_wait(&self, ino: Ino) -> bool {
        self.opens
            .as_ref()
            .is_some_and(|opens| opens.may_wait(ino.0))
    }

    /// Runs a change on this thread, or in the pool if no worker is free for it.
    fn run(&self, work: Work, job: impl FnOnce(&Union) + Send + 'static) {
        self.run_with(work, &[], |union, _| job(union));
    }

    /// As [`Adapter::run`], with data or a name in the worker's buffer. The data is copied only if
    /// the pool has room for it.
    fn run_with(&self, work: Work, data: &[u8], job: impl FnOnce(&Union, &[u8]) + Send + 'static) {
        if let Some(_here) = self.may_run_here(work) {
            return job(&self.union, data);
        }
        // If too much work waits already, this thread does the work. It reads no further request
        // meanwhile.
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

    /// Whether this thread may do the work itself. A worker counts as busy until it answers, or drops
    /// the guard.
    fn may_run_here(&self, work: Work) -> Option<Busy> {
        match thread::current() {
            Thread::Pool => Some(Busy::uncounted()),
            Thread::Ring { may_wait } => (may_wait && work == Work::Quick).then(Busy::uncounted),
            Thread::Worker => self.workers.enter(work),
        }
    }

    /// Returns room in the pool for a job with data, and a copy of the data.
    fn room_for(&self, data: &[u8]) -> Option<(Room, Vec<u8>)> {
        let mut copy = Vec::new();
        let room = self.pool.admit(data.len())?;
        copy.try_reserve_exact(data.len()).ok()?;
        copy.extend_from_slice(data);
        Some((room, copy))
    }

    /// Runs a change of the metadata of `ino` that may first have to copy it up.
    fn modify(&self, ino: Ino, job: impl FnOnce(&Union) + Send + 'static) {
        let copies = self.union.needs_copy_up(ino.0, Change::Metadata);
        self.run(Work::slow_if(copies), job);
    }
}

/// The user of the request.
fn user_of(request: Option<request_scope::Request>) -> u32 {
    request.map_or(0, |request| request.user())
}

/// Calls `job` with the change that drops a file's set-id bits, if they are dropped. The kernel
/// continues with the mode that it knows, so it is notified before the data changes.
fn with_loss<T>(
    notices: &dyn Notices,
    context: Context,
    set_id: SetIdBits,
    job: impl FnOnce(Option<&SetIdLoss<'_>>) -> T,
) -> T {
    let fell = |ino| notices.attributes_changed(ino);
    let loss = SetIdLoss {
        caller: caller(context),
        fell: &fell,
    };
    job((set_id == SetIdBits::Dropped).then_some(&loss))
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

/// Returns how the kernel knows an inode that it looks up.
fn known(opens: Option<&Opens>, ino: u64) -> KnownAs {
    let first = KnownAs {
        node: Node(ino),
        lifetime: protocol_values::FOREVER,
    };
    opens.map_or(first, |opens| opens.known(ino))
}

/// What a mount needs of the kernel.
pub(super) struct Wishes {
    /// The kernel checks POSIX ACLs.
    pub acl: bool,
    /// The kernel collects writes.
    pub writeback: bool,
    /// The mount may be idmapped.
    pub idmappable: bool,
    /// As in FUSE_INIT: the number of file systems below that pass files through.
    pub stack_depth: u32,
}

/// Returns the flags to ask the kernel for, where it offers them. FUSE_ATOMIC_O_TRUNC is used only
/// with passthrough, since there is no OPEN otherwise. FUSE_AUTO_INVAL_DATA is never used, because
/// it drops cached pages although files change only through the kernel; nor are the lock flags,
/// because the kernel keeps locks itself. FUSE_ASYNC_DIO is used only where files are passed
/// through and FUSE has no pages of them: it drops cached pages before a write of aio(7) but not
/// after it, so pages that others read meanwhile would stay. READDIRPLUS is used without
/// FUSE_READDIRPLUS_AUTO: with it, only the first page of a listing has attributes, and each later
/// name costs a LOOKUP (318 more messages for a walk of 1,624 files).
pub(super) fn wanted(wishes: Wishes) -> Limits {
    let Wishes {
        acl,
        writeback,
        idmappable,
        stack_depth,
    } = wishes;
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
    let flags = flags
        | when(acl, init::POSIX_ACL)
        | when(writeback, init::WRITEBACK_CACHE)
        | when(stack_depth != 0, init::ASYNC_DIO);
    Limits {
        flags: flags & !left_out(),
        flags2: when(idmappable, init2::ALLOW_IDMAP),
        max_io: MAX_IO,
        max_background: MAX_BACKGROUND,
        transport: None,
        stack_depth,
    }
}

/// Returns what tests want the kernel to lack: words of the variable `UNIONFS_TEST_KERNEL_WITHOUT`, with
/// commas between them, which only a build with debug assertions reads.
fn left_out() -> u32 {
    if !cfg!(debug_assertions) {
        return 0;
    }
    let words = std::env::var("UNIONFS_TEST_KERNEL_WITHOUT").unwrap_or_default();
    let flags = words.split(',').map(|word| match word {
        "readdirplus" => init::DO_READDIRPLUS,
        "no-open" => init::NO_OPEN_SUPPORT | init::NO_OPENDIR_SUPPORT,
        _ => 0,
    });
    flags.fold(0, |all, flag| all | flag)
}
