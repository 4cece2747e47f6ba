//! The transport `fuser`: how it is selected, what it refuses, which features it lacks, and how it
//! ends. The suites run with `UNIONFS_TEST_TRANSPORT=fuser` (ci/test.sh does so) test that it
//! serves all operations.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, symlink};
use std::path::Path;
use std::process::{Command, Output};

use rustix::fs::{CWD, FileType, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use serde_json::Value;
use testkit::caches;
use testkit::fixture::Fixture;
use testkit::layers::{self, Form, Layer};
use testkit::mount::{Fs, Scratch, Stack, poll};
use testkit::task::tasks;
use testkit::{need_mounts, program};

const FUSER: Fs = Fs::Unionfs("transport=fuser");

fn standard(fs: &Fs) -> Fixture {
    Fixture::with(fs, &layers::standard(), Form::Kernel, true)
}

/// Returns the output of `stats` for a mount.
fn stats(mnt: &Path) -> Value {
    let mut command = Command::new(program());
    let output = command.arg("stats").arg(mnt).arg("--json").output();
    serde_json::from_slice(&output.unwrap().stdout).unwrap()
}

fn mount(stack: &Stack, options: &str) -> Output {
    let options = format!("{},{options}", stack.options());
    let mut command = Command::new(program());
    command.args(["-o", &options]).arg(&stack.mnt);
    command.output().unwrap()
}

#[test]
fn it_serves_from_its_own_threads_in_the_sandbox() {
    need_mounts!();
    let f = standard(&FUSER);
    let told = stats(f.root());
    assert_eq!(told["mount"]["transport"], "fuser");
    // Nothing is passed through, although this is a writable mount of root.
    assert_eq!(told["mount"]["io"], "cached");
    assert!(told["mount"]["sandbox"].is_object(), "{told}");
    let server = f.mounted().servers()[0];
    let names: Vec<String> = tasks(server).into_iter().map(|task| task.name).collect();
    let of = |prefix: &str| names.iter().filter(|name| name.starts_with(prefix)).count();
    // As many threads as our own transport would have, and none of its own kinds.
    assert!(
        of("fuser-") >= 4 && !names.contains(&"unionfs-0".into()),
        "{names:?}"
    );
}

#[test]
fn what_it_does_not_do_is_refused_before_anything_is_mounted() {
    need_mounts!();
    let scratch = Scratch::disk();
    let stack = Stack {
        lowers: layers::write_all(&layers::standard(), scratch.path(), Form::Kernel),
        upper: None,
        mnt: scratch.dir("mnt"),
    };
    let output = mount(&stack, "transport=fuser,io=passthrough");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{text}");
    assert!(text.contains("transport=fuser is not possible"), "{text}");
    assert!(text.contains("io=auto"), "{text}");
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(stack.mnt.to_str().unwrap()));
    let output = mount(&stack, "transport=fuser,io=auto");
    assert!(output.status.success());
    rustix::mount::unmount(&stack.mnt, UnmountFlags::DETACH).unwrap();
}

/// Every kind of file, and the longest device numbers, in the answers of the crate.
#[test]
fn kinds_and_devices_are_exact() {
    need_mounts!();
    let f = Fixture::with(&FUSER, &[Layer::new()], Form::Kernel, true);
    let at = |name: &str| f.root().join(name);
    let node = |name: &str, kind, device| {
        rustix::fs::mknodat(CWD, at(name), kind, Mode::from_raw_mode(0o4751), device).unwrap();
        fs::symlink_metadata(at(name)).unwrap()
    };
    assert!(node("fifo", FileType::Fifo, 0).file_type().is_fifo());
    assert!(node("socket", FileType::Socket, 0).file_type().is_socket());
    let device = rustix::fs::makedev(0xabc, 0x9_8765);
    let block = node("block", FileType::BlockDevice, device);
    assert!(block.file_type().is_block_device());
    assert_eq!((block.rdev(), block.mode() & 0o7777), (device, 0o4751));
    symlink("there", at("link")).unwrap();
    assert_eq!(fs::read_link(at("link")).unwrap(), Path::new("there"));
    for entry in fs::read_dir(f.root()).unwrap() {
        let entry = entry.unwrap();
        let (told, seen) = (entry.file_type().unwrap(), entry.metadata().unwrap());
        assert_eq!(told, seen.file_type(), "{entry:?}");
    }
}

/// A listing returns the names of a directory of any length, and each name is looked up once.
#[test]
fn listings_come_without_attributes() {
    need_mounts!();
    const FILES: usize = 3000;
    let _undisturbed = caches::undisturbed();
    let files = (0..FILES).fold(Layer::new(), |layer, n| layer.file(format!("f{n}"), ""));
    let f = Fixture::with(&FUSER, &[files], Form::Kernel, true);
    let listed = || {
        let entries = fs::read_dir(f.root()).unwrap().map(|entry| entry.unwrap());
        entries.map(|entry| (entry.file_name(), entry.metadata().unwrap().ino()))
    };
    let first: BTreeMap<_, _> = listed().collect();
    assert_eq!(first.len(), FILES);
    let sent = |operation: &str| stats(f.root())["requests"][operation].as_u64().unwrap_or(0);
    assert_eq!((sent("LOOKUP"), sent("READDIRPLUS")), (FILES as u64, 0));
    assert_eq!(listed().collect::<BTreeMap<_, _>>(), first);
    assert_eq!(sent("LOOKUP"), FILES as u64);
}

/// The crate changes times before 1970; the oldest one has no positive counterpart.
#[test]
fn times_before_1970_are_exact() {
    need_mounts!();
    let f = standard(&FUSER);
    let path = f.root().join("plain.txt");
    let file = File::options().write(true).open(&path).unwrap();
    let at = |tv_sec, tv_nsec| Timespec { tv_sec, tv_nsec };
    let times = |last_access, last_modification| Timestamps {
        last_access,
        last_modification,
    };
    for (sec, nsec) in [
        (-1, 0),
        (-1, 999_999_999),
        (-2, 1),
        (-300_000_000, 250_000_000),
    ] {
        let times = times(at(0, UTIME_OMIT), at(sec, nsec));
        rustix::fs::futimens(&file, &times).unwrap();
        let seen = fs::metadata(&path).unwrap();
        assert_eq!((seen.mtime(), seen.mtime_nsec()), (sec, nsec));
        let below = fs::metadata(f.upper("plain.txt")).unwrap();
        assert_eq!((below.mtime(), below.mtime_nsec()), (sec, nsec));
    }
    for (sec, nsec) in [(i64::MIN, 1), (i64::MIN, 0), (i64::MIN + 1, 999_999_999)] {
        let times = times(at(sec, nsec), at(sec, nsec));
        // The file system below may not support such a time; the server must keep running.
        rustix::fs::futimens(&file, &times).unwrap();
        assert!(fs::metadata(&path).is_ok());
    }
    // A thread that has just started has not set its name yet.
    let server = f.mounted().servers()[0];
    let is_of_crate = |name: &str| name.starts_with("fuser-");
    let count = || {
        tasks(server)
            .iter()
            .filter(|task| is_of_crate(&task.name))
            .count()
    };
    assert!(poll(|| count() >= 4), "threads have ended");
}

/// An operation for which the crate has no message behaves as on a file system without it.
#[test]
fn what_the_crate_lacks_is_answered_as_by_others() {
    need_mounts!();
    let f = standard(&FUSER);
    let flags = OFlags::TMPFILE | OFlags::RDWR;
    let made = rustix::fs::openat(CWD, f.root(), flags, Mode::RUSR);
    assert_eq!(made.unwrap_err(), Errno::OPNOTSUPP);
    let birth = rustix::fs::statx(
        CWD,
        f.root().join("plain.txt"),
        rustix::fs::AtFlags::empty(),
        rustix::fs::StatxFlags::BTIME,
    );
    let told = birth.unwrap().stx_mask & rustix::fs::StatxFlags::BTIME.bits();
    assert_eq!(told, 0);
    // A copy requests the 64-bit form first.
    fs::write(f.root().join("source"), "data").unwrap();
    let (from, to) = (f.root().join("source"), f.root().join("target"));
    assert_eq!(fs::copy(&from, &to).unwrap(), 4);
    assert_eq!(fs::read(&to).unwrap(), b"data");
}

/// A server whose mount is gone ends, and so do all its threads.
#[test]
fn it_ends_with_its_mount() {
    need_mounts!();
    for in_use in [false, true] {
        let f = standard(&FUSER);
        let server = f.mounted().servers()[0];
        let held = in_use.then(|| File::open(f.root().join("plain.txt")).unwrap());
        rustix::mount::unmount(f.root(), UnmountFlags::DETACH).unwrap();
        let file = Path::new("/proc").join(server.to_string());
        assert_eq!(held.is_some(), file.exists() && in_use);
        drop(held);
        assert!(poll(|| !file.exists()), "{server} goes on");
    }
}
