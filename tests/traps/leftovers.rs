//! A work directory full of leftovers of a crash: the next mount removes them, reuses none, and no
//! file has their data.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use testkit::fixture::Fixture;
use testkit::layers::{self, Form, Layer};
use testkit::mount::{Scratch, Stack, subject};
use testkit::need_mounts;
use testkit::tree::{self, Mask};

/// Makes files and directories of every kind, some without permission to enter, with names in the
/// form of staging names and recognisable data.
fn litter(staging: &Path) {
    let stale = Layer::new()
        .file("#1", "STALE")
        .file("#2", vec![b'S'; 100_000])
        .file("deadbeef", "STALE")
        .mode(0)
        .dir("#3")
        .file("#3/f", "STALE")
        .dir("#3/closed")
        .mode(0)
        .dir("#4")
        .whiteout("#4/gone")
        .whiteout("#5")
        .symlink("#6", "/etc")
        .fifo("#7")
        .dir("#8")
        .opaque();
    std::fs::create_dir_all(staging).unwrap();
    stale.write(staging);
    for n in 0..500 {
        std::fs::write(staging.join(format!("{n:x}")), "STALE").unwrap();
    }
    std::fs::set_permissions(staging, PermissionsExt::from_mode(0o700)).unwrap();
}

#[test]
fn are_cleaned_and_never_used() {
    need_mounts!();
    let scratch = Scratch::disk();
    let stack = Stack {
        lowers: layers::write_all(&layers::standard(), scratch.path(), Form::Kernel),
        upper: Some((scratch.dir("upper"), scratch.dir("work"))),
        mnt: scratch.dir("mnt"),
    };
    let staging = scratch.path().join("work/work");
    litter(&staging);
    let mut f = Fixture::over(&subject(), scratch, stack);
    let left: Vec<_> = std::fs::read_dir(&staging).unwrap().collect();
    assert!(left.is_empty(), "still there: {left:?}");
    // Copy-ups of many sizes, whiteouts and replaced directories all use the staging directory.
    f.ok("chmod big.bin 600
          truncate sparse.bin 5000000
          write plain.txt 50 far-behind
          truncate empty.txt 4096
          unlink h1
          mkdir removed-dir 755
          rename merged moved
          create merged 644
          unlink top.txt
          mkdir top.txt 755");
    let expected = f.tree();
    for (path, entry) in &expected {
        if entry.kind() == libc::S_IFREG {
            let data = std::fs::read(f.at(path)).unwrap();
            assert!(!data.windows(5).any(|w| w == b"STALE"), "in {path:?}");
        }
    }
    assert!(std::fs::read(f.at("empty.txt")).unwrap() == vec![0; 4096]);
    f.unmount();
    litter(&staging);
    f.remount();
    tree::assert_same("after more of it", &expected, &f.tree(), &Mask::ALL);
}
