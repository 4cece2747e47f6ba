//! Mapped and squashed owners. A union with a mapping answers as an idmapped mount of the kernel
//! does: callers, attributes, ACLs, capabilities and error codes.

use std::ffi::OsStr;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::Command;

use testkit::mount::{Fs, Mounted, Scratch, Stack, chmod};
use testkit::need::has_tools;
use testkit::{need, need_mounts, program};

const TREE: &str = include_str!("owners/tree.sh");
const IDMAPPED: &str = include_str!("owners/idmapped.py");
const OPERATIONS: &str = include_str!("owners/operations.py");
const MAPPED: &str = "uidmapping=0:1000:10,gidmapping=0:2000:10";
const USERS: &str = "0 1000 10";
const GROUPS: &str = "0 2000 10";

fn output<A: AsRef<OsStr>>(program: &str, args: &[A], dir: &Path) -> String {
    let output = Command::new(program)
        .args(args)
        .current_dir(dir)
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// Makes the tree of the tests in a directory.
fn make_tree(dir: &Path) {
    output("sh", &["-c", TREE], dir);
}

fn operations(dir: &Path) -> String {
    let args = ["-c".as_ref(), OPERATIONS.as_ref(), dir.as_os_str()];
    output("python3", &args, Path::new("/"))
}

/// Mounts a directory idmapped.
fn idmapped(source: &Path, target: &Path) -> Mounted {
    let args: [&OsStr; 6] = [
        "-c".as_ref(),
        IDMAPPED.as_ref(),
        source.as_ref(),
        target.as_ref(),
        USERS.as_ref(),
        GROUPS.as_ref(),
    ];
    output("python3", &args, Path::new("/"));
    Mounted::new(target, false)
}

fn stack(scratch: &Scratch) -> Stack {
    let lower = scratch.dir("lower");
    make_tree(&lower);
    let stack = Stack::writable(scratch, vec![lower]);
    chmod(&stack.upper.as_ref().unwrap().0, 0o777);
    stack
}

fn owner(path: &Path) -> (u32, u32) {
    let meta = std::fs::symlink_metadata(path).unwrap();
    (meta.uid(), meta.gid())
}

fn tools() -> need::Needed {
    has_tools(&["python3", "setfacl", "setpriv"])
}

/// Compares the results line by line.
fn assert_same(kernel: &str, ours: &str) {
    assert_eq!(kernel.lines().count(), ours.lines().count());
    assert!(kernel.lines().count() > 150, "{kernel}");
    for (kernel, ours) in kernel.lines().zip(ours.lines()) {
        assert_eq!(kernel, ours);
    }
}

/// Also with idmapped lowers, which podman passes together with a mapping, and with a catalog.
#[test]
fn mapped_as_by_an_idmapped_mount() {
    need_mounts!();
    need!(tools());
    let scratch = Scratch::disk();
    let tree = scratch.dir("tree");
    make_tree(&tree);
    let kernel = idmapped(&tree, &scratch.dir("kernel"));
    let expected = operations(kernel.path());
    kernel.unmount();
    for fs in [Fs::Unionfs(MAPPED), Fs::Catalogued(MAPPED)] {
        let scratch = Scratch::disk();
        let mounted = fs.mount(&stack(&scratch));
        assert_same(&expected, &operations(mounted.path()));
    }
    let scratch = Scratch::disk();
    let mut stack = stack(&scratch);
    let lower = idmapped(&stack.lowers[0], &scratch.dir("mapped"));
    stack.lowers = vec![lower.path().to_owned()];
    let mounted = Fs::Unionfs(MAPPED).mount(&stack);
    // The owner of a file outside of the mapping is not known, so it cannot be copied up.
    let known = |results: &str| -> String {
        let lines = results.lines();
        let known =
            lines.filter(|line| !line.starts_with("chown out") && !line.starts_with("rename"));
        known.map(|line| format!("{line}\n")).collect()
    };
    assert_same(&known(&expected), &known(&operations(mounted.path())));
    mounted.unmount();
}

#[test]
fn lowers_of_which_some_are_idmapped_are_refused() {
    need_mounts!();
    need!(tools());
    let scratch = Scratch::disk();
    let mut stack = stack(&scratch);
    let lower = idmapped(&stack.lowers[0], &scratch.dir("mapped"));
    stack.lowers.push(lower.path().to_owned());
    let error = Fs::Unionfs(MAPPED).try_mount(&stack).map(drop).unwrap_err();
    assert!(error.contains("map all of them or none"), "{error}");
}

/// The files in the upper have the IDs of the layer, and the IDs outside are never written.
#[test]
fn the_upper_has_the_ids_of_the_layers() {
    need_mounts!();
    need!(tools());
    let scratch = Scratch::disk();
    let stack = stack(&scratch);
    let mounted = Fs::Unionfs(MAPPED).mount(&stack);
    let at = |name: &str| mounted.path().join(name);
    chown(at("in"), Some(1003), Some(2004)).unwrap();
    chown(at("dirin"), Some(1000), None).unwrap();
    assert!(chown(at("root"), Some(3), None).is_err());
    let upper = &stack.upper.as_ref().unwrap().0;
    assert_eq!(owner(&upper.join("in")), (3, 4));
    assert_eq!(owner(&upper.join("dirin")), (0, 5));
    assert!(!upper.join("root").exists());
    assert_eq!(owner(&at("out")), (65534, 65534));
}

#[test]
fn squashed_owners_are_only_shown() {
    need_mounts!();
    need!(tools());
    for (options, uid, gid) in [
        ("squash_to_root", Some(0), Some(0)),
        ("squash_to_uid=7", Some(7), None),
        ("squash_to_gid=8", None, Some(8)),
        ("squash_to_root,squash_to_uid=7", Some(7), Some(0)),
    ] {
        let scratch = Scratch::disk();
        let stack = stack(&scratch);
        let mounted = Fs::Unionfs(options).mount(&stack);
        let at = |name: &str| mounted.path().join(name);
        let shown = |name: &str, disk: (u32, u32)| {
            let expected = (uid.unwrap_or(disk.0), gid.unwrap_or(disk.1));
            assert_eq!(owner(&at(name)), expected, "{options} {name}");
        };
        shown("in", (5, 5));
        shown("out", (20, 20));
        chown(at("in"), Some(33), Some(44)).unwrap();
        shown("in", (33, 44));
        symlink("x", at("new")).unwrap();
        let upper = &stack.upper.as_ref().unwrap().0;
        assert_eq!(owner(&upper.join("in")), (33, 44));
        assert_eq!(owner(&upper.join("new")), (0, 0));
        // A program of user 5 must not run with the rights of the shown owner.
        assert_eq!(
            at("suid").metadata().unwrap().permissions().mode() & 0o7777,
            0o4777
        );
        let mounts = std::fs::read_to_string("/proc/thread-self/mounts").unwrap();
        let mnt = mounted.path().to_str().unwrap();
        let line = mounts.lines().find(|line| line.contains(mnt)).unwrap();
        assert!(line.contains("nosuid"), "{line}");
    }
}

/// fuse-overlayfs shows and writes 65534 for IDs outside of a mapping.
#[test]
fn called_as_fuse_overlayfs_ids_outside_are_65534() {
    need_mounts!();
    need!(tools());
    let scratch = Scratch::disk();
    let stack = stack(&scratch);
    let named = scratch.path().join("fuse-overlayfs");
    symlink(program(), &named).unwrap();
    let options = format!("{},{MAPPED}", stack.options());
    let args = ["-o".as_ref(), options.as_ref(), stack.mnt.as_os_str()];
    output(named.to_str().unwrap(), &args, Path::new("/"));
    let mounted = Mounted::new(&stack.mnt, true);
    let at = |name: &str| mounted.path().join(name);
    assert_eq!(owner(&at("out")), (65534, 65534));
    std::fs::write(at("new"), "").unwrap();
    assert_eq!(owner(&at("new")), (65534, 65534));
    let upper = &stack.upper.as_ref().unwrap().0;
    assert_eq!(owner(&upper.join("new")), (65534, 65534));
}

/// podman names layers by symlinks in an idmapped mount of its store. Root's own symlinks have
/// another owner there. They are followed only if no other user can reach the mount.
#[test]
fn symlinks_in_an_idmapped_mount_of_a_private_store() {
    need_mounts!();
    need!(tools());
    let scratch = Scratch::disk();
    let store = scratch.dir("store");
    let lower = store.join("id/diff");
    std::fs::create_dir_all(&lower).unwrap();
    make_tree(&lower);
    std::fs::create_dir(store.join("l")).unwrap();
    symlink("../id/diff", store.join("l/SHORT")).unwrap();
    let private = scratch.dir("private");
    let target = private.join("mapped");
    std::fs::create_dir(&target).unwrap();
    let mapped = idmapped(&store, &target);
    let stack = Stack::writable(&scratch, vec![mapped.path().join("l/SHORT")]);
    for (mode, options, allowed) in [(0o700, MAPPED, true), (0o755, MAPPED, false)] {
        chmod(&private, mode);
        match Fs::Unionfs(options).try_mount(&stack) {
            Ok(mounted) => {
                assert!(allowed, "mode {mode:o}");
                assert_eq!(owner(&mounted.path().join("in")), (1005, 2005));
            }
            Err(error) => {
                assert!(!allowed, "{error}");
                assert!(error.contains("another user may change"), "{error}");
            }
        }
    }
}
