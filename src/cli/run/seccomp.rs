//! The filter of system calls of a container: for OCI runtimes by names (config-linux.md, "Seccomp"),
//! for bubblewrap as a program.
//!
//! The calls are those that Docker's documentation lists as blocked by its profile: of the whole
//! machine, of namespaces, of keys without one, and of mounts. The runtimes leave out calls that
//! libseccomp does not know.

use std::path::Path;

use serde_json::{Value, json};
use unionfs::sys::seccomp::Answer;

/// A call by its name, and its number on this architecture, if it is there.
type Named = (&'static str, Option<libc::c_long>);

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

/// Calls that give a file to another user. Where a container has one user ID, the kernel refuses them
/// with EINVAL or EPERM before any file system sees them.
const CHOWN: [Named; 7] = [
    ("chown", old::CHOWN),
    ("chown32", None),
    ("fchown", Some(libc::SYS_fchown)),
    ("fchown32", None),
    ("fchownat", Some(libc::SYS_fchownat)),
    ("lchown", old::LCHOWN),
    ("lchown32", None),
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

/// The numbers of calls that newer architectures do not have.
#[cfg(target_arch = "x86_64")]
mod old {
    use libc::c_long;

    pub(super) const CHOWN: Option<c_long> = Some(libc::SYS_chown);
    pub(super) const IOPERM: Option<c_long> = Some(libc::SYS_ioperm);
    pub(super) const IOPL: Option<c_long> = Some(libc::SYS_iopl);
    pub(super) const LCHOWN: Option<c_long> = Some(libc::SYS_lchown);
    pub(super) const SYSFS: Option<c_long> = Some(libc::SYS_sysfs);
    pub(super) const USELIB: Option<c_long> = Some(libc::SYS_uselib);
}

#[cfg(not(target_arch = "x86_64"))]
mod old {
    use libc::c_long;

    pub(super) const CHOWN: Option<c_long> = None;
    pub(super) const IOPERM: Option<c_long> = None;
    pub(super) const IOPL: Option<c_long> = None;
    pub(super) const LCHOWN: Option<c_long> = None;
    pub(super) const SYSFS: Option<c_long> = None;
    pub(super) const USELIB: Option<c_long> = None;
}

/// The flags of clone(2) that make namespaces.
const NAMESPACES: u64 = 0x7e02_0000;
/// ENOSYS: programs then use clone(2), whose flags can be seen.
const NOT_THERE: u16 = 38;
/// EPERM.
const FORBIDDEN: u16 = 1;

/// The calls that concern users whom the container does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OfOtherUsers<'a> {
    /// The kernel decides.
    Kernel,
    /// They do nothing and succeed.
    Pretended,
    /// As `Pretended`, but the runtime gives the changes of owners to a listener at this socket.
    Recorded(&'a Path),
}

/// A change of an owner, as its arguments say it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Chown {
    /// The descriptor of the file, or of the directory at which the path begins.
    pub(super) dir: i32,
    /// The address of the path.
    pub(super) path: Option<u64>,
    /// Whether an empty path names `dir`.
    pub(super) may_be_empty: bool,
    /// Whether a symlink at the end of the path is followed.
    pub(super) follows: bool,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

impl Chown {
    /// Reads the arguments of a system call of this architecture; `None` for another call.
    pub(super) fn of(call: libc::c_long, arguments: &[u64; 6]) -> Option<Self> {
        let [a, b, c, d, e, _] = *arguments;
        let by_path = |follows| Self {
            dir: libc::AT_FDCWD,
            path: Some(a),
            may_be_empty: false,
            follows,
            uid: b as u32,
            gid: c as u32,
        };
        match call {
            _ if Some(call) == old::CHOWN => Some(by_path(true)),
            _ if Some(call) == old::LCHOWN => Some(by_path(false)),
            libc::SYS_fchown => Some(Self {
                dir: a as i32,
                path: None,
                ..by_path(true)
            }),
            libc::SYS_fchownat => Some(Self {
                dir: a as i32,
                path: Some(b),
                may_be_empty: e as i32 & libc::AT_EMPTY_PATH != 0,
                follows: e as i32 & libc::AT_SYMLINK_NOFOLLOW == 0,
                uid: c as u32,
                gid: d as u32,
            }),
            _ => None,
        }
    }
}

/// Returns the filter as a program for bubblewrap; `None` on architectures for which there is none.
pub(super) fn program(others: OfOtherUsers<'_>) -> Option<Vec<u8>> {
    let all = |calls: &[Named], errno| -> Vec<Answer> {
        let numbers = calls.iter().filter_map(|(_, number)| *number);
        let answer = |call| Answer {
            call,
            bits: None,
            errno,
        };
        numbers.map(answer).collect()
    };
    let mut answers = all(&REFUSED, FORBIDDEN);
    answers.extend(all(&[("clone3", Some(libc::SYS_clone3))], NOT_THERE));
    answers.push(Answer {
        call: libc::SYS_clone,
        bits: Some((0, NAMESPACES as u32)),
        errno: FORBIDDEN,
    });
    if others != OfOtherUsers::Kernel {
        answers.extend(all(&BECOME_OTHERS, 0));
        answers.extend(all(&CHOWN, 0));
    }
    unionfs::sys::seccomp::program(&answers)
}

/// Returns the filter for OCI runtimes.
pub(super) fn filter(others: OfOtherUsers<'_>) -> Value {
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
        OfOtherUsers::Recorded(_) => vec![
            pretended(&BECOME_OTHERS),
            json!({"names": names(&CHOWN), "action": "SCMP_ACT_NOTIFY"}),
        ],
    };
    let mut filter = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": architectures,
        "syscalls": whole.into_iter().chain(of_others).chain(flags).collect::<Vec<_>>(),
    });
    if let OfOtherUsers::Recorded(socket) = others {
        filter["listenerPath"] = json!(socket);
    }
    filter
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_of_owners_are_read_from_their_arguments() {
        let arguments = [7, 8, 9, 10, libc::AT_EMPTY_PATH as u64, 0];
        let of = |call| Chown::of(call, &arguments);
        let at = of(libc::SYS_fchownat).unwrap();
        assert_eq!((at.dir, at.path, at.uid, at.gid), (7, Some(8), 9, 10));
        assert!(at.may_be_empty && at.follows);
        let fchown = of(libc::SYS_fchown).unwrap();
        assert_eq!(
            (fchown.dir, fchown.path, fchown.uid, fchown.gid),
            (7, None, 8, 9)
        );
        if let (Some(chown), Some(lchown)) = (old::CHOWN, old::LCHOWN) {
            let (chown, lchown) = (of(chown).unwrap(), of(lchown).unwrap());
            assert_eq!(
                (chown.dir, chown.path, chown.uid, chown.gid),
                (libc::AT_FDCWD, Some(7), 8, 9)
            );
            assert!(chown.follows && !lchown.follows);
        }
        assert_eq!(of(libc::SYS_setuid), None);
        let none = [
            0,
            0,
            u64::from(u32::MAX),
            u64::MAX,
            libc::AT_SYMLINK_NOFOLLOW as u64,
            0,
        ];
        let at = Chown::of(libc::SYS_fchownat, &none).unwrap();
        assert_eq!(
            (at.uid, at.gid, at.follows, at.may_be_empty),
            (u32::MAX, u32::MAX, false, false)
        );
    }
}
