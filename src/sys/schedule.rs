//! The scheduling of single threads, and the states of threads and processes in /proc.
#![allow(unsafe_code)]

use std::io;

/// A scheduling policy of sched(7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// `SCHED_OTHER`, the default.
    Other,
    /// `SCHED_IDLE`: all other threads that want the CPU run first.
    Idle,
}

/// Returns the number of the calling thread.
pub fn this_thread() -> i32 {
    rustix::thread::gettid().as_raw_nonzero().get()
}

/// Sets the policy of a thread of this process. Its nice value stays the same.
///
/// # Errors
/// EPERM for leaving [`Policy::Idle`] if RLIMIT_NICE does not allow it and CAP_SYS_NICE is missing;
/// ESRCH for a thread that has ended.
pub fn set_policy(thread: i32, policy: Policy) -> io::Result<()> {
    let number = match policy {
        Policy::Other => libc::SCHED_OTHER,
        Policy::Idle => libc::SCHED_IDLE,
    };
    let param = libc::sched_param { sched_priority: 0 };
    // libc's function does not exist in musl.
    // SAFETY: `param` lives through the call, which only reads it.
    let result = unsafe {
        libc::syscall(
            libc::SYS_sched_setscheduler,
            thread,
            number,
            &raw const param,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Returns the policy of a thread of this process; `None` for a policy that we do not change.
///
/// # Errors
/// ESRCH for a thread that has ended.
pub fn policy(thread: i32) -> io::Result<Option<Policy>> {
    // SAFETY: takes a number only.
    let policy = unsafe { libc::syscall(libc::SYS_sched_getscheduler, thread) };
    match i32::try_from(policy) {
        Ok(libc::SCHED_OTHER) => Ok(Some(Policy::Other)),
        Ok(libc::SCHED_IDLE) => Ok(Some(Policy::Idle)),
        Ok(0..) => Ok(None),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Asks for short slices of a CPU for the calling thread, and for all threads and processes that it
/// starts (sched_setattr(2), `sched_runtime` of all but real-time policies, Linux 6.12). Such a thread soon gets a
/// CPU that another one uses, for a short time. Its share, nice value and policy stay the same. A
/// new policy of [`set_policy`] keeps the slice. Before Linux 6.12 this has no effect.
///
/// # Errors
/// ENOSYS and EINVAL of old kernels, EINVAL under a real-time policy; EPERM where a filter of system
/// calls refuses it.
pub fn short_slices() -> io::Result<()> {
    let attributes = Attributes {
        size: size_of::<Attributes>() as u32,
        flags: KEEP_POLICY,
        nice: rustix::process::getpriority_process(None)?,
        runtime: SLICE,
        ..Attributes::default()
    };
    // SAFETY: the kernel reads `attributes`, whose size is in its first field, and which lives
    // through the call. The thread 0 is the calling one.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The length of a short slice in nanoseconds: the shortest that the kernel grants.
const SLICE: u64 = 100_000;
/// `SCHED_FLAG_KEEP_POLICY` of linux/sched.h.
const KEEP_POLICY: u64 = 8;

/// `struct sched_attr` of linux/sched/types.h, first version.
#[repr(C)]
#[derive(Debug, Default)]
struct Attributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    /// The slice in nanoseconds; 0 for the usual one.
    runtime: u64,
    deadline: u64,
    period: u64,
}

/// The fields of `/proc/OF/stat` of a process or thread (proc_pid_stat(5)), after its name.
#[derive(Debug)]
pub struct Stat(String);

/// Reads them. `None` if there is no such process or thread.
pub fn stat(of: impl std::fmt::Display) -> Option<Stat> {
    let stat = std::fs::read(format!("/proc/{of}/stat")).ok()?;
    // Field 2, the name, may contain spaces and parentheses: fields count from the last ')'.
    let after = stat.rsplit(|&b| b == b')').next()?;
    Some(Stat(String::from_utf8(after.to_vec()).ok()?))
}

impl Stat {
    /// Returns a field by its number in the manual, which is 3 or more.
    pub fn field(&self, number: usize) -> Option<&str> {
        self.0.split_ascii_whitespace().nth(number.checked_sub(3)?)
    }
}

/// Gives all other work precedence over the calling thread, for the processor (SCHED_IDLE) and the
/// disk (ioprio_set(2), class idle), as far as the kernel allows it.
pub fn idle_thread() {
    const IOPRIO_WHO_PROCESS: libc::c_int = 1;
    const IOPRIO_CLASS_IDLE: libc::c_int = 3 << 13;
    let _ = set_policy(0, Policy::Idle);
    // SAFETY: takes numbers only; 0 is the calling thread.
    unsafe {
        libc::syscall(
            libc::SYS_ioprio_set,
            IOPRIO_WHO_PROCESS,
            0,
            IOPRIO_CLASS_IDLE,
        )
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the attributes of the calling thread.
    fn attributes() -> Attributes {
        let mut told = Attributes::default();
        let size = size_of::<Attributes>();
        // SAFETY: the kernel writes no more than `size` bytes at `told`, which lives through the
        // call.
        let result = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut told, size, 0) };
        assert_eq!(result, 0);
        told
    }

    #[test]
    fn short_slices_are_inherited_and_kept() {
        std::thread::spawn(|| {
            rustix::process::nice(3).unwrap();
            let before = attributes();
            short_slices().unwrap();
            let after = attributes();
            assert_eq!((after.nice, after.policy), (before.nice, before.policy));
            assert_eq!(after.nice, 3);
            if after.runtime == before.runtime {
                return testkit::need::skip(&"the kernel has no slices of threads (6.12)");
            }
            let inherited = std::thread::spawn(|| {
                set_policy(0, Policy::Idle).unwrap();
                attributes().runtime
            });
            assert_eq!((after.runtime, inherited.join().unwrap()), (SLICE, SLICE));
        })
        .join()
        .unwrap();
        assert_ne!(attributes().runtime, SLICE);
    }

    #[test]
    fn a_thread_gives_way_alone() {
        std::thread::spawn(|| {
            let me = this_thread();
            assert_eq!(policy(me).unwrap(), Some(Policy::Other));
            set_policy(me, Policy::Idle).unwrap();
            assert_eq!(policy(me).unwrap(), Some(Policy::Idle));
        })
        .join()
        .unwrap();
        assert_eq!(policy(this_thread()).unwrap(), Some(Policy::Other));
        let error = set_policy(i32::MAX, Policy::Idle).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ESRCH));
        assert!(policy(i32::MAX).is_err());
    }
}
