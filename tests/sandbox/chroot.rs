//! A process in a chroot that enters a mount namespace of its own, or fails to, never ends outside
//! of its chroot. Each attempt runs in a process of its own with another limit of open files, so
//! that the attempts fail at successive steps.
#![allow(unsafe_code)]

use std::fs;
use std::path::Path;
use std::process::Command;

use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags};
use rustix::process::{Pid, Resource, Rlimit, WaitOptions};
use rustix::thread::UnshareFlags;
use testkit::need_mounts;
use unionfs::sys::namespace;
use unionfs::sys::narrow::{self, KeptPath};

/// The variable with the future root directory, in the process that makes the attempts.
const JAIL: &str = "UNIONFS_TEST_JAIL";
/// Higher than the number of all descriptors that are needed.
const ENOUGH: u64 = 64;

type Enter = fn() -> Result<(), Errno>;

const WAYS: [(&str, Enter); 3] = [
    ("leave", namespace::leave),
    ("prepared", || {
        let started = namespace::Prepared::start();
        let started = started.map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
        started.ok_or(Errno::PERM)?.enter()
    }),
    ("keep_only", || {
        narrow::keep_only(&[KeptPath::at(Path::new("/work"))?], &[])
    }),
];

/// How an attempt ended.
#[derive(Debug, PartialEq)]
enum End {
    Entered,
    /// It failed and is still in the chroot.
    Inside,
    /// It failed and is outside of the chroot.
    Outside,
}

#[test]
fn a_failure_leads_out_of_no_chroot() {
    need_mounts!();
    if let Some(jail) = std::env::var_os(JAIL) {
        return attempts(Path::new(&jail));
    }
    let jail = tempfile::tempdir().unwrap();
    for name in ["proc", "work"] {
        fs::create_dir(jail.path().join(name)).unwrap();
    }
    fs::write(jail.path().join("work/inside"), "").unwrap();
    let test = "chroot::a_failure_leads_out_of_no_chroot";
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(JAIL, jail.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
}

fn attempts(jail: &Path) {
    for (name, enter) in WAYS {
        let ends: Vec<End> = (0..ENOUGH)
            .map(|limit| attempt(jail, enter, limit))
            .collect();
        let outside = ends.iter().position(|end| *end == End::Outside);
        assert_eq!(outside, None, "{name}: the first limit that leads outside");
        assert_eq!(ends.last(), Some(&End::Entered), "{name}");
        assert_eq!(ends.first(), Some(&End::Inside), "{name}");
    }
}

fn attempt(jail: &Path, enter: Enter, limit: u64) -> End {
    // SAFETY: the other thread is the harness's, which holds no lock while it waits for this one.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        std::process::exit(in_jail(jail, enter, limit).unwrap_or(9));
    }
    let pid = Pid::from_raw(pid);
    let (_, status) = rustix::process::waitpid(pid, WaitOptions::empty())
        .unwrap()
        .unwrap();
    match status.exit_status() {
        Some(0) => End::Entered,
        Some(1) => End::Inside,
        Some(2) => End::Outside,
        other => panic!("{other:?}"),
    }
}

fn in_jail(jail: &Path, enter: Enter, limit: u64) -> Result<i32, Errno> {
    // SAFETY: no descriptors are shared or left.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private)?;
    let none = MountFlags::empty();
    rustix::mount::mount("proc", jail.join("proc"), "proc", none, None)?;
    rustix::process::chroot(jail)?;
    rustix::process::chdir("/work")?;
    let before = rustix::process::getrlimit(Resource::Nofile);
    let low = Rlimit {
        current: Some(limit),
        ..before
    };
    rustix::process::setrlimit(Resource::Nofile, low)?;
    let entered = enter();
    rustix::process::setrlimit(Resource::Nofile, before)?;
    Ok(match entered {
        Ok(()) => 0,
        Err(Errno::NOTRECOVERABLE) => 3,
        Err(_) if Path::new("/work/inside").exists() && Path::new("inside").exists() => 1,
        Err(_) => 2,
    })
}
