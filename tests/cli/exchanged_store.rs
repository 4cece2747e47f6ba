//! Root's own store lies in a directory where another user controls the names, or root is told to
//! write to another user's store. The data goes to the store that was opened, or nothing is
//! written.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, lchown, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use testkit::home::{Home, Outcome};
use testkit::need::{can_mount, has_tools};
use testkit::{need, program, strace};

const USER: Option<u32> = Some(65534);
/// Rounds of the race, each of some ten commands.
const ROUNDS: usize = 25;

/// Returns a command with its own store in that directory of the home.
fn command(home: &Home, store: &str, args: &[&str]) -> Command {
    let mut command = home.command(program());
    command.env("UNIONFS_ROOT", home.path(store)).args(args);
    command
}

fn run(home: &Home, store: &str, args: &[&str]) -> Outcome {
    command(home, store, args).output().unwrap().into()
}

/// Returns a home with a store in each of the directories, each with an image `base:1`.
fn with_stores(stores: &[&str]) -> Home {
    let home = Home::new();
    home.dirs(&["tree", "mnt"]);
    fs::write(home.path("tree/file"), "content").unwrap();
    for store in stores {
        run(
            &home,
            store,
            &["import", "-q", &home.text("tree"), "base:1"],
        )
        .ok();
        run(&home, store, &["mount", "--ephemeral", "base:1", "mnt"]).ok();
        run(&home, store, &["umount", "mnt"]).ok();
    }
    home
}

fn give_away(path: &Path) {
    lchown(path, USER, USER).unwrap();
    if path.is_dir() && !path.is_symlink() {
        for entry in fs::read_dir(path).unwrap() {
            give_away(&entry.unwrap().path());
        }
    }
}

/// Collects everything in a tree, with the attributes that change on an access.
fn state(path: &Path, found: &mut Vec<String>) {
    let meta = path.symlink_metadata().unwrap();
    let (inode, mode, owner) = (meta.ino(), meta.mode(), meta.uid());
    let changed = (meta.ctime(), meta.ctime_nsec());
    found.push(format!("{path:?} {inode} {mode:o} {owner} {changed:?}"));
    if meta.is_dir() {
        let mut names: Vec<_> = fs::read_dir(path)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        names.sort();
        names.iter().for_each(|name| state(name, found));
    }
}

fn state_of(path: &Path) -> Vec<String> {
    let mut found = Vec::new();
    state(path, &mut found);
    found
}

#[test]
fn nothing_is_written_where_the_name_of_the_store_leads_by_now() {
    need!(can_mount());
    let home = with_stores(&["theirs/store", "secret/store"]);
    fs::set_permissions(home.path("secret"), fs::Permissions::from_mode(0o700)).unwrap();
    let (name, link) = (home.path("theirs/store"), home.path("theirs/link"));
    symlink(home.path("secret/store"), &link).unwrap();
    lchown(&link, USER, USER).unwrap();
    lchown(home.path("theirs"), USER, USER).unwrap();
    let before = state_of(&home.path("secret"));
    let over = AtomicBool::new(false);
    let (mut done, mut refused) = (0, 0);
    std::thread::scope(|scope| {
        let flips = scope.spawn(|| {
            let mut flips = 0;
            while !over.load(Ordering::Relaxed) {
                renameat_with(CWD, &name, CWD, &link, RenameFlags::EXCHANGE).unwrap();
                flips += 1;
                std::thread::sleep(std::time::Duration::from_micros(300));
            }
            flips
        });
        for round in 0..ROUNDS {
            let (other, layer) = (format!("other:{round}"), format!("layer{round}"));
            let tree = home.text("tree");
            for args in [
                &["import", "-q", &tree, &other][..],
                &["tag", "base:1", "tagged"],
                &["mount", "--ephemeral", "base:1", "mnt"],
                &["mount", "--name", &layer, "base:1", "mnt"],
                &["catalog", "build", "base:1"],
                &["rmi", "tagged"],
                &["rmi", &other],
                &["rm", &layer],
                &["catalog", "rm", "base:1"],
                &["prune"],
            ] {
                match run(&home, "theirs/store", args).code {
                    Some(0) => done += 1,
                    _ => refused += 1,
                }
                // Whatever happened to the store, a mount of ours may be left.
                run(&home, "theirs/store", &["umount", "mnt"]);
            }
        }
        over.store(true, Ordering::Relaxed);
        assert!(flips.join().unwrap() > ROUNDS, "the name was exchanged");
    });
    assert!(done > 0 && refused > 0, "done {done}, refused {refused}");
    assert_eq!(state_of(&home.path("secret")), before);
}

/// Commands that change the store.
const WRITERS: [&[&str]; 8] = [
    &["import", "tree", "new:1"],
    &["tag", "base:1", "new:1"],
    &["rmi", "base:1"],
    &["rm", "layer"],
    &["prune"],
    &["mount", "--name", "layer", "base:1", "mnt"],
    &["mount", "--ephemeral", "base:1", "mnt"],
    &["mount", "base:1", "mnt"],
];

#[test]
fn root_does_not_write_to_a_store_of_another_user() {
    need!(can_mount());
    let home = with_stores(&["theirs"]);
    give_away(&home.path("theirs"));
    let before = state_of(&home.path("theirs"));
    for args in WRITERS {
        let words = ["another user may change", "ID 65534", "run the command as"];
        run(&home, "theirs", args).failed(1, &words);
    }
    assert_eq!(state_of(&home.path("theirs")), before);
    // Reading is safe.
    let images = run(&home, "theirs", &["images"]).ok();
    assert!(images.contains("base"), "{images}");
    run(&home, "theirs", &["mount", "--read-only", "base:1", "mnt"]).ok();
    assert!(home.path("mnt/file").exists());
    run(&home, "theirs", &["umount", "mnt"]).ok();
    // The same holds for a mount that keeps its changes in a store of root.
    let store = home.text("theirs");
    home.run(["--root", &store, "mount", "base:1", "mnt"])
        .code
        .filter(|code| *code == 0)
        .unwrap();
    home.run(["umount", "mnt"]).ok();
}

#[test]
fn root_does_not_write_to_a_store_that_others_may_write_to() {
    need!(can_mount());
    let home = with_stores(&["own"]);
    let chmod = |path: &str, mode| {
        fs::set_permissions(home.path(path), fs::Permissions::from_mode(mode)).unwrap();
    };
    for (path, mode, ours) in [
        ("own", 0o777, 0o700),
        ("own", 0o770, 0o700),
        ("own/unionfs", 0o777, 0o700),
        ("own/overlay2/l", 0o1777, 0o700),
        ("own/image/overlay2/layerdb/sha256", 0o775, 0o755),
    ] {
        chmod(path, mode);
        let words = ["another user may change", "chmod go-w"];
        run(&home, "own", &["tag", "base:1", "new:1"]).failed(1, &words);
        chmod(path, ours);
    }
    chmod("own/rw", 0o777);
    let words = ["another user may change", "own/rw", "chmod go-w"];
    run(&home, "own", &["mount", "--ephemeral", "base:1", "mnt"]).failed(1, &words);
    // In a sticky directory no other user can rename root's files.
    chmod("own", 0o1777);
    run(&home, "own", &["tag", "base:1", "new:1"]).ok();
    assert_eq!(
        home.path("own/unionfs").metadata().unwrap().mode() & 0o7777,
        0o700
    );
}

#[test]
fn a_new_store_is_for_its_user_only() {
    let home = Home::new();
    home.dirs(&["tree"]);
    run(
        &home,
        "new/store",
        &["import", "-q", &home.text("tree"), "base:1"],
    )
    .ok();
    for dir in ["new/store", "new/store/unionfs", "new/store/image"] {
        assert_eq!(
            home.path(dir).metadata().unwrap().mode() & 0o7777,
            0o700,
            "{dir}"
        );
    }
}

/// System calls that look a path up.
const BY_PATH: [&str; 22] = [
    "open(",
    "openat(",
    "creat(",
    "mkdir",
    "rename",
    "unlink",
    "rmdir(",
    "symlink",
    "link(",
    "linkat(",
    "chmod(",
    "fchmodat",
    "chown(",
    "lchown(",
    "fchownat(",
    "mknod",
    "truncate(",
    "utimensat(",
    "chdir(",
    "xattr(",
    "statfs(",
    "access",
];

#[test]
fn no_path_into_the_store_is_given_to_the_kernel_but_to_open_a_directory_without_symlinks() {
    need!(can_mount());
    need!(has_tools(&["strace"]));
    let home = with_stores(&["own"]);
    let tree = home.text("tree");
    run(
        &home,
        "own",
        &["save", "-q", "-o", &home.text("base.tar"), "base:1"],
    )
    .ok();
    let commands: [&[&str]; 9] = [
        &["import", "-q", &tree, "more:1"],
        &["load", "-q", "-i", "base.tar"],
        &["tag", "base:1", "tagged:1"],
        &["mount", "--ephemeral", "base:1", "mnt"],
        &["mount", "--name", "layer", "base:1", "mnt"],
        &["commit", "layer", "new:1"],
        &["rm", "layer"],
        &["rmi", "new:1"],
        &["prune"],
    ];
    let store = format!("\"{}/", home.text("own"));
    let (mut checked, mut opened) = (0, 0);
    for args in commands {
        let trace = home.path("trace");
        let mut strace = command(&home, "own", &[]);
        strace = {
            let mut with = home.command("strace");
            with.envs(strace.get_envs().filter_map(|(k, v)| Some((k, v?))));
            with
        };
        strace
            .args(["-f", "-s", "4096", "-o"])
            .arg(&trace)
            .arg(program());
        let mut child = strace.args(args).stdout(Stdio::null()).spawn().unwrap();
        if args[0] == "mount" {
            testkit::home::wait_until("it is mounted", || {
                home.run(["stats", "mnt"]).code == Some(0)
            });
            run(&home, "own", &["umount", "mnt"]).ok();
        }
        assert!(child.wait().unwrap().success(), "{args:?}");
        for line in strace::text(&trace).lines() {
            let call = line
                .split_once(' ')
                .map_or("", |(_, call)| call.trim_start());
            checked += 1;
            if !call.contains(&store) {
                continue;
            }
            assert!(
                !BY_PATH.iter().any(|name| call.starts_with(name)),
                "{args:?}: {line}"
            );
            if call.starts_with("openat2(") {
                let plain = ["O_PATH", "RESOLVE_NO_SYMLINKS"];
                assert!(
                    plain.iter().all(|flag| call.contains(flag)),
                    "{args:?}: {line}"
                );
                opened += 1;
            }
        }
    }
    // The command opens the directory of catalogs in this way.
    assert!(checked > 1000 && opened > 0, "{checked} calls, {opened}");
}

#[test]
fn what_another_user_put_in_the_place_of_an_output_file_is_not_written_to() {
    need!(can_mount());
    let home = with_stores(&["own"]);
    home.dirs(&["shared", "private"]);
    fs::set_permissions(home.path("shared"), fs::Permissions::from_mode(0o1777)).unwrap();
    fs::write(home.path("private/victim"), "content").unwrap();
    let (out, victim) = (home.path("shared/out"), home.path("private/victim"));
    let save = || {
        run(
            &home,
            "own",
            &["save", "-q", "-o", &home.text("shared/out"), "base:1"],
        )
    };
    // The target of the symlink stays; the symlink is replaced.
    for theirs in [
        |victim: &Path, out: &Path| symlink(victim, out),
        |victim: &Path, out: &Path| fs::hard_link(victim, out),
    ] {
        theirs(&victim, &out).unwrap();
        lchown(&out, USER, USER).unwrap();
        save().ok();
        assert_eq!(fs::read(&victim).unwrap(), b"content");
        assert!(out.symlink_metadata().unwrap().is_file());
        fs::remove_file(&out).unwrap();
    }
    // Nothing is written to a device or to a pipe of the user.
    symlink("/dev/null", &out).unwrap();
    lchown(&out, USER, USER).unwrap();
    save().failed(1, &["another user may change"]);
    fs::remove_file(&out).unwrap();
    let fifo = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(CWD, &out, fifo, 0o666.into(), 0).unwrap();
    lchown(&out, USER, USER).unwrap();
    save().failed(1, &["another user may change"]);
    fs::remove_file(&out).unwrap();
    // Root's own symlink to a device is followed, and no staging file is left.
    symlink("/dev/null", &out).unwrap();
    save().ok();
    assert_eq!(fs::read_dir(home.path("shared")).unwrap().count(), 1);
    run(&home, "own", &["save", "-q", "-o", "/dev/stdout", "base:1"])
        .code
        .filter(|code| *code == 0)
        .unwrap();
    // The same holds for manual pages.
    fs::create_dir(home.path("shared/man1")).unwrap();
    symlink(&victim, home.path("shared/man1/unionfs.1")).unwrap();
    lchown(home.path("shared/man1/unionfs.1"), USER, USER).unwrap();
    run(&home, "own", &["man", &home.text("shared")]).ok();
    assert_eq!(fs::read(&victim).unwrap(), b"content");
    assert!(
        home.path("shared/man1/unionfs.1")
            .symlink_metadata()
            .unwrap()
            .is_file()
    );
}
