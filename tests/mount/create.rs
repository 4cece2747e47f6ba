//! Creating files: in which directory, over which object, as which user, and without a name.

use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use testkit::fixture::Fixture;
use testkit::without::{self, Lack};
use testkit::{layers, need, need_mounts};

#[test]
fn create_and_exclusive_create() {
    need_mounts!();
    let mut f = Fixture::standard();
    f.expect(&[
        ("create new 4640", ""),
        ("create plain.txt 600 x", "EEXIST"),
        ("create plain.txt 600", ""),
        ("create removed.txt 600 x", ""),
        ("create merged 600", "EISDIR"),
        ("create no/new 600", "ENOENT"),
        ("create plain.txt/new 600", "ENOTDIR"),
        ("create merged/gone 600 x", ""),
    ]);
    let check = [
        ("stat new", "mode 104640 owner 0:0 size 0 nlink 1 rdev 0"),
        (
            "read plain.txt",
            "\"plain\\x20file,\\x20lower\\x20only\\x0a\"",
        ),
        (
            "stat removed.txt",
            "mode 100600 owner 0:0 size 0 nlink 1 rdev 0",
        ),
        (
            "readdir merged",
            "bottom:f gone:f h3:f middle:f over:f sub:d top:f",
        ),
    ];
    f.expect(&check);
    f.remount();
    f.expect(&check);
}

/// The file belongs to its creator; the kernel decides who may create it.
#[test]
fn the_caller_owns_what_he_creates() {
    need_mounts!();
    Fixture::standard().expect(&[
        ("as 1000 1001", ""),
        ("create of-1000/new 666", ""),
        (
            "stat of-1000/new",
            "mode 100644 owner 1000:1001 size 0 nlink 1 rdev 0",
        ),
        ("create deep/new 666", "EACCES"),
        ("create sticky/new 666", ""),
        ("umask 77", ""),
        ("create sticky/private 666", ""),
        (
            "stat sticky/private",
            "mode 100600 owner 1000:1001 size 0 nlink 1 rdev 0",
        ),
        ("create setgid/new 666", ""),
        (
            "stat setgid/new",
            "mode 100600 owner 1000:1234 size 0 nlink 1 rdev 0",
        ),
    ]);
}

#[test]
fn unnamed_files_get_a_name_by_link() {
    need_mounts!();
    need!(without::has(&[Lack::UnnamedFiles]));
    let mut f = Fixture::standard();
    let dir = std::fs::File::open(f.at("deep/a")).unwrap();
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let unnamed = || rustix::fs::openat(&dir, ".", flags, Mode::from_raw_mode(0o640)).unwrap();
    let mut file = std::fs::File::from(unnamed());
    file.write_all(b"content").unwrap();
    let stat = file.metadata().unwrap();
    assert_eq!((stat.nlink(), stat.mode(), stat.len()), (0, 0o100_640, 7));
    // Another one, never named, is gone when it is closed.
    drop(unnamed());
    f.expect(&[("readdir deep/a", "b:d")]);
    let magic = format!("/proc/self/fd/{}", file.as_raw_fd());
    rustix::fs::linkat(CWD, magic, &dir, "named", AtFlags::SYMLINK_FOLLOW).unwrap();
    file.write_all(b" and more").unwrap();
    drop((file, dir));
    let check = [
        (
            "stat deep/a/named",
            "mode 100640 owner 0:0 size 16 nlink 1 rdev 0",
        ),
        ("readdir deep/a", "b:d named:f"),
    ];
    f.expect(&check);
    assert_eq!(
        std::fs::read(f.at("deep/a/named")).unwrap(),
        b"content and more"
    );
    f.remount();
    f.expect(&check);
    assert_eq!(
        std::fs::read(f.upper("deep/a/named")).unwrap(),
        b"content and more"
    );
}

#[test]
fn unnamed_files_need_an_upper() {
    need_mounts!();
    let f = Fixture::read_only(&layers::standard());
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let made = rustix::fs::open(f.at("deep/a"), flags, Mode::RUSR);
    assert_eq!(made.unwrap_err(), rustix::io::Errno::ROFS);
}
