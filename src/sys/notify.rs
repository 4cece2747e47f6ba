//! System calls that another process answers (seccomp_unotify(2), Linux 5.0): a filter of the caller
//! gives them to a listener, and the calling thread waits for the answer. An OCI runtime installs such
//! a filter itself; [`watch`] does it for other programs.
//!
//! A caller can end at any time, and its number can then be that of another process. What was read
//! through that number counts only if [`Listener::is_waiting`] holds afterwards.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use rustix::io::Errno;

use super::passing;
use super::seccomp::{self, Answer};

/// `SECCOMP_IOCTL_NOTIF_RECV`: `_IOWR('!', 0, struct seccomp_notif)` of linux/seccomp.h.
const RECEIVE: u32 = 0xc050_2100;
/// `SECCOMP_IOCTL_NOTIF_SEND`: `_IOWR('!', 1, struct seccomp_notif_resp)`.
const SEND: u32 = 0xc018_2101;
/// `SECCOMP_IOCTL_NOTIF_ID_VALID`: `_IOW('!', 2, __u64)`.
const ID_VALID: u32 = 0x4008_2102;
/// `SECCOMP_USER_NOTIF_FLAG_CONTINUE` of linux/seccomp.h, Linux 5.5.
const CONTINUE: u32 = 1;
/// The first Linux that knows `CONTINUE`.
const KNOWS_CONTINUE: (u32, u32) = (5, 5);

/// `struct seccomp_notif` and the `struct seccomp_data` in it, of linux/seccomp.h.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Notification {
    id: u64,
    pid: u32,
    flags: u32,
    call: i32,
    arch: u32,
    instruction_pointer: u64,
    arguments: [u64; 6],
}

/// `struct seccomp_notif_resp`.
#[repr(C)]
struct Response {
    id: u64,
    value: i64,
    error: i32,
    flags: u32,
}

/// A system call that waits for its answer.
#[derive(Clone, Copy, Debug)]
pub struct WaitingCall {
    id: u64,
    /// The thread that called, by its number in our PID namespace.
    pub thread: u32,
    /// The number of the call.
    pub number: i32,
    /// The architecture of the calling program (`AUDIT_ARCH_*` of linux/audit.h).
    pub architecture: u32,
    /// The arguments.
    pub arguments: [u64; 6],
}

/// The answer to a system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// It returns 0.
    Done,
    /// It fails.
    Failed(Errno),
    /// The kernel does what it would have done without the filter ([`knows_kernels_answer`]). What it
    /// reads from the memory of the caller may have changed meanwhile, so this is no way to allow
    /// something.
    OfKernel,
}

/// The end at which calls arrive.
#[derive(Debug)]
pub struct Listener(OwnedFd);

impl Listener {
    /// Takes the descriptor that seccomp(2) returned, here or in another process.
    pub fn new(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// Waits for a call.
    ///
    /// # Errors
    /// Those of the ioctl: ENOENT if the caller ended meanwhile, EINTR.
    pub fn receive(&self) -> io::Result<WaitingCall> {
        let mut call = Notification::default();
        self.ioctl(RECEIVE, (&raw mut call).cast())?;
        Ok(WaitingCall {
            id: call.id,
            thread: call.pid,
            number: call.call,
            architecture: call.arch,
            arguments: call.arguments,
        })
    }

    /// Whether the thread still waits in this call.
    pub fn is_waiting(&self, call: &WaitingCall) -> bool {
        let mut id = call.id;
        self.ioctl(ID_VALID, (&raw mut id).cast()).is_ok()
    }

    /// Answers a call.
    ///
    /// # Errors
    /// Those of the ioctl: ENOENT if the caller ended meanwhile.
    pub fn answer(&self, call: &WaitingCall, reply: Reply) -> io::Result<()> {
        let mut response = Response {
            id: call.id,
            value: 0,
            error: 0,
            flags: 0,
        };
        match reply {
            Reply::Done => {}
            Reply::Failed(error) => response.error = -error.raw_os_error(),
            Reply::OfKernel => response.flags = CONTINUE,
        }
        self.ioctl(SEND, (&raw mut response).cast())
    }

    fn ioctl(&self, request: u32, argument: *mut libc::c_void) -> io::Result<()> {
        // SAFETY: the descriptor is open. Each request comes with the structure of its size in the
        // number of the request, which the kernel reads and writes during the call only.
        match unsafe { libc::ioctl(self.0.as_raw_fd(), request as libc::Ioctl, argument) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Installs a filter ([`program`](seccomp::program)) in the program that `command` starts, and in all
/// that it starts, and returns the socket at which its listener arrives in a message of one byte. The
/// program gets no new privileges.
///
/// The message comes before `spawn` of the command returns. If the program cannot be started, the
/// socket ends without one when the command is dropped.
///
/// # Errors
/// Those of socketpair(2); [`io::ErrorKind::Unsupported`] on architectures without a filter.
pub fn watch(command: &mut Command, answers: &[Answer]) -> io::Result<UnixStream> {
    let (ours, theirs) = UnixStream::pair()?;
    let steps = seccomp::steps(answers)?;
    let install = move || -> io::Result<()> {
        super::capabilities::set_no_new_privs()?;
        let listener = seccomp::load(&steps, libc::SECCOMP_FILTER_FLAG_NEW_LISTENER)?;
        // SAFETY: the call has made this descriptor, which closes on exec, and nobody else has it.
        let listener = unsafe { OwnedFd::from_raw_fd(listener as libc::c_int) };
        passing::send(&theirs, listener.as_fd())
    };
    // SAFETY: between fork and exec the closure makes three system calls, and no allocation.
    unsafe { command.pre_exec(install) };
    Ok(ours)
}

/// Whether the kernel knows [`Reply::OfKernel`]. Nothing but its version says it.
pub fn knows_kernels_answer() -> bool {
    let name = rustix::system::uname();
    version(&name.release().to_string_lossy()) >= Some(KNOWS_CONTINUE)
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Whether the kernel can give calls to a listener.
pub fn is_known() -> bool {
    let action = libc::SECCOMP_RET_USER_NOTIF;
    // SAFETY: the kernel reads one u32 at the address.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_GET_ACTION_AVAIL,
            0,
            &raw const action,
        )
    };
    answer == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_have_the_sizes_in_the_requests() {
        let size = |request: u32| (request >> 16 & 0x3fff) as usize;
        assert_eq!(size_of::<Notification>(), size(RECEIVE));
        assert_eq!(size_of::<Response>(), size(SEND));
        assert_eq!(size_of::<u64>(), size(ID_VALID));
    }

    #[test]
    fn versions_are_read_from_releases() {
        assert_eq!(version("6.18.44-fc"), Some((6, 18)));
        assert_eq!(version("5.4"), Some((5, 4)));
        assert_eq!(version("5.10.0-21-amd64"), Some((5, 10)));
        assert_eq!(version("x"), None);
        assert!(Some((5, 10)) >= Some(KNOWS_CONTINUE) && None < Some(KNOWS_CONTINUE));
    }
}
