//! System calls that another process answers (seccomp_unotify(2), Linux 5.0): a filter of the caller
//! gives them to a listener, and the calling thread waits for the answer.
//!
//! A caller can end at any time, and its number can then be that of another process. What was read
//! through that number counts only if [`Listener::is_waiting`] holds afterwards.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;

/// `SECCOMP_IOCTL_NOTIF_RECV`: `_IOWR('!', 0, struct seccomp_notif)` of linux/seccomp.h.
const RECEIVE: u32 = 0xc050_2100;
/// `SECCOMP_IOCTL_NOTIF_SEND`: `_IOWR('!', 1, struct seccomp_notif_resp)`.
const SEND: u32 = 0xc018_2101;
/// `SECCOMP_IOCTL_NOTIF_ID_VALID`: `_IOW('!', 2, __u64)`.
const ID_VALID: u32 = 0x4008_2102;

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

    /// Answers a call: it returns 0 or fails.
    ///
    /// # Errors
    /// Those of the ioctl: ENOENT if the caller ended meanwhile.
    pub fn answer(&self, call: &WaitingCall, result: Result<(), Errno>) -> io::Result<()> {
        let mut response = Response {
            id: call.id,
            value: 0,
            error: result.map_or_else(|error| -error.raw_os_error(), |()| 0),
            flags: 0,
        };
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
}
