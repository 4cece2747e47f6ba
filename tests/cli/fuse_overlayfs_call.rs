//! The interface for programs that call fuse-overlayfs (design: "contracts of those who call us"),
//! tested from outside: versions, names, forms of options. The parser has unit tests of its own.

use std::os::unix::fs::symlink;
use std::path::PathBuf;

use testkit::home::{Home, Outcome};
use testkit::need::can_mount;
use testkit::{need, program};

/// Installs the program under another name.
fn called(home: &Home, name: &str) -> PathBuf {
    let link = home.path(name);
    symlink(program(), &link).unwrap();
    link
}

#[test]
fn version() {
    let home = Home::new();
    let ours = format!("unionfs {}\n", env!("CARGO_PKG_VERSION"));
    for flag in ["--version", "-V"] {
        assert_eq!(home.run([flag]).ok(), ours);
        let link = called(&home, &format!("fuse-overlayfs{flag}"));
        let outcome = Outcome::from(home.command(&link).arg(flag).output().unwrap());
        let text = outcome.ok();
        let mut lines = text.lines();
        // As callers parse it: the last word of the line is a version.
        let line = lines.next().unwrap();
        let number = line.strip_prefix("fuse-overlayfs: version ").unwrap();
        let (major, minor) = number.split_once('.').unwrap();
        let version: (u32, u32) = (major.parse().unwrap(), minor.parse().unwrap());
        assert!(version >= (1, 10), "{line}");
        assert_eq!(lines.next(), Some(ours.trim_end()));
    }
}

#[test]
fn help() {
    let home = Home::new();
    let link = called(&home, "fuse-overlayfs");
    let outcome = Outcome::from(home.command(&link).arg("--help").output().unwrap());
    assert!(outcome.ok().contains("lowerdir="));
}

#[test]
fn relative_layers_and_odd_names() {
    need!(can_mount());
    let home = Home::with_layers();
    home.dirs(&["l/a:b", "l/c,d", "l/e\\f", "u,u", "w w"]);
    for (name, file) in [("l/a:b", "1"), ("l/c,d", "2"), ("l/e\\f", "3")] {
        std::fs::write(home.path(name).join(file), file).unwrap();
    }
    let options =
        r"lowerdir=l/a\:b:l/c\,d:l/e\\f,,upperdir=u\,u,workdir=w w,volatile,private,xino=off";
    assert_eq!(home.run(["-o", options, "mnt"]).ok(), "");
    for file in ["1", "2", "3"] {
        assert_eq!(
            std::fs::read_to_string(home.path("mnt").join(file)).unwrap(),
            file
        );
    }
    std::fs::write(home.path("mnt/new"), "new").unwrap();
    assert!(home.path("u,u/new").exists());
    home.run(["umount", "mnt"]).ok();
}

/// fuse-overlayfs follows no redirects, so under its name the program writes none unless an option
/// requests it.
#[test]
fn directories_of_lowers_stay_where_they_are() {
    need!(can_mount());
    let home = Home::with_layers();
    let link = called(&home, "fuse-overlayfs");
    home.dirs(&["lower/dir"]);
    std::fs::write(home.path("lower/dir/file"), "file").unwrap();
    for (more, errno) in [("", libc::EXDEV), (",redirect_dir=on", 0)] {
        let options = format!("lowerdir=lower,upperdir=upper,workdir=work{more}");
        let mut mount = home.command(&link);
        let mount = mount.args(["-o", &options, "mnt"]);
        Outcome::from(mount.output().unwrap()).ok();
        let renamed = std::fs::rename(home.path("mnt/dir"), home.path("mnt/moved"));
        let got = renamed.map_or_else(|e| e.raw_os_error().unwrap(), |()| 0);
        assert_eq!(got, errno, "{options}");
        home.run(["umount", "mnt"]).ok();
    }
}

#[test]
fn two_positionals_and_the_source() {
    need!(can_mount());
    let home = Home::with_layers();
    let helper = called(&home, "mount.unionfs");
    let cases: [(PathBuf, &[&str], &str); 4] = [
        (
            program().into(),
            &["overlay", "mnt", "-o", "lowerdir=lower"],
            "unionfs",
        ),
        (
            program().into(),
            &["-olowerdir=lower,fsname=my src", "mnt"],
            "my\\040src",
        ),
        (
            helper.clone(),
            &["layers", "mnt", "-o", "rw,lowerdir=lower"],
            "layers",
        ),
        (
            helper,
            &["layers", "mnt", "-o", "lowerdir=lower,fsname=x"],
            "x",
        ),
    ];
    for (program, args, source) in cases {
        assert_eq!(
            Outcome::from(home.command(&program).args(args).output().unwrap()).ok(),
            ""
        );
        let mounts = home.mounts();
        assert_eq!(mounts.len(), 1, "{args:?}: {mounts:?}");
        let fields: Vec<&str> = mounts[0].split(' ').collect();
        assert_eq!((fields[0], fields[2]), (source, "fuse.unionfs"));
        assert!(
            fields[3].split(',').any(|o| o == "ro"),
            "no upper is read-only: {fields:?}"
        );
        home.run(["umount", "mnt"]).ok();
    }
}

#[test]
fn flags_of_the_mount() {
    need!(can_mount());
    let home = Home::with_layers();
    let layers = "lowerdir=lower,upperdir=upper,workdir=work";
    for (extra, present, absent) in [
        ("", "rw", "nodev"),
        (
            ",nodev,nosuid,noexec,noatime",
            "nodev,nosuid,noexec,noatime",
            "ro",
        ),
        (",nodev,dev,suid", "rw", "nodev"),
        (",ro", "ro", "rw"),
    ] {
        home.run(["-o", &format!("{layers}{extra}"), "mnt"]).ok();
        let line = home.mounts().remove(0);
        let flags: Vec<&str> = line.split(' ').nth(3).unwrap().split(',').collect();
        for flag in present.split(',') {
            assert!(flags.contains(&flag), "{extra}: no {flag} in {flags:?}");
        }
        assert!(!flags.contains(&absent), "{extra}: {absent} in {flags:?}");
        home.run(["umount", "mnt"]).ok();
    }
}

#[test]
fn a_full_mountpoint_is_covered() {
    need!(can_mount());
    let home = Home::with_layers();
    std::fs::write(home.path("mnt/covered"), "").unwrap();
    home.mount();
    assert!(!home.path("mnt/covered").exists() && home.path("mnt/file").exists());
    home.run(["umount", "mnt"]).ok();
    assert!(home.path("mnt/covered").exists());
}

#[test]
fn five_hundred_lowers() {
    need!(can_mount());
    let home = Home::with_layers();
    let names: Vec<String> = (0..500).map(|n| format!("l/{n}")).collect();
    for name in &names {
        home.dirs(&[name]);
        std::fs::write(home.path(name).join("top"), name).unwrap();
        std::fs::write(home.path(name).join(&name[2..]), name).unwrap();
    }
    let options = format!("lowerdir={}", names.join(":"));
    home.run(["-o", &options, "mnt"]).ok();
    assert_eq!(
        std::fs::read_to_string(home.path("mnt/top")).unwrap(),
        "l/0"
    );
    assert_eq!(std::fs::read_dir(home.path("mnt")).unwrap().count(), 501);
    home.run(["umount", "mnt"]).ok();
}

#[test]
fn mount_helper_fake_mounts_nothing() {
    need!(can_mount());
    let home = Home::with_layers();
    let helper = called(&home, "mount.unionfs");
    let args = ["src", "mnt", "-f", "-o", "lowerdir=lower"];
    assert_eq!(
        Outcome::from(home.command(helper).args(args).output().unwrap()).ok(),
        ""
    );
    assert_eq!(home.mounts(), Vec::<String>::new());
}
