//! statfs(2): the file system type, and the numbers of the upper's file system.

use testkit::fixture::Fixture;
use testkit::mount::{Fs, Scratch};
use testkit::{layers, need_mounts};

#[test]
fn numbers_are_the_uppers() {
    need_mounts!();
    // A tmpfs to which nothing else writes, so the numbers do not change.
    let scratch = Scratch::tmpfs();
    let stack = testkit::mount::Stack {
        lowers: layers::write_all(&layers::standard(), scratch.path(), layers::Form::Kernel),
        upper: Some((scratch.dir("upper"), scratch.dir("work"))),
        mnt: scratch.dir("mnt"),
    };
    let f = Fixture::over(&Fs::Unionfs(""), scratch, stack);
    let union = rustix::fs::statvfs(f.root()).unwrap();
    let upper = rustix::fs::statvfs(f.upper("")).unwrap();
    assert_eq!(
        (
            union.f_blocks,
            union.f_frsize,
            union.f_files,
            union.f_namemax
        ),
        (upper.f_blocks, upper.f_frsize, upper.f_files, 255),
    );
    assert_eq!(union.f_bavail, upper.f_bavail);
}

#[test]
fn the_type_is_fuse_unionfs() {
    need_mounts!();
    let f = Fixture::standard();
    let mounts = std::fs::read_to_string("/proc/thread-self/mounts").unwrap();
    let mnt = f.root().to_str().unwrap();
    let line = mounts.lines().find(|l| l.split(' ').nth(1) == Some(mnt));
    let line = line.unwrap_or_else(|| panic!("{mnt} not in\n{mounts}"));
    assert_eq!(line.split(' ').nth(2), Some("fuse.unionfs"), "{line}");
}

#[test]
fn fsname_is_the_source() {
    need_mounts!();
    let f = Fixture::with(
        &Fs::Unionfs("fsname=my-test"),
        &layers::standard(),
        layers::Form::Kernel,
        true,
    );
    let mounts = std::fs::read_to_string("/proc/thread-self/mounts").unwrap();
    let expected = format!("my-test {} fuse.unionfs ", f.root().display());
    assert!(mounts.lines().any(|l| l.starts_with(&expected)), "{mounts}");
}
