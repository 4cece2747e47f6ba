//! The system calls that confined processes may use. They were found by running the tests under
//! strace(1), with the calls of libc and Rust's library (memory, threads, time, signals). All other
//! calls kill the process.

use crate::sys::seccomp::Call;
use Call::{Any, If};

/// The calls that every confined process may use with any arguments. None of them changes a name or
/// an attribute.
const COMMON: &[libc::c_long] = &[
    // This number is no call: a tracer uses it for a call that is to be skipped.
    u32::MAX as libc::c_long,
    // Data.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_preadv2,
    libc::SYS_pwritev2,
    libc::SYS_lseek,
    libc::SYS_copy_file_range,
    libc::SYS_sendfile,
    libc::SYS_splice,
    libc::SYS_fallocate,
    libc::SYS_ftruncate,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_syncfs,
    libc::SYS_sync_file_range,
    libc::SYS_fadvise64,
    libc::SYS_readahead,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_pipe2,
    libc::SYS_flock,
    // Names and attributes.
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_getdents64,
    libc::SYS_newfstatat,
    libc::SYS_fstat,
    libc::SYS_statx,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_readlinkat,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_getxattr,
    libc::SYS_lgetxattr,
    libc::SYS_fgetxattr,
    libc::SYS_listxattr,
    libc::SYS_llistxattr,
    libc::SYS_flistxattr,
    GETXATTRAT,
    LISTXATTRAT,
    libc::SYS_name_to_handle_at,
    libc::SYS_getcwd,
    libc::SYS_umask,
    // Memory.
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_msync,
    libc::SYS_mincore,
    libc::SYS_brk,
    // Threads, signals, time.
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_rseq,
    libc::SYS_membarrier,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_setaffinity,
    libc::SYS_sched_getscheduler,
    libc::SYS_sched_setscheduler,
    libc::SYS_sched_getparam,
    libc::SYS_getpriority,
    libc::SYS_ioprio_set,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getgroups,
    libc::SYS_capget,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_getrusage,
    libc::SYS_getrandom,
    libc::SYS_getcpu,
    libc::SYS_sysinfo,
    libc::SYS_uname,
    // Waiting, and messages over open sockets.
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_recvfrom,
    libc::SYS_sendto,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_shutdown,
    libc::SYS_setsockopt,
    libc::SYS_getsockopt,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
];

/// Older forms of some of these calls. Newer architectures do not have them.
#[cfg(target_arch = "x86_64")]
const OLDER: &[libc::c_long] = &[
    libc::SYS_open,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_access,
    libc::SYS_readlink,
    libc::SYS_poll,
    libc::SYS_select,
    libc::SYS_epoll_wait,
    libc::SYS_dup2,
    libc::SYS_time,
];
#[cfg(not(target_arch = "x86_64"))]
const OLDER: &[libc::c_long] = &[];

/// The calls that change names and attributes. A process that only reads may use none of them
/// ([`changes`]).
const CHANGES: &[libc::c_long] = &[
    libc::SYS_truncate,
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_unlinkat,
    libc::SYS_symlinkat,
    libc::SYS_linkat,
    libc::SYS_renameat2,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    FCHMODAT2,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_utimensat,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_fsetxattr,
    libc::SYS_removexattr,
    libc::SYS_lremovexattr,
    libc::SYS_fremovexattr,
    SETXATTRAT,
    REMOVEXATTRAT,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_mkdir,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_mknod,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_unlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rmdir,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_symlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_link,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rename,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_renameat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chmod,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chown,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lchown,
];

/// Calls that are newer than the headers of some C libraries. Their numbers are the same on every
/// architecture that has a filter.
const FCHMODAT2: libc::c_long = 452;
const MAP_SHADOW_STACK: libc::c_long = 453;
const MSEAL: libc::c_long = 462;
const SETXATTRAT: libc::c_long = 463;
const GETXATTRAT: libc::c_long = 464;
const LISTXATTRAT: libc::c_long = 465;
const REMOVEXATTRAT: libc::c_long = 466;

/// A call that a C library may try but does not need: clone3(2), whose arguments no filter can see.
pub(super) const UNKNOWN: &[libc::c_long] = &[libc::SYS_clone3, MAP_SHADOW_STACK, MSEAL];

/// FUSE_DEV_IOC_CLONE, FUSE_DEV_IOC_BACKING_OPEN, FUSE_DEV_IOC_BACKING_CLOSE (linux/fuse.h).
const FUSE_IOCTLS: [u32; 3] = [0x8004_e500, 0x4010_e501, 0x4004_e502];
/// FICLONE, FICLONERANGE, FIDEDUPERANGE, FS_IOC_FIEMAP, FS_IOC_GETFLAGS, FS_IOC_GETVERSION,
/// FS_IOC_FSGETXATTR, FS_IOC_GETFSUUID (linux/fs.h).
const FILE_IOCTLS: [u32; 8] = [
    0x4004_9409,
    0x4020_940d,
    0xc018_9436,
    0xc020_660b,
    0x8008_6601,
    0x8008_7601,
    0x801c_581f,
    0x8011_1500,
];
/// FS_IOC_SETFLAGS, FS_IOC_FSSETXATTR: they change attributes also of a file that is open for
/// reading.
const CHANGING_IOCTLS: [u32; 2] = [0x4008_6602, 0x401c_5820];
/// TCGETS (is it a terminal?), TIOCGWINSZ, FIONREAD, FIONBIO.
const OTHER_IOCTLS: [u32; 4] = [0x5401, 0x5413, 0x541b, 0x5421];

/// IORING_REGISTER_FILES, IORING_REGISTER_RESTRICTIONS, IORING_REGISTER_ENABLE_RINGS
/// (linux/io_uring.h).
const RING_REGISTERS: [u32; 3] = [2, 11, 12];

/// Commands of fcntl(2) that concern a descriptor. The owner of its signals is not among them.
const FCNTLS: [libc::c_int; 13] = [
    libc::F_DUPFD,
    libc::F_DUPFD_CLOEXEC,
    libc::F_GETFD,
    libc::F_SETFD,
    libc::F_GETFL,
    libc::F_SETFL,
    libc::F_GETLK,
    libc::F_SETLK,
    libc::F_SETLKW,
    libc::F_OFD_GETLK,
    libc::F_OFD_SETLK,
    libc::F_OFD_SETLKW,
    libc::F_GETPIPE_SZ,
];

/// rustix reads the size of a page by this (linux/prctl.h).
const PR_GET_AUXV: libc::c_int = 0x4155_5856;
/// `PR_SET_VMA` names memory, `PR_SET_NAME` a thread.
const PRCTLS: [libc::c_int; 5] = [
    PR_GET_AUXV,
    libc::PR_SET_NAME,
    libc::PR_GET_NAME,
    libc::PR_SET_VMA,
    libc::PR_GET_DUMPABLE,
];

const ALL: u32 = u32::MAX;

/// An ioctl with this number, on any file.
fn ioctl(number: u32) -> Call {
    If {
        call: libc::SYS_ioctl,
        argument: 1,
        mask: ALL,
        value: number,
    }
}

/// The calls that change names and attributes, by a path or by a file that is open for reading.
pub(super) fn changes() -> Vec<Call> {
    let calls = CHANGES.iter().map(|call| Any(*call));
    calls.chain(CHANGING_IOCTLS.map(ioctl)).collect()
}

/// The calls that every confined process may use.
fn common() -> Vec<Call> {
    let calls = COMMON.iter().chain(OLDER).map(|call| Any(*call));
    let mut calls: Vec<Call> = calls.chain(changes()).collect();
    calls.extend(FILE_IOCTLS.map(ioctl));
    calls.extend(OTHER_IOCTLS.map(ioctl));
    let mut one_of = |call, argument, values: &[u32]| {
        calls.extend(values.iter().map(|&value| If {
            call,
            argument,
            mask: ALL,
            value,
        }));
    };
    one_of(libc::SYS_fcntl, 1, &FCNTLS.map(i32::cast_unsigned));
    one_of(libc::SYS_prctl, 0, &PRCTLS.map(i32::cast_unsigned));
    // Signals and limits of this process only.
    let own = std::process::id();
    one_of(libc::SYS_kill, 0, &[own]);
    one_of(libc::SYS_tgkill, 0, &[own]);
    one_of(libc::SYS_prlimit64, 0, &[0]);
    // No new code may be mapped.
    let exec = libc::PROT_EXEC.cast_unsigned();
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        calls.push(If {
            call,
            argument: 2,
            mask: exec,
            value: 0,
        });
    }
    // Threads are allowed, but not processes or namespaces.
    let thread = libc::CLONE_THREAD | libc::CLONE_VM;
    let namespaces = libc::CLONE_NEWNS
        | libc::CLONE_NEWCGROUP
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUSER
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNET;
    calls.push(If {
        call: libc::SYS_clone,
        argument: 0,
        mask: (thread | namespaces).cast_unsigned(),
        value: thread.cast_unsigned(),
    });
    calls
}

/// The calls of a process that serves a mount.
pub(super) fn of_daemon() -> Vec<Call> {
    let mut calls = common();
    calls.extend(FUSE_IOCTLS.map(ioctl));
    // The control socket. open_by_handle_at(2) is not allowed: see `fuse::keeper`.
    calls.push(Any(libc::SYS_accept4));
    calls
}

/// Those that it needs beside them for io_uring.
pub(super) fn of_rings() -> impl Iterator<Item = Call> {
    let registers = RING_REGISTERS.map(|value| If {
        call: libc::SYS_io_uring_register,
        argument: 1,
        mask: ALL,
        value,
    });
    let others = [libc::SYS_io_uring_setup, libc::SYS_io_uring_enter].map(Any);
    others.into_iter().chain(registers)
}

/// The families of sockets that reach servers and find their addresses. glibc asks the kernel
/// (netlink) for the families that this machine has.
pub(super) const INTERNET: [u32; 3] = [
    libc::AF_INET.cast_unsigned(),
    libc::AF_INET6.cast_unsigned(),
    libc::AF_NETLINK.cast_unsigned(),
];

/// Of the calls for all processes, those that concern other processes.
const OF_OTHERS: [libc::c_long; 3] = [
    libc::SYS_sched_setaffinity,
    libc::SYS_sched_setscheduler,
    libc::SYS_ioprio_set,
];

/// As [`UNKNOWN`], for a command, which opens no file by its handle.
pub(super) const UNKNOWN_TO_COMMANDS: &[libc::c_long] = &[
    libc::SYS_clone3,
    MAP_SHADOW_STACK,
    MSEAL,
    libc::SYS_open_by_handle_at,
];

/// The calls of a command that reads untrusted input.
pub(super) fn of_command() -> Vec<Call> {
    let mut calls = common();
    calls.retain(|call| !matches!(call, Any(number) if OF_OTHERS.contains(number)));
    // Signals reach a thread through a pair of sockets.
    calls.push(Any(libc::SYS_socketpair));
    calls
}

/// Those that a command needs beside them to reach servers.
pub(super) fn of_network() -> impl Iterator<Item = Call> {
    // libc loads modules to find addresses.
    let calls_of_libc = [
        libc::SYS_socket,
        libc::SYS_connect,
        libc::SYS_bind,
        libc::SYS_sendmmsg,
        libc::SYS_recvmmsg,
        libc::SYS_mmap,
        libc::SYS_mprotect,
    ];
    // libcap, which modules such as libnss_mymachines need, asks which capabilities the kernel knows.
    let asks = If {
        call: libc::SYS_prctl,
        argument: 0,
        mask: ALL,
        value: libc::PR_CAPBSET_READ.cast_unsigned(),
    };
    calls_of_libc.into_iter().map(Any).chain([asks])
}
