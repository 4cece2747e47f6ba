//! Any local user may lock (flock(2)) a directory that they can list. Such a lock does not stop
//! root from mounting the directory. Two mounts of one upper or work directory are still refused.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::process::{Child, Stdio};

use rustix::process::Signal;
use testkit::home::{Home, is_running, kill, wait_until};
use testkit::need;
use testkit::need::{Needed, can_mount, has_tools};

const USER: Option<u32> = Some(65534);
const MOUNT: [&str; 3] = ["-o", "lowerdir=lower,upperdir=upper,workdir=work", "mnt"];

/// A process of a user that holds the lock of a directory until it is dropped.
struct Lock(Child);

impl Lock {
    fn take(home: &Home, dir: &str) -> Self {
        let script = format!("exec 9<{dir} && flock -n 9 && echo locked && read end");
        let mut command = home.command("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
        command.args(["sh", "-c", &script]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut said = [0; 6];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut said).unwrap();
        assert_eq!(&said, b"locked");
        Self(child)
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        self.0.wait().unwrap();
    }
}

/// Returns a home that other users may enter, with an upper and a work directory as mkdir makes
/// them.
fn home() -> Needed<Home> {
    can_mount()?;
    has_tools(&["setpriv", "flock"])?;
    let home = Home::with_layers();
    for name in ["", "upper", "work"] {
        fs::set_permissions(home.path(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    Ok(home)
}

fn lock_files(home: &Home) -> usize {
    let entries = fs::read_dir(home.path("run")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name());
    names
        .filter(|name| name.to_str().unwrap().ends_with(".lock"))
        .count()
}

#[test]
fn a_lock_of_another_user_does_not_keep_root_from_mounting() {
    let home = need!(home());
    for options in ["", ",sandbox=off"] {
        let held = [Lock::take(&home, "upper"), Lock::take(&home, "work")];
        let first = format!("{}{options}", MOUNT[1]);
        home.run(["-o", &first, "mnt"]).ok();
        fs::write(home.path("mnt/new"), "new").unwrap();
        assert_eq!(lock_files(&home), 2);
        // A directory that the user has locked is protected as well.
        home.dirs(&["mnt2", "upper2", "work2"]);
        for other in ["upper,workdir=work2", "upper2,workdir=work"] {
            let options = format!("lowerdir=lower,upperdir={other}");
            let outcome = home.run(["-o", &options, "mnt2"]);
            outcome.failed(1, &["in use by another mount", "unionfs ps"]);
        }
        home.run(["umount", "mnt"]).ok();
        wait_until("its lock files are gone", || lock_files(&home) == 0);
        drop(held);
    }
}

/// A user may mount a directory of another user. Only our own mounts can lock one that no other
/// user can list.
#[test]
fn a_lock_that_may_be_that_of_a_mount_counts() {
    let home = need!(home());
    let held = Lock::take(&home, "upper");
    chown(home.path("upper"), USER, USER).unwrap();
    let outcome = home.run(MOUNT);
    outcome.failed(1, &["in use by another mount"]);
    chown(home.path("upper"), Some(0), Some(0)).unwrap();
    fs::set_permissions(home.path("upper"), fs::Permissions::from_mode(0o711)).unwrap();
    let outcome = home.run(MOUNT);
    outcome.failed(1, &["in use by another mount"]);
    drop(held);
    home.run(MOUNT).ok();
    home.run(["umount", "mnt"]).ok();
    wait_until("its lock files are gone", || lock_files(&home) == 0);
}

/// The lock of a killed server ends with it, and the next mount takes over its files.
#[test]
fn a_killed_server_keeps_nobody_from_mounting() {
    let home = need!(home());
    home.mount();
    let daemon = home.daemon();
    kill(daemon, Signal::KILL);
    wait_until("the server is gone", || !is_running(daemon));
    assert_eq!(lock_files(&home), 2);
    home.mount();
    assert_eq!(lock_files(&home), 2);
    home.run(["umount", "mnt"]).ok();
    wait_until("its lock files are gone", || lock_files(&home) == 0);
}
