//! The attempts, and the expected end of each.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, XattrFlags};
use rustix::io::Errno;
use unionfs::sys::handle::{FileHandle, open_by_handle};

use crate::End::{self, Fails, Killed, Works};

/// The objects that the process holds.
pub(crate) struct Held<'a> {
    pub(crate) lower: BorrowedFd<'a>,
    pub(crate) upper: BorrowedFd<'a>,
    pub(crate) work: BorrowedFd<'a>,
    /// The path of a file outside of the layers.
    pub(crate) outside: PathBuf,
    /// The handle of that file.
    pub(crate) handle: FileHandle,
}

/// One attempt.
#[derive(Clone, Copy)]
pub(crate) struct Attempt {
    pub(crate) name: &'static str,
    pub(crate) end: End,
    /// Whether it runs in a sandbox that allows io_uring.
    pub(crate) rings: bool,
    pub(crate) make: fn(&Held<'_>) -> io::Result<()>,
}

const fn attempt(name: &'static str, end: End, make: fn(&Held<'_>) -> io::Result<()>) -> Attempt {
    let rings = false;
    Attempt {
        name,
        end,
        rings,
        make,
    }
}

const NOT_THERE: End = Fails(&[libc::ENOENT]);
const NOT_ALLOWED: End = Fails(&[libc::EACCES, libc::EPERM, libc::EROFS, libc::ENOENT]);
const READ_ONLY: End = Fails(&[libc::EROFS]);

/// The path from a layer to the file outside.
const WAY: &str = "../outside/secret";
const LONGER_WAY: &str = "../../outside/secret";

fn open(dir: BorrowedFd<'_>, path: impl AsRef<Path>, flags: OFlags) -> io::Result<OwnedFd> {
    let mode = Mode::from_raw_mode(0o600);
    Ok(rustix::fs::openat(
        dir,
        path.as_ref(),
        flags | OFlags::CLOEXEC,
        mode,
    )?)
}

/// Returns the same place by a path through /proc.
fn by_path(dir: BorrowedFd<'_>, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{name}", dir.as_raw_fd()))
}

fn mknod(dir: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    let null = rustix::fs::makedev(1, 3);
    let mode = Mode::from_raw_mode(0o666);
    Ok(rustix::fs::mknodat(
        dir,
        name,
        FileType::CharacterDevice,
        mode,
        null,
    )?)
}

fn chmod(dir: BorrowedFd<'_>, path: &str) -> io::Result<()> {
    let mode = Mode::from_raw_mode(0o4777);
    Ok(rustix::fs::chmodat(dir, path, mode, AtFlags::empty())?)
}

fn chown(dir: BorrowedFd<'_>, path: &str) -> io::Result<()> {
    let nobody = Some(rustix::fs::Uid::from_raw(65534));
    Ok(rustix::fs::chownat(
        dir,
        path,
        nobody,
        None,
        AtFlags::empty(),
    )?)
}

fn set_times(dir: BorrowedFd<'_>, path: &str) -> io::Result<()> {
    let zero = rustix::fs::Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let times = rustix::fs::Timestamps {
        last_access: zero,
        last_modification: zero,
    };
    Ok(rustix::fs::utimensat(dir, path, &times, AtFlags::empty())?)
}

fn set_xattr(dir: BorrowedFd<'_>, path: &str) -> io::Result<()> {
    let path = by_path(dir, path);
    Ok(rustix::fs::setxattr(
        path,
        "trusted.a",
        b"b",
        XattrFlags::empty(),
    )?)
}

/// Makes a system call that the filter checks; the arguments do not matter.
fn call(number: libc::c_long) -> io::Result<()> {
    // SAFETY: null pointers and zeros, for which each call that is tried here returns an error. A
    // call that did not would end a process of this test only.
    match unsafe { libc::syscall(number, 0, 0, 0, 0, 0, 0) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

fn parent() -> rustix::process::Pid {
    rustix::process::getppid().unwrap()
}

macro_rules! calls {
    ($($name:ident)*) => {
        [$(attempt(concat!("call ", stringify!($name)), Killed, |_| call(libc::$name))),*]
    };
}

/// Calls that no server needs: setns, unshare, mount and the like, whatever their arguments are.
const CALLS: &[Attempt] = &calls!(
    SYS_mount SYS_umount2 SYS_unshare SYS_setns SYS_pivot_root SYS_chroot SYS_open_tree
    SYS_move_mount SYS_fsopen SYS_fsmount SYS_mount_setattr SYS_ptrace SYS_execve SYS_execveat
    SYS_process_vm_readv SYS_process_vm_writev SYS_bpf SYS_perf_event_open SYS_keyctl SYS_add_key
    SYS_request_key SYS_io_uring_setup SYS_io_uring_enter SYS_io_uring_register SYS_userfaultfd
    SYS_init_module SYS_finit_module SYS_delete_module SYS_kexec_load SYS_reboot SYS_swapon
    SYS_socket SYS_socketpair SYS_connect SYS_bind SYS_listen SYS_pidfd_open SYS_pidfd_getfd
    SYS_pidfd_send_signal SYS_setuid SYS_setresuid SYS_setgroups SYS_capset SYS_personality
    SYS_settimeofday SYS_clock_settime SYS_sethostname SYS_syslog SYS_quotactl SYS_acct
    SYS_fanotify_init SYS_memfd_create SYS_open_by_handle_at SYS_seccomp SYS_chdir SYS_fchdir
);

pub(crate) fn all() -> Vec<Attempt> {
    [OUTSIDE, LOWERS, PROCESSES, CALLS, NEEDED].concat()
}

/// Access to files that are not in the layers.
const OUTSIDE: &[Attempt] = &[
    attempt("read /etc/shadow", NOT_THERE, |_| {
        File::open("/etc/shadow").map(drop)
    }),
    attempt("read a path", NOT_THERE, |held| {
        File::open(&held.outside).map(drop)
    }),
    attempt("write a path", NOT_THERE, |held| {
        File::options().write(true).open(&held.outside).map(drop)
    }),
    attempt("make a file", NOT_ALLOWED, |_| {
        File::create("/new").map(drop)
    }),
    attempt(
        "write to the root of the lower's parent",
        NOT_ALLOWED,
        |held| open(held.lower, "../new", OFlags::WRONLY | OFlags::CREATE).map(drop),
    ),
    // There is nothing above: `..` is the layer itself.
    attempt("go up from a lower", Works, |held| {
        let up = rustix::fs::statat(held.lower, "../../..", AtFlags::empty())?;
        if up.st_ino == rustix::fs::fstat(held.lower)?.st_ino {
            Ok(())
        } else {
            Err(Errno::NOTUNIQ.into())
        }
    }),
    attempt("up from a lower: open", NOT_THERE, |held| {
        open(held.lower, WAY, OFlags::RDONLY).map(drop)
    }),
    attempt("up from the upper: open", NOT_THERE, |held| {
        open(held.upper, LONGER_WAY, OFlags::RDONLY).map(drop)
    }),
    attempt("up from the work directory: hold", NOT_THERE, |held| {
        open(held.work, LONGER_WAY, OFlags::PATH).map(drop)
    }),
    attempt("up from the upper: stat", NOT_THERE, |held| {
        Ok(rustix::fs::statat(held.upper, LONGER_WAY, AtFlags::empty()).map(drop)?)
    }),
    attempt("up from the upper: chmod", NOT_THERE, |held| {
        chmod(held.upper, LONGER_WAY)
    }),
    attempt("up from the upper: chown", NOT_THERE, |held| {
        chown(held.upper, LONGER_WAY)
    }),
    attempt("up from the upper: times", NOT_THERE, |held| {
        set_times(held.upper, LONGER_WAY)
    }),
    attempt("up from the upper: xattr", NOT_THERE, |held| {
        set_xattr(held.upper, LONGER_WAY)
    }),
    attempt("up from a lower: chmod", NOT_THERE, |held| {
        chmod(held.lower, WAY)
    }),
    attempt("up from the upper: link", NOT_THERE, |held| {
        let (from, to) = (held.upper, "link");
        Ok(rustix::fs::linkat(
            from,
            LONGER_WAY,
            held.upper,
            to,
            AtFlags::empty(),
        )?)
    }),
    attempt("by a symlink in the upper", NOT_THERE, |held| {
        rustix::fs::symlinkat(&held.outside, held.upper, "symlink")?;
        open(held.upper, "symlink", OFlags::RDONLY).map(drop)
    }),
    attempt("by a file handle", Killed, |held| {
        Ok(open_by_handle(held.upper, &held.handle).map(drop)?)
    }),
    attempt("by the root of another process", NOT_ALLOWED, |held| {
        let root = format!("/proc/{}/root", parent().as_raw_nonzero());
        File::open(Path::new(&root).join(held.outside.strip_prefix("/").unwrap())).map(drop)
    }),
    attempt("memory of another process", NOT_ALLOWED, |_| {
        File::open(format!("/proc/{}/mem", parent().as_raw_nonzero())).map(drop)
    }),
    attempt("settings of the kernel", NOT_ALLOWED, |_| {
        File::options()
            .write(true)
            .open("/proc/sys/kernel/core_pattern")
            .map(drop)
    }),
    attempt("a device in the upper", Fails(&[libc::EACCES]), |held| {
        mknod(held.upper, "device")?;
        open(held.upper, "device", OFlags::RDWR).map(drop)
    }),
];

/// Changes of lowers.
const LOWERS: &[Attempt] = &[
    attempt("lower: write", READ_ONLY, |held| {
        open(held.lower, "file", OFlags::RDWR).map(drop)
    }),
    attempt("lower: truncate", READ_ONLY, |held| {
        open(held.lower, "file", OFlags::RDWR | OFlags::TRUNC).map(drop)
    }),
    attempt("lower: create", READ_ONLY, |held| {
        open(held.lower, "new", OFlags::WRONLY | OFlags::CREATE).map(drop)
    }),
    attempt("lower: chmod", READ_ONLY, |held| chmod(held.lower, "file")),
    attempt("lower: chown", READ_ONLY, |held| chown(held.lower, "file")),
    attempt("lower: times", READ_ONLY, |held| {
        set_times(held.lower, "file")
    }),
    attempt("lower: xattr", READ_ONLY, |held| {
        set_xattr(held.lower, "file")
    }),
    attempt("lower: mknod", READ_ONLY, |held| {
        mknod(held.lower, "device")
    }),
    attempt("lower: mkdir", READ_ONLY, |held| {
        Ok(rustix::fs::mkdirat(
            held.lower,
            "new",
            Mode::from_raw_mode(0o700),
        )?)
    }),
    attempt("lower: unlink", READ_ONLY, |held| {
        Ok(rustix::fs::unlinkat(held.lower, "file", AtFlags::empty())?)
    }),
    attempt("lower: rmdir", READ_ONLY, |held| {
        Ok(rustix::fs::unlinkat(held.lower, "dir", AtFlags::REMOVEDIR)?)
    }),
    attempt("lower: rename", READ_ONLY, |held| {
        Ok(rustix::fs::renameat(
            held.lower, "file", held.lower, "other",
        )?)
    }),
    attempt("lower: move out", Fails(&[libc::EXDEV]), |held| {
        Ok(rustix::fs::renameat(
            held.lower, "file", held.upper, "other",
        )?)
    }),
];

/// Access to other processes, programs, sockets and memory.
const PROCESSES: &[Attempt] = &[
    attempt("signal to another process", Killed, |_| {
        Ok(rustix::process::kill_process(
            parent(),
            rustix::process::Signal::CONT,
        )?)
    }),
    attempt("run a program", Killed, |_| {
        Err(std::process::Command::new("/proc/self/exe").exec())
    }),
    attempt("start a program", Killed, |_| {
        std::process::Command::new("/proc/self/exe")
            .spawn()
            .map(drop)
    }),
    attempt("connect over TCP", Killed, |_| {
        std::net::TcpStream::connect("127.0.0.1:9").map(drop)
    }),
    attempt("send over UDP", Killed, |_| {
        std::net::UdpSocket::bind("127.0.0.1:0").map(drop)
    }),
    attempt("connect to an abstract socket", Killed, |_| {
        use std::os::linux::net::SocketAddrExt as _;
        let address = std::os::unix::net::SocketAddr::from_abstract_name("somebody")?;
        std::os::unix::net::UnixStream::connect_addr(&address).map(drop)
    }),
    attempt("executable memory", Killed, |_| {
        let (access, kind) = (libc::PROT_EXEC | libc::PROT_READ, libc::MAP_PRIVATE);
        let kind = kind | libc::MAP_ANONYMOUS;
        // SAFETY: maps new memory at an address that the kernel selects.
        match unsafe { libc::mmap(std::ptr::null_mut(), 4096, access, kind, -1, 0) } {
            libc::MAP_FAILED => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }),
    attempt("an ioctl that nobody needs", Killed, |held| {
        // SAFETY: TIOCSTI reads one byte, which lives through the call.
        match unsafe { libc::ioctl(held.lower.as_raw_fd(), libc::TIOCSTI, c"x".as_ptr()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }),
];

/// Operations that a mount needs.
const NEEDED: &[Attempt] = &[
    attempt("read a lower", Works, |held| {
        let mut text = String::new();
        File::from(open(held.lower, "file", OFlags::RDONLY)?).read_to_string(&mut text)?;
        match text.as_str() {
            "content" => Ok(()),
            _ => Err(Errno::IO.into()),
        }
    }),
    attempt("open what is held once more", Works, |held| {
        let held = open(held.upper, "file", OFlags::PATH)?;
        let path = format!("/proc/self/fd/{}", held.as_raw_fd());
        File::options().read(true).write(true).open(path).map(drop)
    }),
    attempt("write the upper", Works, |held| {
        let mut file = File::from(open(held.upper, "file", OFlags::WRONLY)?);
        file.write_all(b"other")?;
        file.sync_all()
    }),
    attempt("chmod and chown in the upper", Works, |held| {
        chmod(held.upper, "file")?;
        chown(held.upper, "file")?;
        set_times(held.upper, "file")
    }),
    attempt("trusted xattrs", Works, |held| {
        set_xattr(held.upper, "file")
    }),
    attempt("from the work directory to the upper", Works, |held| {
        open(held.work, "staged", OFlags::WRONLY | OFlags::CREATE)?;
        Ok(rustix::fs::renameat(
            held.work, "staged", held.upper, "moved",
        )?)
    }),
    attempt("link from the work directory", Works, |held| {
        open(held.work, "linked", OFlags::WRONLY | OFlags::CREATE)?;
        let (to, flags) = (held.upper, AtFlags::empty());
        Ok(rustix::fs::linkat(held.work, "linked", to, "link", flags)?)
    }),
    attempt("unnamed files get a name", Works, |held| {
        let file = open(held.work, ".", OFlags::RDWR | OFlags::TMPFILE)?;
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let (to, flags) = (held.upper, AtFlags::SYMLINK_FOLLOW);
        Ok(rustix::fs::linkat(CWD, path, to, "unnamed", flags)?)
    }),
    attempt("whiteouts", Works, |held| {
        let mode = Mode::empty();
        let none = rustix::fs::makedev(0, 0);
        let kind = FileType::CharacterDevice;
        Ok(rustix::fs::mknodat(
            held.upper, "whiteout", kind, mode, none,
        )?)
    }),
    attempt("threads", Works, |_| {
        let joined = std::thread::spawn(|| ()).join();
        joined.map_err(|_| Errno::IO.into())
    }),
    // The file answers this, not the filter.
    attempt("register for passthrough", Fails(&[libc::ENOTTY]), |held| {
        let number: libc::c_ulong = 0x4010_e501;
        // SAFETY: a directory has no such ioctl; the number reads at most 16 bytes.
        match unsafe { libc::ioctl(held.lower.as_raw_fd(), number as _, [0u64; 2].as_ptr()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }),
];

/// Opens a path through a ring that the process makes itself, without restrictions.
fn by_ring(held: &Held<'_>, path: &std::ffi::CStr, flags: i32) -> io::Result<()> {
    use io_uring::{IoUring, opcode, types};
    let mut ring = IoUring::new(1)?;
    let dir = types::Fd(held.lower.as_raw_fd());
    let open = opcode::OpenAt::new(dir, path.as_ptr()).flags(flags).build();
    // SAFETY: the path lives until the completion has been read.
    unsafe { ring.submission().push(&open) }.map_err(io::Error::other)?;
    ring.submit_and_wait(1)?;
    match ring.completion().next().map(|end| end.result()) {
        Some(error) if error < 0 => Err(io::Error::from_raw_os_error(-error)),
        _ => Ok(()),
    }
}

/// Attempts with io_uring allowed: the filter does not see the requests, but the other parts of the
/// sandbox apply.
pub(crate) const WITH_RINGS: &[Attempt] = &[
    Attempt {
        name: "ring: read /etc/shadow",
        end: NOT_THERE,
        rings: true,
        make: |held| by_ring(held, c"/etc/shadow", libc::O_RDONLY),
    },
    Attempt {
        name: "ring: up from a lower",
        end: NOT_THERE,
        rings: true,
        make: |held| by_ring(held, c"../outside/secret", libc::O_RDONLY),
    },
    Attempt {
        name: "ring: write a lower",
        end: READ_ONLY,
        rings: true,
        make: |held| by_ring(held, c"file", libc::O_RDWR),
    },
    Attempt {
        name: "ring: read a lower",
        end: Works,
        rings: true,
        make: |held| by_ring(held, c"file", libc::O_RDONLY),
    },
];
