//! Changes that a compromised command in its sandbox can make in places that it may only read:
//! none. Each attempt runs in a process of its own.
#![allow(unsafe_code)]

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode as FileMode, OFlags, Timestamps, XattrFlags};
use testkit::need_mounts;
use unionfs::sandbox::Mode;
use unionfs::sandbox::command::Command;

use crate::{BROKEN, Place};

/// The variable with the attempt and the sandbox, in the process that makes the attempt.
const ASKED: &str = "UNIONFS_TEST_COMMAND_ATTEMPT";
const SANDBOX: &str = "UNIONFS_TEST_COMMAND_SANDBOX";
const PLACE: &str = "UNIONFS_TEST_COMMAND_PLACE";

/// An attempt to change the content of the directory, which has a file `file` and a directory
/// `dir`.
type Attempt = fn(&Path) -> io::Result<()>;

/// The errors of a refused open or a refused call.
const REFUSED: [i32; 3] = [libc::EROFS, libc::EACCES, libc::EPERM];

const ATTEMPTS: &[(&str, Attempt)] = &[
    ("chmod", |dir| {
        let mode = FileMode::from_raw_mode(0o4777);
        Ok(rustix::fs::chmod(dir.join("file"), mode)?)
    }),
    ("chown", |dir| {
        let nobody = Some(rustix::fs::Uid::from_raw(65534));
        Ok(rustix::fs::chown(dir.join("file"), nobody, None)?)
    }),
    ("chmod of what is open", |dir| {
        let file = File::open(dir.join("file"))?;
        Ok(rustix::fs::fchmod(&file, FileMode::from_raw_mode(0o777))?)
    }),
    ("times", |dir| {
        let zero = rustix::fs::Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let times = Timestamps {
            last_access: zero,
            last_modification: zero,
        };
        let (path, flags) = (dir.join("file"), AtFlags::empty());
        Ok(rustix::fs::utimensat(CWD, path, &times, flags)?)
    }),
    ("xattr", |dir| {
        let flags = XattrFlags::empty();
        Ok(rustix::fs::setxattr(
            dir.join("file"),
            "trusted.a",
            b"b",
            flags,
        )?)
    }),
    ("flags of what is open", |dir| {
        let file = File::open(dir.join("file"))?;
        Ok(rustix::fs::ioctl_setflags(
            &file,
            rustix::fs::IFlags::NODUMP,
        )?)
    }),
    ("extended flags of what is open", |dir| {
        let file = File::open(dir.join("file"))?;
        // `struct fsxattr` with FS_XFLAG_NODUMP.
        let mut flags = [0u8; 28];
        flags[0] = 0x80;
        let number: libc::c_ulong = 0x401c_5820;
        // SAFETY: reads 28 bytes, which live through the call.
        match unsafe { libc::ioctl(file.as_raw_fd(), number as _, flags.as_ptr()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }),
    ("truncate", |dir| {
        let path = std::ffi::CString::new(dir.join("file").into_os_string().into_encoded_bytes())?;
        // SAFETY: the path lives through the call.
        match unsafe { libc::truncate(path.as_ptr(), 0) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }),
    ("write", |dir| {
        File::options().write(true).open(dir.join("file")).map(drop)
    }),
    ("create", |dir| File::create_new(dir.join("new")).map(drop)),
    ("unnamed file", |dir| {
        let flags = OFlags::TMPFILE | OFlags::RDWR;
        let mode = FileMode::from_raw_mode(0o600);
        Ok(rustix::fs::open(dir, flags, mode).map(drop)?)
    }),
    ("mkdir", |dir| std::fs::create_dir(dir.join("new"))),
    ("mknod", |dir| {
        let (kind, mode) = (FileType::Fifo, FileMode::from_raw_mode(0o600));
        Ok(rustix::fs::mknodat(CWD, dir.join("new"), kind, mode, 0)?)
    }),
    ("symlink", |dir| {
        std::os::unix::fs::symlink("file", dir.join("new"))
    }),
    ("link", |dir| {
        std::fs::hard_link(dir.join("file"), dir.join("new"))
    }),
    ("rename", |dir| {
        std::fs::rename(dir.join("file"), dir.join("new"))
    }),
    ("unlink", |dir| std::fs::remove_file(dir.join("file"))),
    ("rmdir", |dir| std::fs::remove_dir(dir.join("dir"))),
];

#[test]
fn a_command_that_reads_changes_nothing() {
    let of = std::env::var_os;
    if let (Some(name), Some(sandbox), Some(place)) = (of(ASKED), of(SANDBOX), of(PLACE)) {
        be_an_attempt(&name, &sandbox, Path::new(&place));
    }
    need_mounts!();
    let test = "commands::a_command_that_reads_changes_nothing";
    let place = Place::new();
    let before = place.untouchable();
    for sandbox in ["quick", "quick, strict", "whole"] {
        for (name, _) in ATTEMPTS {
            let output = std::process::Command::new(std::env::current_exe().unwrap())
                .args(["--exact", test, "--nocapture"])
                .env(ASKED, name)
                .env(SANDBOX, sandbox)
                .env(PLACE, place.path())
                .output()
                .unwrap();
            let code = output.status.code().unwrap_or_default();
            assert!(
                REFUSED.contains(&code),
                "{sandbox}: {name}: {:?} {output:?}",
                output.status
            );
            assert_eq!(place.untouchable(), before, "{sandbox}: {name}");
        }
    }
}

/// Runs the test as a process of its own, which [`a_command_that_reads_changes_nothing`] starts.
fn be_an_attempt(name: &OsStr, sandbox: &OsStr, place: &Path) -> ! {
    let (_, attempt) = ATTEMPTS.iter().find(|(known, _)| name == *known).unwrap();
    let mut command = match sandbox.to_str().unwrap() {
        "quick" => Command::quick(Mode::Auto),
        "quick, strict" => Command::quick(Mode::Strict),
        _ => Command::new(Mode::Strict),
    };
    let dir = place.join("lower");
    command.read(&dir).unwrap();
    command.enter().unwrap();
    std::process::exit(match attempt(&dir) {
        Ok(()) => 0,
        Err(error) => error.raw_os_error().unwrap_or(BROKEN),
    });
}
