//! The message budget: requests are counted, not timed. The fastest message is the
//! one never sent.

use std::path::Path;

use crate::common::fixture::Fixture;
use crate::common::need_mounts;

use super::stats::requests_of;

fn walk(path: &Path) -> usize {
    let mut entries = 0;
    for entry in std::fs::read_dir(path).unwrap() {
        let path = entry.unwrap().path();
        entries += 1;
        if path.symlink_metadata().unwrap().is_dir() {
            entries += walk(&path);
        }
    }
    entries
}

fn assert_silent(f: &Fixture, what: &str, action: impl FnOnce()) {
    let sent = requests_of(f.root(), action);
    assert!(sent.is_empty(), "{what} sent {sent:?}");
}

/// Proves that the counters count: otherwise all the others would pass on a server
/// that counts nothing.
#[test]
fn a_first_lookup_is_counted() {
    need_mounts!();
    let f = Fixture::standard();
    let sent = requests_of(f.root(), || {
        f.at("plain.txt").symlink_metadata().unwrap();
    });
    assert!(sent.get("LOOKUP").is_some_and(|n| *n >= 1), "{sent:?}");
}

#[test]
fn a_second_walk_sends_nothing() {
    need_mounts!();
    let f = Fixture::standard();
    let first = walk(f.root());
    assert_silent(&f, "a second walk", || assert_eq!(walk(f.root()), first));
}

#[test]
fn a_second_read_of_a_lower_file_sends_nothing() {
    need_mounts!();
    let f = Fixture::standard();
    let first = std::fs::read(f.at("plain.txt")).unwrap();
    assert_silent(&f, "open, read, close again", || {
        assert_eq!(std::fs::read(f.at("plain.txt")).unwrap(), first);
    });
}

#[test]
fn a_second_read_of_a_large_lower_file_sends_nothing() {
    need_mounts!();
    let f = Fixture::standard();
    let first = std::fs::read(f.at("big.bin")).unwrap();
    assert_silent(&f, "open, read, close again", || {
        assert_eq!(std::fs::read(f.at("big.bin")).unwrap(), first);
    });
}

#[test]
fn a_repeated_failing_lookup_sends_nothing() {
    need_mounts!();
    let f = Fixture::standard();
    for path in ["no", "removed.txt", "merged/gone", "deep/a/no"] {
        assert!(f.at(path).symlink_metadata().is_err());
        assert_silent(&f, path, || {
            for _ in 0..10 {
                assert!(f.at(path).symlink_metadata().is_err());
            }
        });
    }
}

#[test]
fn a_second_readlink_sends_nothing() {
    need_mounts!();
    let f = Fixture::standard();
    let first = std::fs::read_link(f.at("link-rel")).unwrap();
    assert_silent(&f, "readlink again", || {
        assert_eq!(std::fs::read_link(f.at("link-rel")).unwrap(), first);
    });
}

/// A change invalidates what it concerns, not everything.
#[test]
fn a_walk_after_a_small_change_sends_little() {
    need_mounts!();
    let f = Fixture::standard();
    walk(f.root());
    std::fs::write(f.at("deep/new"), "x").unwrap();
    walk(f.root());
    assert_silent(&f, "a second walk after the change", || {
        walk(f.root());
    });
}
