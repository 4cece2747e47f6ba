//! A file system that is frozen (fsfreeze) in the middle of writes, copy-ups and syncs: reads
//! continue, nothing is lost, nothing happens twice, and every waiting operation succeeds after the
//! thaw.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use testkit::disk::Disk;
use testkit::mount::{Fs, KERNEL, poll};
use testkit::tree::{self, Mask};
use testkit::{ioctl, need_mounts};

use crate::disks::{POLICIES, Union};

/// The number of threads for each kind of work.
const EACH: usize = 2;

/// FIFREEZE and FITHAW, called by ioctl(2). A command would not do: a started command closes the
/// descriptors that it inherits, and the close of a file on the mount may wait for the thaw.
const FREEZE: u32 = 0xc004_5877;
const THAW: u32 = 0xc004_5878;

/// A frozen file system, thawed when dropped, because a frozen one cannot be unmounted.
struct Frozen(File);

impl Frozen {
    fn new(disk: &Path) -> Self {
        let disk = File::open(disk).unwrap();
        ioctl::with_room(&disk, FREEZE, &mut [0; 2048]).unwrap();
        Self(disk)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        ioctl::with_room(&self.0, THAW, &mut [0; 2048]).unwrap();
    }
}

/// Sets the flag when dropped, so that the threads end also if the test fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Returns one line of a file that is appended to.
fn line(n: usize) -> String {
    format!("{n:07}\n")
}

/// The progress of the threads. Each thread works until it is told to end.
struct Work {
    end: AtomicBool,
    counts: Vec<AtomicUsize>,
}

impl Work {
    fn goes_on(&self, thread: usize) -> usize {
        self.counts[thread].load(Ordering::SeqCst)
    }

    /// Calls `one` with 0, 1, 2 and so on; at least once more after the thaw.
    fn repeat(&self, thread: usize, mut one: impl FnMut(usize)) {
        while !self.end.load(Ordering::SeqCst) {
            one(self.goes_on(thread));
            self.counts[thread].fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// Returns the name of the `n`-th file that a thread copies up.
fn low(thread: usize, n: usize) -> String {
    format!("merged/low{thread}-{n}")
}

const LOWS: usize = 60;

fn start(union: &Union, work: &Work, kind: usize, thread: usize) {
    let name = format!("file{thread}");
    match kind {
        // Appends; each is synced.
        0 => {
            let mut options = OpenOptions::new();
            let mut file = options
                .create(true)
                .append(true)
                .open(union.at(&name))
                .unwrap();
            work.repeat(thread, |n| {
                file.write_all(line(n).as_bytes()).unwrap();
                file.sync_data().unwrap();
            });
        }
        // Copy-ups.
        1 => work.repeat(thread, |n| {
            let path = union.at(low(thread, n % LOWS));
            let mut file = OpenOptions::new().append(true).open(path).unwrap();
            file.write_all(b"above\n").unwrap();
        }),
        // Operations on names, in a directory that the kernel keeps locked meanwhile.
        _ => work.repeat(thread, |n| {
            let path = union.at(format!("sticky/new{thread}-{n}"));
            fs::create_dir(&path).unwrap();
            fs::rename(&path, union.at(format!("sticky/renamed{thread}-{n}"))).unwrap();
        }),
    }
}

/// Asserts that the result of every operation is there exactly once.
fn look(union: &Union, work: &Work) {
    for thread in 0..3 * EACH {
        let count = work.goes_on(thread);
        match thread / EACH {
            0 => {
                let text = fs::read_to_string(union.at(format!("file{thread}"))).unwrap();
                let expected: String = (0..count).map(line).collect();
                assert!(text == expected, "file{thread}: {} bytes", text.len());
            }
            1 => {
                for n in 0..LOWS {
                    let text = fs::read_to_string(union.at(low(thread, n))).unwrap();
                    let times = count / LOWS + usize::from(n < count % LOWS);
                    assert_eq!(text, format!("below\n{}", "above\n".repeat(times)));
                }
            }
            _ => {
                for n in 0..count {
                    assert!(!union.at(format!("sticky/new{thread}-{n}")).exists());
                    let path = union.at(format!("sticky/renamed{thread}-{n}"));
                    assert!(path.is_dir(), "{}", path.display());
                }
            }
        }
    }
}

/// Reads that need no write are answered while all other operations wait. A read in a directory
/// that is being changed waits for the change, so there is none here.
fn read(union: &Union) {
    assert_eq!(
        fs::read(union.at("plain.txt")).unwrap(),
        b"plain file, lower only\n"
    );
    assert_eq!(fs::read(union.at("both.txt")).unwrap(), b"changed");
    assert_eq!(fs::read_dir(union.at("deep/a/b")).unwrap().count(), 1);
    assert!(union.at("deep/a/b/c/leaf").metadata().unwrap().is_file());
}

/// Returns the mask of the comparison. With `writeback` the kernel sends the time of a file while
/// writes of its data are under way. Writes that the freeze delays may then get to the disk after
/// the time.
fn times_on_the_disk(fs: &Fs) -> Mask {
    match fs {
        Fs::Unionfs(options) if options.contains("writeback") => Mask::from_now(),
        _ => Mask::ALL,
    }
}

#[test]
fn what_waits_ends_well() {
    need_mounts!();
    for fs in POLICIES {
        let mask = times_on_the_disk(&fs);
        let mut union = Union::start(fs.clone(), |dir| {
            for thread in 0..3 * EACH {
                for n in 0..LOWS {
                    let path = dir.join("later");
                    fs::create_dir_all(&path).unwrap();
                    fs::write(path.join(format!("low{thread}-{n}")), "below\n").unwrap();
                }
            }
            Disk::new(dir, "disk", 64, "noatime")
        })
        .unwrap();
        // The lower that is mounted already must not change, so the files come as one more layer.
        union.unmount();
        let extra = union.scratch.dir("extra");
        fs::rename(union.scratch.path().join("later"), extra.join("merged")).unwrap();
        union.stack.lowers.push(extra);
        union.mount(&fs);
        union.ok("write both.txt 0 changed t");
        let work = Work {
            end: AtomicBool::new(false),
            counts: (0..3 * EACH).map(|_| AtomicUsize::new(0)).collect(),
        };
        let reads = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for thread in 0..3 * EACH {
                let (union, work) = (&union, &work);
                scope.spawn(move || start(union, work, thread / EACH, thread));
            }
            let over = Over(&work.end);
            scope.spawn({
                let (union, work, reads) = (&union, &work, &reads);
                move || {
                    while !work.end.load(Ordering::SeqCst) {
                        read(union);
                        reads.fetch_add(1, Ordering::SeqCst);
                    }
                }
            });
            let counts = || (0..3 * EACH).map(|t| work.goes_on(t)).collect::<Vec<_>>();
            for _ in 0..2 {
                let before = counts();
                let moved = |now: &[usize]| now.iter().zip(&before).all(|(now, then)| now > then);
                assert!(
                    poll(|| moved(&counts())),
                    "{fs:?}: {before:?}, {:?}",
                    counts()
                );
                let frozen = Frozen::new(union.disk.path());
                // Wait until no writer makes progress any more.
                let (mut last, mut same) = (counts(), 0);
                while same < 10 {
                    std::thread::sleep(Duration::from_millis(20));
                    let now = counts();
                    same = if now == last { same + 1 } else { 0 };
                    last = now;
                }
                let first = reads.load(Ordering::SeqCst);
                let answered = poll(|| reads.load(Ordering::SeqCst) > first + 3);
                // Thawed before any failure is reported, because the report waits for all threads.
                drop(frozen);
                assert!(answered, "{fs:?}: nothing can be read while writers wait");
            }
            drop(over);
        });
        assert!(union.is_served());
        look(&union, &work);
        assert_eq!(fs::read_dir(union.at("opaque")).unwrap().count(), 1);
        let ours = union.tree();
        union.unmount();
        assert!(union.staged().is_empty(), "{fs:?}: {:?}", union.staged());
        union.mount(&KERNEL);
        tree::assert_same(&format!("{fs:?}"), &union.tree(), &ours, &mask);
    }
}

/// A sync that is requested during the freeze is answered after it, and only then.
#[test]
fn a_sync_waits() {
    need_mounts!();
    for fs in POLICIES {
        let union = Union::start(fs, |dir| Disk::new(dir, "disk", 64, "noatime")).unwrap();
        let mut file = File::create(union.at("new")).unwrap();
        file.write_all(b"data").unwrap();
        let (begun, thawed) = (AtomicBool::new(false), AtomicBool::new(false));
        std::thread::scope(|scope| {
            let frozen = Frozen::new(union.disk.path());
            let (begun, thawed, file) = (&begun, &thawed, &file);
            let copy = union.at("plain.txt");
            scope.spawn(move || {
                begun.store(true, Ordering::SeqCst);
                let mut options = OpenOptions::new();
                let mut file = options.append(true).open(copy).unwrap();
                file.write_all(b"more").unwrap();
                file.sync_all().unwrap();
                assert!(thawed.load(Ordering::SeqCst), "written to what is frozen");
            });
            assert!(poll(|| begun.load(Ordering::SeqCst)));
            // ext4 synced its dirty data when it was frozen.
            std::thread::sleep(Duration::from_millis(50));
            thawed.store(true, Ordering::SeqCst);
            drop(frozen);
            file.sync_all().unwrap();
        });
        let text = fs::read_to_string(union.at("plain.txt")).unwrap();
        assert_eq!(text, "plain file, lower only\nmore");
        assert_eq!(fs::read(union.at("new")).unwrap(), b"data");
    }
}

/// The time limit for an operation that does not wait for the thaw; an operation that takes longer
/// counts as waiting.
const ANSWERED: Duration = Duration::from_secs(20);
const WAITS: Duration = Duration::from_secs(1);

/// An action on a union, which returns whether it succeeds.
type Action = (&'static str, fn(&Union) -> bool);

/// Changes in a directory. Each of them waits for the thaw.
const CHANGES: [Action; 4] = [
    ("mkdir", |union| {
        fs::create_dir(union.at("merged/new")).is_ok()
    }),
    ("copy-up", |union| {
        let mut options = OpenOptions::new();
        let file = options.append(true).open(union.at("merged/top"));
        file.is_ok_and(|mut file| file.write_all(b"more").is_ok())
    }),
    ("unlink", |union| {
        fs::remove_file(union.at("merged/middle")).is_ok()
    }),
    ("rename", |union| {
        fs::rename(union.at("merged/top"), union.at("merged/renamed")).is_ok()
    }),
];

/// Reads of that directory, by their target.
const READS: [Action; 7] = [
    ("attributes of a name that was looked up", |union| {
        union.at("merged/known").symlink_metadata().is_ok()
    }),
    ("attributes of the directory", |union| {
        union.at("merged").symlink_metadata().is_ok()
    }),
    ("data of a file that was looked up", |union| {
        fs::read(union.at("merged/known")).is_ok()
    }),
    ("a name that was looked up below", |union| {
        union.at("merged/inner/known").symlink_metadata().is_ok()
    }),
    ("another name below", |union| {
        union.at("merged/inner/unknown").symlink_metadata().is_ok()
    }),
    ("another name", |union| {
        union.at("merged/unknown").symlink_metadata().is_ok()
    }),
    ("a listing", |union| {
        fs::read_dir(union.at("merged")).is_ok_and(|list| list.count() > 2)
    }),
];

/// Starts the action on a thread of its own.
fn begin(union: &Arc<Union>, (_, action): Action) -> mpsc::Receiver<bool> {
    let (tell, told) = mpsc::channel();
    let union = Arc::clone(union);
    std::thread::spawn(move || {
        let right = action(&union);
        // Dropped before the result is sent, because the last reference unmounts.
        drop(union);
        let _ = tell.send(right);
    });
    told
}

/// Returns which of `reads` are answered while `change` waits.
fn answered(fs: &Fs, change: Action, reads: &[Action], patience: Duration) -> Vec<Action> {
    let mut union = Union::start(fs.clone(), |dir| Disk::new(dir, "disk", 64, "noatime")).unwrap();
    union.ok("mkdir merged/inner 755");
    for name in ["known", "unknown", "inner/known", "inner/unknown"] {
        union.ok(&format!("create merged/{name} 644"));
    }
    // The kernel knows only what is looked up from now on.
    union.unmount();
    union.mount(fs);
    for name in ["known", "inner/known"] {
        assert_eq!(fs::read(union.at("merged").join(name)).unwrap(), b"");
    }
    let union = Arc::new(union);
    let frozen = Frozen::new(union.disk.path());
    let changed = begin(&union, change);
    let waits = changed.recv_timeout(WAITS).is_err();
    let (mut found, mut late) = (Vec::new(), Vec::new());
    for read in reads {
        let told = begin(&union, *read);
        match told.recv_timeout(patience) {
            Ok(right) => {
                assert!(right, "{fs:?}: {}", read.0);
                found.push(*read);
            }
            Err(_) => late.push((read.0, told)),
        }
    }
    drop(frozen);
    assert!(waits, "{fs:?}: {} does not wait", change.0);
    assert!(changed.recv_timeout(ANSWERED).unwrap(), "{}", change.0);
    for (what, told) in late {
        assert!(told.recv_timeout(ANSWERED).unwrap(), "{fs:?}: {what}");
    }
    found
}

/// In a directory in which a change waits, unionfs answers everything that overlayfs answers.
#[test]
fn what_the_kernel_answers_beside_a_change_that_waits() {
    need_mounts!();
    let names = |reads: &[Action]| reads.iter().map(|read| read.0).collect::<Vec<_>>();
    for change in CHANGES {
        let theirs = answered(&KERNEL, change, &READS, WAITS);
        eprintln!("{}: overlayfs answers {:?}", change.0, names(&theirs));
        for fs in POLICIES {
            let ours = answered(&fs, change, &theirs, ANSWERED);
            assert_eq!(names(&ours), names(&theirs), "{fs:?}, {}", change.0);
        }
    }
}
