//! A file system that is frozen (fsfreeze) in the middle of writes, copy-ups and syncs: what
//! only reads goes on, nothing is lost, nothing happens twice, and all that waited ends well when
//! it is thawed.

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

/// Threads of each kind of work.
const EACH: usize = 2;

/// FIFREEZE and FITHAW. Asked for by ioctl(2): a command that is started closes the descriptors
/// that it inherits, and that of a file on the mount may wait for the thaw.
const FREEZE: u32 = 0xc004_5877;
const THAW: u32 = 0xc004_5878;

/// A frozen file system, thawed when dropped: nothing could unmount it.
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

/// Sets it when dropped, so that threads end also where the test fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// One line of a file that is appended to.
fn line(n: usize) -> String {
    format!("{n:07}\n")
}

/// What threads have done so far, each of them until told to end.
struct Work {
    end: AtomicBool,
    counts: Vec<AtomicUsize>,
}

impl Work {
    fn goes_on(&self, thread: usize) -> usize {
        self.counts[thread].load(Ordering::SeqCst)
    }

    /// Does `one` with 0, 1, 2 and so on; at least once more after the end of the frost.
    fn repeat(&self, thread: usize, mut one: impl FnMut(usize)) {
        while !self.end.load(Ordering::SeqCst) {
            one(self.goes_on(thread));
            self.counts[thread].fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// Names of the files that are copied up in turn.
fn low(thread: usize, n: usize) -> String {
    format!("merged/low{thread}-{n}")
}

const LOWS: usize = 60;

fn start(union: &Union, work: &Work, kind: usize, thread: usize) {
    let name = format!("file{thread}");
    match kind {
        // Appends, each synced.
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
        // Names, in a directory that the kernel keeps locked meanwhile.
        _ => work.repeat(thread, |n| {
            let path = union.at(format!("sticky/new{thread}-{n}"));
            fs::create_dir(&path).unwrap();
            fs::rename(&path, union.at(format!("sticky/renamed{thread}-{n}"))).unwrap();
        }),
    }
}

/// Everything that was done is there, once.
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

/// What needs no writing is answered while all the others wait. Not in a directory in which something
/// is being changed: that waits for the change.
fn read(union: &Union) {
    assert_eq!(
        fs::read(union.at("plain.txt")).unwrap(),
        b"plain file, lower only\n"
    );
    assert_eq!(fs::read(union.at("both.txt")).unwrap(), b"changed");
    assert_eq!(fs::read_dir(union.at("deep/a/b")).unwrap().count(), 1);
    assert!(union.at("deep/a/b/c/leaf").metadata().unwrap().is_file());
}

/// With `writeback` the kernel sends the time of a file while writes of its data are under way. What the
/// frost has held back may then get to the disk after it.
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
        // The lower that is mounted already must not change: these come as one more layer.
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
                // Until nobody who writes gets on any more.
                let (mut last, mut same) = (counts(), 0);
                while same < 10 {
                    std::thread::sleep(Duration::from_millis(20));
                    let now = counts();
                    same = if now == last { same + 1 } else { 0 };
                    last = now;
                }
                let first = reads.load(Ordering::SeqCst);
                let answered = poll(|| reads.load(Ordering::SeqCst) > first + 3);
                // Before any complaint, which would wait for all threads.
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

/// A sync that was asked for during the frost is answered after it, and only then.
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
            // ext4 has synced what it had when it was frozen.
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

/// How long something may take that does not wait for the thaw, and what is taken for waiting.
const ANSWERED: Duration = Duration::from_secs(20);
const WAITS: Duration = Duration::from_secs(1);

/// Something that is done to a union; whether it succeeds.
type Action = (&'static str, fn(&Union) -> bool);

/// Changes in a directory, each of which waits for the thaw.
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

/// Reads of that directory, by what they are of.
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

/// Does it on a thread of its own.
fn begin(union: &Arc<Union>, (_, action): Action) -> mpsc::Receiver<bool> {
    let (tell, told) = mpsc::channel();
    let union = Arc::clone(union);
    std::thread::spawn(move || {
        let right = action(&union);
        // Before it is told: the last one unmounts.
        drop(union);
        let _ = tell.send(right);
    });
    told
}

/// Which of `reads` are answered while `change` waits.
fn answered(fs: &Fs, change: Action, reads: &[Action], patience: Duration) -> Vec<Action> {
    let mut union = Union::start(fs.clone(), |dir| Disk::new(dir, "disk", 64, "noatime")).unwrap();
    union.ok("mkdir merged/inner 755");
    for name in ["known", "unknown", "inner/known", "inner/unknown"] {
        union.ok(&format!("create merged/{name} 644"));
    }
    // Nothing is known but what is looked up now.
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

/// In a directory in which a change waits: everything that overlayfs answers.
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
