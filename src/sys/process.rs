//! The rights of this process or of a caller.

use std::sync::OnceLock;

#[cfg(feature = "fuse")]
use rustix::process::Pid;

/// PROC_USER_INIT_INO of linux/proc_ns.h: the number of the first user namespace.
const INITIAL_USER_NAMESPACE: u64 = 0xefff_fffd;

/// Whether this process is in the first user namespace, that of the machine. Only there may it have
/// more rights than the user who started it. If this cannot be found out (no /proc, a kernel
/// without user namespaces), the process counts as being there with all rights.
///
/// One question to the kernel is enough, since this process enters no other namespace.
pub fn in_initial_user_namespace() -> bool {
    use std::os::unix::fs::MetadataExt;
    static INITIAL: OnceLock<bool> = OnceLock::new();
    *INITIAL.get_or_init(|| {
        let own = std::fs::metadata("/proc/self/ns/user");
        own.map_or(true, |namespace| namespace.ino() == INITIAL_USER_NAMESPACE)
    })
}

/// Whether this process is root of the machine, not only of a user namespace. Then it may do what
/// no other user may, so other users must not decide where it writes.
pub fn is_root_of_machine() -> bool {
    rustix::process::geteuid().is_root() && in_initial_user_namespace()
}

/// Whether a thread has CAP_SYS_ADMIN over the machine, not only over a user namespace of its own.
/// The kernel is asked about the thread (capget(2), and `PIDFD_GET_USER_NAMESPACE` of Linux 6.11).
/// The thread's files in /proc are not read.
///
/// The thread must wait for our answer: as long as it waits, it keeps its number, and if it ends,
/// no process gets the answer. False if this cannot be found out.
#[cfg(feature = "fuse")]
pub fn administers_machine(thread: u32) -> bool {
    use rustix::thread::CapabilitySet;
    let pid = i32::try_from(thread).ok().and_then(Pid::from_raw);
    let capable = |pid| {
        let sets = rustix::thread::capabilities(Some(pid));
        sets.is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN))
    };
    pid.is_some_and(|pid| capable(pid) && user_namespace(pid) == Some(INITIAL_USER_NAMESPACE))
}

/// Returns the number of the user namespace of a thread.
#[cfg(feature = "fuse")]
#[allow(unsafe_code)]
fn user_namespace(thread: Pid) -> Option<u64> {
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
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
