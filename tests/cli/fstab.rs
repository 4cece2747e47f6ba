//! Lines of fstab, mount(8) and service managers: images by name, remount, exit codes, readiness. mount(8) is not called, because
//! it only finds helpers in system directories; the arguments are those that it passes
//! (`ci/package-test.sh` installs the helper and calls mount(8)).

use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Duration;

use testkit::home::{Home, Outcome};
use testkit::need::{Needed, can_mount, has_tools};
use testkit::store::sample;
use testkit::{need, program};

/// A home with the sample store, and the path of its mount helper.
fn home_with_helper() -> (Home, PathBuf) {
    let home = Home::new();
    sample::make(&home.path("docker")).unwrap();
    std::fs::create_dir(home.path("mnt")).unwrap();
    let helper = home.path("mount.unionfs");
    std::os::unix::fs::symlink(program(), &helper).unwrap();
    (home, helper)
}

/// Calls a program as mount(8) calls helpers; `ROOT` in the options is the sample store.
fn call(home: &Home, program: &Path, source: &str, options: &str) -> Outcome {
    let options = options.replace("ROOT", home.path("docker").to_str().unwrap());
    let mut command = home.command(program);
    command.args([source, "mnt", "-o", &options]);
    Outcome::from(command.output().unwrap())
}

/// Returns the flags of the only mount.
fn flags_of(home: &Home) -> Vec<String> {
    let mounts = home.mounts();
    assert_eq!(mounts.len(), 1, "{mounts:?}");
    let flags = mounts[0].split(' ').nth(3).unwrap();
    flags.split(',').map(str::to_owned).collect()
}

#[test]
fn the_source_is_an_image() {
    need!(can_mount());
    let (home, helper) = home_with_helper();
    let with_layer = "rw,root=ROOT,name=kept,x-systemd.automount,nofail,_netdev";
    call(&home, &helper, "sample:2", with_layer).ok();
    assert!(home.mounts()[0].starts_with("sample:2 "));
    std::fs::write(home.path("mnt/new"), "x").unwrap();
    home.run(["umount", "mnt"]).ok();
    // The changes are in the layer of that name.
    call(&home, &helper, "none", "name=kept").ok();
    assert_eq!(std::fs::read(home.path("mnt/new")).unwrap(), b"x");
    home.run(["umount", "mnt"]).ok();
    call(&home, &helper, "sample:2", "ro,root=ROOT").ok();
    assert!(flags_of(&home).contains(&"ro".to_owned()));
    assert!(!home.path("mnt/new").exists());
    home.run(["umount", "mnt"]).ok();
}

/// x-systemd.automount: the first access waits for the mount, and the daemon does not wait for itself.
#[test]
fn an_automount_point_is_mounted_at_the_first_access() {
    need!(can_mount());
    need!(has_tools(&["python3", "unshare"]));
    need!(has_autofs());
    let (home, helper) = home_with_helper();
    for options in ["root=ROOT,ephemeral", "root=ROOT,ephemeral,sandbox=off"] {
        let options = options.replace("ROOT", home.path("docker").to_str().unwrap());
        let script = r#"
            python3 -c "$0" "$2" "$1" sample:2 "$2" -o "$3"
            setsid ls -A "$2" | sort | tr '\n' ' '; grep -c " $2 fuse" /proc/self/mounts
            umount "$2"; umount "$2""#;
        let mut command = home.command("unshare");
        command.args(["-m", "--propagation=private", "sh", "-ec", script]);
        command.arg(include_str!("automount.py")).arg(&helper);
        command.arg(home.path("mnt")).arg(&options);
        let seen = Outcome::from(command.output().unwrap()).ok_with_progress();
        let (first, rest) = seen.split_once('\n').unwrap();
        assert!(
            !first.is_empty() && rest == format!("{first} 1\n"),
            "{options}: {seen:?}"
        );
    }
}

/// Whether the kernel has autofs. (A mount needs its pipe.)
fn has_autofs() -> Needed {
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if known.split_whitespace().any(|name| name == "autofs") {
        Ok(())
    } else {
        Err("the kernel has no autofs".into())
    }
}

#[test]
fn options_name_the_image_and_where_changes_go() {
    need!(can_mount());
    let (home, helper) = home_with_helper();
    call(&home, &helper, "none", "image=sample:1,root=ROOT,ephemeral").ok();
    std::fs::write(home.path("mnt/gone"), "x").unwrap();
    home.run(["umount", "mnt"]).ok();
    for dir in ["u", "w"] {
        std::fs::create_dir(home.path(dir)).unwrap();
    }
    let upper = format!(
        "root=ROOT,upperdir={},workdir={}",
        home.path("u").display(),
        home.path("w").display()
    );
    call(&home, &helper, "sample:1", &upper).ok();
    assert!(!home.path("mnt/gone").exists());
    std::fs::write(home.path("mnt/here"), "x").unwrap();
    home.run(["umount", "mnt"]).ok();
    assert_eq!(std::fs::read(home.path("u/here")).unwrap(), b"x");
    call(&home, &helper, "none", "root=ROOT,container=sample").ok();
    home.run(["umount", "mnt"]).ok();
    // As fuse-overlayfs, the program knows no images.
    let peer = home.path("fuse-overlayfs");
    std::os::unix::fs::symlink(program(), &peer).unwrap();
    let outcome = call(&home, &peer, "sample:1", "root=ROOT,image=sample:1");
    outcome.failed(2, &["lowerdir"]);
}

#[test]
fn wrong_lines_get_the_exit_codes_of_mount() {
    need!(can_mount());
    let (home, helper) = home_with_helper();
    let cases = [
        // Wrong usage is 1 in mount(8), a failed mount 32.
        ("sample:9", "root=ROOT", 32, "no image"),
        (
            "sample:1",
            "root=ROOT,name=a,ephemeral",
            1,
            "give one of them",
        ),
        ("sample:1", "root=ROOT,name=", 1, "names nothing"),
        ("sample:1", "root=ROOT,upperdir=u", 1, "workdir"),
        ("none", "root=ROOT,name=absent", 32, "absent"),
        ("none", "ro", 1, "lowerdir"),
        ("src", "ro,lowerdir=absent", 32, "absent"),
    ];
    for (source, options, code, words) in cases {
        let outcome = call(&home, &helper, source, options);
        outcome.failed(code, &[words]);
        assert_eq!(home.mounts(), Vec::<String>::new(), "{source} {options}");
    }
    // The options are for the helper: `unionfs mount` has others.
    home.run(["mount", "-o", "image=sample:1", "sample:1", "mnt"])
        .failed(2, &["--name"]);
}

#[test]
fn remount_changes_the_flags_and_nothing_else() {
    need!(can_mount());
    let (home, helper) = home_with_helper();
    call(&home, &helper, "sample:1", "rw,root=ROOT,ephemeral").ok();
    let again = |options: &str| call(&home, &helper, "sample:1", options);
    // mount(8) repeats what is in fstab.
    again("ro,remount,root=ROOT,ephemeral").ok();
    assert!(flags_of(&home).contains(&"ro".to_owned()));
    let refused = std::fs::write(home.path("mnt/a"), "x").unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
    again("rw,remount").ok();
    let file = std::fs::File::create(home.path("mnt/a")).unwrap();
    again("remount,ro").failed(32, &["open for writing"]);
    drop(file);
    again("remount,noexec").ok();
    let flags = flags_of(&home);
    // What is not mentioned stays.
    for flag in ["rw", "noexec", "nosuid", "nodev"] {
        assert!(flags.contains(&flag.to_owned()), "{flag}: {flags:?}");
    }
    home.run(["umount", "mnt"]).ok();
    again("remount,ro").failed(32, &["mnt"]);
}

#[test]
fn a_mount_without_an_upper_stays_read_only() {
    need!(can_mount());
    let (home, helper) = home_with_helper();
    call(&home, &helper, "sample:1", "ro,root=ROOT").ok();
    call(&home, &helper, "sample:1", "remount,rw").failed(1, &["stays read-only"]);
    assert!(flags_of(&home).contains(&"ro".to_owned()));
    home.run(["umount", "mnt"]).ok();
}

#[test]
fn a_service_manager_hears_when_the_mount_answers() {
    need!(can_mount());
    let (home, _) = home_with_helper();
    let path = home.path("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let mut command = home.command(program());
    command
        .env("NOTIFY_SOCKET", &path)
        .args(["--root", &home.text("docker")])
        .args(["mount", "--foreground", "--read-only", "sample:1", "mnt"]);
    let mut server = command.spawn().unwrap();
    let mut message = [0; 64];
    let size = manager.recv(&mut message).unwrap();
    assert_eq!(&message[..size], b"READY=1\n");
    assert!(home.path("mnt/etc").is_dir());
    home.run(["umount", "mnt"]).ok();
    assert!(server.wait().unwrap().success());
}
