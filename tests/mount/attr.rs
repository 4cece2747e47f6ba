//! chmod, chown, utimens, truncate by attribute: exact values, one copy-up.

use std::os::unix::fs::MetadataExt;

use rustix::fs::{AtFlags, CWD, StatxFlags};
use testkit::fixture::Fixture;
use testkit::layers::{self, Form};
use testkit::mount::Fs;
use testkit::stats::requests_of;
use testkit::{need, need_mounts, without};

#[test]
fn modes_and_owners() {
    need_mounts!();
    let mut f = Fixture::standard();
    f.expect(&[
        ("chmod plain.txt 4711", ""),
        ("chown plain.txt 12 34", ""),
        ("chown link-rel 5 6", ""),
        ("chmod merged 1770", ""),
        ("chown merged 7 8", ""),
        ("chmod no 600", "ENOENT"),
        ("as 1000 1000", ""),
        ("chmod both.txt 777", "EPERM"),
        ("chown of-1000/f 0 -", "EPERM"),
    ]);
    let check = [
        // chown clears set-user-id.
        (
            "stat plain.txt",
            "mode 100711 owner 12:34 size 23 nlink 1 rdev 0",
        ),
        (
            "stat link-rel",
            "mode 120777 owner 5:6 size 9 nlink 1 rdev 0",
        ),
        ("stat merged", "mode 41770 owner 7:8"),
    ];
    f.expect(&check);
    f.remount();
    f.expect(&check);
}

/// Nanoseconds, times before 1970, and those of directories and symlinks.
#[test]
fn times_are_exact() {
    need_mounts!();
    let mut f = Fixture::standard();
    let files = ["plain.txt", "merged", "link-rel", "fifo", "deep/a/b/c/leaf"];
    for file in files {
        f.ok(&format!("utimens {file} 1000000000.987654321 -5.123456789"));
    }
    for _ in 0..2 {
        for file in files {
            let meta = f.at(file).symlink_metadata().unwrap();
            let times = (
                meta.atime(),
                meta.atime_nsec(),
                meta.mtime(),
                meta.mtime_nsec(),
            );
            let expected = (1_000_000_000, 987_654_321, -5, 123_456_789);
            assert_eq!(times, expected, "{file}");
        }
        f.remount();
    }
}

/// A copy-up that does not concern data keeps data and mtime; ctime changes.
#[test]
fn chmod_keeps_mtime_and_content() {
    need_mounts!();
    let f = Fixture::standard();
    let before = f.at("big.bin").metadata().unwrap();
    let content = std::fs::read(f.at("big.bin")).unwrap();
    f.ok("chmod big.bin 600");
    let after = f.at("big.bin").metadata().unwrap();
    assert_eq!(
        (before.mtime(), before.mtime_nsec()),
        (after.mtime(), after.mtime_nsec())
    );
    assert!((after.ctime(), after.ctime_nsec()) > (before.ctime(), before.ctime_nsec()));
    assert_eq!(std::fs::read(f.at("big.bin")).unwrap(), content);
}

#[test]
fn truncate_both_ways() {
    need_mounts!();
    let f = Fixture::standard();
    f.expect(&[
        ("truncate plain.txt 5", ""),
        ("read plain.txt", "\"plain\""),
        ("truncate plain.txt 7", ""),
        ("read plain.txt", "\"plain\\x00\\x00\""),
        ("truncate empty.txt 2", ""),
        ("read empty.txt", "\"\\x00\\x00\""),
        ("truncate merged 0", "EISDIR"),
    ]);
}

/// Returns the birth time of `path` in seconds and nanoseconds. `None` if statx(2) does not report
/// it.
fn birth(path: &std::path::Path, mask: StatxFlags) -> Option<(i64, u32)> {
    let stat = rustix::fs::statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, mask).unwrap();
    let known = StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::BTIME);
    known.then_some((stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec))
}

#[test]
fn birth_is_that_of_the_topmost_file() {
    need_mounts!();
    need!(without::has_statx());
    let mut f = Fixture::standard();
    let all = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
    std::fs::write(f.at("merged/new"), b"x").unwrap();
    let Some(born) = birth(&f.upper("merged/new"), all) else {
        return need::skip(&"the upper's file system records no birth");
    };
    assert_eq!(birth(&f.at("merged/new"), all), Some(born));
    // The second request is answered from the kernel's cache.
    let sent = requests_of(f.root(), || {
        assert_eq!(birth(&f.at("merged/new"), all), Some(born));
    });
    assert!(!sent.contains_key("STATX"), "{sent:?}");
    assert!(birth(&f.at("plain.txt"), all).is_some());
    assert!(birth(&f.at("link-rel"), all).is_some());
    std::fs::write(f.at("plain.txt"), b"copied up").unwrap();
    f.remount();
    for path in ["merged/new", "plain.txt", "merged"] {
        assert_eq!(
            birth(&f.at(path), all),
            birth(&f.upper(path), all),
            "{path}"
        );
        let (shown, kept) = (
            f.at(path).metadata().unwrap(),
            f.upper(path).metadata().unwrap(),
        );
        assert_eq!(shown.created().unwrap(), kept.created().unwrap());
        assert_eq!(
            (shown.mtime(), shown.mtime_nsec()),
            (kept.mtime(), kept.mtime_nsec())
        );
        assert_eq!((shown.mode(), shown.size()), (kept.mode(), kept.size()));
    }
}

#[test]
fn nobtime_tells_no_birth() {
    need_mounts!();
    let fs = Fs::Unionfs("nobtime");
    let f = Fixture::with(&fs, &layers::standard(), Form::Kernel, true);
    let all = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
    let first = requests_of(f.root(), || {
        assert_eq!(birth(&f.at("plain.txt"), all), None);
    });
    assert_eq!(first.get("STATX"), Some(&1), "{first:?}");
    // The kernel has the answer now, for all files.
    let sent = requests_of(f.root(), || {
        assert_eq!(birth(&f.at("plain.txt"), all), None);
        assert_eq!(birth(&f.at("merged"), all), None);
        assert_eq!(f.at("both.txt").metadata().unwrap().mode() & 0o7777, 0o644);
    });
    assert!(!sent.contains_key("STATX"), "{sent:?}");
}
