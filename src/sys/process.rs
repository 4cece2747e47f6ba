//! Processes: becoming a daemon, and starting a helper beside it (`fork` and `close_range`, which
//! no safe wrapper offers), both while there is one thread only; and which rights we or a caller
//! have.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd};
use std::sync::OnceLock;

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{Pid, WaitOptions};

/// PROC_USER_INIT_INO of linux/proc_ns.h: the number of the user namespace of the machine.
const INITIAL_USER_NAMESPACE: u64 = 0xefff_fffd;

/// Whether this process is in the user namespace of the machine, the first one: only there its
/// rights may go beyond those of the user who started it. Where that cannot be told (no /proc, a
/// kernel without user namespaces) it counts as being there, with all rights.
///
/// The kernel is asked once: this process enters no other namespace.
pub fn in_initial_user_namespace() -> bool {
    use std::os::unix::fs::MetadataExt;
    static INITIAL: OnceLock<bool> = OnceLock::new();
    *INITIAL.get_or_init(|| {
        let own = std::fs::metadata("/proc/self/ns/user");
        own.map_or(true, |namespace| namespace.ino() == INITIAL_USER_NAMESPACE)
    })
}

/// Whether this process is root of the machine, and not only of a user namespace: it may do what
/// no other user may, so it must not be led by them.
pub fn is_root_of_machine() -> bool {
    rustix::process::geteuid().is_root() && in_initial_user_namespace()
}

/// Whether a thread has CAP_SYS_ADMIN over the machine, and not only over a user namespace of
/// its own. The kernel is asked about the thread (capget(2), and `PIDFD_GET_USER_NAMESPACE` of
/// Linux 6.11), never the files that /proc shows of it.
///
/// It is for a thread that waits for our answer: as long as it does the number is its own, and
/// should it end there is nobody to whom the answer would go. False where nothing can be told.
pub fn administers_machine(thread: u32) -> bool {
    use rustix::thread::CapabilitySet;
    let pid = i32::try_from(thread).ok().and_then(Pid::from_raw);
    let capable = |pid| {
        let sets = rustix::thread::capabilities(Some(pid));
        sets.is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN))
    };
    pid.is_some_and(|pid| capable(pid) && user_namespace(pid) == Some(INITIAL_USER_NAMESPACE))
}

/// The number of the user namespace of a thread.
#[allow(unsafe_code)]
fn user_namespace(thread: Pid) -> Option<u64> {
    use std::os::fd::FromRawFd;
    /// PIDFD_THREAD of linux/pidfd.h, Linux 6.9.
    const ONE_THREAD: u32 = libc::O_EXCL as u32;
    /// PIDFD_GET_USER_NAMESPACE of linux/pidfd.h: `_IO(0xff, 9)`.
    const GET_USER_NAMESPACE: libc::c_ulong = 0xff09;
    let flags = rustix::process::PidfdFlags::from_bits_retain(ONE_THREAD);
    let pidfd = rustix::process::pidfd_open(thread, flags).ok()?;
    // SAFETY: the ioctl takes no argument; kernels that do not know it answer with an error.
    let fd = unsafe { libc::ioctl(pidfd.as_raw_fd(), GET_USER_NAMESPACE as _, 0) };
    if fd < 0 {
        return None;
    }
    // SAFETY: the call returned a new descriptor that nobody else owns.
    let namespace = unsafe { OwnedFd::from_raw_fd(fd) };
    Some(rustix::fs::fstat(&namespace).ok()?.st_ino)
}

/// Which side of [`daemonize`] this process is.
#[derive(Debug)]
pub enum Side {
    /// The process that was started; `reply` reads what the daemon writes.
    Parent {
        /// The daemon.
        daemon: Pid,
        /// Reading end; end of file once the daemon has closed its end or is gone.
        reply: OwnedFd,
    },
    /// The daemon.
    Daemon {
        /// Writing end; above standard error only this is left and what was to be kept.
        reply: OwnedFd,
    },
}

/// Forks a daemon: its own session, standard streams on /dev/null, and of the caller's
/// descriptors only `keep`: a shell that reads our output to its end does not wait for it.
///
/// No other descriptor may be held open across the call: in the daemon it would be closed
/// behind its owner's back. Fails with EBUSY once the process has several threads
/// (the child would own locks that nobody releases), else with the errno of `pipe2`,
/// `fork`, `setsid`, `open` or `close_range` (Linux 5.9).
pub fn daemonize(keep: &[BorrowedFd<'_>]) -> io::Result<Side> {
    require_one_thread()?;
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    match fork()? {
        Some(daemon) => Ok(Side::Parent {
            daemon,
            reply: read,
        }),
        None => {
            // `close_range` closes it: it must have no owner any more.
            let _ = read.into_raw_fd();
            let mut kept: Vec<u32> = keep.iter().map(number).collect();
            kept.push(number(&write));
            detach(kept)?;
            Ok(Side::Daemon { reply: write })
        }
    }
}

fn require_one_thread() -> io::Result<()> {
    match std::fs::read_dir("/proc/self/task").is_ok_and(|tasks| tasks.count() > 1) {
        true => Err(rustix::io::Errno::BUSY.into()),
        false => Ok(()),
    }
}

/// Starts a helper: a copy of this process that runs `work` and ends. It has a session of its
/// own, ignores the signals that end a daemon, has its standard streams on /dev/null, and no
/// descriptors but those in `keep` and its end of a socket, which `work` is given. It is nobody's
/// child, so nobody has to wait for it. Returns the other end of the socket, which keeps message
/// boundaries.
///
/// Other descriptors are closed in the helper behind their owners' backs: `work` must not own
/// any. Nothing is dropped when it ends.
///
/// # Errors
/// EBUSY once the process has several threads, else those of `socketpair` and `fork`. When the
/// helper cannot be set up it ends, and the socket is at its end.
pub fn beside(keep: &[BorrowedFd<'_>], work: impl FnOnce(OwnedFd)) -> io::Result<OwnedFd> {
    require_one_thread()?;
    let (ours, theirs) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    if let Some(between) = fork()? {
        // Gone at once: the helper is its child, and then nobody's.
        rustix::io::retry_on_intr(|| {
            rustix::process::waitpid(Some(between), WaitOptions::empty()).map(drop)
        })?;
        std::mem::forget(work);
        return Ok(ours);
    }
    if !matches!(fork(), Ok(None)) {
        end();
    }
    ignore_signals();
    let _ = ours.into_raw_fd();
    let mut kept: Vec<u32> = keep.iter().map(number).collect();
    kept.push(number(&theirs));
    if detach(kept).is_ok() {
        // A panic ends the helper as a return does.
        let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
            work(theirs);
        }));
    }
    end()
}

/// Ends the process; nothing is dropped, no handler runs.
#[allow(unsafe_code)]
fn end() -> ! {
    // SAFETY: ends the process at once; takes a number only.
    unsafe { libc::_exit(0) }
}

/// The end of a daemon is not the end of its helper, which sees it by its socket.
#[allow(unsafe_code)]
fn ignore_signals() {
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGPIPE] {
        // SAFETY: no handler of ours is installed; the process has one thread.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

/// The child's pid in the parent, `None` in the child.
#[allow(unsafe_code)]
fn fork() -> io::Result<Option<Pid>> {
    // SAFETY: the process has one thread (both callers have checked), so the child's
    // memory is consistent and every lock is in the hands of the thread that goes on.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        pid => Ok(Pid::from_raw(pid)),
    }
}

/// Closes all descriptors but the standard ones, which lead nowhere then, and `keep`.
fn detach(mut keep: Vec<u32>) -> io::Result<()> {
    rustix::process::setsid()?;
    let null = rustix::fs::open(
        "/dev/null",
        rustix::fs::OFlags::RDWR,
        rustix::fs::Mode::empty(),
    )?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    if null.as_raw_fd() <= 2 {
        // The caller had closed a standard stream; the number is in use as that now.
        let _ = null.into_raw_fd();
    } else {
        drop(null);
    }
    keep.sort_unstable();
    let mut next = 3;
    for kept in keep.into_iter().filter(|&kept| kept >= 3) {
        if kept > next {
            close_range(next, kept - 1)?;
        }
        next = kept + 1;
    }
    close_range(next, u32::MAX)
}

fn number(fd: &impl AsFd) -> u32 {
    fd.as_fd().as_raw_fd().unsigned_abs()
}

#[allow(unsafe_code)]
fn close_range(first: u32, last: u32) -> io::Result<()> {
    // SAFETY: takes numbers only. The descriptors closed have no owner in this process, or one
    // that never uses or drops them: `daemonize` and `beside` demand it of their callers.
    match unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
