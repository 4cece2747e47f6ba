//! Owners, modes and devices that are recorded beside the files (`xattr_permissions`): shown, kept
//! by every change, and exchanged with fuse-overlayfs.

use std::fmt::Write as _;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use testkit::fixture::Fixture;
use testkit::layers::set_xattr;
use testkit::mount::{Fs, Mounted, Scratch, Stack, chmod, fuse_overlayfs};
use testkit::tree::Mask;
use testkit::without::{self, Lack};
use testkit::{errno, need, need_mounts, program, tree};

const RECORDED: &str = "xattr_permissions=2";
const NAME: &[u8] = b"user.containers.override_stat";
const OLD_NAME: &[u8] = b"user.fuseoverlayfs.override_stat";
const PRIVILEGED: &[u8] = b"security.fuseoverlayfs.override_stat";

/// Makes a lower whose files have records under this name.
fn lower(scratch: &Scratch, name: &[u8]) -> Stack {
    let lower = scratch.dir("lower");
    let file = |path: &str, record: &str| {
        let path = lower.join(path);
        if !path.exists() {
            std::fs::write(&path, path.file_name().unwrap().as_encoded_bytes()).unwrap();
        }
        chmod(&path, 0o755);
        set_xattr(&path, name, record.as_bytes());
    };
    std::fs::create_dir(lower.join("dir")).unwrap();
    for device in ["null", "other", "pipe"] {
        std::fs::write(lower.join(device), "").unwrap();
    }
    file("", "0:0:0755");
    file("dir", "33:44:01777");
    file("suid", "33:44:04750");
    file("none", "5:6:00");
    file("typed", "5:6:100640");
    file("null", "0:5:0666:char-1-3");
    file("other", "0:5:0660:block8:1");
    file("pipe", "7:7:0600:pipe");
    Stack::writable(scratch, vec![lower])
}

/// Describes a file: its type, mode, owner and device.
fn describe(path: &Path) -> String {
    let meta = std::fs::symlink_metadata(path).unwrap();
    let kind = match meta.file_type() {
        kind if kind.is_dir() => "dir",
        kind if kind.is_symlink() => "symlink",
        kind if kind.is_fifo() => "fifo",
        kind if kind.is_char_device() => "char",
        kind if kind.is_block_device() => "block",
        _ => "file",
    };
    let mode = meta.permissions().mode() & 0o7777;
    let mut text = format!("{kind} {mode:o} {}:{}", meta.uid(), meta.gid());
    if meta.rdev() != 0 {
        let (major, minor) = (
            rustix::fs::major(meta.rdev()),
            rustix::fs::minor(meta.rdev()),
        );
        write!(text, " {major},{minor}").unwrap();
    }
    text
}

fn assert_shown(root: &Path, expected: &[(&str, &str)]) {
    for (name, text) in expected {
        assert_eq!(describe(&root.join(name)), *text, "{name}");
    }
}

const SHOWN: [(&str, &str); 8] = [
    ("", "dir 755 0:0"),
    ("dir", "dir 1777 33:44"),
    ("suid", "file 4750 33:44"),
    ("none", "file 0 5:6"),
    ("typed", "file 640 5:6"),
    ("null", "char 666 0:5 1,3"),
    ("other", "block 660 0:5 8,1"),
    ("pipe", "fifo 600 7:7"),
];

#[test]
fn records_of_every_form_are_shown() {
    need_mounts!();
    for (name, options) in [
        (NAME, RECORDED),
        (OLD_NAME, RECORDED),
        (PRIVILEGED, "xattr_permissions=1"),
    ] {
        let scratch = Scratch::disk();
        let stack = lower(&scratch, name);
        let mounted = Fs::Unionfs(options).mount(&stack);
        assert_shown(mounted.path(), &SHOWN[1..]);
        let listed: Vec<_> = std::fs::read_dir(mounted.path())
            .unwrap()
            .map(|entry| entry.unwrap())
            .filter(|entry| entry.file_type().unwrap().is_char_device())
            .map(|entry| entry.file_name())
            .collect();
        assert_eq!(listed, ["null"]);
        // The records themselves are not shown.
        assert!(tree::xattr(&mounted.path().join("suid"), name).is_err());
        mounted.unmount();
        // Without the option they are xattrs like others.
        let scratch = Scratch::disk();
        let stack = lower(&scratch, name);
        let mounted = Fs::Unionfs("").mount(&stack);
        assert_shown(mounted.path(), &[("suid", "file 755 0:0")]);
    }
}

/// The real files belong to the server, have no set-id bits, and cannot be written by others.
#[test]
fn changes_keep_every_field() {
    need_mounts!();
    let scratch = Scratch::disk();
    let stack = lower(&scratch, NAME);
    let at = |name: &str| stack.mnt.join(name);
    std::fs::hard_link(
        stack.lowers[0].join("typed"),
        stack.lowers[0].join("typed2"),
    )
    .unwrap();
    let mounted = Fs::Unionfs(RECORDED).mount(&stack);
    std::fs::remove_file(at("typed2")).unwrap();
    chown(at("suid"), Some(7), None).unwrap();
    chmod(&at("suid"), 0o6711);
    chmod(&at("none"), 0o666);
    chown(at("dir"), None, Some(9)).unwrap();
    chown(at("null"), Some(3), Some(4)).unwrap();
    std::fs::write(at("new"), "new").unwrap();
    chmod(&at("new"), 0o4777);
    chown(at("new"), Some(1), Some(2)).unwrap();
    chmod(&at("new"), 0o2705);
    std::fs::create_dir(at("new-dir")).unwrap();
    chmod(&at("new-dir"), 0o1000);
    symlink("x", at("new-link")).unwrap();
    let device = makedev(5, 1);
    let mode = Mode::from_raw_mode(0o640);
    mknodat(CWD, at("tty"), FileType::CharacterDevice, mode, device).unwrap();
    mknodat(CWD, at("fifo"), FileType::Fifo, mode, 0).unwrap();
    std::fs::hard_link(at("tty"), at("tty2")).unwrap();
    std::fs::rename(at("other"), at("moved")).unwrap();
    std::fs::remove_file(at("pipe")).unwrap();
    let capability = testkit::layers::net_raw_capability();
    set_xattr(&at("new"), b"security.capability", &capability);
    let expected = [
        ("suid", "file 6711 7:44"),
        ("none", "file 666 5:6"),
        ("dir", "dir 1777 33:9"),
        ("null", "char 666 3:4 1,3"),
        ("new", "file 2705 1:2"),
        ("new-dir", "dir 1000 0:0"),
        ("new-link", "symlink 777 0:0"),
        ("tty", "char 640 0:0 5,1"),
        ("tty2", "char 640 0:0 5,1"),
        ("fifo", "fifo 640 0:0"),
        ("moved", "block 660 0:5 8,1"),
        ("typed", "file 640 5:6"),
    ];
    assert_shown(&stack.mnt, &expected);
    mounted.unmount();
    let upper = &stack.upper.as_ref().unwrap().0;
    for (name, _) in &expected[..10] {
        let meta = std::fs::symlink_metadata(upper.join(name)).unwrap();
        let mode = meta.permissions().mode() & 0o7777;
        assert_eq!((meta.uid(), meta.gid()), (0, 0), "{name}");
        let is_link = meta.file_type().is_symlink();
        assert!(
            is_link || mode & 0o7022 == 0 && mode & 0o700 == 0o700,
            "{name} {mode:o}"
        );
    }
    assert!(tree::xattr(&upper.join("new"), b"security.capability").is_err());
    let mounted = Fs::Unionfs(RECORDED).mount(&stack);
    assert_shown(&stack.mnt, &expected);
    assert!(!at("pipe").exists());
    let kept = tree::xattr(&at("new"), b"security.capability");
    assert_eq!(kept, Ok(capability));
    mounted.unmount();
}

/// fuse-overlayfs 1.10 loses the owner at a chmod and the mode at creation; what it does not
/// change itself stays.
#[test]
fn uppers_go_back_and_forth_between_us_and_fuse_overlayfs() {
    need_mounts!();
    let theirs = need!(fuse_overlayfs());
    let mount_theirs = |stack: &Stack| -> Mounted {
        let mut options = stack.options();
        options.push_str(",xattr_permissions=2");
        let output = std::process::Command::new(&theirs)
            .args(["-o", &options])
            .arg(&stack.mnt)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        assert!(testkit::mount::poll(|| stack.mnt.join("dir").exists()));
        Mounted::new(&stack.mnt, true)
    };
    let scratch = Scratch::disk();
    let mut stack = lower(&scratch, NAME);
    for device in ["null", "other", "pipe"] {
        std::fs::remove_file(stack.lowers[0].join(device)).unwrap();
    }
    let at = |name: &str| scratch.path().join("mnt").join(name);
    let ours = Fs::Unionfs(RECORDED).mount(&stack);
    std::fs::write(at("new"), "new").unwrap();
    chown(at("new"), Some(1), Some(2)).unwrap();
    chmod(&at("new"), 0o640);
    std::fs::write(at("second"), "").unwrap();
    chown(at("second"), Some(8), Some(8)).unwrap();
    chown(at("suid"), Some(7), None).unwrap();
    ours.unmount();
    let expected = [
        ("new", "file 640 1:2"),
        ("second", "file 644 8:8"),
        ("dir", "dir 1777 33:44"),
    ];
    let other = mount_theirs(&stack);
    assert_shown(&stack.mnt, &expected);
    chown(at("second"), Some(11), Some(12)).unwrap();
    std::fs::write(at("theirs"), "").unwrap();
    chown(at("theirs"), Some(3), Some(3)).unwrap();
    other.unmount();
    let ours = Fs::Unionfs(RECORDED).mount(&stack);
    assert_shown(&stack.mnt, &expected[..1]);
    assert!(describe(&at("second")).ends_with(" 11:12"));
    assert!(describe(&at("theirs")).ends_with(" 3:3"));
    chmod(&at("theirs"), 0o604);
    chown(at("second"), Some(21), Some(22)).unwrap();
    ours.unmount();
    let other = mount_theirs(&stack);
    assert_shown(
        &stack.mnt,
        &[("theirs", "file 604 3:3"), ("new", "file 640 1:2")],
    );
    assert!(describe(&at("second")).ends_with(" 21:22"));
    other.unmount();
    // The upper of both as a lower.
    let (upper, _) = stack.upper.clone().unwrap();
    stack.lowers.insert(0, upper);
    stack.upper = Some((scratch.dir("upper2"), scratch.dir("work2")));
    let ours = Fs::Unionfs(RECORDED).mount(&stack);
    assert_shown(
        &stack.mnt,
        &[("theirs", "file 604 3:3"), ("new", "file 640 1:2")],
    );
    ours.unmount();
}

/// A user could record that a file of his own is a set-user-ID program of root, or a disk.
#[test]
fn records_of_other_users_do_not_count_where_root_mounts() {
    need_mounts!();
    let scratch = Scratch::disk();
    let stack = lower(&scratch, NAME);
    let mine = stack.lowers[0].join("other");
    chown(&mine, Some(1000), None).unwrap();
    chmod(&stack.lowers[0].join("suid"), 0o757);
    let mounted = Fs::Unionfs(RECORDED).mount(&stack);
    assert_shown(
        mounted.path(),
        &[("other", "file 755 1000:0"), ("suid", "file 757 0:0")],
    );
    let mounts = std::fs::read_to_string("/proc/thread-self/mounts").unwrap();
    let mnt = mounted.path().to_str().unwrap();
    let line = mounts.lines().find(|line| line.contains(mnt)).unwrap();
    assert!(line.contains("nosuid,nodev"), "{line}");
}

#[test]
fn a_record_that_is_none_is_an_error() {
    need_mounts!();
    let scratch = Scratch::disk();
    let stack = lower(&scratch, NAME);
    set_xattr(&stack.lowers[0].join("typed"), NAME, b"5:6");
    let mounted = Fs::Unionfs(RECORDED).mount(&stack);
    let result = std::fs::metadata(mounted.path().join("typed"));
    assert_eq!(errno(result), libc::EINVAL);
}

/// Mounts a union of nothing on `scratch`, whose server may not change an owner: all files in it
/// belong to root, as where root is another user on the server of a network file system.
fn refusing(scratch: &Scratch) -> Mounted {
    let stack = Stack::writable(scratch, vec![scratch.dir("nothing")]);
    let mut command = std::process::Command::new(program());
    command.args(["-o", &stack.options()]).arg(&stack.mnt);
    let output = without::output(&mut command, &[Lack::Chown]).unwrap();
    assert!(output.status.success(), "{output:?}");
    Mounted::new(&stack.mnt, true)
}

/// The store of a podman with `force_mask` is on a file system that gives nobody another owner: the
/// union is that over layers on a disk, now and after a remount.
#[test]
fn stores_on_file_systems_that_refuse_chown() {
    need_mounts!();
    const SCRIPT: &str = "\
create new 640
write new 0 text
chown new 5 6
chmod new 4755
chown new 7 4294967295
mkdir made 755
chown made 33 44
chmod made 2775
create made/in 600
mknod made/pipe 10600 0 0
mknod made/null 20666 1 3
chown made/null 0 5
chown suid 8 8
write typed 0 changed
chmod none 700
setxattr dir user.note value
create dir/in 644
chown dir/in 1000 1000
link new linked
rename made/in moved
rename suid dir/suid
unlink other
mkdir other 700
rmdir other
unlink null
create null 600";
    let place = Scratch::disk();
    let base = refusing(&place);
    let file = base.path().join("file");
    std::fs::write(&file, "").unwrap();
    let refused = chown(&file, Some(5), Some(6)).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EPERM));
    std::fs::remove_file(&file).unwrap();
    let fixture = |scratch: Scratch| {
        let stack = lower(&scratch, NAME);
        Fixture::over(&Fs::Unionfs(RECORDED), scratch, stack)
    };
    let mut usual = fixture(Scratch::disk());
    let mut other = fixture(Scratch::beneath(base.path()));
    let mask = Mask::from_now();
    for line in SCRIPT.lines() {
        assert_eq!(other.run(line), usual.run(line), "{line}");
    }
    tree::assert_same("the union", &usual.tree(), &other.tree(), &mask);
    assert_eq!(describe(&other.at("new")), "file 755 7:6");
    assert_eq!(describe(&other.at("made/null")), "char 644 0:5 1,3");
    usual.remount();
    other.remount();
    tree::assert_same("the union later", &usual.tree(), &other.tree(), &mask);
    drop(other);
    base.unmount();
}
