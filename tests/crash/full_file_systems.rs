//! Uppers on real file systems that are full: no block, no inode or no quota left. The oracle is
//! the answer of kernel overlayfs in the same situation, and the tree that it leaves. Once there is
//! room again, all operations work.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use testkit::disk::Disk;
use testkit::tree::{self, Mask};
use testkit::{need, need_mounts};

use crate::disks::{POLICIES, Union, everybody};

/// Prepared before the disk is full: objects in the upper to be changed, and the shared whiteout.
const PREPARE: &str = "
    write both.txt 0 upper
    create here 644
    mkdir dir 755
    create dir/f 644
    unlink caps
    unlink removed
    ";

/// Changes that need no space, each beside one that does. The writes are synced: data that is
/// written back later fails at the sync.
const CHANGES: [&str; 26] = [
    "open 0 both.txt b\nhwrite 0 0 UPPER\nhsync 0",
    "open 0 here b\nhwrite 0 0 x\nhsync 0",
    "open 0 plain.txt b\nhwrite 0 0 x\nhsync 0",
    "open 0 big.bin b\nhwrite 0 100 x\nhsync 0",
    "open 0 both.txt b\nhfallocate 0 0 0 2000000",
    "copyrange both.txt 0 here 0 300000",
    "chmod tagged 600",
    "chown merged/bottom 1 1",
    "open 0 big.bin wt",
    "create new 644",
    "open 0 . wp 600\nhlink 0 named",
    "mkdir newdir 755",
    "symlink short newlink",
    "mknod newfifo 10644 0 0",
    "link here here2",
    "link link-rel linked",
    "unlink both.txt",
    "unlink empty.txt",
    "rmdir empty",
    "rename dir moved",
    "rename suid here",
    "rename deep deeper",
    "setxattr merged/sub user.x y",
    "utimens acl.txt 1.1 2.2",
    "unlink here",
    "open 0 opaque/new b\nhwrite 0 0 x\nhsync 0",
];

/// Tells whether an answer is one of a full disk.
fn is_full(answer: &str) -> bool {
    ["ENOSPC", "EDQUOT"].contains(&answer)
}

/// Takes all space that is left, as root; returns the file whose removal frees it.
fn fill_blocks(disk: &Path) -> PathBuf {
    let path = disk.join("filler");
    let mut file = File::create(&path).unwrap();
    for size in [1 << 20, 4096, 512] {
        while file.write_all(&vec![7; size]).is_ok() {}
        let _ = file.sync_all();
    }
    path
}

fn fill_inodes(disk: &Path) -> PathBuf {
    let path = disk.join("filler");
    std::fs::create_dir(&path).unwrap();
    let mut n = 0;
    while File::create(path.join(n.to_string())).is_ok() {
        n += 1;
    }
    assert!(n > 0);
    path
}

/// Uses up the quota of a subvolume that has one.
fn exhaust_quota(disk: &Path) -> PathBuf {
    Disk::limit(disk, "1").unwrap();
    disk.to_owned()
}

fn lift_quota(disk: &Path) {
    Disk::limit(disk, "none").unwrap();
}

fn remove(path: &Path) {
    if path.is_dir() {
        std::fs::remove_dir_all(path).unwrap();
    } else {
        std::fs::remove_file(path).unwrap();
    }
}

/// Compares the answers of all implementations on a full disk, and once there is room again.
fn compare(
    make: impl Fn(&Path) -> Result<Disk, String>,
    fill: fn(&Path) -> PathBuf,
    free: fn(&Path),
    error: &str,
) {
    let mask = Mask::from_now();
    let mut first = None;
    for fs in everybody() {
        let mut union = need!(Union::start(fs.clone(), &make));
        for line in PREPARE.trim().lines() {
            union.run(line);
        }
        rustix::fs::syncfs(File::open(union.disk.path()).unwrap()).unwrap();
        let staged = union.staged();
        let filler = fill(union.disk.path());
        let mut answers = Vec::new();
        for change in CHANGES {
            let answer = union.outcome(change);
            answers.push((change, answer));
        }
        assert!(union.is_served());
        let left = union.staged();
        let ours = !fs.has("index=on");
        assert!(!ours || left == staged, "{fs:?}: {left:?}, not {staged:?}");
        let full = union.tree();
        free(&filler);
        if fs.has("writeback") {
            // The kernel's cache could not set the time either, and reports that to the next caller
            // who syncs: the server has answered every request since then.
            union.run("open 0 both.txt b\nhsync 0");
        }
        let again: Vec<_> = answers
            .iter()
            .filter(|(_, answer)| is_full(answer))
            .collect();
        let again: Vec<_> = again
            .into_iter()
            .map(|(change, _)| (*change, union.outcome(change)))
            .collect();
        let room = union.tree();
        union.unmount();
        let staged = union.staged();
        assert!(
            staged
                .iter()
                .all(|name| fs.has("index=on") || name.is_empty()),
            "{fs:?}: {staged:?} is left"
        );
        let Some((theirs, full_there, again_there, room_there)) = &first else {
            let refused = answers.iter().filter(|(_, answer)| answer == error).count();
            assert!(refused > 3, "the disk was not full: {answers:#?}");
            first = Some((answers, full, again, room));
            continue;
        };
        let differ = theirs.iter().zip(&answers).filter(|(a, b)| a != b);
        let differ: Vec<_> = differ.collect();
        assert!(differ.is_empty(), "{fs:?}, kernel first: {differ:#?}");
        assert_eq!(again_there, &again, "{fs:?}, with room again");
        // Data that could not be written back stays in the cache, as with any file system.
        if !fs.has("writeback") {
            tree::assert_same(&format!("{fs:?}, full"), full_there, &full, &mask);
            tree::assert_same(&format!("{fs:?}, room"), room_there, &room, &mask);
        }
    }
}

#[test]
fn without_blocks() {
    need_mounts!();
    let make = |dir: &Path| Disk::made_with("ext4", dir, "disk", 32, &["-m", "0"]);
    compare(make, fill_blocks, remove, "ENOSPC");
}

#[test]
fn without_inodes() {
    need_mounts!();
    let make = |dir: &Path| Disk::made_with("ext4", dir, "disk", 32, &["-N", "128"]);
    compare(make, fill_inodes, remove, "ENOSPC");
}

#[test]
fn without_quota() {
    need_mounts!();
    let make = |dir: &Path| Disk::with_quota(dir, "disk");
    compare(make, exhaust_quota, lift_quota, "EDQUOT");
}

/// The kernel forgets a removed file by a message that the caller of unlink(2) does not wait for;
/// the file keeps its inode until then.
#[test]
fn a_removed_file_gives_its_inode_back_at_once() {
    need_mounts!();
    for fs in POLICIES {
        let make = |dir: &Path| Disk::made_with("ext4", dir, "disk", 32, &["-N", "128"]);
        let mut union = need!(Union::start(fs.clone(), make));
        let path = |n: usize| union.at(format!("fill{n}"));
        let mut files = 0;
        while File::create(path(files)).is_ok() {
            files += 1;
        }
        assert!(files > 20, "{fs:?}: {files}");
        for round in 0..2000 {
            let path = path(round % files);
            std::fs::remove_file(&path).unwrap();
            let made = File::create(&path);
            assert!(made.is_ok(), "{fs:?}, round {round}: {made:?}");
        }
        union.unmount();
    }
}
