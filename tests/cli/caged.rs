//! Commands that read archives and registries enter their sandbox before they read the first byte,
//! and work wherever their stores and archives are.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::fs::{CWD, FileType, Mode};
use rustix::mount::UnmountFlags;
use testkit::home::{Home, wait_until};
use testkit::need::{can_mount, has_tools};
use testkit::{need, program};

/// Returns a line of /proc/PID/status.
pub(crate) fn status(pid: u32, name: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap_or_default()
        .trim_start_matches(':')
        .trim()
        .to_owned()
}

/// CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, FSETID, SYS_ADMIN, MKNOD, SETFCAP.
pub(crate) const KEPT: u64 = 1 | 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 21 | 1 << 27 | 1 << 31;

/// Tells whether the process waits for the first byte of its input: it is in read(2) and has read
/// nothing yet.
fn waits_to_read(pid: u32) -> bool {
    let call = fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap_or_default();
    let number = call
        .split_whitespace()
        .next()
        .and_then(|number| number.parse().ok());
    number == Some(libc::SYS_read)
}

/// Asserts that all threads of a command are in a sandbox with these capabilities, in which only
/// these places can be changed.
#[track_caller]
pub(crate) fn is_inside(pid: u32, kept: u64, may_be_changed: &[String]) {
    for thread in fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let thread = thread
            .unwrap()
            .file_name()
            .into_string()
            .unwrap()
            .parse()
            .unwrap();
        assert_eq!(status(thread, "Seccomp"), "2");
        assert_eq!(status(thread, "NoNewPrivs"), "1");
        for set in ["CapEff", "CapPrm", "CapBnd"] {
            assert_eq!(
                u64::from_str_radix(&status(thread, set), 16),
                Ok(kept),
                "{set}"
            );
        }
        for set in ["CapInh", "CapAmb"] {
            assert_eq!(
                u64::from_str_radix(&status(thread, set), 16),
                Ok(0),
                "{set}"
            );
        }
    }
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    let writable = mounts.lines().filter_map(|line| {
        let mut words = line.split_whitespace().skip(4);
        let (place, options) = (words.next()?, words.next()?);
        options
            .starts_with("rw,")
            .then_some((place, options.to_owned()))
    });
    for (place, options) in writable {
        assert!(may_be_changed.iter().any(|may| may == place), "{mounts}");
        for option in ["nosuid", "nodev", "noexec"] {
            assert!(options.contains(option), "{mounts}");
        }
    }
    // Open directories belong to this namespace.
    let ids: Vec<&str> = mounts
        .lines()
        .filter_map(|line| line.split(' ').next())
        .collect();
    for file in fs::read_dir(format!("/proc/{pid}/fdinfo")).unwrap() {
        let name = file.unwrap().file_name();
        let fd = Path::new("/proc")
            .join(pid.to_string())
            .join("fd")
            .join(&name);
        if !fd.metadata().is_ok_and(|meta| meta.is_dir()) {
            continue;
        }
        let info = fd
            .parent()
            .unwrap()
            .parent()
            .unwrap()
            .join("fdinfo")
            .join(&name);
        let info = fs::read_to_string(info).unwrap();
        let id = info
            .lines()
            .find_map(|line| line.strip_prefix("mnt_id:"))
            .unwrap();
        assert!(
            ids.contains(&id.trim()),
            "{:?} leads out: {info}",
            fs::read_link(fd)
        );
    }
}

/// Makes an archive of one image in the home's `a.tar`.
fn archive(home: &Home) -> Vec<u8> {
    home.dirs(&["rootfs"]);
    fs::write(home.path("rootfs/file"), "file").unwrap();
    home.run(["import", "-q", "rootfs", "app:1"]).ok();
    home.run(["save", "-q", "app:1", "-o", "a.tar"]).ok();
    fs::read(home.path("a.tar")).unwrap()
}

/// Starts the command with an inherited open directory, as a careless caller does.
pub(crate) fn start(home: &Home, args: &[&str]) -> Child {
    let mut command = home.command("sh");
    let script = ["-c", "exec 9< / && exec \"$@\"", "sh", program()];
    let pipes = command.args(script).args(args).stdin(Stdio::piped());
    pipes
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
fn an_archive_is_read_inside_of_the_sandbox() {
    need!(can_mount());
    let home = Home::new();
    let archive = archive(&home);
    let mut tar = tar::Builder::new(Vec::new());
    tar.append_dir_all(".", home.path("rootfs")).unwrap();
    let tar = tar.into_inner().unwrap();
    rustix::fs::mknodat(
        CWD,
        home.path("fifo"),
        FileType::Fifo,
        Mode::RUSR | Mode::WUSR,
        0,
    )
    .unwrap();
    let cases: [(&[&str], &[u8]); 4] = [
        (&["load", "-q"], &archive),
        (&["import", "-q", "-", "made:1"], &tar),
        (&["load", "-q", "-i", "fifo"], &archive),
        (&["import", "-q", "fifo", "made:2"], &tar),
    ];
    for (args, content) in cases {
        let mut child = start(&home, args);
        let mut input: Box<dyn io::Write> = if args.contains(&"fifo") {
            Box::new(
                fs::File::options()
                    .write(true)
                    .open(home.path("fifo"))
                    .unwrap(),
            )
        } else {
            Box::new(child.stdin.take().unwrap())
        };
        let pid = child.id();
        wait_until("it reads", || {
            status(pid, "Threads") != "1" && tasks(pid).into_iter().any(waits_to_read)
        });
        is_inside(pid, KEPT, &[home.text("own")]);
        input.write_all(content).unwrap();
        drop(input);
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{args:?}: {output:?}");
    }
}

fn tasks(pid: u32) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .flatten();
    tasks
        .filter_map(|task| task.file_name().to_str()?.parse().ok())
        .collect()
}

#[test]
fn a_registry_is_heard_inside_of_the_sandbox() {
    need!(can_mount());
    let home = Home::new();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let name = format!("127.0.0.1:{}/app", listener.local_addr().unwrap().port());
    let mut child = start(&home, &["pull", "-q", &name]);
    // The command has read no byte when it connects.
    let (_connection, _) = listener.accept().unwrap();
    is_inside(child.id(), KEPT, &[home.text("own")]);
    child.kill().unwrap();
    child.wait().unwrap();
}

/// The sandbox allows all inputs and stores that a command may be given.
#[test]
fn where_things_may_be() {
    need!(can_mount());
    need!(has_tools(&["sh", "mount", "umount", "unshare"]));
    let home = Home::new();
    let archive = archive(&home);
    home.dirs(&["disk", "real/own", "layout", "deep/er", "empty"]);
    fs::write(home.path("deep/er/a.tar"), archive).unwrap();
    symlink("deep/er", home.path("way")).unwrap();
    symlink("real", home.path("store-link")).unwrap();
    symlink("deep/er/a.tar", home.path("link.tar")).unwrap();
    let save = ["save", "-q", "app:1", "--format", "oci", "-o", "oci.tar"];
    home.run(save).ok();
    home.run_script("tar -xf oci.tar -C layout").ok();
    let cases = [
        // Forms of the store: relative, below a symlink, on another file system, inside of the
        // input.
        "unionfs --store real/own load -q -i a.tar",
        "unionfs --store store-link/own2 load -q -i a.tar",
        "cd deep; unionfs --store ../store-link/own3 load -q -i ../way/a.tar",
        "mount -t tmpfs none disk; unionfs --store disk/s load -q -i a.tar; unionfs --root disk/s verify --all; umount disk",
        "unionfs --store rootfs/own import -q rootfs in:1 && rm -rf rootfs/own",
        "cp a.tar real/own; unionfs --store real/own load -q -i real/own/a.tar",
        // Forms of the input.
        "unionfs load -q -i link.tar",
        "unionfs load -q -i way/../er/a.tar",
        "unionfs load -q -i layout --tag layout:1",
        "unionfs load -q < a.tar",
        "unionfs load -q -i /dev/stdin < a.tar",
        "cat a.tar | unionfs load -q -i /dev/stdin",
        "unionfs load -q -i /dev/fd/5 5< a.tar",
        "gzip -c a.tar | unionfs load -q -i -",
        "exec 5< a.tar; mv a.tar b.tar; unionfs load -q -i /dev/fd/5; mv b.tar a.tar",
        // The environment.
        "env -u HOME unionfs load -q -i a.tar",
        "TMPDIR=/nonexistent unionfs load -q -i a.tar",
        "unshare -r sh -c 'unionfs --store real/own-r load -q -i a.tar'",
        "unshare -rm sh -c 'unionfs --store real/own-r load -q -i a.tar'",
        "unshare -rmpf --mount-proc sh -c 'unionfs --store real/own-r load --sandbox strict -q -i a.tar'",
        "unshare -m sh -c 'mount --make-rshared / && unionfs load -q -i a.tar'",
        "cd empty; rmdir ../empty; UNIONFS_ROOT=$OLDPWD/own unionfs load -q -i $OLDPWD/a.tar",
        // The ways to select the sandbox.
        "unionfs load --sandbox strict -q -i a.tar",
        "unionfs load --sandbox off -q -i a.tar",
        "UNIONFS_SANDBOX=strict unionfs load -q -i a.tar",
        "UNIONFS_SANDBOX=off unionfs load -q -i a.tar",
    ];
    for script in cases {
        home.run_script(script).ok();
    }
    home.run_script("UNIONFS_SANDBOX=some unionfs load -i a.tar")
        .failed(2, &["UNIONFS_SANDBOX=\"some\""]);
    home.run_script("unionfs load -i none.tar")
        .failed(1, &["cannot read \"none.tar\""]);
    home.run_script("unionfs import none.tar x:1")
        .failed(1, &["none.tar"]);
    home.run(["verify", "--all"]).ok();
}

/// The command works in a root directory that is not a mount, as in a build service.
#[test]
fn a_chroot_has_the_whole_sandbox() {
    need!(can_mount());
    need!(has_tools(&["mount", "umount", "chroot", "sh"]));
    let home = Home::new();
    archive(&home);
    home.dirs(&["jail/proc", "jail/bin", "jail/usr", "jail/tmp"]);
    // The directory that TMPDIR names is not there.
    let script = "unset TMPDIR; cd jail; for dir in lib lib64; do test -e /$dir && ln -s usr/$dir $dir; done
        mount --rbind /usr usr && mount -t proc none proc && cp ../a.tar $(command -v unionfs) .
        cd ..; chroot jail ./unionfs --store /store load --sandbox strict -q -i a.tar && test -e jail/store/overlay2
        chroot jail ./unionfs --root /store verify --all";
    let outcome = home.run_script(script);
    let undone = home.run_script("umount -l jail/usr jail/proc");
    assert!(outcome.ok().contains("no damage"));
    undone.ok();
}

/// A mount on a directory of a test, unmounted when dropped.
struct Beneath(PathBuf);

impl Beneath {
    fn mount(kind: &str, options: &str, path: &Path) -> Self {
        fs::create_dir_all(path).unwrap();
        let mut mount = Command::new("mount");
        let mount = mount.args(["-t", kind, "-o", options, kind]).arg(path);
        assert!(mount.status().unwrap().success());
        Self(path.to_owned())
    }

    fn unmount(self) {
        rustix::mount::unmount(&self.0, UnmountFlags::empty()).unwrap();
        std::mem::forget(self);
    }
}

impl Drop for Beneath {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, UnmountFlags::DETACH);
    }
}

/// A long-running command on a store does not keep the upper of a container in use, and other
/// mounts beneath the store are available to it.
#[test]
fn containers_that_end_meanwhile_leave_their_uppers() {
    need!(can_mount());
    let home = Home::new();
    home.dirs(&["own", "rootfs", "lower"]);
    let content = vec![7; 4 << 20];
    fs::write(home.path("rootfs/file"), &content).unwrap();
    home.run(["import", "-q", "rootfs", "base:1"]).ok();
    // The layers are on a disk of their own.
    fs::rename(home.path("own/overlay2"), home.path("layers")).unwrap();
    let _disk = Beneath::mount("tmpfs", "size=64m", &home.path("own/overlay2"));
    let copied = home
        .command("cp")
        .args(["-a", "layers/.", "own/overlay2"])
        .status();
    assert!(copied.unwrap().success());
    let container = home.path("own/overlay2/container");
    for name in ["upper", "work"] {
        fs::create_dir_all(container.join(name)).unwrap();
    }
    let options = format!(
        "index=on,lowerdir={},upperdir={dir}/upper,workdir={dir}/work",
        home.path("lower").display(),
        dir = container.display()
    );
    let merged = container.join("merged");
    let running = Beneath::mount("overlay", &options, &merged);
    let mut save = home.command(program());
    let save = save.args(["save", "base:1"]);
    let mut save = save.stdout(Stdio::piped()).spawn().unwrap();
    let mut out = save.stdout.take().unwrap();
    let mut archive = vec![0];
    out.read_exact(&mut archive).unwrap();
    // The command waits for the reader now. With index=on the kernel refuses an upper that is in
    // use.
    running.unmount();
    Beneath::mount("overlay", &options, &merged).unmount();
    out.read_to_end(&mut archive).unwrap();
    assert!(save.wait().unwrap().success());
    assert!(archive.len() > content.len());
}
