//! Mapped and squashed owners. A union with a mapping answers as an idmapped mount of the kernel
//! does: callers, attributes, ACLs, capabilities and error codes.

use std::ffi::OsStr;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::Command;

use testkit::mount::{Fs, Mounted, Scratch, Stack, chmod};
use testkit::need::has_tools;
use testkit::{need, need_mounts, program, without};

const TREE: &str = include_str!("owners/tree.sh");
const IDMAPPED: &str = concat!(
    include_str!("owners/mapped_tree.py"),
    include_str!("owners/idmapped.py")
);
const NSPAWN: &str = concat!(
    include_str!("owners/mapped_tree.py"),
    include_str!("owners/nspawn.py")
);
const MOUNT_8: &str = concat!(
    include_str!("owners/mapped_tree.py"),
    include_str!("owners/mount8.py")
);
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

/// Mounts a directory idmapped. The error is that of a system call.
fn try_idmapped(source: &Path, target: &Path) -> Result<Mounted, String> {
    let args = [IDMAPPED.as_ref(), source.as_ref(), target.as_ref()];
    let mut python = Command::new("python3");
    python.arg("-c").args::<_, &OsStr>(args);
    let output = python.args([USERS, GROUPS]).output().unwrap();
    if output.status.success() {
        Ok(Mounted::new(target, false))
    } else {
        Err(String::from_utf8(output.stderr).unwrap())
    }
}

/// Mounts a directory idmapped.
fn idmapped(source: &Path, target: &Path) -> Mounted {
    try_idmapped(source, target).unwrap()
}

/// Requires a kernel whose FUSE mounts can be idmapped.
pub(super) fn idmaps_fuse() -> need::Needed {
    let release = rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned();
    let mut numbers = release
        .split(['.', '-'])
        .map(|number| number.parse().unwrap_or(0));
    let version: (u32, u32) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version >= (6, 12) {
        Ok(())
    } else {
        Err(format!("Linux {release} cannot idmap FUSE mounts (6.12)"))
    }
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
    has_tools(&["python3", "setfacl", "setpriv", "setfattr"])
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

/// With `allow_idmap` the kernel maps the owners of a mount, as it does for any file system: the
/// mount answers line by line as an idmapped mount of a directory. The upper gets the IDs of the
/// layers.
#[test]
fn idmapped_by_the_kernel() {
    need_mounts!();
    need!(tools());
    need!(idmaps_fuse());
    let scratch = Scratch::disk();
    let tree = scratch.dir("tree");
    make_tree(&tree);
    let kernel = idmapped(&tree, &scratch.dir("kernel"));
    let expected = operations(kernel.path());
    kernel.unmount();
    for options in [
        "allow_idmap",
        "allow_idmap,io=passthrough",
        "allow_idmap,nobtime",
    ] {
        let scratch = Scratch::disk();
        let stack = stack(&scratch);
        let mounted = Fs::Unionfs(options).mount(&stack);
        let mapped = idmapped(mounted.path(), &scratch.dir("mapped"));
        assert_same(&expected, &operations(mapped.path()));
        // Root outside of the mapping creates nothing, not even as root of the machine.
        let refused = std::fs::write(mapped.path().join("dirin/no"), "").unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EOVERFLOW), "{options}");
        let upper = &stack.upper.as_ref().unwrap().0;
        assert_eq!(owner(&mapped.path().join("dirin/n1005d")), (1005, 2005));
        assert_eq!(owner(&mounted.path().join("dirin/n1005d")), (5, 5));
        assert_eq!(owner(&upper.join("dirin/n1005d")), (5, 5));
        mapped.unmount();
        mounted.unmount();
    }
}

/// mount(8) with X-mount.idmap puts an idmapped copy in the place of a mount. It is the mount then: `ps`
/// and `stats` show it, `umount` waits for its daemon, and the daemon takes it away when it ends.
#[test]
fn an_idmapped_copy_in_its_place_is_the_mount() {
    need_mounts!();
    need!(tools());
    need!(idmaps_fuse());
    let scratch = Scratch::disk();
    let lower = scratch.dir("lower");
    std::fs::write(lower.join("file"), "").unwrap();
    let stack = Stack::writable(&scratch, vec![lower]);
    let script = r#"
        export XDG_RUNTIME_DIR="$3" UNIONFS_RUNTIME_DIR="$3"
        mapped() {
            "$1" -o "$4,allow_idmap" "$2"
            python3 -c "$0" "$2" 100000
        }
        mapped "$@"
        "$1" stats "$2" > "$3/stats"
        "$1" umount "$2"
        ls "$3" | grep json || echo ended
        mapped "$@"
        stat -c %u "$2/file"
        "$1" ps --json > "$3/ps"
        grep -o '"state": "[a-z]*"' "$3/ps"
        kill "$(grep -o '"pid": [0-9]*' "$3/ps" | grep -o '[0-9]*')"
        for try in $(seq 200); do grep -q " $2 " /proc/self/mountinfo || break; sleep 0.05; done
        grep " $2 " /proc/self/mountinfo || echo gone
    "#;
    let args = ["-m", "--propagation=private", "sh", "-ec", script, MOUNT_8];
    let (run, options) = (scratch.dir("run"), stack.options());
    let more = [
        program().as_ref(),
        stack.mnt.as_os_str(),
        run.as_os_str(),
        options.as_ref(),
    ];
    let args: Vec<&OsStr> = args.map(OsStr::new).into_iter().chain(more).collect();
    let seen = output("unshare", &args, Path::new("/"));
    assert_eq!(seen, "ended\n100000\n\"state\": \"live\"\ngone\n");
}

/// systemd-nspawn puts an idmapped mount in the place of a mount, in which root of the machine is one
/// more user, so that it can make files there.
#[test]
fn idmapped_as_systemd_nspawn_does() {
    need_mounts!();
    need!(tools());
    need!(idmaps_fuse());
    let scratch = Scratch::disk();
    let lower = scratch.dir("lower");
    std::fs::write(lower.join("file"), "").unwrap();
    chown(lower.join("file"), Some(5), Some(6)).unwrap();
    let stack = Stack::writable(&scratch, vec![lower]);
    let mounted = Fs::Unionfs("allow_idmap").mount(&stack);
    let script = r#"
        python3 -c "$0" "$1" 100000
        cd "$1"
        mkdir roots given
        chown 100000:100000 . given
        chown 100007:100008 file
        setpriv --reuid=100000 --regid=100000 --clear-groups touch given/new
        stat -c '%n %u:%g' file roots given given/new
    "#;
    let args = ["-m", "--propagation=private", "sh", "-ec", script, NSPAWN];
    let args = args.map(OsStr::new).into_iter();
    let args: Vec<&OsStr> = args.chain([mounted.path().as_os_str()]).collect();
    let seen = output("unshare", &args, Path::new("/"));
    let expected = "file 100007:100008\nroots 0:0\ngiven 100000:100000\ngiven/new 100000:100000\n";
    assert_eq!(seen, expected);
    let upper = &stack.upper.as_ref().unwrap().0;
    // `UID_MAPPED_ROOT` of systemd.
    let of_root = i32::MAX as u32 - 1;
    assert_eq!(owner(&upper.join("roots")), (of_root, of_root));
    assert_eq!(owner(&upper.join("given/new")), (0, 0));
    assert_eq!(owner(&upper.join("file")), (7, 8));
}

/// The same mount without a mapping answers as a directory. The kernel does not tell who calls.
#[test]
fn allow_idmap_changes_nothing_without_a_mapping() {
    need_mounts!();
    need!(without::lists_trusted());
    need!(tools());
    need!(idmaps_fuse());
    let scratch = Scratch::disk();
    let tree = scratch.dir("tree");
    make_tree(&tree);
    let expected = operations(&tree);
    let scratch = Scratch::disk();
    let mounted = Fs::Unionfs("allow_idmap").mount(&stack(&scratch));
    assert_same(&expected, &operations(mounted.path()));
    // The kernel says when set-id bits fall.
    let suid = mounted.path().join("aclout");
    let allocate = ["-l", "99", suid.to_str().unwrap()];
    chmod(&suid, 0o4777);
    let mode = || suid.metadata().unwrap().permissions().mode() & 0o7777;
    output("fallocate", &allocate, Path::new("/"));
    assert_eq!(mode(), 0o4777, "by root");
    let user = ["--reuid=1000", "--regid=1000", "--clear-groups"];
    let allocate = [&["fallocate"][..], &allocate].concat();
    output("setpriv", &[&user[..], &allocate].concat(), Path::new("/"));
    assert_eq!(mode(), 0o777, "by a user");
    // A `trusted.` xattr is shown to root only.
    let file = mounted.path().join("aclout");
    let set = ["-n", "trusted.x", "-v", "1", file.to_str().unwrap()];
    output("setfattr", &set, Path::new("/"));
    let get = ["-d", "-m", "-", file.to_str().unwrap()];
    assert!(output("getfattr", &get, Path::new("/")).contains("trusted.x"));
    let get = [&["getfattr"][..], &get].concat();
    let shown = output("setpriv", &[&user[..], &get].concat(), Path::new("/"));
    assert!(!shown.contains("trusted.x"), "{shown}");
}

#[test]
fn without_allow_idmap_a_mount_cannot_be_idmapped() {
    need_mounts!();
    need!(tools());
    let scratch = Scratch::disk();
    let mounted = Fs::Unionfs("").mount(&stack(&scratch));
    let error = try_idmapped(mounted.path(), &scratch.dir("mapped")).map(drop);
    let error = error.unwrap_err();
    assert!(error.contains("Invalid argument"), "{error}");
    let scratch = Scratch::disk();
    let fuser = Fs::Unionfs("allow_idmap,transport=fuser").try_mount(&stack(&scratch));
    let error = fuser.map(drop).unwrap_err();
    assert!(error.contains("allow_idmap"), "{error}");
}
