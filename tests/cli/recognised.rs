//! Identity of mounts: the kernel gives the device number of a removed mount to the next one, the
//! next one may be on the same directory, and directories are moved. A daemon that ends removes its
//! own mount and no other.

use std::os::unix::fs::MetadataExt as _;

use rustix::mount::{MountFlags, UnmountFlags};
use rustix::process::Signal;
use testkit::home::{Home, is_running, kill, wait_until};
use testkit::need;
use testkit::need::can_mount;

/// A stopped process, which continues when this is dropped.
struct Stopped(i32);

impl Stopped {
    fn new(pid: i32) -> Self {
        kill(pid, Signal::STOP);
        wait_until("it has stopped", || {
            std::fs::read_to_string(format!("/proc/{pid}/stat"))
                .is_ok_and(|stat| stat.rsplit(')').next().unwrap().starts_with(" T"))
        });
        Self(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        if is_running(self.0) {
            kill(self.0, Signal::CONT);
        }
    }
}

/// A second mount on the same directory, which shares no upper with the first.
const NEXT: [&str; 3] = ["-o", "lowerdir=next", "mnt"];

fn home() -> Home {
    let home = Home::with_layers();
    home.dirs(&["next"]);
    std::fs::write(home.path("next/file"), "next\n").unwrap();
    home
}

/// Mounts, stops the daemon, unmounts and mounts again on the same directory; returns the stopped
/// daemon and the device numbers of both mounts.
fn replaced(home: &Home) -> (Stopped, [u64; 2]) {
    home.mount();
    let first = std::fs::metadata(home.path("mnt")).unwrap().dev();
    let stopped = Stopped::new(home.daemon());
    rustix::mount::unmount(home.path("mnt"), UnmountFlags::empty()).unwrap();
    home.run(NEXT).ok();
    let second = std::fs::metadata(home.path("mnt")).unwrap().dev();
    (stopped, [first, second])
}

fn assert_next(home: &Home) {
    let text = std::fs::read_to_string(home.path("mnt/file"));
    assert_eq!(text.unwrap(), "next\n", "the next mount is gone");
    assert_eq!(home.mounts().len(), 1);
}

/// Calls `check` with a stopped daemon whose mount was replaced, until the next mount had its device
/// number twice. Other tests that mount meanwhile may get it first.
fn each_replaced(home: &Home, mut check: impl FnMut(usize, Stopped)) {
    let mut same = 0;
    for round in 0..500 {
        let (stopped, devices) = replaced(home);
        same += usize::from(devices[0] == devices[1]);
        check(round, stopped);
        if same == 2 {
            return;
        }
    }
    panic!("the kernel gave no device number again");
}

#[test]
fn an_ending_daemon_leaves_the_next_mount_alone() {
    need!(can_mount());
    let home = home();
    each_replaced(&home, |round, stopped| {
        let old = stopped.0;
        if round % 2 == 1 {
            kill(old, Signal::TERM);
        }
        drop(stopped);
        wait_until("the first daemon ends", || !is_running(old));
        assert_next(&home);
        home.run(["umount", "mnt"]).ok();
    });
}

/// Also if the next mount has the device number of a mount whose server still runs.
#[test]
fn records_belong_to_their_mounts() {
    need!(can_mount());
    let home = home();
    each_replaced(&home, |_, stopped| {
        assert_records(&home, &stopped);
        // The command waits for the daemon of this mount only.
        home.run(["umount", "mnt"]).ok();
        assert_eq!(home.mounts(), Vec::<String>::new());
        let old = stopped.0;
        drop(stopped);
        wait_until("the first daemon ends", || !is_running(old));
        assert_eq!(home.json(["ps", "--json"]), serde_json::json!([]));
    });
}

/// Asserts that the record of the stopped daemon is not taken for that of the next mount.
fn assert_records(home: &Home, stopped: &Stopped) {
    let rows = home.json(["ps", "--json"]);
    let state = |of_first: bool| {
        let rows = rows.as_array().unwrap().iter();
        let mut rows = rows.filter(|row| (row["pid"] == stopped.0) == of_first);
        let row = rows.next().unwrap();
        assert!(rows.next().is_none(), "{row}");
        row["state"].as_str().unwrap().to_owned()
    };
    assert_eq!(state(true), "detached", "its mount is gone");
    assert_eq!(state(false), "live");
    let stats = home.json(["stats", "--json", "mnt"]);
    assert_ne!(
        stats["mount"]["pid"], stopped.0,
        "of the mount that is there"
    );
}

#[test]
fn a_daemon_finds_its_mount_where_it_was_moved_to() {
    need!(can_mount());
    let home = home();
    home.dirs(&["a/m"]);
    let options = "lowerdir=lower,upperdir=upper,workdir=work";
    home.run(["-o", options, "a/m"]).ok();
    let daemon = home.daemon();
    std::fs::rename(home.path("a"), home.path("b")).unwrap();
    home.dirs(&["a/m"]);
    let none = MountFlags::empty();
    rustix::mount::mount("tmpfs", home.path("a/m"), "tmpfs", none, None).unwrap();
    kill(daemon, Signal::TERM);
    wait_until("the daemon ends", || !is_running(daemon));
    let left = home.mounts();
    assert!(left.len() == 1 && left[0].starts_with("tmpfs "), "{left:?}");
}

#[test]
fn what_is_mounted_over_it_stays_and_so_do_its_binds() {
    need!(can_mount());
    let home = home();
    home.dirs(&["bound"]);
    home.mount();
    let daemon = home.daemon();
    rustix::mount::mount_bind(home.path("mnt"), home.path("bound")).unwrap();
    let none = MountFlags::empty();
    rustix::mount::mount("tmpfs", home.path("mnt"), "tmpfs", none, None).unwrap();
    std::fs::write(home.path("mnt/over"), "").unwrap();
    // After the second signal the daemon does not wait for the users of the mount.
    kill(daemon, Signal::TERM);
    std::thread::sleep(std::time::Duration::from_millis(100));
    if is_running(daemon) {
        kill(daemon, Signal::TERM);
    }
    wait_until("the daemon ends", || !is_running(daemon));
    assert!(home.path("mnt/over").exists(), "the cover is gone");
    let bound = home.text("bound");
    assert!(home.mounts().iter().any(|line| line.contains(&bound)));
    rustix::mount::unmount(home.path("mnt"), UnmountFlags::empty()).unwrap();
    rustix::mount::unmount(home.path("bound"), UnmountFlags::empty()).unwrap();
    // The rest of the mount is dead, and is removed by the next mount there.
    home.mount();
    assert_eq!(home.mounts().len(), 1);
    home.run(["umount", "mnt"]).ok();
}
