//! Directory listings: merged, complete, without duplicates, under change.

use std::collections::BTreeSet;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;

use testkit::fixture::Fixture;
use testkit::layers::Layer;
use testkit::need_mounts;

#[test]
fn listings_are_merged() {
    need_mounts!();
    Fixture::standard().expect(&[
        (
            "readdir merged",
            "bottom:f h3:f middle:f over:f sub:d top:f",
        ),
        ("readdir merged/sub", "b:f t:f"),
        ("readdir opaque", "new:f"),
        ("readdir empty", ""),
        ("readdir removed-dir", "ENOENT"),
        ("readdir plain.txt", "ENOTDIR"),
    ]);
}

#[test]
fn listings_follow_changes() {
    need_mounts!();
    Fixture::standard().expect(&[
        (
            "readdir merged",
            "bottom:f h3:f middle:f over:f sub:d top:f",
        ),
        ("unlink merged/bottom", ""),
        ("readdir merged", "h3:f middle:f over:f sub:d top:f"),
        ("create merged/gone 644", ""),
        ("unlink merged/over", ""),
        ("mkdir merged/over 755", ""),
        ("rename merged/top merged/a", ""),
        ("readdir merged", "a:f gone:f h3:f middle:f over:d sub:d"),
        ("rename merged/sub empty/sub", ""),
        ("symlink x merged/link", ""),
        ("mknod merged/fifo 10644 0 0", ""),
        (
            "readdir merged",
            "a:f fifo:p gone:f h3:f link:l middle:f over:d",
        ),
        ("readdir empty", "sub:d"),
    ]);
}

/// The whiteout device is never shown, under any name.
#[test]
fn whiteouts_never_show() {
    need_mounts!();
    let mut f = Fixture::standard();
    f.ok("unlink plain.txt\nunlink merged/bottom\nunlink deep/a/b/c/leaf");
    for _ in 0..2 {
        for (path, entry) in f.tree() {
            assert!(!entry.is_whiteout(), "{}", String::from_utf8_lossy(&path));
        }
        f.remount();
    }
}

fn names(f: &Fixture, dir: &str) -> Vec<Vec<u8>> {
    let entries = std::fs::read_dir(f.at(dir)).unwrap();
    entries
        .map(|e| e.unwrap().file_name().as_bytes().to_vec())
        .collect()
}

/// More entries than any buffer holds, from three layers that overlap.
#[test]
fn a_large_directory_is_listed_once_and_completely() {
    need_mounts!();
    let layer = |from: usize, to: usize| {
        let dir = Layer::new().dir("d");
        (from..to).fold(dir, |l, n| {
            l.file(format!("d/a-name-that-is-not-so-short-{n}"), "")
        })
    };
    let f = Fixture::new(&[layer(0, 1500), layer(1000, 2500), layer(2000, 4000)]);
    for _ in 0..2 {
        let all = names(&f, "d");
        let unique: BTreeSet<_> = all.iter().collect();
        assert_eq!((all.len(), unique.len()), (4000, 4000));
    }
}

/// `rm -r` deletes while it reads; each name that existed must be returned.
#[test]
fn deleting_while_reading_misses_nothing() {
    need_mounts!();
    let dir = Layer::new().dir("d");
    let layer = (0..3000).fold(dir, |l, n| l.file(format!("d/f{n}"), ""));
    let f = Fixture::new(&[layer]);
    for entry in std::fs::read_dir(f.at("d")).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
    assert_eq!(names(&f, "d").len(), 0);
    std::fs::remove_dir(f.at("d")).unwrap();
}

#[test]
fn dot_and_dotdot_are_listed_first() {
    need_mounts!();
    let f = Fixture::standard();
    let dir = std::fs::File::open(f.at("merged")).unwrap();
    let entries = rustix::fs::Dir::read_from(&dir).unwrap();
    let names: Vec<_> = entries
        .map(|e| e.unwrap().file_name().to_bytes().to_vec())
        .collect();
    let dots = names.iter().filter(|n| n[..] == *b"." || n[..] == *b"..");
    assert_eq!(dots.count(), 2, "{names:?}");
}

/// A listing that was started before the files were written must not restore the lower files.
#[test]
fn a_listing_begun_before_a_copy_up_shows_the_copies() {
    need_mounts!();
    let names: Vec<_> = (0..500).map(|i| format!("f{i}")).collect();
    let lower = names.iter().fold(Layer::new(), |l, n| l.file(n, "old"));
    let f = Fixture::new(&[lower]);
    let mut begun = std::fs::read_dir(f.root()).unwrap();
    begun.next().unwrap().unwrap();
    for name in &names {
        std::fs::write(f.at(name), "new").unwrap();
    }
    let numbers = |f: &Fixture| -> Vec<u64> {
        let ino = |name| std::fs::metadata(f.at(name)).unwrap().ino();
        names.iter().map(ino).collect()
    };
    let before = numbers(&f);
    drop(begun);
    assert_eq!(std::fs::read_dir(f.root()).unwrap().count(), names.len());
    assert_eq!(numbers(&f), before);
    for name in &names {
        let content = std::fs::read_to_string(f.at(name)).unwrap();
        assert_eq!(content, "new", "{name}");
    }
}
