//! Every command that reads a store enters its sandbox first, and works there.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::symlink;

use rustix::fs::FlockOperation;
use testkit::home::{Home, traced_mount, wait_until};
use testkit::need::{can_mount, has_tools};
use testkit::{need, program, strace};

use crate::caged::{KEPT, is_inside, start, status};

/// DAC_READ_SEARCH, SYS_ADMIN.
const KEPT_TO_READ: u64 = 1 << 2 | 1 << 21;

/// Returns a home whose store has two images, one of them without a name, a named layer with a
/// change, and catalogs.
fn full_home() -> Home {
    let home = Home::new();
    home.dirs(&["rootfs", "mnt"]);
    fs::write(home.path("rootfs/file"), "file").unwrap();
    home.run(["import", "-q", "rootfs", "app:1"]).ok();
    home.run(["catalog", "build", "app:1"]).ok();
    home.run(["mount", "--name", "web", "app:1", "mnt"]).ok();
    fs::write(home.path("mnt/new"), "new").unwrap();
    home.run(["umount", "mnt"]).ok();
    for content in ["one", "two"] {
        fs::write(home.path("rootfs/file"), content).unwrap();
        home.run(["import", "-q", "rootfs", "other:1"]).ok();
    }
    home
}

/// The lock of the store that a command waits for once it is in the sandbox.
#[derive(Clone, Copy)]
enum Waits {
    /// Waits until no process removes anything.
    Removing,
    /// Waits until no process reads.
    Readers,
    /// Waits until no process changes anything.
    Lock,
}

#[test]
fn every_command_is_inside_before_it_reads_a_store() {
    need!(can_mount());
    use Waits::{Lock, Readers, Removing};
    let home = full_home();
    let own = home.text("own");
    let catalogs = home.text("own/unionfs/catalogs");
    let nothing: &[&str] = &[];
    let cases: &[(&[&str], Waits, u64, &[&str])] = &[
        (&["images"], Removing, KEPT_TO_READ, nothing),
        (&["inspect", "app:1"], Removing, KEPT_TO_READ, nothing),
        (&["history", "app:1"], Removing, KEPT_TO_READ, nothing),
        (&["layers"], Removing, KEPT_TO_READ, nothing),
        (&["verify", "--all"], Removing, KEPT_TO_READ, nothing),
        (&["diff", "web"], Removing, KEPT_TO_READ, nothing),
        (&["diff", "app:1", "web"], Removing, KEPT_TO_READ, nothing),
        (
            &["export", "web", "-o", "web.tar"],
            Removing,
            KEPT_TO_READ,
            nothing,
        ),
        (&["export", "web"], Removing, KEPT_TO_READ, nothing),
        (
            &["save", "app:1", "-o", "app.tar"],
            Removing,
            KEPT_TO_READ,
            nothing,
        ),
        (&["save", "app:1"], Removing, KEPT_TO_READ, nothing),
        (&["info"], Removing, KEPT_TO_READ, nothing),
        (&["ls", "app:1"], Removing, KEPT_TO_READ, nothing),
        (&["cat", "web", "/file"], Removing, KEPT_TO_READ, nothing),
        (&["cp", "web:/", "-"], Removing, KEPT_TO_READ, nothing),
        (&["df"], Removing, KEPT_TO_READ, nothing),
        (&["catalog", "build", "app:1"], Removing, KEPT, &[&catalogs]),
        (
            &["catalog", "verify", "app:1"],
            Removing,
            KEPT,
            &[&catalogs],
        ),
        (
            &["push", "app:1", "127.0.0.1:1/app"],
            Removing,
            KEPT,
            &[&own],
        ),
        (&["commit", "web", "web:1"], Lock, KEPT, &[&own]),
        (&["squash", "app:1", "flat:1"], Lock, KEPT, &[&own]),
        (&["tag", "app:1", "app:2"], Lock, KEPT, &[&own]),
        (&["rm", "web"], Lock, KEPT, &[&own]),
        (&["rmi", "other:1"], Readers, KEPT, &[&own, &catalogs]),
        (&["prune", "--dangling"], Readers, KEPT, &[&own, &catalogs]),
    ];
    for &(args, waits, kept, may_be_changed) in cases {
        let (name, operation) = match waits {
            Removing => ("removing", FlockOperation::NonBlockingLockExclusive),
            Readers => ("removing", FlockOperation::NonBlockingLockShared),
            Lock => ("lock", FlockOperation::NonBlockingLockExclusive),
        };
        // A killed command may still hold it.
        let lock = fs::File::open(home.path("own/unionfs").join(name)).unwrap();
        wait_until("the lock is free", || {
            rustix::fs::flock(&lock, operation).is_ok()
        });
        let mut child = start(&home, args);
        let pid = child.id();
        let inside = || status(pid, "Seccomp") == "2" || child_has_ended(pid);
        wait_until(&format!("{args:?} is inside"), inside);
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert!(
            !child_has_ended(pid),
            "{args:?}: {:?}",
            child.wait_with_output()
        );
        let may: Vec<String> = may_be_changed.iter().map(|s| (*s).to_owned()).collect();
        is_inside(pid, kept, &may);
        child.kill().unwrap();
        child.wait().unwrap();
        drop(lock);
    }
    // The process outside of the sandbox removes what a killed command leaves.
    wait_until("no half file is left", || {
        let names = fs::read_dir(home.path("")).unwrap();
        let mut names = names.map(|entry| entry.unwrap().file_name());
        !names.any(|name| {
            name.to_string_lossy().ends_with(".tar")
                || name.to_string_lossy().starts_with(".unionfs-")
        })
    });
}

fn child_has_ended(pid: u32) -> bool {
    status(pid, "State").starts_with('Z')
}

/// In strict mode every command still works, and its output equals that without a sandbox.
#[test]
fn every_command_does_its_work_inside() {
    need!(can_mount());
    need!(has_tools(&["sh", "cmp"]));
    let home = full_home();
    let reading = [
        "images",
        "images --json",
        "inspect app:1",
        "history app:1",
        "layers",
        "verify --all",
        "ps -a",
        "diff web",
        "df",
        "df --json",
        "info",
        "catalog ls",
        "catalog verify app:1",
        "rmi -f nothing:1",
        "tag nothing:1 x:1",
        "inspect nothing:1",
        "rm nothing",
        "--root rootfs images",
        "--root none images",
        "prune -n --dangling",
        "export web",
        "export app:1",
        "save app:1",
        "save other:1 --format oci",
    ];
    for command in reading {
        let run = |mode: &str| {
            let script = format!("UNIONFS_SANDBOX={mode} unionfs {command} | cat");
            let outcome = home.run_script(&script);
            (outcome.stdout, outcome.stderr)
        };
        // An age that is shown can change between the two.
        let same = (0..3).any(|_| run("strict") == run("off"));
        assert!(same, "{command}: {:?}, {:?}", run("strict"), run("off"));
    }
    let scripts = [
        "unionfs export web --sandbox strict -q -o a.tar && unionfs export web --sandbox off -q -o b.tar && cmp a.tar b.tar",
        "unionfs save app:1 --sandbox strict -q -o a.tar && unionfs save app:1 --sandbox off -q -o b.tar && cmp a.tar b.tar",
        "unionfs save app:1 --sandbox strict -q -o /dev/stdout > c.tar && cmp a.tar c.tar",
        "! test -e 'no/where' && ! unionfs save app:1 -q -o no/where 2> /dev/null",
        "! unionfs save none:1 --sandbox strict -q -o d.tar 2> /dev/null && ! test -e d.tar && test -z \"$(ls -A | grep '^[.]unionfs-')\"",
        "unionfs tag --sandbox strict app:1 app:2 && unionfs inspect app:2 > /dev/null",
        "unionfs rmi --sandbox strict app:2 > /dev/null",
        "unionfs commit --sandbox strict -q web web:1 > /dev/null && unionfs export web:1 -q --sandbox strict | tar -t | grep -q new",
        "unionfs catalog build --sandbox strict app:1 > /dev/null && unionfs catalog rm --sandbox strict app:1 > /dev/null",
        "unionfs catalog build --sandbox strict -o lowerdir=rootfs c.catalog > /dev/null && unionfs catalog verify --sandbox strict -o lowerdir=rootfs c.catalog > /dev/null",
        "unionfs mount app:1 mnt -r && unionfs stats --sandbox strict mnt > /dev/null && unionfs ps --sandbox strict | grep -q live && unionfs umount mnt",
        "unionfs rmi --sandbox strict other:1 > /dev/null && unionfs prune --sandbox strict --dangling > /dev/null",
        "unionfs rm --sandbox strict web > /dev/null",
        "unionfs verify --all --sandbox strict > /dev/null",
    ];
    for script in scripts {
        home.run_script(script).ok();
    }
}

/// Stores that only records name are found: the store of a named layer's image, catalogs of that
/// store, and own stores that are reached by symlinks.
#[test]
fn stores_that_only_records_name_are_found() {
    need!(can_mount());
    need!(has_tools(&["sh", "tar"]));
    let home = Home::new();
    home.dirs(&["rootfs", "mnt", "real"]);
    fs::write(home.path("rootfs/file"), "file").unwrap();
    symlink("real", home.path("link")).unwrap();
    let script = "unionfs --store other import -q rootfs app:1 > /dev/null
        unionfs --root other mount --name web app:1 mnt
        echo new > mnt/new
        unionfs export web --sandbox strict -q | tar -t | grep -q new
        unionfs umount mnt
        unionfs diff web --sandbox strict | grep -q new
        unionfs export web --sandbox strict -q -o web.tar
        unionfs commit web --sandbox strict -q web:1 > /dev/null
        unionfs verify --all --sandbox strict > /dev/null
        unionfs --root other catalog build app:1 > /dev/null
        unionfs prune --sandbox strict > /dev/null
        unionfs catalog ls | grep -q other
        export UNIONFS_ROOT=link/own
        unionfs import -q rootfs app:1 > /dev/null
        unionfs catalog build --sandbox strict app:1 > /dev/null
        unionfs df --sandbox strict | grep -q catalogs
        unionfs rmi app:1 --sandbox strict > /dev/null
        test -z \"$(ls real/own/unionfs/catalogs)\"";
    home.run_script(script).ok();
}

/// Data that is written through an open mount is in the data that a command reads from its upper.
#[test]
fn a_mounted_layer_is_flushed_first() {
    need!(can_mount());
    need!(has_tools(&["sh", "tar"]));
    let home = full_home();
    home.run(["mount", "-o", "writeback", "--name", "web", "app:1", "mnt"])
        .ok();
    let text = "x".repeat(100_000);
    for (name, read) in [
        (
            "a",
            "unionfs export web -q --sandbox strict -o out.tar && tar -xOf out.tar late",
        ),
        ("b", "unionfs export web -q --sandbox strict | tar -xO late"),
        (
            "c",
            "unionfs commit web -q made:1 --sandbox strict > /dev/null && unionfs export made:1 -q | tar -xO late",
        ),
    ] {
        let expected = format!("{name}{text}");
        fs::write(home.path("mnt/late"), &expected).unwrap();
        assert_eq!(home.run_script(read).ok(), expected, "{name}");
    }
    home.run(["umount", "mnt"]).ok();
}

/// The owner of the directory above a mountpoint can put any other object in its place.
#[test]
fn a_mounted_layer_is_flushed_wherever_it_is_by_now() {
    need!(can_mount());
    need!(has_tools(&["sh", "tar", "timeout", "mkfifo"]));
    let home = full_home();
    home.dirs(&["theirs/mnt"]);
    home.run([
        "mount",
        "-o",
        "writeback",
        "--name",
        "web",
        "app:1",
        "theirs/mnt",
    ])
    .ok();
    fs::rename(home.path("theirs"), home.path("moved")).unwrap();
    home.dirs(&["theirs"]);
    home.run_script("mkfifo theirs/mnt").ok();
    let expected = "x".repeat(100_000);
    fs::write(home.path("moved/mnt/late"), &expected).unwrap();
    // Opening the FIFO would block forever.
    let script = "timeout 60 unionfs export web -q --sandbox strict -o out.tar && \
        timeout 60 unionfs commit web -q made:1 --sandbox strict > /dev/null && \
        tar -xOf out.tar late";
    let exported = home.run_script(script);
    home.run(["umount", "moved/mnt"]).ok();
    assert_eq!(exported.ok(), expected);
}

/// Returns how often a traced command has read the records of images, layers and containers in a
/// store. Asserts that only confined processes do so.
fn reads_in_sandboxes(trace: &str) -> usize {
    let mut confined = HashSet::new();
    let mut seen = 0;
    for line in trace.lines() {
        let (pid, call) = line.split_once(' ').unwrap();
        if call.contains("SECCOMP") {
            confined.insert(pid);
        }
        let says = [
            "imagedb",
            "layerdb",
            "repositories.json",
            "unionfs/containers/",
        ];
        let is_file = call.trim_start().starts_with("open") && !call.contains("O_DIRECTORY");
        if is_file && says.iter().any(|says| call.contains(says)) {
            assert!(confined.contains(pid), "{line}\n{trace}");
            seen += 1;
        }
    }
    seen
}

/// A layer that was made for a mount is removed if the mount fails; the process that mounts does
/// not read it.
#[test]
fn a_layer_of_a_failed_mount_is_removed_in_a_sandbox() {
    need!(can_mount());
    need!(has_tools(&["sh", "strace"]));
    let home = full_home();
    let layers = home.run_script("echo own/overlay2/*/diff").ok();
    // In the mounted layer, in which nothing can be mounted.
    let is_below = |diff: &&str| {
        let content = fs::read_to_string(home.path(diff).join("file"));
        content.is_ok_and(|content| content == "file")
    };
    let inside = layers.split_whitespace().find(is_below).unwrap();
    for sandbox in ["auto", "off"] {
        let script = format!(
            "mkdir -p {inside}/place && \
             strace -f -e trace=openat,openat2,open,seccomp,prctl -o trace \
             unionfs mount -o sandbox={sandbox} --name failing app:1 {inside}/place"
        );
        let failed = home.run_script(&script);
        assert!(failed.stderr.contains("lies inside"), "{}", failed.stderr);
        let trace = strace::text(&home.path("trace"));
        if sandbox == "auto" {
            assert!(reads_in_sandboxes(&trace) > 2, "{trace}");
        }
        let listed = home.run(["ps", "-a"]).ok();
        assert!(
            listed.contains("web") && !listed.contains("failing"),
            "{listed}"
        );
        assert_eq!(home.run_script("echo own/overlay2/*/diff").ok(), layers);
    }
}

/// A process that reads a store may hold locks and may be controlled by the maker of an image, so
/// it must end.
#[test]
fn a_process_that_looks_into_a_store_ends_with_the_one_that_asked() {
    need!(can_mount());
    need!(has_tools(&["strace"]));
    let home = full_home();
    // The process is stopped on its way into the sandbox.
    let mut strace = home
        .command("strace")
        .args(["-f", "-e", "trace=seccomp", "-o"])
        .arg(home.path("trace"))
        .args(["-e", "inject=seccomp:signal=SIGSTOP:when=1"])
        .args([program(), "mount", "app:1", "mnt"])
        .spawn()
        .unwrap();
    let children = |pid: u32| -> Vec<u32> {
        let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        let list = list.unwrap_or_default();
        list.split_whitespace()
            .map(|pid| pid.parse().unwrap())
            .collect()
    };
    let mut looks = None;
    wait_until("it looks into the store", || {
        // Another child makes the namespace of the server.
        let is_confined = |pid: &u32| status(*pid, "NoNewPrivs") == "1";
        looks = children(strace.id())
            .into_iter()
            .find_map(|asks| Some((asks, children(asks).into_iter().find(is_confined)?)));
        looks.is_some()
    });
    let (asks, looks) = looks.unwrap();
    let kill = |pid: u32| {
        let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL)
    };
    kill(asks).unwrap();
    // strace waits for all processes that it traces.
    let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        wait_until("both have ended", || strace.try_wait().unwrap().is_some());
    }));
    if ended.is_err() {
        kill(looks).unwrap();
        strace.wait().unwrap();
    }
    ended.unwrap();
}

/// The processes of a mount that read the records of images, layers and containers in a store are
/// confined.
#[test]
fn a_mount_parses_no_store_itself() {
    need!(can_mount());
    need!(has_tools(&["strace"]));
    let home = full_home();
    let cases: [&[&str]; 4] = [
        &["app:1"],
        &["--container", "web"],
        &["--name", "web"],
        &["--name", "more", "app:1"],
    ];
    for args in cases {
        let calls = ["-e", "trace=openat,openat2,open,seccomp,prctl"];
        let text = traced_mount(&home, &calls, args);
        let seen = reads_in_sandboxes(&text);
        assert!(seen > 2, "{args:?}: {text}");
    }
}

/// The table of docs/ARCHITECTURE.md has every command that `unionfs --help` has.
#[test]
fn the_table_has_every_command() {
    let help = std::process::Command::new(program())
        .arg("--help")
        .output()
        .unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let (_, commands) = help.split_once("Commands:\n").unwrap();
    let commands = commands.lines().take_while(|line| !line.is_empty());
    let commands = commands.filter_map(|line| line.strip_prefix("  "));
    let commands = commands.filter_map(|line| line.split(' ').next());
    // The groups have other names of these commands.
    let left_out = ["", "help", "image", "container", "system"];
    let commands: Vec<&str> = commands.filter(|c| !left_out.contains(c)).collect();
    assert!(commands.len() > 20, "{help}");
    let text = include_str!("../../docs/ARCHITECTURE.md");
    let (_, table) = text.split_once("| command | stores | own store |").unwrap();
    let rows = table
        .lines()
        .skip(2)
        .take_while(|line| line.starts_with('|'));
    let rows: Vec<&str> = rows.filter_map(|row| row.split(' ').nth(1)).collect();
    assert_eq!(commands, rows);
}
