//! Hosts that lack system calls: each is refused on its own, as an old kernel refuses it, and the
//! program mounts, serves and remounts as on others. `UNIONFS_TEST_WITHOUT=NAME cargo test --test
//! mount` runs all tests without one (`kit/src/without.rs` has the names).

use std::process::Command;

use testkit::fixture::Fixture;
use testkit::mount::{Scratch, Stack};
use testkit::need;
use testkit::need::has_tools;
use testkit::tree::{self, Mask};
use testkit::without::{self, ALL, Lack};
use testkit::{layers, need_mounts, program};

const OPERATIONS: &str = "\
create new 644
write new 0 text
rename new moved
write both.txt 0 changed
chmod plain.txt 600
setxattr top.txt user.note value
link both.txt linked
rename merged merged2
mkdir merged 755
unlink plain.txt
mkdir plain.txt 755
rmdir plain.txt
unlink top.txt
create top.txt 600
symlink target sym
mknod fifo 10600 0 0";

/// Runs the operations on a mount of a program that lacks these calls.
fn without(lacks: &[Lack], options: &str) {
    let mask = Mask::from_now();
    // Without pidfd_open the server cannot ask who reads, and shows `trusted.*` to nobody.
    let shows_trusted = !lacks.contains(&Lack::Linux4_18) && !lacks.contains(&Lack::OldFilter);
    let shown = |mut tree: tree::Tree| {
        for entry in tree.values_mut() {
            let kept = |name: &[u8]| shows_trusted || !name.starts_with(b"trusted.");
            entry.xattrs.retain(|name, _| kept(name));
        }
        tree
    };
    let mut usual = Fixture::standard();
    let scratch = Scratch::disk();
    let lowers = layers::write_all(&layers::standard(), scratch.path(), layers::Form::Kernel);
    let stack = Stack::writable(&scratch, lowers);
    let mount = || without::mount(&stack, options, lacks);
    let mounted = mount();
    for line in OPERATIONS.lines() {
        let ops = testkit::script::parse(line);
        let answer = testkit::exec::run(&stack.mnt, &ops);
        assert_eq!(answer, usual.run(line), "{lacks:?} {line}");
    }
    tree::assert_same(
        &format!("{lacks:?}"),
        &shown(usual.tree()),
        &shown(tree::list(&stack.mnt)),
        &mask,
    );
    mounted.unmount();
    usual.remount();
    let mounted = mount();
    let later = format!("{lacks:?} later");
    tree::assert_same(
        &later,
        &shown(usual.tree()),
        &shown(tree::list(&stack.mnt)),
        &mask,
    );
    mounted.unmount();
}

#[test]
fn each_call_can_be_missing() {
    need_mounts!();
    need!(without::lists_trusted());
    for (_, lack) in ALL {
        without(&[lack], "");
    }
    // Where the server reads files, it needs no OPEN.
    without(&[Lack::NoOpen], ",io=cached");
}

/// A file system may refuse character devices 0:0 with any error: fuse-overlayfs says ENOENT.
#[test]
fn whiteouts_can_be_refused_with_any_error() {
    need_mounts!();
    need!(without::lists_trusted());
    use libc::{EACCES, EINVAL, ENODEV, ENOENT, ENOSYS, ENXIO, EOPNOTSUPP, EPERM};
    for error in [
        EACCES, EINVAL, ENODEV, ENOENT, ENOSYS, ENXIO, EOPNOTSUPP, EPERM,
    ] {
        without(&[Lack::WhiteoutsWith(error)], "");
    }
}

/// A filter of system calls may refuse what it does not know with EPERM, which is also an answer of these
/// calls.
#[test]
fn an_old_filter_refuses_with_another_error() {
    need_mounts!();
    without(&[Lack::OldFilter], "");
    without(&[Lack::OldFilter], ",sandbox=off");
}

#[test]
fn all_calls_can_be_missing() {
    need_mounts!();
    let all = ALL.iter().map(|(_, lack)| *lack);
    let all: Vec<_> = all.filter(|lack| *lack != Lack::OldFilter).collect();
    without(&all, "");
    without(&all, ",sandbox=off");
}

/// `/proc` may hide other processes, and may be that of another PID namespace. Without it, the mount
/// is refused with the reason.
#[test]
fn proc_can_be_that_of_others_but_not_be_missing() {
    need_mounts!();
    need!(has_tools(&["unshare", "mount", "umount"]));
    for (prepare, works) in [
        ("mount -t proc -o hidepid=2 proc /proc", true),
        // The numbers of processes in it are others than those that this namespace has.
        ("true", true),
        ("umount -l /proc", false),
    ] {
        let scratch = Scratch::disk();
        let lowers = layers::write_all(&layers::standard(), scratch.path(), layers::Form::Kernel);
        let stack = Stack::writable(&scratch, lowers);
        let script = format!(
            "{prepare}; \"$0\" -o \"$1\" \"$2\"; cd \"$2\"; echo x > new; mv new moved; ln moved again
             chmod 600 plain.txt; rm top.txt; cat moved; cd /; \"$0\" umount \"$2\""
        );
        let mut command = Command::new("unshare");
        command.args(["--mount", "--pid", "--fork", "--propagation=private"]);
        command.args(["sh", "-ec", &script]).arg(program());
        let output = command
            .arg(stack.options())
            .arg(&stack.mnt)
            .output()
            .unwrap();
        assert_eq!(output.status.success(), works, "{prepare}: {output:?}");
        if works {
            assert_eq!(output.stdout, b"x\n", "{prepare}: {output:?}");
        } else {
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(errors.contains("/proc is not mounted"), "{errors}");
        }
    }
}
