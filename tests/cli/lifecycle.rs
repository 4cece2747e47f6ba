//! The life of a mount: it is live when the command returns, holds no descriptor of the caller,
//! leaves nothing after every kind of end, and replaces a dead mount.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use testkit::home::{Home, LAYERS, Outcome, is_running, kill, wait_until};
use testkit::need::{can_mount, has_tools};
use testkit::{need, program};

#[test]
fn live_at_once_and_gone_after_umount() {
    need!(can_mount());
    let home = Home::with_layers();
    for round in 0..5 {
        home.mount();
        let answer = rustix::fs::statfs(home.path("mnt")).unwrap();
        assert_eq!(answer.f_type as u64, 0x6573_5546, "FUSE's magic at once");
        assert_eq!(
            std::fs::read_to_string(home.path("mnt/file")).unwrap(),
            "lower\n"
        );
        std::fs::write(home.path("mnt/new"), format!("{round}")).unwrap();
        let daemon = home.daemon();
        assert_eq!(home.run(["umount", "mnt"]).ok(), "");
        assert!(!is_running(daemon), "umount waits for the daemon");
        assert_eq!(home.mounts(), Vec::<String>::new());
        let kept = std::fs::read_to_string(home.path("upper/new")).unwrap();
        assert_eq!(kept, format!("{round}"));
        assert_eq!(std::fs::read_dir(home.path("run")).unwrap().count(), 0);
    }
}

#[test]
fn the_daemon_holds_nothing_of_the_caller() {
    need!(can_mount());
    let home = Home::with_layers();
    // Pipes for stdout and stderr, and one more descriptor that is not close-on-exec.
    let (mut reader, writer) = std::io::pipe().unwrap();
    let mut command = home.command("sh");
    command
        .args(["-c", "exec 7>&1 && exec \"$0\" \"$@\"", program()])
        .args(LAYERS)
        .stdout(writer.try_clone().unwrap())
        .stderr(writer);
    let mut child = command.spawn().unwrap();
    drop(command);
    let mut text = String::new();
    // The read ends only when no process holds the other end any more.
    reader.read_to_string(&mut text).unwrap();
    assert_eq!((child.wait().unwrap().code(), text.as_str()), (Some(0), ""));
    let daemon = home.daemon();
    assert_eq!(
        std::fs::read_link(format!("/proc/{daemon}/cwd"))
            .unwrap()
            .to_str(),
        Some("/")
    );
    for fd in 0..3 {
        let target = std::fs::read_link(format!("/proc/{daemon}/fd/{fd}")).unwrap();
        assert_eq!(target.to_str(), Some("/dev/null"));
    }
    home.run(["umount", "mnt"]).ok();
}

#[test]
fn signals_unmount_and_leave_nothing() {
    need!(can_mount());
    let home = Home::with_layers();
    for signal in [Signal::TERM, Signal::INT] {
        home.mount();
        std::fs::write(home.path("mnt/written"), "before").unwrap();
        let daemon = home.daemon();
        kill(daemon, signal);
        wait_until("the daemon ends", || !is_running(daemon));
        assert_eq!(home.mounts(), Vec::<String>::new());
        assert_eq!(
            std::fs::read_to_string(home.path("upper/written")).unwrap(),
            "before"
        );
        assert_eq!(std::fs::read_dir(home.path("run")).unwrap().count(), 0);
    }
}

#[test]
fn somebody_elses_unmount_ends_the_daemon() {
    need!(can_mount());
    let home = Home::with_layers();
    for flags in [
        rustix::mount::UnmountFlags::empty(),
        rustix::mount::UnmountFlags::DETACH,
    ] {
        home.mount();
        let daemon = home.daemon();
        rustix::mount::unmount(home.path("mnt"), flags).unwrap();
        wait_until("the daemon ends", || !is_running(daemon));
        assert_eq!(home.json(["ps", "--json"]), serde_json::json!([]));
    }
}

/// The server ends when its connection is aborted, and its keeper unmounts too.
#[test]
fn a_forced_unmount_may_be_second() {
    need!(can_mount());
    let home = Home::with_layers();
    for _ in 0..30 {
        home.mount();
        home.run(["umount", "--force", "mnt"]).ok();
    }
}

#[test]
fn a_dead_mount_is_shown_and_replaced() {
    need!(can_mount());
    let home = Home::with_layers();
    home.mount();
    let daemon = home.daemon();
    kill(daemon, Signal::KILL);
    // Its threads end one by one, and the connection ends with the last.
    wait_until("the mount is dead", || {
        let dead = std::fs::metadata(home.path("mnt"));
        dead.is_err_and(|e| e.raw_os_error() == Some(libc::ENOTCONN))
    });
    assert_eq!(home.json(["ps", "--json"])[0]["state"], "dead");
    home.run(["stats", "mnt"])
        .failed(1, &["mnt", "killed", "unionfs umount"]);
    home.mount();
    assert_eq!(home.mounts().len(), 1, "the dead one is gone");
    assert_eq!(
        std::fs::read_to_string(home.path("mnt/file")).unwrap(),
        "lower\n"
    );
    let second = home.daemon();
    assert_ne!(second, daemon);
    kill(second, Signal::KILL);
    wait_until("the daemon is dead", || !is_running(second));
    assert_eq!(home.run(["umount", "mnt"]).ok(), "");
    assert_eq!(home.mounts(), Vec::<String>::new());
}

/// Returns the processes of the mount's program other than `daemon`: the keeper, which shares the
/// daemon's environment.
fn keepers(home: &Home, daemon: i32) -> Vec<i32> {
    let own = format!("UNIONFS_RUNTIME_DIR={}", home.text("run"));
    let environ = |pid: i32| std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    let is_ours = |pid: &i32| {
        let environ = environ(*pid);
        let mut variables = environ.split(|byte| *byte == 0);
        *pid != daemon && variables.any(|variable| variable == own.as_bytes())
    };
    let pids = std::fs::read_dir("/proc").unwrap();
    let pids = pids.filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    pids.filter(is_ours).collect()
}

#[test]
fn a_mount_goes_on_without_its_keeper() {
    need!(can_mount());
    let home = Home::with_layers();
    home.mount();
    let daemon = home.daemon();
    let keepers = keepers(&home, daemon);
    assert_eq!(keepers.len(), 1, "{keepers:?}");
    kill(keepers[0], Signal::KILL);
    wait_until("the keeper is dead", || !is_running(keepers[0]));
    std::fs::write(home.path("mnt/file"), "changed\n").unwrap();
    assert_eq!(home.json(["ps", "--json"])[0]["state"], "live");
    home.run(["stats", "mnt"]).ok();
    assert_eq!(home.run(["umount", "mnt"]).ok(), "");
    wait_until("the daemon ends", || !is_running(daemon));
    assert_eq!(home.mounts(), Vec::<String>::new());
    home.mount();
    let text = std::fs::read_to_string(home.path("mnt/file")).unwrap();
    assert_eq!(text, "changed\n");
    home.run(["umount", "mnt"]).ok();
}

#[test]
fn a_mount_whose_daemon_and_keeper_are_killed_is_dead_and_replaced() {
    need!(can_mount());
    let home = Home::with_layers();
    home.mount();
    let daemon = home.daemon();
    let keepers = keepers(&home, daemon);
    for pid in keepers.iter().chain([&daemon]) {
        kill(*pid, Signal::KILL);
    }
    wait_until("both are dead", || {
        keepers.iter().chain([&daemon]).all(|pid| !is_running(*pid))
    });
    assert_eq!(home.json(["ps", "--json"])[0]["state"], "dead");
    home.run(["stats", "mnt"])
        .failed(1, &["mnt", "killed", "unionfs umount"]);
    home.mount();
    assert_eq!(home.mounts().len(), 1, "the dead one is gone");
    home.run(["umount", "mnt"]).ok();
    assert_eq!(home.mounts(), Vec::<String>::new());
}

#[test]
fn an_upper_in_use_is_refused() {
    need!(can_mount());
    let home = Home::with_layers();
    home.dirs(&["mnt2", "upper2", "work2"]);
    home.mount();
    for options in [
        "lowerdir=lower,upperdir=upper,workdir=work2",
        "lowerdir=lower,upperdir=upper2,workdir=work",
    ] {
        let outcome = home.run(["-o", options, "mnt2"]);
        outcome.failed(1, &["in use by another mount", "unionfs ps"]);
    }
    assert_eq!(home.mounts().len(), 1);
    home.run(["umount", "mnt"]).ok();
    let again = home.run(["-o", "lowerdir=lower,upperdir=upper,workdir=work", "mnt2"]);
    assert_eq!(again.ok(), "");
    home.run(["umount", "mnt2"]).ok();
}

#[test]
fn a_busy_mount_stays_unless_lazy() {
    need!(can_mount());
    let home = Home::with_layers();
    home.mount();
    let daemon = home.daemon();
    let open = std::fs::File::open(home.path("mnt/file")).unwrap();
    home.run(["umount", "mnt"])
        .failed(1, &["mnt", "in use", "lazily"]);
    assert_eq!(home.mounts().len(), 1);
    assert_eq!(home.run(["umount", "--lazy", "mnt"]).ok(), "");
    assert_eq!(home.mounts(), Vec::<String>::new());
    assert_eq!(home.json(["ps", "--json"])[0]["state"], "detached");
    let mut text = String::new();
    (&open).read_to_string(&mut text).unwrap();
    assert_eq!(text, "lower\n");
    drop(open);
    wait_until("the daemon ends", || !is_running(daemon));
}

#[test]
fn all_mounts_end_but_those_in_use() {
    need!(can_mount());
    let home = Home::with_layers();
    let read_only = |dir: &str| {
        home.dirs(&[dir]);
        home.run(["-o", "lowerdir=lower", dir]).ok();
    };
    assert_eq!(
        home.run(["umount", "-a"]).ok(),
        "",
        "nothing to do is no error"
    );
    read_only("dead");
    let dead = home.daemon();
    for process in keepers(&home, dead).into_iter().chain([dead]) {
        kill(process, Signal::KILL);
    }
    wait_until("the daemon is dead", || !is_running(dead));
    home.mount();
    // One on a directory of another is in its way.
    read_only("mnt/inner");
    read_only("busy");
    let rows = home.json(["ps", "--json"]);
    let daemons = rows.as_array().unwrap().iter();
    let daemons = daemons.map(|row| i32::try_from(row["pid"].as_u64().unwrap()).unwrap());
    let daemons: Vec<i32> = daemons.collect();
    assert_eq!((daemons.len(), home.mounts().len()), (4, 4), "{rows}");
    let held = std::fs::File::open(home.path("busy/file")).unwrap();
    home.run(["umount", "--all"])
        .failed(1, &[&home.text("busy"), "in use"]);
    assert_eq!(home.mounts().len(), 1, "{:?}", home.mounts());
    // The mounts of other users, and of other runtime directories, are not ours.
    home.dirs(&["run2"]);
    let mut others = home.command(program());
    others.env("UNIONFS_RUNTIME_DIR", home.path("run2"));
    let outcome = Outcome::from(others.args(["umount", "-a"]).output().unwrap());
    outcome.ok();
    assert_eq!(home.mounts().len(), 1);
    home.run(["unmount", "--all", "--lazy"]).ok();
    assert_eq!(home.mounts(), Vec::<String>::new());
    drop(held);
    wait_until("all daemons end", || {
        daemons.iter().all(|daemon| !is_running(*daemon))
    });
    // Several are unmounted independently of each other.
    read_only("one");
    read_only("two");
    home.run(["umount", "one", "absent", "two"])
        .failed(1, &["absent"]);
    assert_eq!(home.mounts(), Vec::<String>::new());
    for wrong in [&["umount"][..], &["umount", "-a", "one"]] {
        assert_eq!(home.run(wrong).code, Some(2), "{wrong:?}");
    }
}

#[test]
fn foreground() {
    need!(can_mount());
    let home = Home::with_layers();
    let mut child = home
        .command(program())
        .arg("-f")
        .args(LAYERS)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .unwrap();
    wait_until("mounted", || home.path("mnt/file").exists());
    assert!(
        child.try_wait().unwrap().is_none(),
        "stays in the foreground"
    );
    kill(i32::try_from(child.id()).unwrap(), Signal::INT);
    let outcome = Outcome::from(child.wait_with_output().unwrap());
    assert_eq!(outcome.ok(), "");
    assert_eq!(home.mounts(), Vec::<String>::new());
}

#[test]
fn logs_only_when_asked() {
    need!(can_mount());
    let home = Home::with_layers();
    let log = |home: &Home| {
        let run = std::fs::read_dir(home.path("run")).unwrap();
        run.map(|entry| entry.unwrap().path())
            .find(|path| path.extension().is_some_and(|e| e == "log"))
    };
    home.mount();
    assert_eq!(log(&home), None);
    home.run(["umount", "mnt"]).ok();
    let options = format!("{},unknown=yes", LAYERS[1]);
    assert_eq!(home.run(["-d", "-o", &options, "mnt"]).ok(), "");
    let text = std::fs::read_to_string(log(&home).unwrap()).unwrap();
    assert!(text.contains("unknown=yes"), "{text}");
    home.run(["umount", "mnt"]).ok();
}

#[test]
fn a_failed_mount_is_quick_and_leaves_nothing() {
    need!(can_mount());
    let home = Home::with_layers();
    let start = Instant::now();
    // The kernel refuses a source of a page or more; everything before it succeeds.
    let options = format!("lowerdir=lower,fsname={}", "x".repeat(5000));
    let outcome = home.run(["-o", &options, "mnt"]);
    outcome.failed(1, &["mnt"]);
    assert_eq!(home.mounts(), Vec::<String>::new());
    assert_eq!(std::fs::read_dir(home.path("run")).unwrap().count(), 0);
    assert!(start.elapsed() < Duration::from_secs(5));
}

/// A script for a mount namespace where all users may open /dev/fuse, as is usual.
const PLAIN_USER: &str = r#"
    mount -t tmpfs none dev && mknod dev/fuse c 10 229 && chmod 666 dev/fuse
    mount --bind dev/fuse /dev/fuse
    as="setpriv --reuid=65534 --regid=65534 --clear-groups"
    $as ./unionfs -o lowerdir=lower,upperdir=upper,workdir=work mnt
    grep " $PWD/mnt " /proc/self/mounts
    $as sh -c 'cat mnt/file; rm mnt/file; echo new > mnt/new'
    $as ./unionfs ps
    $as ./unionfs stats mnt
    $as ./unionfs umount mnt
    ! grep " $PWD/mnt " /proc/self/mounts
"#;

#[test]
fn a_plain_user_mounts_directories() {
    const USER: Option<u32> = Some(65534);
    let tools = ["setpriv", "unshare", "mount", "fusermount3"];
    need!(can_mount());
    need!(has_tools(&tools));
    let home = Home::with_layers();
    home.dirs(&["dev"]);
    // The user must be able to reach the program, wherever it was built.
    std::fs::copy(program(), home.path("unionfs")).unwrap();
    for name in ["run", "lower", "lower/file", "upper", "work", "mnt"] {
        std::os::unix::fs::chown(home.path(name), USER, USER).unwrap();
    }
    let mut command = home.command("unshare");
    command.args(["-m", "sh", "-e", "-c", PLAIN_USER]);
    let text = Outcome::from(command.output().unwrap()).ok();
    let line = text.lines().next().unwrap();
    assert!(
        line.starts_with("unionfs ") && line.contains(" fuse.unionfs "),
        "{text}"
    );
    let flags: Vec<&str> = line.split(' ').nth(3).unwrap().split(',').collect();
    for flag in ["rw", "nosuid", "nodev", "user_id=65534"] {
        assert!(flags.contains(&flag), "no {flag}: {line}");
    }
    assert_eq!(text.lines().nth(1), Some("lower"));
    assert!(
        text.contains(" live ") && text.contains("requests "),
        "{text}"
    );
    assert_eq!(
        std::fs::read_to_string(home.path("upper/new")).unwrap(),
        "new\n"
    );
}
