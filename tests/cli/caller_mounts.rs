//! The way of Apptainer: the caller opens /dev/fuse, mounts it, and passes the descriptor as
//! `/dev/fd/N` in the place of the mountpoint.

use std::os::unix::fs::{MetadataExt as _, chown};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::Signal;
use testkit::home::{Home, Outcome, kill, wait_until};
use testkit::need::{can_mount, has_tools, is_root};
use testkit::{need, program};

const CALLER: &str = include_str!("caller_mounts.py");
const APPTAINER: &str = "noacl,lowerdir=lower,upperdir=upper,workdir=work";

fn needs() -> need::Needed {
    is_root()?;
    can_mount()?;
    has_tools(&["python3"])
}

fn caller(home: &Home, place: &str, uid: &str, extra: &str, arguments: &[&str]) -> Command {
    let mut command = home.signalled("python3");
    command.args(["-c", CALLER, program(), place, uid, extra]);
    command.args(arguments).stderr(Stdio::piped());
    command
}

fn start(home: &Home, uid: &str, extra: &str) -> Child {
    let arguments = ["-f", "-o", APPTAINER];
    let started = caller(home, "mnt", uid, extra, &arguments).spawn().unwrap();
    // The first call waits until the mount is served.
    wait_until("the caller has mounted", || !home.mounts().is_empty());
    started
}

fn end(mut server: Child) {
    let status = server.wait().unwrap();
    let mut errors = String::new();
    std::io::Read::read_to_string(&mut server.stderr.take().unwrap(), &mut errors).unwrap();
    assert!(status.success() && errors.is_empty(), "{status}: {errors}");
}

fn use_tree(mnt: &Path) {
    assert_eq!(std::fs::read_to_string(mnt.join("file")).unwrap(), "file");
    std::fs::write(mnt.join("new"), "new").unwrap();
    std::fs::remove_file(mnt.join("gone")).unwrap();
    std::fs::rename(mnt.join("file"), mnt.join("moved")).unwrap();
    let mut names: Vec<_> = std::fs::read_dir(mnt)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["moved", "new", "secret"]);
}

fn home() -> Home {
    let home = Home::with_layers();
    for name in ["file", "gone", "secret"] {
        std::fs::write(home.path("lower").join(name), name).unwrap();
    }
    testkit::mount::chmod(&home.path("lower/secret"), 0o600);
    home
}

/// The caller unmounts, and the server ends. It has no record: there is no path to the mount.
#[test]
fn a_mount_of_the_caller_is_served() {
    need!(needs());
    let home = home();
    let server = start(&home, "0", "");
    use_tree(&home.path("mnt"));
    assert!(home.mounts()[0].starts_with("caller "));
    assert_eq!(home.run(["ps", "-q"]).ok(), "");
    unmount(home.path("mnt"), UnmountFlags::empty()).unwrap();
    end(server);
    assert!(home.path("upper/moved").exists());
    // In the background, as libfuse does it too.
    let outcome: Outcome = caller(&home, "mnt", "0", "", &["-o", APPTAINER])
        .output()
        .unwrap()
        .into();
    assert_eq!(outcome.ok(), "");
    assert!(home.path("mnt/moved").exists());
    unmount(home.path("mnt"), UnmountFlags::empty()).unwrap();
}

/// The set-uid form: root mounts, and a plain user's process serves.
#[test]
fn a_plain_user_serves_what_root_has_mounted() {
    need!(needs());
    let home = home();
    let base = home.path("");
    testkit::mount::chmod(&base, 0o755);
    for name in [
        "lower",
        "lower/file",
        "lower/gone",
        "lower/secret",
        "upper",
        "work",
        "run",
    ] {
        let path = home.path(name);
        if path.exists() {
            chown(path, Some(1000), Some(1000)).unwrap();
        }
    }
    let server = start(&home, "1000", "");
    let script = "cat file && echo more > new && rm gone && stat -c %u new";
    let output = Command::new("setpriv")
        .args([
            "--reuid=1000",
            "--regid=1000",
            "--clear-groups",
            "sh",
            "-ec",
        ])
        .arg(format!("cd {}; {script}", home.text("mnt")))
        .output()
        .unwrap();
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "file1000\n",
        "{output:?}"
    );
    unmount(home.path("mnt"), UnmountFlags::empty()).unwrap();
    end(server);
    let made = home.path("upper/new").metadata().unwrap();
    assert_eq!((made.uid(), made.gid()), (1000, 1000));
}

/// The caller mounts with `allow_other` and without `default_permissions`. The server has the rights
/// of root, and must not lend them to everybody, also where the layers have no ACLs.
#[test]
fn permissions_are_checked_whatever_the_caller_asked_for() {
    need!(needs());
    need!(has_tools(&["setpriv"]));
    for acls in ["with", "without"] {
        let home = home();
        testkit::mount::chmod(&home.path(""), 0o755);
        if acls == "without" {
            home.dirs(&["plain"]);
            let plain = home.path("plain");
            mount("plain", &plain, "ramfs", MountFlags::empty(), None).unwrap();
            home.dirs(&["plain/upper", "plain/work"]);
            for name in ["upper", "work"] {
                std::fs::remove_dir(home.path(name)).unwrap();
                std::os::unix::fs::symlink(plain.join(name), home.path(name)).unwrap();
            }
        }
        let arguments = ["-f", "-o", APPTAINER];
        let server = caller(&home, "mnt", "0", ",allow_other", &arguments)
            .spawn()
            .unwrap();
        wait_until("the caller has mounted", || {
            home.mounts().iter().any(|line| line.starts_with("caller "))
        });
        let as_other = |command: &str| {
            let text = format!("cd {}; {command}", home.text("mnt"));
            let setpriv = ["--reuid=1000", "--regid=1000", "--clear-groups", "sh", "-c"];
            let output = Command::new("setpriv").args(setpriv).arg(text).output();
            output.unwrap().status.success()
        };
        assert!(as_other("cat file"), "{acls} ACLs");
        assert!(!as_other("cat secret"), "{acls} ACLs");
        assert!(!as_other("echo > new"), "{acls} ACLs");
        assert!(!as_other("rm file"), "{acls} ACLs");
        assert!(home.path("mnt/secret").metadata().is_ok());
        unmount(home.path("mnt"), UnmountFlags::empty()).unwrap();
        end(server);
    }
}

/// A signal ends the server at once, as libfuse's. The mount is the caller's.
#[test]
fn a_signal_ends_the_server_and_leaves_the_mount() {
    need!(needs());
    let home = home();
    let server = start(&home, "0", "");
    assert!(home.path("mnt/file").exists());
    kill(server.id().cast_signed(), Signal::TERM);
    end(server);
    assert_eq!(home.mounts().len(), 1);
    let gone = std::fs::metadata(home.path("mnt")).unwrap_err();
    assert_eq!(gone.raw_os_error(), Some(libc::ENOTCONN));
}

#[test]
fn what_is_no_mount_of_the_caller() {
    need!(needs());
    let home = home();
    let run = |mut command: Command| -> Outcome { command.output().unwrap().into() };
    let open = caller(&home, "-", "0", "", &["-f", "-o", APPTAINER]);
    run(open).failed(1, &["/dev/fd/", "nobody has mounted"]);
    let mut none = home.command(program());
    none.args(["-f", "-o", APPTAINER, "/dev/fd/77"]);
    run(none).failed(1, &["/dev/fd/77", "does not exist"]);
    let mut stream = home.command(program());
    stream.args(["-f", "-o", APPTAINER, "/dev/fd/0"]);
    run(stream).failed(1, &["not a directory"]);
    assert!(home.mounts().is_empty());
}
