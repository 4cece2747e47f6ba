//! Times: before 1970 and after 2038, nanoseconds, of parents, after writing through a mapping, and
//! the effect of reads on them.

use std::os::unix::fs::MetadataExt;
use std::process::Command;

use testkit::fixture::Fixture;
use testkit::layers::Layer;
use testkit::need::has_tools;
use testkit::{need, need_mounts};

use crate::same_on_standard;

/// On ext4 (years 1901 to 2446) and on tmpfs: the union keeps the times that the backing file
/// system keeps.
#[test]
fn negative_and_far() {
    need_mounts!();
    let names = ["plain.txt", "merged", "link-rel", "fifo", "h1", "new"];
    let times = [
        "-1.5 -1.999999999",
        "-2147483648.0 -2147483648.1",
        "-62135596800.0 -62135596800.7",
        "2147483647.999999999 2147483648.0",
        "4294967296.123456789 15032385535.999999999",
        "99999999999.1 99999999999.2",
        "0.0 0.0",
    ];
    for time in times {
        let mut text = String::from("create new 644\n");
        for name in names {
            text += &format!("utimens {name} {time}\nstat {name}\n");
        }
        // A second copy-up reads such times from the upper's own files.
        text += "rename plain.txt merged/p\nlink merged/p q\nchmod merged/p 600\n";
        same_on_standard(&text);
    }
}

/// Unusual times of a lower survive its copy-up.
#[test]
fn far_times_of_a_lower_are_copied() {
    need_mounts!();
    let layer = Layer::new()
        .file("old", "old\n")
        .mtime(-1_000_000_000, 999_999_999)
        .file("far", "far\n")
        .mtime(9_000_000_000, 1)
        .dir("d")
        .mtime(-1, 1)
        .symlink("s", "x")
        .mtime(4_294_967_296, 500_000_000);
    let mut f = Fixture::new(&[layer]);
    let look = |f: &Fixture| {
        ["old", "far", "d", "s"].map(|name| {
            let meta = std::fs::symlink_metadata(f.at(name)).unwrap();
            (meta.mtime(), meta.mtime_nsec())
        })
    };
    let expected = [
        (-1_000_000_000, 999_999_999),
        (9_000_000_000, 1),
        (-1, 1),
        (4_294_967_296, 500_000_000),
    ];
    assert_eq!(look(&f), expected, "in the lower");
    f.ok("chmod old 600\nchmod far 600\nchmod d 700\nchown s 1 1");
    assert_eq!(look(&f), expected, "in the upper");
    f.remount();
    assert_eq!(look(&f), expected, "after a remount");
}

/// mtimes of parents: an old one stays unless its directory changed.
#[test]
fn of_parents() {
    need_mounts!();
    same_on_standard(
        "chmod deep/a/b/c/leaf 600
         write merged/sub/b 0 x
         create opaque/x 644
         unlink opaque/x
         rename merged/top merged/sub/top
         rename sticky/of-1000 of-1000/g
         link h1 empty/h
         setxattr closed/f user.a 1
         create acl-dir/f 644 x
         create acl-dir/f 644 x
         mkdir setgid/d 755
         symlink x file-to-dir/s
         unlink no.txt
         rmdir merged
         rename of-1000 of-1000",
    );
}

fn stamps(f: &Fixture, name: &str) -> ((i64, i64), (i64, i64)) {
    let meta = std::fs::symlink_metadata(f.at(name)).unwrap();
    (
        (meta.mtime(), meta.mtime_nsec()),
        (meta.ctime(), meta.ctime_nsec()),
    )
}

/// A write through a shared mapping changes mtime and ctime, of a copy and of a new file.
#[test]
fn a_mapped_write_moves_mtime() {
    need_mounts!();
    need!(has_tools(&["fio"]));
    let mut f = Fixture::standard();
    f.ok("create new 644\ntruncate new 262144\nutimens new 1000000000.5 1000000000.5");
    for name in ["big.bin", "new"] {
        let before = stamps(&f, name);
        let fio = Command::new("fio")
            .current_dir(f.scratch.path())
            .args(["--name=m", "--ioengine=mmap", "--rw=write", "--bs=4k"])
            .args(["--size=256k", "--minimal", "--end_fsync=1"])
            .arg(format!("--filename={}", f.at(name).display()))
            .output()
            .unwrap();
        assert!(fio.status.success(), "{fio:?}");
        let after = stamps(&f, name);
        assert!(after.0 > before.0, "{name}: mtime {before:?} {after:?}");
        assert!(after.1 > before.1, "{name}: ctime {before:?} {after:?}");
        f.remount();
        assert_eq!(stamps(&f, name).0, after.0, "{name} after a remount");
    }
}

/// Reading files and listing directories does not change their times in a lower.
#[test]
fn reading_a_lower_leaves_its_times() {
    need_mounts!();
    let mut f = Fixture::standard();
    let names = ["plain.txt", "merged", "merged/sub"];
    let lower = |f: &Fixture| {
        let bottom = f.stack.lowers.last().unwrap();
        names.map(|n| {
            let meta = std::fs::symlink_metadata(bottom.join(n)).unwrap();
            (meta.atime(), meta.atime_nsec(), meta.mtime(), meta.ctime())
        })
    };
    let before = lower(&f);
    for _ in 0..2 {
        std::fs::read(f.at("plain.txt")).unwrap();
        assert!(std::fs::read_dir(f.at("merged")).unwrap().count() > 3);
        assert_eq!(std::fs::read_dir(f.at("merged/sub")).unwrap().count(), 2);
        assert_eq!(lower(&f), before);
        f.remount();
    }
}
