//! A copy-up that does not fit: ENOSPC, and it leaves nothing.

use std::fs;
use std::io::Write;

use testkit::mount::{Scratch, Stack, UNIONFS};
use testkit::need_mounts;

const DISK: &std::ffi::CStr = c"mode=755,size=4m";

#[test]
fn a_copy_up_that_does_not_fit_leaves_nothing() {
    need_mounts!();
    let scratch = Scratch::disk();
    let low = scratch.dir("low");
    let big: Vec<u8> = (0..12u32 << 20).map(|n| (n % 251) as u8).collect();
    fs::write(low.join("big"), &big).unwrap();
    fs::write(low.join("small"), "s").unwrap();
    let disk = scratch.dir("disk");
    let none = rustix::mount::MountFlags::empty();
    rustix::mount::mount("tmpfs", &disk, "tmpfs", none, Some(DISK)).unwrap();
    let (upper, work) = (disk.join("upper"), disk.join("work"));
    fs::create_dir(&upper).unwrap();
    fs::create_dir(&work).unwrap();
    let stack = Stack {
        lowers: vec![low],
        upper: Some((upper.clone(), work.clone())),
        mnt: scratch.dir("mnt"),
    };
    let mounted = UNIONFS.mount(&stack);
    let at = |name: &str| stack.mnt.join(name);
    let append = |name: &str| {
        let mut file = fs::OpenOptions::new().append(true).open(at(name))?;
        file.write_all(b"!")
    };
    let error = append("big").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
    assert_eq!(
        fs::read_dir(&upper).unwrap().count(),
        0,
        "the upper is empty"
    );
    assert_eq!(
        fs::read_dir(work.join("work")).unwrap().count(),
        0,
        "so is the staging"
    );
    assert!(
        fs::read(at("big")).unwrap() == big,
        "the file is what it was"
    );
    // The space is free again at once.
    append("small").unwrap();
    assert_eq!(fs::read_to_string(at("small")).unwrap(), "s!");
    mounted.unmount();
    rustix::mount::unmount(&disk, rustix::mount::UnmountFlags::DETACH).unwrap();
}
