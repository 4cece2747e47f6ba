//! fsync, fdatasync, syncfs and the fsync of directories answer, and the synced data is in the
//! upper.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;

use testkit::fixture::Fixture;
use testkit::map::Map;
use testkit::mount::{Fs, Scratch, Stack};
use testkit::{layers, need_mounts};

fn write_and_sync(f: &Fixture) {
    let mut file = File::create(f.at("merged/new")).unwrap();
    file.write_all(b"durable").unwrap();
    file.sync_data().unwrap();
    file.sync_all().unwrap();
    let dir = File::open(f.at("merged")).unwrap();
    rustix::fs::fsync(&dir).unwrap();
    rustix::fs::syncfs(&dir).unwrap();
    // The file is still open in the union; the data must already be in the upper.
    assert_eq!(std::fs::read(f.upper("merged/new")).unwrap(), b"durable");
    let lower = File::open(f.at("plain.txt")).unwrap();
    rustix::fs::fsync(&lower).unwrap();
}

#[test]
fn synced_data_is_in_the_upper() {
    need_mounts!();
    write_and_sync(&Fixture::standard());
}

#[test]
fn volatile_answers_too() {
    need_mounts!();
    let fs = Fs::Unionfs("volatile");
    write_and_sync(&Fixture::with(
        &fs,
        &layers::standard(),
        layers::Form::Kernel,
        true,
    ));
}

/// What is written from the kernel's pages.
static PAGES: [u8; 512 << 10] = [b'p'; 512 << 10];

/// Leaves half of [`PAGES`] free on a file system.
fn leave_half(dir: &Path) {
    let stat = rustix::fs::statvfs(dir).unwrap();
    let free = stat.f_bavail * stat.f_frsize - PAGES.len() as u64 / 2;
    std::fs::write(dir.join("filler"), vec![0; free as usize]).unwrap();
}

/// Linux ignores how much of a write of its pages was done. So if they do not fit, that is an error for
/// all of them, which msync(2) or fsync(2) reports.
#[test]
fn pages_that_do_not_fit_are_an_error() {
    need_mounts!();
    for (options, maps) in [
        ("io=cached", true),
        ("io=cached,writeback", true),
        ("io=cached,writeback", false),
    ] {
        let scratch = Scratch::tmpfs();
        let mut remount = Command::new("mount");
        remount.args(["-o", "remount,size=8m"]).arg(scratch.path());
        assert!(remount.status().unwrap().success());
        let stack = Stack::writable(&scratch, vec![scratch.dir("lower")]);
        let mounted = Fs::Unionfs(options).mount(&stack);
        let mut file = OpenOptions::new();
        let file = file.read(true).write(true).create(true);
        let file = file.open(mounted.path().join("new")).unwrap();
        file.set_len(PAGES.len() as u64).unwrap();
        leave_half(scratch.path());
        let result = if maps {
            Map::shared(&file, true).unwrap().write(0, &PAGES)
        } else {
            file.write_all_at(&PAGES, 0).unwrap();
            file.sync_all()
        };
        let there = std::fs::read(stack.upper.as_ref().unwrap().0.join("new")).unwrap();
        assert!(there != PAGES, "{options}: there was room");
        let error = result.err().and_then(|error| error.raw_os_error());
        assert_eq!(error, Some(libc::ENOSPC), "{options}, maps: {maps}");
    }
}
