//! Processes: becoming a daemon (`fork` and `close_range`, which no safe wrapper offers), once and
//! before the program has a second thread; and which rights we or a caller have.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd, OwnedFd};

use rustix::process::Pid;

/// PROC_USER_INIT_INO of linux/proc_ns.h: the number of the user namespace of the machine.
const INITIAL_USER_NAMESPACE: u64 = 0xefff_fffd;

/// Whether this process is in the user namespace of the machine. Where that cannot be told it
/// counts as being there: with all rights.
pub fn in_initial_user_namespace() -> bool {
    use std::os::unix::fs::MetadataExt;
    let own = std::fs::metadata("/proc/self/ns/user");
    own.map_or(true, |namespace| namespace.ino() == INITIAL_USER_NAMESPACE)
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
    if std::fs::read_dir("/proc/self/task").is_ok_and(|tasks| tasks.count() > 1) {
        return Err(rustix::io::Errno::BUSY.into());
    }
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    match fork()? {
        Some(daemon) => Ok(Side::Parent {
            daemon,
            reply: read,
        }),
        None => {
            // `close_range` closes it: it must have no owner any more.
            let _ = read.into_raw_fd();
            detach(&write, keep)?;
            Ok(Side::Daemon { reply: write })
        }
    }
}

/// The child's pid in the parent, `None` in the child.
#[allow(unsafe_code)]
fn fork() -> io::Result<Option<Pid>> {
    // SAFETY: the process has one thread (checked by the only caller), so the child's
    // memory is consistent and every lock is in the hands of the thread that goes on.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        pid => Ok(Pid::from_raw(pid)),
    }
}

fn detach(reply: &OwnedFd, keep: &[BorrowedFd<'_>]) -> io::Result<()> {
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
    let kept = keep.iter().map(|fd| fd.as_raw_fd());
    let mut kept: Vec<u32> = kept
        .chain([reply.as_raw_fd()])
        .map(|fd| fd.unsigned_abs())
        .collect();
    kept.sort_unstable();
    let mut next = 3;
    for fd in kept.into_iter().filter(|fd| *fd > 2) {
        if fd > next {
            close_range(next, fd - 1)?;
        }
        next = fd + 1;
    }
    close_range(next, u32::MAX)
}

#[allow(unsafe_code)]
fn close_range(first: u32, last: u32) -> io::Result<()> {
    // SAFETY: takes numbers only. The descriptors closed have no owner in this process:
    // `daemonize` demands it of its caller.
    match unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
