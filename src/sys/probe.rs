//! A child process asks a question that may never be answered: statfs(2) of a FUSE mount whose
//! server hangs. A thread cannot do it, because a process with a thread that waits in the kernel
//! can neither become a daemon nor end.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, waitpid};

/// The answer of a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It works.
    Works,
    /// It answered with an error.
    Fails(Errno),
    /// It did not answer in time.
    Silent,
}

/// The intervals at which the child is checked: at once, then less and less often.
const FIRST_PAUSE: Duration = Duration::from_micros(50);
const LONGEST_PAUSE: Duration = Duration::from_millis(20);

/// Asks whether the file system of `dir` answers within `limit`.
///
/// # Errors
/// Those of fork(2).
pub fn statfs(dir: impl AsFd, limit: Duration) -> io::Result<Answer> {
    let fd = dir.as_fd().as_raw_fd();
    // SAFETY: the child makes two system calls on memory of its own and ends; it takes no lock
    // and allocates nothing, whatever other threads of the parent were doing.
    let child = match unsafe { libc::fork() } {
        -1 => return Err(io::Error::last_os_error()),
        0 => ask_and_end(fd),
        child => Pid::from_raw(child).ok_or(io::ErrorKind::Other)?,
    };
    let start = Instant::now();
    let mut pause = FIRST_PAUSE;
    loop {
        match waitpid(Some(child), WaitOptions::NOHANG) {
            Ok(Some((_, status))) => {
                return Ok(match status.exit_status() {
                    Some(0) => Answer::Works,
                    Some(errno) => Answer::Fails(Errno::from_raw_os_error(errno)),
                    None => Answer::Silent,
                });
            }
            Ok(None) if start.elapsed() < limit => std::thread::sleep(pause),
            Ok(None) => {
                // A question that the server has read cannot be taken back. Such a child ends with
                // the connection, and nothing waits for it until then.
                let _ = rustix::process::kill_process(child, Signal::KILL);
                std::thread::sleep(LONGEST_PAUSE);
                let _ = waitpid(Some(child), WaitOptions::NOHANG);
                return Ok(Answer::Silent);
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Returns the errno of fstatfs(2), or 0 for success, as the exit status. All errnos that a FUSE
/// mount can give are below 256.
fn ask_and_end(fd: i32) -> ! {
    let mut answer = std::mem::MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: the kernel writes at most one `statfs` at the address, which lives through the call.
    let result = unsafe { libc::fstatfs(fd, answer.as_mut_ptr()) };
    let status = match result {
        0 => 0,
        _ => {
            Errno::from_io_error(&io::Error::last_os_error()).map_or(libc::EIO, Errno::raw_os_error)
        }
    };
    // SAFETY: ends this process without running anything of the parent's.
    unsafe { libc::_exit(status) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_works_answers() {
        let dir = std::fs::File::open("/proc").unwrap();
        let answer = statfs(&dir, Duration::from_secs(10)).unwrap();
        assert_eq!(answer, Answer::Works);
    }
}
