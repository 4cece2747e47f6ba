//! Becoming a daemon: `fork` and `close_range`, which no safe wrapper offers.
//! Called by the cli, once, before the program has a second thread.

use std::io;
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd};

use rustix::process::Pid;

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
        /// Writing end, the only descriptor left above standard error.
        reply: OwnedFd,
    },
}

/// Forks a daemon: its own session, standard streams on /dev/null, and no descriptor
/// of the caller's: a shell that reads our output to its end does not wait for it.
///
/// No descriptor may be held open across the call: in the daemon it would be closed
/// behind its owner's back. Fails with EBUSY once the process has several threads
/// (the child would own locks that nobody releases), else with the errno of `pipe2`,
/// `fork`, `setsid`, `open` or `close_range` (Linux 5.9).
pub fn daemonize() -> io::Result<Side> {
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
            detach(&write)?;
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

fn detach(keep: &OwnedFd) -> io::Result<()> {
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
    let keep = keep.as_raw_fd().unsigned_abs();
    if keep > 3 {
        close_range(3, keep - 1)?;
    }
    close_range(keep.max(2) + 1, u32::MAX)
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
