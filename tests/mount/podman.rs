//! podman itself, as root: one container, started several times, each time with the kernel's
//! overlay or with unionfs as the graph driver's mount program. In any order it sees the same each
//! time, and its listing, `podman diff` and committed image are the same in the end. Containers in
//! user namespaces of each kind, of root and of a plain user, see the owners of their image.

use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::mount::{MountFlags, UnmountFlags};
use testkit::mount::Scratch;
use testkit::need::has_tools;
use testkit::tree::{self, Mask, Tree};
use testkit::{need, need_mounts, program};

/// The files of the image. (Without hard links: podman mounts without an index, which separates
/// them; docs/SEMANTICS.md, "Hard links".)
const IMAGE: &str = "
    mkdir -p bin d/sub emptied gone/deep swap/a steps etc
    for tool in sh cat rm mkdir mv ln chmod chown touch ls dd sleep stat; do
        ln -f bin/busybox bin/$tool
    done
    echo old > d/f; echo g > d/sub/g; echo 1 > gone/deep/f; echo 2 > swap/a/f
    echo 1 > l1; echo 2 > l2; ln -s d link; mkfifo pipe; echo x > emptied/x
    echo tool > tool; chown 12:34 tool; chmod 4755 tool; chmod 1777 emptied";

/// The steps of the container at its first, second and third start: each works on the result of the
/// one before.
const STEPS: [&str; 3] = [
    "rm /d/f; echo new > /d/new; rm -r /gone; mkdir /gone; echo in > /gone/in
     echo more >> /l1; ln /l1 /l3; mv /swap /swapped; rm /link; mkdir /link; echo 1 > /link/inside
     echo changed >> /tool; rm /emptied/x; mv /pipe /d/pipe; mkdir -p /made/by/us",
    "rm -r /d; mkdir /d; echo again > /d/f; rm -r /link; ln -s /made /link
     rm -r /swapped/a; mkdir /swapped/a; echo 3 > /swapped/a/g; rm /gone/in; mkdir /gone/deep
     rm /l2; echo back > /l2; mv /made /moved; chmod 700 /emptied; echo y > /emptied/y",
    "rm -r /gone; echo file > /gone; rm -r /moved/by; mkdir /swap; echo s > /swap/a
     rm /d/f; mkdir /d/h; echo h > /d/h/h; rm /tool; rm -r /emptied; mkdir /emptied; rm /link",
];

/// A storage root of podman.
struct Podman {
    scratch: Scratch,
}

impl Podman {
    fn at(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// Runs podman with `program` as its mount program, or with the kernel's overlay.
    fn call(&self, program: Option<&str>, args: &[&str]) -> String {
        // With this file podman would look for fuse-overlayfs and use it instead of the kernel.
        if program.is_none() {
            let _ = std::fs::remove_file(self.at("root/overlay/.has-mount-program"));
        }
        let mut command = Command::new("podman");
        for (option, dir) in [
            ("--root", "root"),
            ("--runroot", "run"),
            ("--tmpdir", "tmp"),
        ] {
            command.arg(option).arg(self.at(dir));
        }
        command.args(["--storage-driver", "overlay", "--runtime", "crun"]);
        command.args(["--cgroup-manager", "cgroupfs", "--events-backend", "none"]);
        if let Some(program) = program {
            command.args(["--storage-opt", &format!("overlay.mount_program={program}")]);
        }
        let output = command.args(args).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "podman {args:?}: {stderr}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// Makes the image and the container, which prints the source of its root mount.
    fn create(&self, program: Option<&str>) {
        let rootfs = self.scratch.dir("rootfs");
        std::fs::create_dir(rootfs.join("bin")).unwrap();
        std::fs::copy("/usr/bin/busybox", rootfs.join("bin/busybox")).unwrap();
        let script = format!("cd {} && {IMAGE}", rootfs.display());
        let made = Command::new("sh").args(["-ec", &script]).status().unwrap();
        assert!(made.success());
        for (n, step) in STEPS.iter().enumerate() {
            std::fs::write(rootfs.join(format!("steps/{n}")), step).unwrap();
        }
        std::fs::write(rootfs.join("steps/next"), "0").unwrap();
        let tar = self.at("rootfs.tar");
        let (from, to) = (rootfs.to_str().unwrap(), tar.to_str().unwrap());
        let fixed = ["--mtime=@1500000000", "--sort=name"];
        let mut pack = Command::new("tar");
        pack.args(fixed).args(["-C", from, "-cf", to, "."]);
        assert!(pack.status().unwrap().success());
        self.call(program, &["import", "--quiet", to, "image:1"]);
        let command = "while read -r _ at type _; do
                [ \"$at\" != / ] || echo $type
            done < /proc/self/mounts
            n=$(cat /steps/next); sh -e /steps/$n && echo $((n + 1)) > /steps/next";
        // Limits that a container may get without CAP_SYS_RESOURCE; no controllers.
        let mut args = vec!["create", "--name", "work", "--network", "none"];
        args.extend(["--cgroups", "disabled", "--ipc", "host", "--uts", "host"]);
        args.extend([
            "--ulimit",
            "nofile=1024:1024",
            "--ulimit",
            "nproc=1024:1024",
        ]);
        args.extend(["image:1", "sh", "-c", command]);
        self.call(program, &args);
    }

    /// Starts the container, which runs its next step.
    fn start(&self, program: Option<&str>) {
        let root = self.call(program, &["start", "--attach", "work"]);
        let expected = match program {
            None => "overlay",
            Some(_) => "fuse.unionfs",
        };
        assert_eq!(root, expected, "the root of the container");
    }

    /// Returns the container's tree as seen from outside.
    fn tree(&self, program: Option<&str>) -> Tree {
        let root = self.call(program, &["mount", "work"]);
        let tree = tree::list(Path::new(&root));
        self.call(program, &["umount", "work"]);
        tree
    }

    /// Returns the changes that podman reports, in order.
    fn diff(&self, program: Option<&str>) -> Vec<String> {
        let text = self.call(program, &["diff", "work"]);
        let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    }

    /// Returns the tree of an image that is committed from the container.
    fn committed(&self, program: Option<&str>) -> Tree {
        self.call(program, &["commit", "--quiet", "work", "image:2"]);
        let root = self.call(program, &["image", "mount", "image:2"]);
        let tree = tree::list(Path::new(&root));
        self.call(program, &["image", "umount", "image:2"]);
        tree
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        // The driver bind-mounts its directory on itself; a failed test leaves the container
        // mounted.
        let base = self.scratch.path().to_str().unwrap().to_owned();
        let mounts = std::fs::read_to_string("/proc/thread-self/mounts").unwrap();
        let points = mounts.lines().filter_map(|l| l.split(' ').nth(1));
        let ours: Vec<_> = points.filter(|p| p.starts_with(&base)).collect();
        for point in ours.iter().rev() {
            let _ = rustix::mount::unmount(Path::new(point), UnmountFlags::DETACH);
        }
    }
}

/// Mounts cgroups of one version, which crun requires. In this thread's mount namespace only.
fn unified_cgroups() {
    if !Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        let none = MountFlags::empty();
        rustix::mount::mount("none", "/sys/fs/cgroup", "cgroup2", none, None).unwrap();
    }
}

#[test]
fn a_container_is_the_same_whoever_mounts_it() {
    need_mounts!();
    need!(has_tools(&["podman", "crun"]));
    unified_cgroups();
    let ours = Some(program());
    // Each order runs to the end of the steps; the run with the kernel alone is the reference.
    let orders = [
        [None, None, None],
        [ours, None, ours],
        [None, ours, None],
        [ours, ours, ours],
    ];
    let mask = Mask::from_now();
    let mut truth: Option<(Vec<Tree>, [Vec<String>; 2], Tree)> = None;
    for order in orders {
        let podman = Podman {
            scratch: Scratch::disk(),
        };
        podman.create(order[0]);
        let mut trees = Vec::new();
        for (n, program) in order.into_iter().enumerate() {
            podman.start(program);
            let shown = podman.tree(program);
            for reader in [None, ours] {
                let what = format!("{order:?}: step {n} of {program:?} as {reader:?} shows it");
                tree::assert_same(&what, &shown, &podman.tree(reader), &mask);
            }
            trees.push(shown);
        }
        // The two differ: podman reads the kernel's uppers itself, but compares mounts of a mount
        // program.
        let diffs = [podman.diff(None), podman.diff(ours)];
        let image = podman.committed(order[2]);
        tree::assert_same("the committed image", &trees[2], &image, &mask);
        let (all_trees, all_diffs, all_image) =
            truth.get_or_insert_with(|| (trees.clone(), diffs.clone(), image.clone()));
        for (n, (left, right)) in all_trees.iter().zip(&trees).enumerate() {
            tree::assert_same(&format!("{order:?}: step {n}"), left, right, &mask);
        }
        assert_eq!(*all_diffs, diffs, "{order:?}: podman diff");
        tree::assert_same(&format!("{order:?}: image"), all_image, &image, &mask);
    }
}

/// The output of `podman_users.sh` for a container with the user 0.
const AS_ROOT: &str = "fuse.unionfs
0
root 0:0 644
owned 7:8 644
dir 0:0 755
dir/x 0:0 644
new 0:0
made 0:0
link 0:0
new 5:6 4755
link 9:9 777
root 0:0 644
made/moved 0:0 644
dir 0:0 755
link 9:9
made 0:0 755
new 5:6 4755
owned 7:8 644
root 0:0 644
made/file 0:0 644
made/moved 0:0 644
";

/// The same for `--userns=keep-id`, where the user has the same number inside.
const AS_MYSELF: &str = "fuse.unionfs
23456
root 0:0 644
owned 7:8 644
dir 0:0 755
dir/x 0:0 644
new 23456:23456
made 23456:23456
link 23456:23456
dir 0:0 755
gone 0:0 644
link 23456:23456
made 23456:23456 755
new 23456:23456 644
owned 7:8 644
root 0:0 644
made/file 23456:23456 644
";

/// The same for a container of buildah.
const OF_BUILDAH: &str = "root 0:0 644
owned 7:8 644
dir 0:0 755
new 5:6
owned 5:6
dir 0:0 755
new 5:6 644
owned 5:6 644
root 0:0 644
";

/// The owners in a container's volume that the kernel maps, and those in the upper.
const OF_VOLUME: &str = "== volume
old 5:6
new 3:4
mine 0:0
upper/old 5:6
upper/new 3:4
upper/mine 0:0
";

/// Runs containers of podman and buildah with each of these ways to ask for a user namespace.
/// With `idmap`, also a volume that the kernel maps.
fn in_user_namespaces(who: &str, asked: &[(&str, &str)], idmap: Option<&str>) {
    unified_cgroups();
    let scratch = Scratch::disk();
    let script = scratch.path().join("script");
    std::fs::write(&script, include_str!("podman_users.sh")).unwrap();
    let namespaces = ["--mount", "--pid", "--fork", "--mount-proc", "--kill-child"];
    let output = Command::new("unshare")
        .args(namespaces)
        .args(["--propagation=private", "sh"])
        .args([script.as_os_str(), program().as_ref(), who.as_ref()])
        .args(idmap)
        .current_dir(scratch.path())
        .output()
        .unwrap();
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{who}: {shown}\n{output:?}");
    let expected = asked
        .iter()
        .map(|(how, seen)| format!("== {how}\n{seen}"))
        .collect::<String>();
    let volume = idmap.map_or("", |_| OF_VOLUME);
    assert_eq!(
        shown,
        format!("{expected}== buildah\n{OF_BUILDAH}{volume}"),
        "{who}"
    );
}

#[test]
fn user_namespaces_of_roots_engine() {
    need_mounts!();
    need!(has_tools(&[
        "podman", "buildah", "crun", "unshare", "busybox"
    ]));
    in_user_namespaces(
        "root",
        &[
            ("--uidmap=0:200000:65536,--gidmap=0:200000:65536", AS_ROOT),
            ("--userns=auto:size=2048", AS_ROOT),
        ],
        super::owners::idmaps_fuse().is_ok().then_some("idmap"),
    );
}

#[test]
fn user_namespaces_of_a_plain_users_engine() {
    need_mounts!();
    let tools = ["podman", "buildah", "crun", "unshare", "busybox", "setpriv"];
    need!(has_tools(&tools));
    need!(has_tools(&["newuidmap", "fusermount3"]));
    in_user_namespaces(
        "user",
        &[
            ("--userns=keep-id", AS_MYSELF),
            ("--userns=nomap", AS_ROOT),
            ("--userns=auto:size=2048", AS_ROOT),
            ("--uidmap=0:1:60000,--gidmap=0:1:60000", AS_ROOT),
        ],
        None,
    );
}
