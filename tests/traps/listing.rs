//! Listing a directory of 100,000 entries in two layers while other threads create, rename and
//! remove in it: each name that stays is listed exactly once. Also telldir and seekdir.

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::fs::Dir;
use testkit::fixture::Fixture;
use testkit::layers::{self, Form, Layer};
use testkit::mount::{Scratch, Stack, subject};
use testkit::need_mounts;

/// The number of entries in each of the two layers.
const HALF: usize = 50_000;

/// Makes a merged directory with `half` entries in each layer.
fn large(half: usize) -> Fixture {
    let scratch = Scratch::tmpfs();
    let stack = Stack {
        lowers: layers::write_all(&[Layer::new().dir("d")], scratch.path(), Form::Kernel),
        upper: Some((scratch.dir("upper"), scratch.dir("work"))),
        mnt: scratch.dir("mnt"),
    };
    let upper = scratch.dir("upper/d");
    for n in 0..half {
        File::create(stack.lowers[0].join(format!("d/stay-l{n}"))).unwrap();
        File::create(upper.join(format!("stay-u{n}"))).unwrap();
    }
    Fixture::over(&subject(), scratch, stack)
}

/// Returns how often each name that stays is listed.
fn count(dir: &Path) -> HashMap<Vec<u8>, u32> {
    let mut seen = HashMap::new();
    for entry in Dir::new(File::open(dir).unwrap()).unwrap() {
        let name = entry.unwrap().file_name().to_bytes().to_vec();
        if name.starts_with(b"stay-") {
            *seen.entry(name).or_insert(0) += 1;
        }
    }
    seen
}

fn assert_complete(dir: &Path) {
    let seen = count(dir);
    let twice: Vec<_> = seen.iter().filter(|(_, n)| **n != 1).take(5).collect();
    assert!(twice.is_empty(), "seen more than once: {twice:?}");
    assert_eq!(seen.len(), 2 * HALF, "some were missed");
}

/// Creates, renames and removes names of its own, and renames over one that stays.
fn churn(dir: &Path, stop: &AtomicBool, rounds: &AtomicU64) {
    while !stop.load(Ordering::Relaxed) {
        let round = rounds.fetch_add(1, Ordering::Relaxed);
        let path = |n: u64| dir.join(format!("churn-{}", (round + n) % 500));
        std::fs::write(path(0), "x").unwrap();
        let _ = std::fs::remove_file(path(250));
        let _ = std::fs::rename(path(0), path(100));
        // The name stays all the time, though it is another file afterwards.
        let _ = std::fs::rename(path(100), dir.join(format!("stay-l{}", round % 100)));
    }
}

#[test]
fn names_that_stay_are_seen_once_while_others_come_and_go() {
    need_mounts!();
    let mut f = large(HALF);
    let dir = f.at("d");
    let (stop, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| churn(&dir, &stop, &rounds));
        for _ in 0..2 {
            assert_complete(&dir);
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(
        rounds.load(Ordering::Relaxed) > 10,
        "nothing changed meanwhile"
    );
    f.remount();
    assert_complete(&dir);
}

#[test]
fn telldir_and_seekdir() {
    need_mounts!();
    let half = HALF / 5;
    let f = large(half);
    let mut dir = Dir::new(File::open(f.at("d")).unwrap()).unwrap();
    let mut entries = Vec::new();
    while let Some(entry) = dir.read() {
        let entry = entry.unwrap();
        entries.push((entry.file_name().to_owned(), entry.offset()));
    }
    assert_eq!(entries.len(), 2 * half + 2);
    // Seeks back and forth to the position of the next entry that each entry states.
    for step in 0..300 {
        let n = step * 7919 % (entries.len() - 1);
        dir.seek(entries[n].1).unwrap();
        let next = dir.read().unwrap().unwrap();
        assert_eq!(next.file_name(), entries[n + 1].0.as_c_str(), "after {n}");
    }
    dir.seek(entries.last().unwrap().1).unwrap();
    assert!(dir.read().is_none(), "nothing follows the last");
    // The removal of an entry does not change the positions of others.
    std::fs::remove_file(f.at("d/stay-l7")).unwrap();
    let removed = entries
        .iter()
        .position(|e| e.0.to_bytes() == b"stay-l7")
        .unwrap();
    let before = (removed + 1..entries.len() - 1).step_by(997);
    for n in before {
        dir.seek(entries[n].1).unwrap();
        let next = dir.read().unwrap().unwrap();
        assert_eq!(next.file_name(), entries[n + 1].0.as_c_str(), "after {n}");
    }
}
