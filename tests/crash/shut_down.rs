//! File systems that fail under a mount: shut down in the middle of work (as when the device is
//! gone), made read-only after an error, remounted read-only. The mount answers EIO or EROFS and
//! neither hangs nor dies. Once the file system is mounted again, synced data is there and no file
//! is half written.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use testkit::disk::Disk;
use testkit::mount::{Fs, KERNEL, poll};
use testkit::tree::{self, Mask};
use testkit::{ioctl, need_mounts};

use crate::disks::{POLICIES, Union, everybody};

/// Returns the implementations without writeback. With writeback, a successful write is not an
/// answer of the disk yet.
fn writing_through() -> impl Iterator<Item = Fs> {
    everybody().filter(|fs| !fs.has("writeback"))
}

/// EXT4_IOC_SHUTDOWN and XFS_IOC_GOINGDOWN, `_IOR('X', 125, u32)`.
const SHUTDOWN: u32 = 0x8004_587d;
/// Writes nothing any more, not even the journal.
const NO_LOG_FLUSH: u64 = 2;

fn shut_down(disk: &Path) {
    let mut room = [0; 2048];
    room[0] = NO_LOG_FLUSH;
    ioctl::with_room(&File::open(disk).unwrap(), SHUTDOWN, &mut room).unwrap();
}

const THREADS: usize = 4;
/// The number of lower files that each thread copies up.
const LOWS: usize = 500;

fn content(name: &str) -> Vec<u8> {
    name.as_bytes().repeat(3000)
}

/// Works in its directory until the file system returns an error. Returns the errors, and the names
/// that were synced before, together with their directory.
fn work(union: &Union, thread: usize, synced: &Mutex<Vec<String>>, done: &AtomicUsize) -> i32 {
    let dir = union.at(format!("dir{thread}"));
    let one = |n: usize| -> std::io::Result<String> {
        let (name, file) = match n % 3 {
            // A copy-up, a new file, and one that replaces another.
            0 => {
                let name = format!("low{}", n / 3);
                let mut file = OpenOptions::new().append(true).open(dir.join(&name))?;
                file.write_all(b"more")?;
                file.sync_all()?;
                (name, file)
            }
            kind => {
                let name = format!("new{n}");
                let staged = if kind == 1 {
                    name.clone()
                } else {
                    "staged".to_owned()
                };
                let mut file = File::create(dir.join(&staged))?;
                file.write_all(&content(&name))?;
                file.sync_all()?;
                if kind == 2 {
                    fs::rename(dir.join(&staged), dir.join(&name))?;
                }
                (name, file)
            }
        };
        rustix::fs::fsync(File::open(&dir)?.as_fd())?;
        // XFS reports success for the sync of a directory when it is shut down and has dropped the
        // changes (xfs_dir_fsync only checks whether something is pinned). For a file it reports
        // the error.
        file.sync_all()?;
        Ok(name)
    };
    for n in 0.. {
        match one(n % (3 * LOWS)) {
            Ok(name) => synced.lock().unwrap().push(format!("dir{thread}/{name}")),
            Err(error) => return error.raw_os_error().unwrap(),
        }
        done.fetch_add(1, Ordering::SeqCst);
    }
    0
}

/// Asserts, after the file system is back, that synced files are whole and no copy is half.
fn look(union: &Union, synced: &[String], about: &str) {
    for path in synced {
        let found = fs::read(union.at(path)).unwrap_or_else(|e| panic!("{about}: {path}: {e}"));
        let (dir, name) = path.split_once('/').unwrap();
        if name.starts_with("new") {
            assert!(
                found == content(name),
                "{about}: {path}: {} bytes",
                found.len()
            );
        } else {
            let lower = content(&format!("{dir}{name}"));
            let rest = found.strip_prefix(&*lower);
            let more = rest.unwrap_or_else(|| panic!("{about}: {path}: not the lower's"));
            assert!(
                more.starts_with(b"more"),
                "{about}: {path}: the change is lost"
            );
        }
    }
    for thread in 0..THREADS {
        for n in 0..LOWS {
            let (dir, name) = (format!("dir{thread}"), format!("low{n}"));
            let found = fs::read(union.at(&dir).join(&name)).unwrap();
            let lower = content(&format!("{dir}{name}"));
            assert!(
                found.starts_with(&lower),
                "{about}: half a copy of {dir}/{name}"
            );
        }
    }
}

/// Makes the lowers of the standard stack and one more, with files to be copied up.
fn with_lows(fs: &Fs, make: impl FnOnce(&Path) -> Result<Disk, String>) -> Union {
    let mut union = Union::start(fs.clone(), make).unwrap();
    union.unmount();
    let extra = union.scratch.dir("extra");
    for thread in 0..THREADS {
        let dir = format!("dir{thread}");
        fs::create_dir(extra.join(&dir)).unwrap();
        for n in 0..LOWS {
            let name = format!("low{n}");
            fs::write(
                extra.join(&dir).join(&name),
                content(&format!("{dir}{name}")),
            )
            .unwrap();
        }
    }
    union.stack.lowers.push(extra);
    union.mount(fs);
    union
}

fn go_away(fs: &Fs, kind: &str, make: impl FnOnce(&Path) -> Result<Disk, String>) {
    let about = format!("{fs:?} on {kind}");
    let mut union = with_lows(fs, make);
    let (synced, done) = (Mutex::new(Vec::new()), AtomicUsize::new(0));
    let over = AtomicBool::new(false);
    let errors: Vec<i32> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..THREADS)
            .map(|thread| {
                let (union, synced, done) = (&union, &synced, &done);
                scope.spawn(move || work(union, thread, synced, done))
            })
            .collect();
        assert!(
            poll(|| done.load(Ordering::SeqCst) > 60),
            "{about}: no work"
        );
        shut_down(union.disk.path());
        over.store(true, Ordering::SeqCst);
        workers.into_iter().map(|w| w.join().unwrap()).collect()
    });
    // The mount answers every request, and the server keeps running.
    for error in errors {
        assert!(
            [libc::EIO, libc::EROFS].contains(&error),
            "{about}: errno {error}"
        );
    }
    for change in [
        "create x 644",
        "unlink plain.txt",
        "chmod both.txt 600",
        "mkdir y 755",
    ] {
        let answer = union.outcome(change);
        assert!(
            ["EIO", "EROFS"].contains(&&*answer),
            "{about}: {change}: {answer}"
        );
    }
    // XFS does not even report a missing name any more.
    let below = union.outcome("read merged/bottom");
    assert!(
        below == "ok" || kind == "xfs" && below == "EIO",
        "{about}: {below}"
    );
    assert!(union.is_served(), "{about}: it died");
    union.unmount();
    union
        .disk
        .again()
        .unwrap_or_else(|e| panic!("{about}: {e}"));
    union.mount(fs);
    look(&union, &synced.into_inner().unwrap(), &about);
    assert!(union.staged().is_empty(), "{about}: {:?}", union.staged());
    union.ok("create x 644\nunlink plain.txt\nchmod both.txt 600\nwrite merged/top 0 x");
    let ours = union.tree();
    union.unmount();
    union.mount(&KERNEL);
    tree::assert_same(&about, &union.tree(), &ours, &Mask::ALL);
}

#[test]
fn ext4_goes_away() {
    need_mounts!();
    for fs in POLICIES {
        go_away(&fs, "ext4", |dir| Disk::new(dir, "disk", 128, "noatime"));
    }
}

#[test]
fn xfs_goes_away() {
    need_mounts!();
    go_away(&POLICIES[0], "xfs", |dir| Disk::xfs(dir, "disk"));
}

/// Requests to a file system that has become read-only: on open files, and by name.
const QUESTIONS: [&str; 12] = [
    "hwrite 0 0 changed\nhsync 0",
    "htruncate 0 2",
    "hchmod 0 600",
    "hread 0 0 5",
    "write plain.txt 0 x",
    "create new 644",
    "mkdir newdir 755",
    "unlink merged/bottom",
    "rename both.txt there",
    "setxattr both.txt user.a b",
    "read both.txt",
    "stat plain.txt",
];

/// The number of answers of the script that concern its descriptor: the open, and those of
/// `QUESTIONS`.
const HELD: usize = 6;

/// An error of the disk makes ext4 read-only at once, also for files that are open for writing.
#[test]
fn ext4_that_turns_read_only_answers_as_the_kernel() {
    need_mounts!();
    let mut first = None;
    for fs in writing_through() {
        let make = |dir: &Path| Disk::new(dir, "disk", 32, "noatime,errors=remount-ro");
        let mut union = Union::start(fs.clone(), make).unwrap();
        union.ok("write both.txt 0 upper t");
        rustix::fs::syncfs(File::open(union.disk.path()).unwrap()).unwrap();
        let script = format!("open 0 both.txt b\n{}", QUESTIONS.join("\n"));
        let trigger = union.disk.path().to_owned();
        // The descriptor is opened before the error.
        let mut file = OpenOptions::new();
        let held = file
            .read(true)
            .write(true)
            .open(union.at("both.txt"))
            .unwrap();
        error_of(&trigger);
        let write = std::os::unix::fs::FileExt::write_all_at(&held, b"changed", 0);
        let sync = write.and_then(|()| held.sync_all());
        let mut answers = vec![format!("{}", testkit::errno(sync))];
        answers.push(testkit::errno(held.set_len(2)).to_string());
        drop(held);
        answers.extend(
            union
                .run(&script)
                .into_iter()
                .map(|a| a.unwrap_or_else(|e| e)),
        );
        assert!(union.is_served());
        union.unmount();
        // The server may still have the file open, and returns the error at each change only. An
        // open that cannot be passed through is EIO whatever the reason (fs/fuse/iomode.c).
        let held = answers.drain(2..2 + HELD).take(HELD - 1);
        let refused = held
            .filter(|a| ["EROFS", "EIO", "EBADF"].contains(&&**a))
            .count();
        assert!(refused + 2 >= HELD - 1, "{fs:?}");
        let Some(theirs) = &first else {
            assert!(answers.iter().any(|a| a == "EROFS"), "{answers:?}");
            first = Some(answers);
            continue;
        };
        assert_eq!(theirs, &answers, "{fs:?}");
    }
}

/// Makes ext4 detect an error.
fn error_of(disk: &Path) {
    let output = Command::new("findmnt")
        .args(["-no", "SOURCE", "-M"])
        .arg(disk)
        .output()
        .unwrap();
    let device = String::from_utf8(output.stdout).unwrap();
    let device = device.trim().strip_prefix("/dev/").unwrap().to_owned();
    fs::write(
        format!("/sys/fs/ext4/{device}/trigger_fs_error"),
        "tested\n",
    )
    .unwrap();
}

/// A mount with no recent writes does not prevent its file system from being made read-only, and
/// works again when that is writable.
#[test]
fn a_remount_answers_as_the_kernel() {
    need_mounts!();
    let mut first: Option<Vec<String>> = None;
    for fs in writing_through() {
        let make = |dir: &Path| Disk::new(dir, "disk", 32, "noatime");
        let mut union = Union::start(fs.clone(), make).unwrap();
        union.ok("write plain.txt 0 x\ncreate new 644\nunlink merged/top\nwrite new 0 data");
        // The server keeps the files that were written last open (SEMANTICS); a new server has
        // none.
        union.unmount();
        union.mount(&fs);
        let remount = |how: &str| {
            let mut mount = Command::new("mount");
            let mount = mount
                .args(["-o", &format!("remount,{how}")])
                .arg(union.disk.path());
            mount.output().unwrap().status.success().to_string()
        };
        let mut answers = vec![remount("ro")];
        for change in [
            "write new 0 x",
            "create more 644",
            "unlink new",
            "read new",
            "chmod new 600",
        ] {
            answers.push(union.run(change)[0].clone().unwrap_or_else(|e| e));
        }
        answers.push(remount("rw"));
        for change in [
            "write new 0 x",
            "create more 644",
            "chmod new 600",
            "read new",
        ] {
            answers.push(union.run(change)[0].clone().unwrap_or_else(|e| e));
        }
        match &first {
            None => first = Some(answers),
            Some(theirs) => assert_eq!(theirs, &answers, "{fs:?}"),
        }
    }
}
