//! A daemon that hangs (SIGSTOP): each command ends, reports it, and names the remedy; `umount
//! --lazy` and `--force` remove the mount.

use std::io::Read as _;

use rustix::process::Signal;
use testkit::home::{Home, LAYERS, Outcome, is_running, kill, wait_until};
use testkit::need::can_mount;
use testkit::{need, program};

/// A mount whose daemon is stopped. The daemon continues when this is dropped.
struct Hung {
    home: Home,
    daemon: i32,
}

impl Hung {
    fn new() -> Self {
        let home = Home::with_layers();
        home.dirs(&["lower/dir"]);
        home.mount();
        let daemon = home.daemon();
        kill(daemon, Signal::STOP);
        wait_until("it has stopped", || {
            std::fs::read_to_string(format!("/proc/{daemon}/stat"))
                .is_ok_and(|stat| stat.rsplit(')').next().unwrap().starts_with(" T"))
        });
        Self { home, daemon }
    }

    /// Runs the program and kills it if it hangs for a minute.
    fn run(&self, args: &[&str]) -> Outcome {
        let mut command = self.home.command("timeout");
        command.args(["-s", "KILL", "60", program()]).args(args);
        command.env("UNIONFS_TIMEOUT", "1");
        command.output().unwrap().into()
    }

    /// Asserts that `args` end with exit code 3 and name the remedy, and that the mount stays.
    #[track_caller]
    fn is_told(&self, args: &[&str]) {
        let mnt = self.home.text("mnt");
        let force = format!("unionfs umount --force {mnt}");
        let outcome = self.run(args);
        outcome.failed(3, &["does not answer", &force, "--lazy"]);
        assert_eq!(self.home.mounts().len(), 1, "{args:?}");
    }

    /// Asserts that the daemon ends by itself once it continues.
    fn ends(self) {
        assert_eq!(self.home.mounts(), Vec::<String>::new());
        kill(self.daemon, Signal::CONT);
        wait_until("the daemon ends", || !is_running(self.daemon));
    }
}

impl Drop for Hung {
    fn drop(&mut self) {
        if is_running(self.daemon) {
            kill(self.daemon, Signal::CONT);
        }
    }
}

#[test]
fn umount_tells() {
    need!(can_mount());
    let hung = Hung::new();
    hung.is_told(&["umount", "mnt"]);
    // The hung mount is on the way to the target.
    hung.is_told(&["umount", "mnt/dir"]);
    hung.is_told(&["umount", "--lazy", "mnt/dir"]);
    kill(hung.daemon, Signal::CONT);
    hung.run(&["umount", "mnt"]).ok();
    assert_eq!(hung.home.mounts(), Vec::<String>::new());
    assert!(!is_running(hung.daemon));
}

#[test]
fn umount_lazy_detaches() {
    need!(can_mount());
    let hung = Hung::new();
    assert_eq!(hung.run(&["umount", "--lazy", "mnt"]).ok(), "");
    hung.ends();
}

#[test]
fn umount_force_cuts_off() {
    need!(can_mount());
    let hung = Hung::new();
    kill(hung.daemon, Signal::CONT);
    // The first close tells the kernel that the server has no FLUSH. Without it, a child of this
    // process, which closes the file at its execve(2), would wait for the daemon forever.
    drop(std::fs::File::open(hung.home.path("mnt/file")).unwrap());
    let mut open = std::fs::File::open(hung.home.path("mnt/file")).unwrap();
    kill(hung.daemon, Signal::STOP);
    assert_eq!(hung.run(&["umount", "--force", "mnt"]).ok(), "");
    let error = open.read_to_end(&mut Vec::new()).unwrap_err();
    assert!(
        [Some(libc::ENOTCONN), Some(libc::ECONNABORTED)].contains(&error.raw_os_error()),
        "{error}"
    );
    hung.ends();
    let home = Home::with_layers();
    home.run(["umount", "--force", "mnt"])
        .failed(1, &["nothing is mounted"]);
    assert_eq!(
        home.run(["umount", "--force", "--lazy", "mnt"]).code,
        Some(2)
    );
}

#[test]
fn stats_and_sync_tell() {
    need!(can_mount());
    let hung = Hung::new();
    hung.is_told(&["stats", "mnt"]);
    hung.is_told(&["stats", "--json", "mnt"]);
    hung.is_told(&["sync", "mnt"]);
}

#[test]
fn ps_does_not_ask() {
    need!(can_mount());
    let hung = Hung::new();
    let text = hung.run(&["ps"]).ok();
    assert!(text.contains(" live "), "{text}");
    let text = hung.run(&["ps", "--all", "--json"]).ok();
    assert!(text.contains(&hung.home.text("mnt")), "{text}");
}

#[test]
fn mounting_over_it_and_below_it_tells() {
    need!(can_mount());
    let hung = Hung::new();
    hung.home.dirs(&["upper2", "work2"]);
    hung.is_told(&LAYERS);
    hung.is_told(&["-o", "lowerdir=lower", "mnt"]);
    hung.is_told(&["-o", "lowerdir=lower", "mnt/dir"]);
    std::fs::write(hung.home.path("rootfs.tar"), empty_tar()).unwrap();
    hung.run(&["import", "-q", "rootfs.tar", "app:1"]).ok();
    hung.is_told(&["mount", "-r", "app:1", "mnt"]);
    // After the hung mount is gone, the next one can be mounted.
    hung.run(&["umount", "--force", "mnt"]).ok();
    kill(hung.daemon, Signal::CONT);
    wait_until("the daemon ends", || !is_running(hung.daemon));
    hung.home.mount();
    hung.run(&["umount", "mnt"]).ok();
}

fn empty_tar() -> Vec<u8> {
    tar::Builder::new(Vec::new()).into_inner().unwrap()
}
