//! Bad input: each error is one line with the path and the remedy and an exit code; nothing is
//! mounted and nothing is written. tests/store tests bad stores.

use std::os::unix::fs::symlink;

use testkit::home::{Home, LAYERS};
use testkit::need::{can_mount, has_tools};
use testkit::{need, program};

fn layers(options: &str) -> [&str; 3] {
    ["-o", options, "mnt"]
}

#[test]
fn mountpoints() {
    let home = Home::with_layers();
    let mount = |target| ["-o", "lowerdir=lower", target];
    home.refused(1, mount("absent"), &["mountpoint", "/absent", "mkdir"]);
    home.refused(1, mount("absent/below"), &["mountpoint", "absent/below"]);
    home.refused(1, mount("lower/file"), &["lower/file", "not a directory"]);
    symlink("loop", home.path("loop")).unwrap();
    home.refused(1, mount("loop"), &["loop"]);
    home.refused(2, ["-o", "lowerdir=lower"], &["no mountpoint"]);
    home.refused(2, ["-o", "lowerdir=lower", "a", "b", "c"], &["mountpoint"]);
}

#[test]
fn mountpoints_of_images_must_be_empty() {
    let home = Home::with_layers();
    home.dirs(&["full/entry"]);
    home.refused(
        1,
        ["mount", "x", "full"],
        &["/full", "not empty", "-o nonempty"],
    );
    home.refused(1, ["mount", "x", "absent"], &["/absent", "mkdir"]);
    home.refused(1, ["mount", "x", "lower/file"], &["not a directory"]);
}

#[test]
fn missing_layers() {
    let home = Home::with_layers();
    home.refused(
        1,
        layers("lowerdir=lower:gone"),
        &["lower layer gone", "does not exist"],
    );
    home.refused(
        1,
        layers("lowerdir=lower/file"),
        &["lower/file", "not a directory"],
    );
    home.refused(
        1,
        layers("lowerdir=lower::gone"),
        &["gone", "does not exist"],
    );
    home.refused(
        1,
        layers("lowerdir=lower,upperdir=gone,workdir=work"),
        &["upper directory gone", "create it"],
    );
    home.refused(
        1,
        layers("lowerdir=lower,upperdir=upper,workdir=gone"),
        &["work directory gone", "create it"],
    );
    home.refused(2, layers("lowerdir=lower,upperdir=upper"), &["workdir"]);
    home.refused(2, layers("ro"), &["lowerdir"]);
}

#[test]
fn layers_inside_each_other() {
    let home = Home::with_layers();
    home.dirs(&["lower/in", "upper/in", "work/in", "work/mnt"]);
    symlink("lower/in", home.path("link")).unwrap();
    let cases = [
        (
            "lowerdir=lower,upperdir=lower,workdir=work",
            "upper directory",
        ),
        (
            "lowerdir=lower,upperdir=lower/in,workdir=work",
            "upper directory",
        ),
        (
            "lowerdir=lower,upperdir=link,workdir=work",
            "upper directory",
        ),
        (
            "lowerdir=upper/in,upperdir=upper,workdir=work",
            "lower layer",
        ),
        (
            "lowerdir=lower,upperdir=upper,workdir=lower/in",
            "work directory",
        ),
        (
            "lowerdir=work/in,upperdir=upper,workdir=work",
            "lower layer",
        ),
        (
            "lowerdir=lower,upperdir=upper,workdir=upper",
            "upper directory",
        ),
        (
            "lowerdir=lower,upperdir=upper,workdir=upper/in",
            "work directory",
        ),
        (
            "lowerdir=lower,upperdir=work/in,workdir=work",
            "upper directory",
        ),
    ];
    for (options, role) in cases {
        home.refused(
            1,
            layers(options),
            &[role, "is or lies inside", "separate directories"],
        );
    }
}

#[test]
fn mounting_over_a_layer() {
    let home = Home::with_layers();
    home.dirs(&["lower/mnt", "upper/mnt", "work/mnt"]);
    for target in [
        "lower",
        "lower/mnt",
        "upper",
        "upper/mnt",
        "work",
        "work/mnt",
    ] {
        let args = [LAYERS[0], LAYERS[1], target];
        home.refused(1, args, &["mountpoint", target, "mounting over a layer"]);
    }
}

#[test]
fn upper_and_work_on_different_file_systems() {
    need!(has_tools(&["unshare", "mount"]));
    need!(can_mount());
    let home = Home::with_layers();
    // First another file system, then the same one mounted a second time.
    for mount in ["mount -t tmpfs none work", "mount --bind work work"] {
        let script = format!("{mount} && exec \"$0\" \"$@\"");
        let outcome = home
            .command("unshare")
            .args(["-m", "sh", "-c", &script, program()])
            .args(LAYERS)
            .output()
            .unwrap();
        let words = [
            "upper directory",
            "work directory",
            "different file systems",
        ];
        testkit::home::Outcome::from(outcome).failed(1, &words);
    }
}

#[test]
fn too_many_lowers() {
    let home = Home::with_layers();
    let options = format!("lowerdir={}", vec!["lower"; 501].join(":"));
    home.refused(1, layers(&options), &["501", "500"]);
}

#[test]
fn options() {
    let home = Home::with_layers();
    for (option, why) in [
        ("uidmapping=:0:100000", "divisible by three"),
        ("gidmapping=0:0:10:5:5:10", "have IDs in common"),
        ("gidmapping=5:5:4294967295", "beyond the last ID"),
        ("uidmapping=0:-1:10", "not all fields are numbers"),
        ("squash_to_uid=me", "not an ID"),
        ("xattr_permissions=3", "is not known"),
    ] {
        home.refused(
            2,
            layers(&format!("lowerdir=lower,{option}")),
            &[option, why],
        );
    }
    home.refused(2, layers("lowerdir=lower,dialect=x"), &["dialect=x"]);
    home.refused(2, layers("lowerdir=lower:"), &["empty directory name"]);
    home.refused(2, ["-z", "-o", "lowerdir=lower", "mnt"], &["-z"]);
    for option in ["lowerdir=lower", "upperdir=upper", "dialect=all"] {
        home.refused(2, ["mount", "-o", option, "x", "mnt"], &["mount IMAGE"]);
    }
    // Without a mountpoint one is made, but not for an image that does not exist.
    home.run(["mount", "x"]).failed(1, &["no image"]);
    home.refused(
        2,
        ["mount", "--container", "x", "y", "mnt"],
        &["--container"],
    );
    home.refused(
        2,
        ["mount", "-oro", "--ephemeral", "x", "mnt"],
        &["contradicts"],
    );
}

#[test]
fn usage_mistakes_exit_with_2() {
    let home = Home::new();
    for args in [
        &[][..],
        &["nonsense"],
        &["mount"],
        &["mount", "--upper", "u", "x", "mnt"],
        &["mount", "--read-only", "--ephemeral", "x", "mnt"],
        &["stats"],
        &["completions", "nosuchshell"],
    ] {
        let outcome = home.run(args);
        assert_eq!(outcome.code, Some(2), "{args:?}: {outcome:?}");
        assert!(outcome.stdout.is_empty() && !outcome.stderr.is_empty());
    }
}

#[test]
fn nothing_mounted_there() {
    let home = Home::with_layers();
    home.refused(1, ["umount", "mnt"], &["nothing is mounted", "unionfs ps"]);
    home.refused(1, ["umount", "absent/x"], &["absent/x"]);
    home.refused(
        1,
        ["umount", "/proc"],
        &["/proc", "not a unionfs mount", "umount(8)"],
    );
    home.refused(1, ["stats", "mnt"], &["mnt", "unionfs ps"]);
}

#[test]
fn no_store_and_no_image() {
    let home = Home::with_layers();
    let root = home.text("lower");
    for command in ["images", "layers"] {
        home.refused(
            1,
            [command, "--root", &root],
            &["lower", "not an image store"],
        );
    }
    home.refused(
        1,
        ["mount", "--root", &root, "x", "mnt"],
        &["not an image store"],
    );
}

/// Runs the program in a mount namespace of its own, which `change` changes first.
fn in_namespace(home: &Home, change: &str, prefix: &[&str]) -> testkit::home::Outcome {
    let script = format!("{change} && exec \"$@\"");
    home.command("unshare")
        .args(["-m", "sh", "-c", &script, "sh"])
        .args(prefix)
        .arg(program())
        .args(LAYERS)
        .output()
        .unwrap()
        .into()
}

#[test]
fn no_fuse_device() {
    need!(has_tools(&["unshare", "mount"]));
    need!(can_mount());
    let home = Home::with_layers();
    let before = home.snapshot();
    let outcome = in_namespace(&home, "mount -t tmpfs none /dev", &[]);
    outcome.failed(1, &["/dev/fuse", "modprobe fuse"]);
    assert_eq!(home.snapshot(), before);
}

#[test]
fn no_fusermount() {
    need!(has_tools(&["unshare", "mount", "setpriv"]));
    need!(can_mount());
    let home = Home::with_layers();
    let user = [
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
    ];
    let hide = "for f in /bin/fusermount /bin/fusermount3; do \
                [ ! -e $f ] || mount --bind /dev/null $f; done";
    let before = home.snapshot();
    // The user must be able to reach the program, wherever it was built.
    let program = home.path("unionfs");
    std::fs::copy(testkit::program(), &program).unwrap();
    let script = format!("{hide} && exec \"$@\"");
    let outcome: testkit::home::Outcome = home
        .command("unshare")
        .args(["-m", "sh", "-c", &script, "sh"])
        .args(user)
        .arg(&program)
        .args(["-o", "lowerdir=lower", "mnt"])
        .output()
        .unwrap()
        .into();
    std::fs::remove_file(&program).unwrap();
    outcome.failed(1, &["fusermount3", "install", "fuse3"]);
    let lines = |text: &str| text.lines().count();
    assert_eq!(lines(&home.snapshot()), lines(&before));
}
