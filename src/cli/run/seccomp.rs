//! The filter of system calls of a container, for OCI runtimes (config-linux.md, "Seccomp").
//!
//! The calls are those that Docker's documentation lists as blocked by its profile: of the whole
//! machine, of namespaces, of keys without one, and of mounts. The runtimes leave out calls that
//! libseccomp does not know.

use serde_json::{Value, json};

/// Calls that fail with EPERM.
const REFUSED: [&str; 56] = [
    "acct",
    "add_key",
    "bpf",
    "clock_adjtime",
    "clock_adjtime64",
    "clock_settime",
    "clock_settime64",
    "create_module",
    "delete_module",
    "finit_module",
    "fsconfig",
    "fsmount",
    "fsopen",
    "fspick",
    "get_kernel_syms",
    "get_mempolicy",
    "init_module",
    "io_uring_enter",
    "io_uring_register",
    "io_uring_setup",
    "ioperm",
    "iopl",
    "kcmp",
    "kexec_file_load",
    "kexec_load",
    "keyctl",
    "lookup_dcookie",
    "mbind",
    "mount",
    "mount_setattr",
    "move_mount",
    "move_pages",
    "nfsservctl",
    "open_by_handle_at",
    "open_tree",
    "perf_event_open",
    "pivot_root",
    "process_madvise",
    "query_module",
    "quotactl",
    "quotactl_fd",
    "reboot",
    "request_key",
    "set_mempolicy",
    "setns",
    "settimeofday",
    "stime",
    "swapoff",
    "swapon",
    "sysfs",
    "umount",
    "umount2",
    "unshare",
    "uselib",
    "userfaultfd",
    "vhangup",
];

/// The flags of clone(2) that make namespaces.
const NAMESPACES: u64 = 0x7e02_0000;
/// ENOSYS: programs then use clone(2), whose flags can be seen.
const NOT_THERE: u32 = 38;

/// Returns the filter.
pub(super) fn filter() -> Value {
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
        json!({"names": ["clone"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1, "args": [one]})
    });
    let whole = [
        json!({"names": REFUSED.as_slice(), "action": "SCMP_ACT_ERRNO", "errnoRet": 1}),
        json!({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": NOT_THERE}),
    ];
    json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": architectures,
        "syscalls": whole.into_iter().chain(flags).collect::<Vec<_>>(),
    })
}
