//! File handles (`name_to_handle_at`, `open_by_handle_at`): good as long as the kernel knows
//! the inode, through copy-up and rename.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;

use unionfs::sys::handle::{FileHandle, name_to_handle, open_by_handle};

use crate::common::fixture::Fixture;
use crate::common::need_mounts;

#[test]
fn handles_lead_to_known_inodes() {
    need_mounts!();
    let f = Fixture::standard();
    let root = File::open(f.root()).unwrap();
    // Held open, the kernel cannot forget it.
    let known = File::open(f.at("plain.txt")).unwrap();
    let ino = known.metadata().unwrap().ino();
    let handle = name_to_handle(&root, c"plain.txt").unwrap();
    let found = |handle: &FileHandle| {
        let fd = open_by_handle(&root, handle).unwrap();
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let ino = std::fs::metadata(&path).unwrap().ino();
        (ino, std::fs::read(&path).unwrap())
    };
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
    let mut handle = name_to_handle(&root, c"plain.txt").unwrap();
    // The first eight bytes are the node, the next four its generation.
    handle.bytes[..8].fill(0x7e);
    let error = open_by_handle(&root, &handle).unwrap_err();
    assert_eq!(error, rustix::io::Errno::STALE);
}
