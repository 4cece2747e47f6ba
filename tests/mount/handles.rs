//! File handles (`name_to_handle_at`, `open_by_handle_at`): a handle refers to its file through
//! copy-up, rename, dropped caches and remount, and never to another one.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use rustix::io::Errno;
use testkit::caches;
use testkit::disk::Disk;
use testkit::fixture::Fixture;
use testkit::mount::{Fs, Scratch, Stack, poll};
use testkit::stats::stats;
use testkit::{need, need_mounts, without};
use unionfs::sys::handle::{FileHandle, name_to_handle, open_by_handle};

fn handle(root: &File, path: &str) -> FileHandle {
    let path = std::ffi::CString::new(path).unwrap();
    name_to_handle(root, &path).unwrap()
}

/// Returns the inode number and, for a file, the content.
fn look(fd: &OwnedFd) -> (u64, Vec<u8>) {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let meta = std::fs::metadata(&path).unwrap();
    let data = if meta.is_file() {
        std::fs::read(&path).unwrap()
    } else {
        Vec::new()
    };
    (meta.ino(), data)
}

/// Drops the kernel's caches of names and inodes until the union has only its root left.
pub(crate) fn forget_everything(f: &Fixture) {
    let forgotten = || {
        caches::drop_names_and_inodes();
        stats(f.root()).union["inodes"] == 1
    };
    assert!(poll(forgotten), "{:?}", stats(f.root()).union);
}

#[test]
fn handles_lead_to_known_inodes() {
    need_mounts!();
    let f = Fixture::standard();
    let root = File::open(f.root()).unwrap();
    // The kernel cannot forget a file that is held open.
    let known = File::open(f.at("plain.txt")).unwrap();
    let ino = known.metadata().unwrap().ino();
    let handle = handle(&root, "plain.txt");
    let found = |handle: &FileHandle| look(&open_by_handle(&root, handle).unwrap());
    let (same, data) = found(&handle);
    assert_eq!((same, data.len()), (ino, 23));
    std::fs::write(f.at("plain.txt"), b"copied up").unwrap();
    std::fs::rename(f.at("plain.txt"), f.at("merged/moved")).unwrap();
    assert_eq!(found(&handle), (ino, b"copied up".to_vec()));
}

#[test]
fn a_handle_to_nothing_is_stale() {
    need_mounts!();
    let f = Fixture::standard();
    let root = File::open(f.root()).unwrap();
    let mut handle = handle(&root, "plain.txt");
    // The first eight bytes are the node, the next four its generation.
    handle.bytes[..8].fill(0x7e);
    assert_eq!(open_by_handle(&root, &handle).unwrap_err(), Errno::STALE);
    handle.bytes[..8].fill(0);
    assert_eq!(open_by_handle(&root, &handle).unwrap_err(), Errno::STALE);
}

/// Files and directories of every origin: lower, merged, upper, copied up, moved, linked.
#[test]
fn handles_survive_dropped_caches_and_remounts() {
    need_mounts!();
    need!(without::has_file_handles());
    let _alone = caches::alone();
    let mut f = Fixture::standard();
    f.ok("create merged/sub/new 644
          write merged/sub/new 0 new
          mkdir newdir 755
          create newdir/in 644
          write newdir/in 0 in
          write both.txt 0 COPIED
          write h1 0 H
          rename big.bin newdir/big
          rename deep merged/deep");
    let names = [
        "plain.txt",
        "merged",
        "merged/sub",
        "merged/sub/new",
        "newdir",
        "newdir/in",
        "newdir/big",
        "both.txt",
        "h1",
        "h2",
        "merged/deep/a/b",
        "merged/deep/a/b/c/leaf",
        "link-rel",
        "fifo",
        "",
    ];
    let root = File::open(f.root()).unwrap();
    let before: Vec<_> = names
        .iter()
        .map(|name| {
            let ino = std::fs::symlink_metadata(f.at(name)).unwrap().ino();
            (handle(&root, name), ino)
        })
        .collect();
    drop(root);
    for round in ["dropped", "remounted"] {
        if round == "remounted" {
            f.remount();
        }
        for (name, (handle, ino)) in names.iter().zip(&before) {
            forget_everything(&f);
            let root = File::open(f.root()).unwrap();
            let found = open_by_handle(&root, handle);
            let found = found.unwrap_or_else(|e| panic!("{name} {round}: {e}"));
            let stat = rustix::fs::fstat(&found).unwrap();
            assert_eq!(stat.st_ino, *ino, "{name} {round}");
            // A directory is connected to the tree again, so its names work.
            if rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir() && !name.is_empty() {
                let path = format!("/proc/self/fd/{}", found.as_raw_fd());
                assert_eq!(std::fs::read_link(path).unwrap(), f.at(name), "{round}");
            }
            drop((found, root));
        }
    }
    // Tests the content, and a write to a file that was opened by its handle.
    forget_everything(&f);
    let root = File::open(f.root()).unwrap();
    let found = open_by_handle(&root, &before[3].0).unwrap();
    let path = format!("/proc/self/fd/{}", found.as_raw_fd());
    std::fs::write(path, "written by handle").unwrap();
    let data = std::fs::read(f.upper("merged/sub/new")).unwrap();
    assert_eq!(data, b"written by handle");
}

/// Tells whether the handle of a removed file is stale. While the kernel has an inode it finds the
/// inode by its handle, as for any file that is removed but open: until the RELEASE of the last
/// descriptor is answered, for which close(2) does not wait.
fn is_stale(root: &File, handle: &FileHandle) -> bool {
    match open_by_handle(root, handle) {
        Err(error) => {
            assert_eq!(error, Errno::STALE);
            true
        }
        Ok(found) => {
            let links = rustix::fs::fstat(&found).unwrap().st_nlink;
            assert_eq!(links, 0, "another file");
            false
        }
    }
}

/// A handle of a removed file is stale forever, even if its inode number is reused at once, and
/// both before and after the kernel forgets it.
#[test]
fn a_number_used_again_is_another_file() {
    need_mounts!();
    need!(without::has_statx());
    let _alone = caches::alone();
    // With a journal: without one, ext4 reuses the numbers of deleted files late or never.
    let place = Scratch::disk();
    let disk = need!(Disk::new(place.path(), "disk", 64, "rw"));
    let dir = |name: &str| {
        let path = disk.path().join(name);
        std::fs::create_dir(&path).unwrap();
        path
    };
    let scratch = Scratch::disk();
    let stack = Stack {
        lowers: vec![dir("lower")],
        upper: Some((dir("upper"), dir("work"))),
        mnt: scratch.dir("mnt"),
    };
    let f = Fixture::over(&Fs::Unionfs(""), scratch, stack);
    let root = File::open(f.root()).unwrap();
    let mut again = 0;
    for round in 0..50 {
        f.ok("create x 644");
        let old = (handle(&root, "x"), ino(root.as_fd(), "x"));
        f.ok("unlink x\ncreate y 644");
        let number = ino(root.as_fd(), "y");
        again += u32::from(number == old.1);
        let new = handle(&root, "y");
        assert!(poll(|| is_stale(&root, &old.0)), "round {round}");
        assert_eq!(look(&open_by_handle(&root, &new).unwrap()).0, number);
        if round % 10 == 0 {
            caches::drop_names_and_inodes();
            assert_eq!(open_by_handle(&root, &old.0).unwrap_err(), Errno::STALE);
            assert_eq!(look(&open_by_handle(&root, &new).unwrap()).0, number);
        }
        f.ok("unlink y");
    }
    assert!(again > 0, "the file system never gave a number again");
}

fn ino(root: std::os::fd::BorrowedFd<'_>, name: &str) -> u64 {
    let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
    rustix::fs::statat(root, name, flags).unwrap().st_ino
}
