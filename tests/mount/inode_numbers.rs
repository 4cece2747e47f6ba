//! Inode numbers: one device, st_ino equal to d_ino, no two files with one number, and the same
//! number across copy-up, rename and remount.

use std::collections::BTreeMap;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::Path;

use testkit::fixture::Fixture;
use testkit::layers::Form;
use testkit::mount::Fs;
use testkit::tree::Tree;
use testkit::{need, need_mounts, without};

fn numbers(tree: &Tree) -> BTreeMap<Vec<u8>, u64> {
    tree.iter().map(|(p, e)| (p.clone(), e.ino)).collect()
}

fn assert_unique(tree: &Tree) {
    let mut owner: BTreeMap<u64, &[u8]> = BTreeMap::new();
    let device = tree[&b""[..]].dev;
    for (path, entry) in tree {
        let shown = String::from_utf8_lossy(path);
        assert_eq!(entry.dev, device, "device of {shown}");
        let group = entry.group.as_deref().unwrap_or(path);
        let first = owner.entry(entry.ino).or_insert(group);
        let other = String::from_utf8_lossy(first);
        assert_eq!(*first, group, "{shown} has the number of {other}");
    }
}

#[test]
fn unique_on_one_device() {
    need_mounts!();
    let f = Fixture::standard();
    assert_unique(&f.tree());
    f.ok("create a 644\nmkdir b 755\nsymlink x c\nwrite plain.txt 0 X\nrename merged m2");
    let tree = f.tree();
    assert_unique(&tree);
    // The three links of the bottom layer share a number, and no others do.
    assert_eq!(tree.values().filter(|e| e.group.is_some()).count(), 3);
}

fn compare_d_ino(dir: &Path) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let meta = entry.path().symlink_metadata().unwrap();
        assert_eq!(entry.ino(), meta.ino(), "{}", entry.path().display());
        if meta.is_dir() {
            compare_d_ino(&entry.path());
        }
    }
}

#[test]
fn d_ino_is_st_ino() {
    need_mounts!();
    let mut f = Fixture::standard();
    // Before any stat, after changes, and with a fresh server.
    compare_d_ino(f.root());
    f.ok("write plain.txt 0 X\ncreate a 644\nrename merged m2\nwrite m2/bottom 0 X");
    compare_d_ino(f.root());
    f.remount();
    compare_d_ino(f.root());
}

#[test]
fn stable_across_copy_up_and_remount() {
    need_mounts!();
    need!(without::has_file_handles());
    let mut f = Fixture::standard();
    f.ok("create new 644\nmkdir newdir 755");
    let before = numbers(&f.tree());
    f.ok("chmod plain.txt 600
          write big.bin 0 X
          chmod merged 700
          write deep/a/b/c/leaf 0 X
          chown fifo 1 1
          chown link-rel 1 1
          write h2 0 X
          chmod . 755");
    assert_eq!(numbers(&f.tree()), before, "after copy-up");
    f.remount();
    assert_eq!(numbers(&f.tree()), before, "after a remount");
}

/// Copies without an origin keep their number during the mount, also when the kernel looks the name
/// up again, as it does for the target of a rename.
#[test]
fn stable_without_origins() {
    need_mounts!();
    let f = Fixture::with(
        &Fs::Unionfs("userxattr"),
        &testkit::layers::standard(),
        Form::UserOpaque,
        true,
    );
    let before = numbers(&f.tree());
    for name in ["fifo", "link-rel"] {
        f.ok(&format!("chown {name} 1 1\nrename {name} {name} whiteout"));
    }
    assert_eq!(numbers(&f.tree()), before);
}

#[test]
fn stable_across_rename() {
    need_mounts!();
    need!(without::has_file_handles());
    let mut f = Fixture::standard();
    let ino = |f: &Fixture, path: &str| f.at(path).symlink_metadata().unwrap().ino();
    let moves = [
        ("plain.txt", "merged/p"),
        ("deep/a/b/c/leaf", "leaf"),
        ("top.txt", "both.txt"),
        ("deep", "removed-dir"),
        ("opaque", "empty"),
    ];
    for (from, to) in moves {
        let before = ino(&f, from);
        f.ok(&format!("rename {from} {to}"));
        assert_eq!(ino(&f, to), before, "{from} to {to}");
        f.remount();
        assert_eq!(ino(&f, to), before, "{from} to {to}, remounted");
    }
}
