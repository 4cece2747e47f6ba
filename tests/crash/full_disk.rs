//! A copy-up that does not fit: ENOSPC, and it leaves nothing, or the metacopy that there was.

use std::fs;
use std::io::Write;

use testkit::layers::{net_raw_capability, set_xattr};
use testkit::mount::{Fs, Scratch, Stack, UNIONFS};
use testkit::need_mounts;
use testkit::tree;

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

/// The data of a metacopy does not fit. Metadata fits, and stays.
#[test]
fn a_metacopy_that_cannot_be_completed_stays_one() {
    need_mounts!();
    let scratch = Scratch::disk();
    let low = scratch.dir("low");
    let big: Vec<u8> = (0..12u32 << 20).map(|n| (n % 251) as u8).collect();
    fs::write(low.join("big"), &big).unwrap();
    set_xattr(
        &low.join("big"),
        b"security.capability",
        &net_raw_capability(),
    );
    let disk = scratch.dir("disk");
    let none = rustix::mount::MountFlags::empty();
    rustix::mount::mount("tmpfs", &disk, "tmpfs", none, Some(DISK)).unwrap();
    let (upper, work) = (disk.join("upper"), disk.join("work"));
    fs::create_dir(&upper).unwrap();
    fs::create_dir(&work).unwrap();
    let stack = Stack {
        lowers: vec![low],
        upper: Some((upper.clone(), work)),
        mnt: scratch.dir("mnt"),
    };
    let mounted = Fs::Unionfs("metacopy=on").mount(&stack);
    let path = stack.mnt.join("big");
    testkit::mount::chmod(&path, 0o711);
    let before = (
        fs::metadata(&path).unwrap().modified().unwrap(),
        tree::list(&stack.mnt),
    );
    let appended = fs::OpenOptions::new().append(true).open(&path);
    let error = appended
        .and_then(|mut file| file.write_all(b"!"))
        .unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
    assert!(tree::xattr(&upper.join("big"), b"trusted.overlay.metacopy").is_ok());
    let blocks = std::os::unix::fs::MetadataExt::blocks(&fs::metadata(upper.join("big")).unwrap());
    assert_eq!(blocks, 0, "the space is free again");
    assert!(fs::read(&path).unwrap() == big, "the file is what it was");
    let after = (
        fs::metadata(&path).unwrap().modified().unwrap(),
        tree::list(&stack.mnt),
    );
    assert!(before == after, "{before:?} {after:?}");
    mounted.unmount();
    rustix::mount::unmount(&disk, rustix::mount::UnmountFlags::DETACH).unwrap();
}
