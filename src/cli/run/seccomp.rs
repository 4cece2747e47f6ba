//! The filter of system calls of a container: for OCI runtimes by names (config-linux.md, "Seccomp"),
//! for bubblewrap as a program.
//!
//! The calls are those that Docker's documentation lists as blocked by its profile: of the whole
//! machine, of namespaces, of keys without one, and of mounts. The runtimes leave out calls that
//! libseccomp does not know.

use std::path::Path;

use serde_json::{Value, json};
use unionfs::sys::seccomp::{Answer, Then};

use super::old_calls as old;
use super::watched_calls::{CHOWN, Watched};

/// A call by its name, and its number on this architecture, if it is there.
pub(super) type Named = (&'static str, Option<libc::c_long>);

/// Calls that fail with EPERM.
const REFUSED: [Named; 56] = [
    ("acct", Some(libc::SYS_acct)),
    ("add_key", Some(libc::SYS_add_key)),
    ("bpf", Some(libc::SYS_bpf)),
    ("clock_adjtime", Some(libc::SYS_clock_adjtime)),
    ("clock_adjtime64", None),
    ("clock_settime", Some(libc::SYS_clock_settime)),
    ("clock_settime64", None),
    ("create_module", None),
    ("delete_module", Some(libc::SYS_delete_module)),
    ("finit_module", Some(libc::SYS_finit_module)),
    ("fsconfig", Some(libc::SYS_fsconfig)),
    ("fsmount", Some(libc::SYS_fsmount)),
    ("fsopen", Some(libc::SYS_fsopen)),
    ("fspick", Some(libc::SYS_fspick)),
    ("get_kernel_syms", None),
    ("get_mempolicy", Some(libc::SYS_get_mempolicy)),
    ("init_module", Some(libc::SYS_init_module)),
    ("io_uring_enter", Some(libc::SYS_io_uring_enter)),
    ("io_uring_register", Some(libc::SYS_io_uring_register)),
    ("io_uring_setup", Some(libc::SYS_io_uring_setup)),
    ("ioperm", old::IOPERM),
    ("iopl", old::IOPL),
    ("kcmp", Some(libc::SYS_kcmp)),
    ("kexec_file_load", Some(libc::SYS_kexec_file_load)),
    ("kexec_load", Some(libc::SYS_kexec_load)),
    ("keyctl", Some(libc::SYS_keyctl)),
    ("lookup_dcookie", Some(libc::SYS_lookup_dcookie)),
    ("mbind", Some(libc::SYS_mbind)),
    ("mount", Some(libc::SYS_mount)),
    ("mount_setattr", Some(libc::SYS_mount_setattr)),
    ("move_mount", Some(libc::SYS_move_mount)),
    ("move_pages", Some(libc::SYS_move_pages)),
    ("nfsservctl", Some(libc::SYS_nfsservctl)),
    ("open_by_handle_at", Some(libc::SYS_open_by_handle_at)),
    ("open_tree", Some(libc::SYS_open_tree)),
    ("perf_event_open", Some(libc::SYS_perf_event_open)),
    ("pivot_root", Some(libc::SYS_pivot_root)),
    ("process_madvise", Some(libc::SYS_process_madvise)),
    ("query_module", None),
    ("quotactl", Some(libc::SYS_quotactl)),
    ("quotactl_fd", Some(libc::SYS_quotactl_fd)),
    ("reboot", Some(libc::SYS_reboot)),
    ("request_key", Some(libc::SYS_request_key)),
    ("set_mempolicy", Some(libc::SYS_set_mempolicy)),
    ("setns", Some(libc::SYS_setns)),
    ("settimeofday", Some(libc::SYS_settimeofday)),
    ("stime", None),
    ("swapoff", Some(libc::SYS_swapoff)),
    ("swapon", Some(libc::SYS_swapon)),
    ("sysfs", old::SYSFS),
    ("umount", None),
    ("umount2", Some(libc::SYS_umount2)),
    ("unshare", Some(libc::SYS_unshare)),
    ("uselib", old::USELIB),
    ("userfaultfd", Some(libc::SYS_userfaultfd)),
    ("vhangup", Some(libc::SYS_vhangup)),
];

/// Calls that make a process another user's, which the kernel refuses there too.
const BECOME_OTHERS: [Named; 18] = [
    ("setgroups", Some(libc::SYS_setgroups)),
    ("setgroups32", None),
    ("setuid", Some(libc::SYS_setuid)),
    ("setuid32", None),
    ("setgid", Some(libc::SYS_setgid)),
    ("setgid32", None),
    ("setreuid", Some(libc::SYS_setreuid)),
    ("setreuid32", None),
    ("setregid", Some(libc::SYS_setregid)),
    ("setregid32", None),
    ("setresuid", Some(libc::SYS_setresuid)),
    ("setresuid32", None),
    ("setresgid", Some(libc::SYS_setresgid)),
    ("setresgid32", None),
    ("setfsuid", Some(libc::SYS_setfsuid)),
    ("setfsuid32", None),
    ("setfsgid", Some(libc::SYS_setfsgid)),
    ("setfsgid32", None),
];

/// The flags of clone(2) that make namespaces.
const NAMESPACES: u64 = 0x7e02_0000;
/// ENOSYS: programs then use clone(2), whose flags can be seen.
const NOT_THERE: u16 = 38;
/// EPERM.
const FORBIDDEN: u16 = 1;

/// The calls that concern users whom the container does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OfOtherUsers {
    /// The kernel decides.
    Kernel,
    /// They do nothing and succeed.
    Pretended,
    /// As `Pretended`, but a listener answers these calls.
    Recorded(Watched),
}

fn answers(calls: &[Named], then: Then) -> impl Iterator<Item = Answer> {
    let numbers = calls.iter().filter_map(|(_, number)| *number);
    numbers.map(move |call| Answer {
        call,
        bits: None,
        then,
    })
}

/// Returns the filter as a program for bubblewrap; `None` on architectures for which there is none. A
/// listener gets its calls from another filter ([`watching`]), and this one lets them pass.
pub(super) fn program(others: OfOtherUsers) -> Option<Vec<u8>> {
    let mut all: Vec<Answer> = answers(&REFUSED, Then::Errno(FORBIDDEN)).collect();
    let clone3 = ("clone3", Some(libc::SYS_clone3));
    all.extend(answers(&[clone3], Then::Errno(NOT_THERE)));
    all.push(Answer {
        call: libc::SYS_clone,
        bits: Some((0, NAMESPACES as u32)),
        then: Then::Errno(FORBIDDEN),
    });
    if others != OfOtherUsers::Kernel {
        all.extend(answers(&BECOME_OTHERS, Then::Errno(0)));
    }
    if others == OfOtherUsers::Pretended {
        all.extend(answers(&CHOWN, Then::Errno(0)));
    }
    unionfs::sys::seccomp::program(&all)
}

/// Returns the filter that gives calls to a listener.
pub(super) fn watching(watched: Watched) -> Vec<Answer> {
    answers(&watched.calls(), Then::AskListener).collect()
}

/// Returns the filter for OCI runtimes, which give the listener to the socket `listener`.
pub(super) fn filter(others: OfOtherUsers, listener: Option<&Path>) -> Value {
    let names = |calls: &[Named]| -> Vec<&str> { calls.iter().map(|(name, _)| *name).collect() };
    let architectures: &[&str] = match std::env::consts::ARCH {
        "x86_64" => &["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "aarch64" => &["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"],
        _ => &[],
    };
    let masked = |value: u64| json!({"index": 0, "value": NAMESPACES, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ"});
    // A call is allowed only if none of the flags is set: there is one rule for each flag.
    let bits = (0..64).map(|bit| 1_u64 << bit);
    let flags = bits.filter(|bit| NAMESPACES & bit != 0).map(|bit| {
        let mut one = masked(bit);
        one["value"] = json!(bit);
        json!({"names": ["clone"], "action": "SCMP_ACT_ERRNO", "errnoRet": FORBIDDEN, "args": [one]})
    });
    let whole = [
        json!({"names": names(&REFUSED), "action": "SCMP_ACT_ERRNO", "errnoRet": FORBIDDEN}),
        json!({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": NOT_THERE}),
    ];
    let pretended =
        |calls: &[Named]| json!({"names": names(calls), "action": "SCMP_ACT_ERRNO", "errnoRet": 0});
    let of_others = match others {
        OfOtherUsers::Kernel => vec![],
        OfOtherUsers::Pretended => vec![pretended(&BECOME_OTHERS), pretended(&CHOWN)],
        OfOtherUsers::Recorded(watched) => vec![
            pretended(&BECOME_OTHERS),
            json!({"names": names(&watched.calls()), "action": "SCMP_ACT_NOTIFY"}),
        ],
    };
    let mut filter = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": architectures,
        "syscalls": whole.into_iter().chain(of_others).chain(flags).collect::<Vec<_>>(),
    });
    if let Some(socket) = listener {
        filter["listenerPath"] = json!(socket);
    }
    filter
}
