//! Orphans: upper files and directories that have lost their last name while the kernel still uses
//! them.
//!
//! A descriptor keeps each of them, which is cheapest. Descriptors are shared by the whole process,
//! so their number is limited ([`Budget`]); a file beyond the limit gets a name in the work
//! directory (mode 0700, emptied by the next mount), which is removed when the kernel forgets the
//! inode. That name counts as a link on the upper's file system, which no user sees: see
//! [`super::attr::attr`]. A removed directory is empty, so beyond the limit its attributes are kept
//! in memory instead.
//!
//! Another process could not open these files again. A process that takes over from a server needs
//! their descriptors, and the numbers of their inodes.
//!
//! Invariant: a parked name exists as long as its inode's `Loc` has it. Both change with `loc`
//! locked, so attributes read from the file agree with `loc`.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

use super::error::Result;
use super::inode::{DataFd, Inode, Loc};
use super::stack::Stack;
use super::types::{SetAttr, SetTime};
use super::upper::Upper;
use crate::layer::at::{At, Stat};
use crate::layer::fds::IsExhausted as _;
use crate::layer::types::Time;
use crate::sys::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// The maximum number of descriptors for orphans.
const MOST: usize = 256;
/// The inverse of the share of the process's descriptors that orphans may take.
const SHARE: usize = 8;
/// The limit of the process, which prlimit(2) may change, is read again after this number of
/// descriptors.
const LOOK_AGAIN: usize = 32;

/// Keeps upper files that have lost their last name. The descriptor or name that keeps a file is in
/// its inode ([`super::inode::Rare`]). This counts the descriptors.
pub(crate) struct Orphans {
    budget: Arc<Budget>,
}

/// The limit of descriptors that keep orphans.
#[derive(Debug)]
struct Budget {
    taken: AtomicUsize,
    most: AtomicUsize,
    /// The time of the last take: [`milliseconds`].
    last: AtomicU64,
}

impl Budget {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            taken: AtomicUsize::new(0),
            most: AtomicUsize::new(allowed()),
            last: AtomicU64::new(0),
        })
    }

    /// Takes one descriptor from the budget; `None` if none is left. Dropping the permit returns
    /// the descriptor.
    fn take(self: &Arc<Self>) -> Option<Permit> {
        self.take_below(1)
    }

    /// As [`Self::take`], with a reserve for files that nothing but a descriptor can keep.
    fn take_reserve(self: &Arc<Self>) -> Option<Permit> {
        self.take_below(2)
    }

    /// Returns the time since a descriptor was last taken; `None` if all have been returned.
    fn since_last(&self) -> Option<Duration> {
        let is_used = self.taken.load(Ordering::Relaxed) > 0;
        let since = milliseconds().saturating_sub(self.last.load(Ordering::Relaxed));
        is_used.then(|| Duration::from_millis(since))
    }

    fn take_below(self: &Arc<Self>, times: usize) -> Option<Permit> {
        let permit = Permit(Arc::clone(self));
        let before = self.taken.fetch_add(1, Ordering::Relaxed);
        self.last.store(milliseconds(), Ordering::Relaxed);
        if before > 0 && before.is_multiple_of(LOOK_AGAIN) {
            self.most.store(allowed(), Ordering::Relaxed);
        }
        (before < self.most.load(Ordering::Relaxed).saturating_mul(times)).then_some(permit)
    }
}

/// Returns the time of the monotonic clock, with the precision of a clock tick.
fn milliseconds() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::MonotonicCoarse);
    let milliseconds = now.tv_sec * 1000 + now.tv_nsec / 1_000_000;
    u64::try_from(milliseconds).unwrap_or(0)
}

fn allowed() -> usize {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(limit).map_or(MOST, |limit| (limit / SHARE).min(MOST))
}

/// A descriptor that is counted in a [`Budget`].
#[derive(Debug)]
pub(crate) struct Permit(Arc<Budget>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A name in the work directory, removed when dropped.
#[derive(Debug)]
pub(crate) struct Parked {
    staging: Arc<OwnedFd>,
    name: Vec<u8>,
    /// The file has never had another name, and may get one (O_TMPFILE).
    pub linkable: bool,
}

impl Parked {
    /// Takes over `name` in `staging`, which exists and has no other user.
    pub fn new(staging: &Arc<OwnedFd>, name: Vec<u8>) -> Self {
        Self {
            staging: Arc::clone(staging),
            name,
            linkable: false,
        }
    }

    pub fn at(&self) -> At<'_> {
        At::new(self.staging.as_fd(), &self.name)
    }
}

impl Drop for Parked {
    fn drop(&mut self) {
        if let Err(error) = self.at().unlink() {
            tracing::warn!(%error, "cannot remove a file from the work directory");
        }
    }
}

/// A descriptor that keeps an upper file or directory without a name.
#[derive(Debug)]
pub(crate) struct Held {
    by: By,
    _counted: Permit,
}

#[derive(Debug)]
enum By {
    /// A descriptor that was opened for this purpose, or the one of a directory.
    Fd(Arc<OwnedFd>),
    /// The descriptor through which the file's data is read and written.
    Data(Arc<DataFd>),
}

impl Held {
    pub fn at(&self) -> At<'_> {
        match &self.by {
            By::Fd(fd) => At::fd(fd.as_fd()),
            By::Data(data) => At::opened(data.fd.as_fd()),
        }
    }

    /// Returns the descriptor of a directory.
    pub fn dir(&self) -> Option<&Arc<OwnedFd>> {
        match &self.by {
            By::Fd(fd) => Some(fd),
            By::Data(_) => None,
        }
    }
}

/// The descriptor, name or memory that keeps an inode that loses its last name.
#[derive(Debug)]
pub(crate) enum Keep {
    /// The inode is kept already, by the name under which it is parked or by its index entry.
    Known,
    /// A descriptor keeps it.
    Held(Held),
    /// A name in the work directory keeps it.
    Parked(Parked),
    /// The attributes of a directory are kept in memory.
    Gone(Box<Stat>),
}

impl Keep {
    fn held(by: By, counted: Permit) -> Self {
        Self::Held(Held {
            by,
            _counted: counted,
        })
    }
}

impl Orphans {
    pub fn new() -> Self {
        Self {
            budget: Budget::new(),
        }
    }

    /// Returns the time since a descriptor last began to keep a file without a name; `None` if no
    /// descriptor keeps one. The upper regains the space of such a file once the kernel has
    /// forgotten it.
    pub fn since_last(&self) -> Option<Duration> {
        self.budget.since_last()
    }

    /// Keeps the upper file or directory `at` of `inode` while its name is removed. `loc` is the
    /// place of the inode, locked for a change.
    ///
    /// # Errors
    /// ESTALE if `at` is another file than the one that the union knows; else those of open(2).
    pub fn keep(
        &self,
        stack: &Stack,
        upper: &Upper,
        inode: &Inode,
        loc: &Loc,
        at: At<'_>,
    ) -> Result<Keep> {
        let id = loc.upper.as_ref().ok_or(Errno::NOENT)?.id;
        if loc.parked().is_some() {
            return Ok(Keep::Known);
        }
        if let Some(permit) = self.budget.take() {
            match hold(stack, inode, at, id) {
                Err(e) if e.is_exhausted() => {}
                by => return by.map(|by| Keep::held(by, permit)),
            }
        }
        if inode.dir.is_some() {
            let stat = at.stat()?;
            stack.check_upper(inode.kind, id, &stat)?;
            return Ok(Keep::Gone(Box::new(stat)));
        }
        if loc.index().is_some() && loc.nlink().is_some_and(|nlink| nlink.union > 1) {
            return Ok(Keep::Known);
        }
        match upper.park(|to| at.link_to(to)) {
            Ok(parked) => {
                stack.check_upper(inode.kind, id, &parked.at().recorded_like(at).stat()?)?;
                Ok(Keep::Parked(parked))
            }
            // The file system has no links, or no further link of this file, or is full.
            Err(error) => match self.budget.take_reserve() {
                Some(permit) => hold(stack, inode, at, id).map(|by| Keep::held(by, permit)),
                None => Err(error.into()),
            },
        }
    }

    /// Keeps an upper file that is open as `fd` and has no name.
    ///
    /// # Errors
    /// Those of linkat(2), beyond the limit of descriptors.
    pub fn keep_unnamed(&self, upper: &Upper, fd: OwnedFd) -> Result<Keep, Errno> {
        let permit = match self.budget.take() {
            Some(permit) => permit,
            None => match upper.park(|to| At::fd(fd.as_fd()).link_to(to)) {
                Ok(parked) => return Ok(Keep::Parked(parked)),
                Err(error) => self.budget.take_reserve().ok_or(error)?,
            },
        };
        Ok(Keep::held(By::Fd(Arc::new(fd)), permit))
    }

    /// Keeps a writable descriptor of an upper file until the kernel forgets the inode, if the
    /// limit allows it; without one, later writes through open descriptors fail with EACCES.
    ///
    /// # Errors
    /// ESTALE when another file has its name.
    pub fn pin(&self, stack: &Stack, inode: &Inode) -> Result<()> {
        if inode.loc.read().orphan().is_some() {
            return Ok(());
        }
        let Some(permit) = self.budget.take() else {
            return Ok(());
        };
        let opened = stack.with_upper(inode, |at| Ok(at.open(OFlags::RDWR | OFlags::NONBLOCK, 0)));
        if let Ok(fd) = opened? {
            inode.loc.write().rare_mut().pinned = Some((fd, permit));
        }
        Ok(())
    }
}

/// Returns a descriptor of a file or directory, reusing one that is open.
fn hold(stack: &Stack, inode: &Inode, at: At<'_>, id: (u64, u64)) -> Result<By> {
    if let Some(data) = stack.open_upper_of(inode) {
        return Ok(By::Data(data));
    }
    if let Some(fd) = stack.open_dir_of(inode) {
        return Ok(By::Fd(fd));
    }
    let held = at.hold()?;
    stack.check_upper(
        inode.kind,
        id,
        &At::fd(held.as_fd()).recorded_like(at).stat()?,
    )?;
    Ok(By::Fd(Arc::new(held)))
}

/// Changes the attributes of a removed directory that are kept in memory. Returns `false` for
/// any other inode.
pub(crate) fn set_gone(inode: &Inode, set: &SetAttr) -> bool {
    let mut loc = inode.loc.write();
    let Some(stat) = loc.gone_mut() else {
        return false;
    };
    let now = now();
    let time = |set: Option<SetTime>, old| match set {
        None => old,
        Some(SetTime::Now) => now,
        Some(SetTime::At(time)) => time,
    };
    stat.uid = set.uid.unwrap_or(stat.uid);
    stat.gid = set.gid.unwrap_or(stat.gid);
    stat.perm = set.perm.unwrap_or(stat.perm) & 0o7777;
    (stat.atime, stat.mtime) = (time(set.atime, stat.atime), time(set.mtime, stat.mtime));
    stat.ctime = now;
    true
}

fn now() -> Time {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse);
    Time {
        sec: now.tv_sec,
        nsec: u32::try_from(now.tv_nsec).unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_than_the_budget_is_taken_and_all_comes_back() {
        let budget = Budget::new();
        let most = budget.most.load(Ordering::Relaxed);
        let all: Vec<_> = (0..most).map(|_| budget.take().unwrap()).collect();
        assert!(budget.take().is_none());
        let reserve = budget.take_reserve();
        assert!(reserve.is_some());
        drop((all, reserve));
        assert_eq!(budget.taken.load(Ordering::Relaxed), 0);
        assert!(budget.take().is_some());
    }
}
