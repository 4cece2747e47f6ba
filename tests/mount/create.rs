//! Creating files: where, over what, as whom.

use crate::common::fixture::Fixture;
use crate::common::need_mounts;

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

/// The file belongs to who creates it; the kernel decides who may.
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
fn unnamed_files_are_refused_as_unsupported() {
    need_mounts!();
    // fuser 0.18 does not know FUSE_TMPFILE; programs fall back to a named file. The core
    // has unnamed files: tests/core.
    let f = Fixture::standard();
    f.expect(&[
        ("open 1 deep/a wp 640", "EOPNOTSUPP"),
        ("readdir deep/a", "b:d"),
    ]);
}
