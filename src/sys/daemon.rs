//! This module makes copies of this process with fork(2): a daemon, a helper, and a process that
//! answers one question. fork(2) has no safe wrapper. All functions need a process with one thread.
//!
//! Invariant of the public functions: the copy closes no descriptor that may have an owner in it. A
//! descriptor that the copy must not hold is replaced by /dev/null, so that its number stays in
//! use.

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, SeekFrom};
use rustix::io::{DupFlags, Errno, FdFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{Pid, WaitOptions};

use super::passing;

/// The side of [`daemonize`] that this process is.
#[derive(Debug)]
pub enum Side {
    /// The process that was started. `reply` reads the output of the daemon.
    Parent {
        /// The daemon.
        daemon: Pid,
        /// The reading end. It is at its end after the daemon has closed its end or has exited.
        reply: OwnedFd,
    },
    /// The daemon.
    Daemon {
        /// The writing end.
        reply: OwnedFd,
    },
}

/// Forks a daemon. It has standard streams on /dev/null, and of the caller's descriptors only `keep`,
/// so a shell that reads our output to its end does not wait for it. The daemon closes descriptors
/// without FD_CLOEXEC, which this program was started with. All others lead to /dev/null there.
///
/// The daemon stays in the session and the process group of the caller until it calls setsid(2).
/// On an automount point (autofs, x-systemd.automount) all others wait until the mount is there.
///
/// # Errors
/// EBUSY if the process has several threads (the daemon would have locks that no thread releases);
/// else those of open(2) on /proc/self, pipe2(2), fork(2) and dup3(2).
pub fn daemonize(keep: &[BorrowedFd<'_>]) -> io::Result<Side> {
    require_one_thread()?;
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    if let Some(daemon) = fork()? {
        let reply = read;
        return Ok(Side::Parent { daemon, reply });
    }
    drop(read);
    IS_DAEMON.store(true, Ordering::Relaxed);
    let_go(Others::LeadNowhere, keep, &write)?;
    Ok(Side::Daemon { reply: write })
}

/// Whether this process is a daemon, whose parent waits only for its first answer and then ends.
static IS_DAEMON: AtomicBool = AtomicBool::new(false);

fn require_one_thread() -> io::Result<()> {
    let mut tasks = std::fs::read_dir("/proc/self/task")?;
    if tasks.nth(1).is_some() {
        return Err(Errno::BUSY.into());
    }
    Ok(())
}

/// Starts a helper: a copy of this process that runs `work` and ends. The helper has its own
/// session, ignores the signals that end a daemon, and has standard streams on /dev/null. It has
/// only the descriptors in `keep`, that of the log ([`keep_in_helpers`]) and its end of a socket,
/// which `work` gets. The others are closed or lead to /dev/null, as in a daemon. The helper is not
/// a child of this process, so nothing has to wait for it. Returns the other end of the socket, which keeps message boundaries.
///
/// The helper drops nothing at its end. This process neither runs nor drops `work`.
///
/// # Errors
/// EBUSY if the process has several threads; else those of open(2) on /proc/self, socketpair(2) and
/// fork(2). A helper that cannot be set up ends, and the socket is at its end.
pub fn helper(keep: &[BorrowedFd<'_>], work: impl FnOnce(OwnedFd)) -> io::Result<OwnedFd> {
    start_helper(Others::LeadNowhere, keep, work)
}

/// The descriptor that all helpers keep.
static KEPT: OnceLock<BorrowedFd<'static>> = OnceLock::new();

/// Lets all helpers keep a descriptor: that of a log, whose lines would go to whatever gets its
/// number. Only the first call counts.
pub fn keep_in_helpers(log: BorrowedFd<'static>) {
    let _ = KEPT.set(log);
}

/// As [`helper`], but one system call closes all other descriptors. `work` must not own any.
///
/// # Errors
/// Those of [`helper`].
pub(crate) fn bare_helper(
    keep: &[BorrowedFd<'_>],
    work: impl FnOnce(OwnedFd),
) -> io::Result<OwnedFd> {
    start_helper(Others::Close, keep, work)
}

fn start_helper(
    others: Others,
    keep: &[BorrowedFd<'_>],
    work: impl FnOnce(OwnedFd),
) -> io::Result<OwnedFd> {
    require_one_thread()?;
    let (ours, theirs) = messages()?;
    if is_in_other_process()? {
        std::mem::forget(work);
        return Ok(ours);
    }
    ignore_signals();
    drop(ours);
    if detach(others, keep, &theirs).is_ok() {
        // After a panic the helper ends as after a return.
        let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
            work(theirs);
        }));
    }
    end()
}

/// Returns the two ends of a socket that keeps message boundaries.
fn messages() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

/// Forks a process that nobody has to wait for. Returns true in this process, and false in the new
/// one.
fn is_in_other_process() -> io::Result<bool> {
    if IS_DAEMON.load(Ordering::Relaxed) {
        return Ok(fork_beside()?.is_some());
    }
    if let Some(between) = fork()? {
        // This child ends at once. The helper is its child and then has no parent that waits for
        // it.
        rustix::io::retry_on_intr(|| {
            rustix::process::waitpid(Some(between), WaitOptions::empty()).map(drop)
        })?;
        return Ok(true);
    }
    if !matches!(fork(), Ok(None)) {
        end();
    }
    Ok(false)
}

/// Runs `work` in a copy of this process, and returns the bytes that `work` writes to the
/// descriptor that it gets. The copy has all descriptors of this process. It drops nothing at its
/// end. It is killed when this process ends, because it may hold locks, and because hostile input
/// may control it. This process neither runs nor drops `work`.
///
/// # Errors
/// EBUSY if the process has several threads; else those of open(2) on /proc/self, pipe(2), fork(2)
/// and read(2); [`io::ErrorKind::FileTooLarge`] after more than `limit` bytes;
/// [`io::ErrorKind::BrokenPipe`] if the copy was killed.
pub fn answer_of(limit: u64, work: impl FnOnce(OwnedFd)) -> io::Result<Vec<u8>> {
    use std::io::Read as _;
    let (child, read) = asked(work)?;
    let mut answer = Vec::new();
    let mut bounded = std::fs::File::from(read).take(limit + 1);
    let heard = bounded.read_to_end(&mut answer);
    // A copy that still writes gets an error from now on.
    drop(bounded);
    let status =
        rustix::io::retry_on_intr(|| rustix::process::waitpid(Some(child), WaitOptions::empty()))?;
    heard?;
    if answer.len() as u64 > limit {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    match status {
        Some((_, status)) if status.exit_status() == Some(0) => Ok(answer),
        _ => Err(io::ErrorKind::BrokenPipe.into()),
    }
}

/// A descriptor that a copy of this process makes: the answer of `descriptor_of`.
#[derive(Debug)]
pub struct Pending(OwnedFd);

impl Pending {
    /// Waits for the descriptor.
    ///
    /// # Errors
    /// Those of recvmsg(2); [`io::ErrorKind::BrokenPipe`] if the copy could not make it.
    pub fn take(self) -> io::Result<OwnedFd> {
        passing::receive(&self.0)?.ok_or_else(|| io::ErrorKind::BrokenPipe.into())
    }
}

impl AsFd for Pending {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Starts a copy of this process that makes a descriptor, sends it and ends. The copy is a child that
/// this process does not wait for, so it is for a process that ends soon. It has all descriptors of this
/// process, and drops nothing at its end. This process neither runs nor drops `make`.
///
/// # Errors
/// EBUSY if the process has several threads; else those of open(2) on /proc/self, socketpair(2) and
/// fork(2).
pub(crate) fn descriptor_of(make: impl FnOnce() -> io::Result<OwnedFd>) -> io::Result<Pending> {
    require_one_thread()?;
    let (ours, theirs) = messages()?;
    if fork()?.is_some() {
        std::mem::forget(make);
        return Ok(Pending(ours));
    }
    ignore_signals();
    let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
        if let Ok(made) = make() {
            // The reader may be gone.
            let _ = passing::send(&theirs, made.as_fd());
        }
    }));
    end()
}

/// As [`answer_of`], but kills the copy if its answer is not complete after `patience`. A copy that
/// the kernel cannot kill at once, because a file system does not answer, is not waited for.
///
/// # Errors
/// Those of [`answer_of`]; [`io::ErrorKind::TimedOut`].
pub fn answer_within(
    limit: u64,
    patience: Duration,
    work: impl FnOnce(OwnedFd),
) -> io::Result<Vec<u8>> {
    let (child, read) = asked(work)?;
    let answer = read_until(&read, limit, Instant::now() + patience);
    if answer.is_err() {
        let _ = rustix::process::kill_process(child, rustix::process::Signal::KILL);
    }
    // A copy that has not ended by now is left to init, as this process ends soon.
    let _ = rustix::process::waitpid(Some(child), WaitOptions::NOHANG);
    answer
}

/// Reads to the end, until `end`.
fn read_until(from: &OwnedFd, limit: u64, end: Instant) -> io::Result<Vec<u8>> {
    let mut answer = Vec::new();
    let mut part = [0; 4096];
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let time = Timespec::try_from(left).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut wanted = [PollFd::new(from, PollFlags::IN)];
        match rustix::io::retry_on_intr(|| poll(&mut wanted, Some(&time)))? {
            0 => return Err(io::ErrorKind::TimedOut.into()),
            _ => match rustix::io::retry_on_intr(|| rustix::io::read(from, &mut part))? {
                0 => return Ok(answer),
                count => answer.extend(&part[..count]),
            },
        }
        if answer.len() as u64 > limit {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
    }
}

/// Starts a copy of this process that answers. Returns the reading end of its answer.
fn asked(work: impl FnOnce(OwnedFd)) -> io::Result<(Pid, OwnedFd)> {
    require_one_thread()?;
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let parent = rustix::process::getpid();
    let Some(child) = fork()? else {
        drop(read);
        if end_with(parent).is_err() {
            end();
        }
        let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || work(write)));
        end();
    };
    drop(write);
    std::mem::forget(work);
    Ok((child, read))
}

/// Ends the process without dropping anything and without running handlers.
#[allow(unsafe_code)]
fn end() -> ! {
    // SAFETY: ends the process at once; takes a number only.
    unsafe { libc::_exit(0) }
}

/// Has this process killed when its parent ends.
fn end_with(parent: Pid) -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    if rustix::process::getppid() != Some(parent) {
        // The parent has ended already.
        return Err(io::ErrorKind::NotFound.into());
    }
    Ok(())
}

/// Makes the process ignore the signals that end a daemon. A helper ends when the socket is at its
/// end.
#[allow(unsafe_code)]
fn ignore_signals() {
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGPIPE] {
        // SAFETY: no handler of ours is installed; the process has one thread.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

/// Forks. Returns the child's pid in the parent, and `None` in the child.
#[allow(unsafe_code)]
fn fork() -> io::Result<Option<Pid>> {
    // SAFETY: the process has one thread (all callers have checked), so the child's
    // memory is consistent and every lock is in the hands of the thread that goes on.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        pid => Ok(Pid::from_raw(pid)),
    }
}

/// Forks a child of this process's parent (CLONE_PARENT of clone(2)), as [`fork`].
#[allow(unsafe_code)]
fn fork_beside() -> io::Result<Option<Pid>> {
    let flags = libc::c_long::from(libc::CLONE_PARENT | libc::SIGCHLD);
    let none: libc::c_long = 0;
    // SAFETY: as in `fork`: without CLONE_VM and a stack, the child has a copy of the memory and goes on
    // here. libc runs no handlers of its own around the call; those reset locks, which are free in a
    // process with one thread.
    match unsafe { libc::syscall(libc::SYS_clone, flags, none, none, none, none) } {
        -1 => Err(io::Error::last_os_error()),
        pid => Ok(i32::try_from(pid).ok().and_then(Pid::from_raw)),
    }
}

/// The fate of the descriptors that a copy does not keep.
#[derive(Clone, Copy, Debug)]
enum Others {
    /// They lead to /dev/null. Their owners own open descriptors as before.
    LeadNowhere,
    /// They are closed without the knowledge of their owners.
    Close,
}

/// Begins a session with standard streams on /dev/null and only the descriptors `keep` and `own`.
fn detach(others: Others, keep: &[BorrowedFd<'_>], own: &OwnedFd) -> io::Result<()> {
    rustix::process::setsid()?;
    let_go(others, keep, own)
}

/// Puts the standard streams on /dev/null and keeps only the descriptors `keep` and `own`.
fn let_go(others: Others, keep: &[BorrowedFd<'_>], own: &OwnedFd) -> io::Result<()> {
    let null = rustix::fs::open(
        "/dev/null",
        OFlags::RDWR | OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    )?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    let mut kept: Vec<RawFd> = keep.iter().map(AsRawFd::as_raw_fd).collect();
    kept.extend(KEPT.get().map(AsRawFd::as_raw_fd));
    kept.extend([0, 1, 2, own.as_raw_fd()]);
    kept.sort_unstable();
    kept.dedup();
    let outcome = match others {
        Others::LeadNowhere => lead_nowhere(&kept, &null),
        Others::Close => close_between(&kept, &null),
    };
    if null.as_raw_fd() <= 2 {
        // The caller had closed a standard stream. Now the number is used for that.
        let _ = null.into_raw_fd();
    }
    outcome
}

/// Closes the descriptors that this program was started with, and replaces all others by `null`,
/// except those in `kept`, which is sorted.
fn lead_nowhere(kept: &[RawFd], null: &OwnedFd) -> io::Result<()> {
    let mut numbers = others(kept)?;
    numbers.retain(|number| *number != null.as_raw_fd());
    numbers.into_iter().try_for_each(|fd| give_up(fd, null))
}

/// The fewest numbers that are tried, whatever the number of kept descriptors.
const TRIED: usize = 64;

/// Returns the numbers that may belong to open descriptors that are not in `kept`, which is sorted.
/// Naming an open descriptor takes the kernel as long as several other calls, and most of many are
/// kept: the layers. So the numbers between kept ones are returned whether they are open or not, and
/// only those behind the last one are listed.
fn others(kept: &[RawFd]) -> io::Result<Vec<RawFd>> {
    let last = kept.last().copied().unwrap_or_default();
    let between = (0..last).filter(|fd| kept.binary_search(fd).is_err());
    let most = kept.len().max(TRIED);
    let mut numbers: Vec<RawFd> = between.clone().take(most + 1).collect();
    if numbers.len() <= most
        && let Some(behind) = listed_behind(last)?
    {
        numbers.extend(behind);
        return Ok(numbers);
    }
    let mut all = listed(&open_list()?)?;
    all.retain(|fd| kept.binary_search(fd).is_err());
    Ok(all)
}

/// Returns the numbers of the open descriptors behind this one. `None` if the kernel does not list
/// from there on. The position of a descriptor in the directory is its number and 2
/// (`proc_readfd_common` in Linux' fs/proc/fd.c).
fn listed_behind(last: RawFd) -> io::Result<Option<Vec<RawFd>>> {
    // This descriptor must be in the list.
    let list = rustix::io::fcntl_dupfd_cloexec(open_list()?, last + 1)?;
    let position = u64::try_from(last).map_or(0, |last| last + 3);
    rustix::fs::seek(&list, SeekFrom::Start(position))?;
    let numbers = listed(&list)?;
    Ok(numbers.contains(&list.as_raw_fd()).then_some(numbers))
}

fn open_list() -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mode = rustix::fs::Mode::empty();
    Ok(rustix::fs::open("/proc/self/fd", flags, mode)?)
}

/// Returns the numbers that the rest of /proc/self/fd has.
fn listed(list: &OwnedFd) -> io::Result<Vec<RawFd>> {
    let mut numbers = Vec::new();
    let mut buffer = Vec::with_capacity(4096);
    let mut entries = rustix::fs::RawDir::new(list, buffer.spare_capacity_mut());
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            let number = std::str::from_utf8(name).ok().and_then(|n| n.parse().ok());
            numbers.push(number.ok_or(io::ErrorKind::InvalidData)?);
        }
    }
    Ok(numbers)
}

/// Closes or replaces a descriptor if it is open. The directory that listed it is closed by now.
///
/// A descriptor without FD_CLOEXEC came through execve(2) and has no owner here, since this program
/// opens all of its own with that flag. It is closed: there may be many, and each would keep a
/// number from the server.
#[allow(unsafe_code)]
fn give_up(fd: RawFd, null: &OwnedFd) -> io::Result<()> {
    // SAFETY: the number is closed by this function only if it has no owner: whoever owns it owns an
    // open descriptor afterwards too. The process has one thread, so nobody closes it meanwhile.
    let mut fd = ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(fd) });
    match rustix::io::fcntl_getfd(&*fd) {
        Ok(flags) if flags.contains(FdFlags::CLOEXEC) => {
            Ok(rustix::io::dup3(null, &mut fd, DupFlags::CLOEXEC)?)
        }
        Ok(_) => {
            drop(ManuallyDrop::into_inner(fd));
            Ok(())
        }
        Err(Errno::BADF) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Closes all descriptors except `null` and those in `kept`, which is sorted.
fn close_between(kept: &[RawFd], null: &OwnedFd) -> io::Result<()> {
    let mut kept: Vec<u32> = kept.iter().map(|fd| fd.unsigned_abs()).collect();
    kept.push(null.as_raw_fd().unsigned_abs());
    kept.sort_unstable();
    let mut next = 0;
    for kept in kept {
        if kept > next {
            close_range(next, kept - 1)?;
        }
        next = kept + 1;
    }
    close_range(next, u32::MAX)
}

#[allow(unsafe_code)]
fn close_range(first: u32, last: u32) -> io::Result<()> {
    // SAFETY: takes numbers only. The descriptors closed have no owner in this process, or one
    // that never uses or drops them: `bare_helper` demands it of its callers.
    match unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } {
        0 => Ok(()),
        _ => match io::Error::last_os_error() {
            // Before Linux 5.9. A filter of system calls that does not know it says EPERM.
            error if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) => {
                close_listed(first, last)
            }
            error => Err(error),
        },
    }
}

/// As [`close_range`], for those in the list that /proc has.
#[allow(unsafe_code)]
fn close_listed(first: u32, last: u32) -> io::Result<()> {
    let open = listed(&open_list()?)?.into_iter();
    let open = open.filter(|fd| (first..=last).contains(&fd.unsigned_abs()));
    for number in open {
        // SAFETY: as in `close_range`. That of the list itself is closed already.
        unsafe { libc::close(number) };
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the given numbers that are open.
    fn open(numbers: Vec<RawFd>) -> Vec<RawFd> {
        let is_open = |fd: &RawFd| std::path::Path::new(&format!("/proc/self/fd/{fd}")).exists();
        let mut open: Vec<_> = numbers.into_iter().filter(is_open).collect();
        open.sort_unstable();
        open
    }

    #[test]
    fn all_open_descriptors_but_those_kept_are_found() {
        let null = std::fs::File::open("/dev/null").unwrap();
        let at = |least| rustix::io::fcntl_dupfd_cloexec(&null, least).unwrap();
        // Other tests of this process may open and close small numbers meanwhile.
        let held: Vec<_> = [300, 301, 302, 303, 310, 311, 5000].map(at).into();
        let numbers: Vec<_> = held.iter().map(AsRawFd::as_raw_fd).collect();
        for kept in [&numbers[1..4], &numbers[..4], &numbers[..0], &numbers[5..]] {
            let found = open(others(kept).unwrap());
            for fd in &numbers {
                let expected = !kept.contains(fd);
                assert_eq!(found.contains(fd), expected, "{fd}, kept {kept:?}");
            }
        }
    }

    #[test]
    fn numbers_behind_many_kept_ones_are_listed_alone() {
        let null = std::fs::File::open("/dev/null").unwrap();
        let at = |least| rustix::io::fcntl_dupfd_cloexec(&null, least).unwrap();
        let held = [at(400), at(402)];
        let (first, last) = (held[0].as_raw_fd(), held[1].as_raw_fd());
        let behind = listed_behind(first).unwrap().unwrap();
        assert!(behind.contains(&last), "{behind:?}");
        assert!(behind.iter().all(|fd| *fd > first), "{behind:?}");
    }
}
