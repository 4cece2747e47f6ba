//! A user who holds any number of objects does not use up the descriptors of the server: unlinked
//! files, unnamed files, removed directories, open directories and files, many more of each than
//! the server may have descriptors, while other users work.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, linkat, mkdirat, openat, statat, statvfs};
use rustix::io::Errno;
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, prlimit};
use testkit::fixture::Fixture;
use testkit::layers::Layer;
use testkit::mount::{Fs, Scratch, Stack, chmod, poll};
use testkit::need::{Needed, has_uring};
use testkit::without::{self, Lack};
use testkit::{errno, need, need_mounts};

/// The descriptor limit of the server.
const LIMIT: u64 = 256;
/// The number of objects of each kind; all together are eight times the limit.
const FLOOD: usize = 300;
/// The user who floods, and the user who works beside root.
const FLOODER: u32 = 1000;
const WORKER: u32 = 1001;

/// Runs a job on a thread of this user.
pub(crate) fn as_user<T: Send>(uid: u32, job: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            let (gid, id) = (
                rustix::fs::Gid::from_raw(uid),
                rustix::fs::Uid::from_raw(uid),
            );
            rustix::thread::set_thread_groups(&[]).unwrap();
            rustix::thread::set_thread_res_gid(gid, gid, gid).unwrap();
            rustix::thread::set_thread_res_uid(id, id, id).unwrap();
            job()
        });
        thread.join().unwrap()
    })
}

fn stack(scratch: &Scratch) -> Stack {
    let lower = scratch.dir("lower");
    for (dir, uid) in [("home", FLOODER), ("work", WORKER), ("root", 0)] {
        let dir = lower.join(dir);
        fs::create_dir(&dir).unwrap();
        chmod(&dir, 0o755);
        for n in 0..if uid == FLOODER { FLOOD } else { 40 } {
            let file = dir.join(format!("low{n}"));
            fs::write(&file, "from below").unwrap();
            std::os::unix::fs::chown(&file, Some(uid), Some(uid)).unwrap();
        }
        std::os::unix::fs::chown(&dir, Some(uid), Some(uid)).unwrap();
    }
    Stack::writable(scratch, vec![lower])
}

/// The objects that the flooding user holds.
struct Held {
    unlinked: Vec<File>,
    replaced: Vec<File>,
    from_below: Vec<File>,
    unnamed: Vec<OwnedFd>,
    removed: Vec<OwnedFd>,
    dirs: Vec<File>,
    files: Vec<File>,
}

fn new(path: &Path) -> File {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true);
    let file = options.open(path).unwrap();
    file.write_all_at(path.as_os_str().as_encoded_bytes(), 0)
        .unwrap();
    file
}

fn flood(home: &Path) -> Held {
    let all = || 0..FLOOD;
    let unlinked = all().map(|n| {
        let path = home.join(format!("gone{n}"));
        let file = new(&path);
        fs::remove_file(&path).unwrap();
        file
    });
    let replaced = all().map(|n| {
        let path = home.join(format!("over{n}"));
        let file = new(&path);
        drop(new(&home.join("other")));
        fs::rename(home.join("other"), &path).unwrap();
        fs::remove_file(&path).unwrap();
        file
    });
    let from_below = all().map(|n| {
        let path = home.join(format!("low{n}"));
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .unwrap();
        fs::remove_file(&path).unwrap();
        file.write_all_at(b"FROM", 0).unwrap();
        file
    });
    let unnamed = all().map(|n| {
        let flags = OFlags::TMPFILE | OFlags::RDWR;
        let file = openat(CWD, home, flags, Mode::from_raw_mode(0o600)).unwrap();
        let written = rustix::io::pwrite(&file, n.to_string().as_bytes(), 0).unwrap();
        assert_eq!(written, n.to_string().len());
        file
    });
    let removed = all().map(|n| {
        let path = home.join(format!("dir{n}"));
        fs::create_dir(&path).unwrap();
        let dir = openat(CWD, &path, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
        match n % 3 {
            // Removed by a rename over it, with a whiteout in it, and directly.
            0 => {
                fs::create_dir(home.join("above")).unwrap();
                fs::rename(home.join("above"), &path).unwrap();
            }
            _ => drop(File::create(path.join("x")).and_then(|_| fs::remove_file(path.join("x")))),
        }
        fs::remove_dir(&path).unwrap();
        dir
    });
    Held {
        unlinked: unlinked.collect(),
        replaced: replaced.collect(),
        from_below: from_below.collect(),
        unnamed: unnamed.collect(),
        removed: removed.collect(),
        dirs: all()
            .map(|n| {
                let path = home.join(format!("open{n}"));
                fs::create_dir(&path).unwrap();
                File::open(path).unwrap()
            })
            .collect(),
        files: all().map(|n| new(&home.join(format!("file{n}")))).collect(),
    }
}

/// Does all kinds of work in a directory of another user.
fn work(dir: &Path, round: usize) {
    let listed = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let seen: Vec<_> = listed
        .map(|path| path.symlink_metadata().unwrap())
        .collect();
    assert!(seen.len() >= 20);
    for n in 0..10 {
        let path = dir.join(format!("new{n}"));
        fs::write(&path, "some data").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"some data");
        let below = dir.join(format!("low{}", round * 10 + n));
        let mut file = OpenOptions::new().append(true).open(&below).unwrap();
        file.write_all(b" and above").unwrap();
        drop(file);
        assert_eq!(fs::read(&below).unwrap(), b"from below and above");
        fs::set_permissions(&below, PermissionsExt::from_mode(0o600)).unwrap();
        fs::rename(&below, path.with_extension("moved")).unwrap();
        fs::rename(path.with_extension("moved"), &path).unwrap();
        fs::create_dir(dir.join("sub")).unwrap();
        fs::remove_dir(dir.join("sub")).unwrap();
        fs::remove_file(&path).unwrap();
    }
}

/// Asserts that the held objects are unchanged; `home` is a directory where unnamed files may get a
/// name.
fn look_at(held: &Held, home: &Path) {
    for (kind, files) in [("gone", &held.unlinked), ("over", &held.replaced)] {
        for (n, file) in files.iter().enumerate() {
            let path = home.join(format!("{kind}{n}"));
            let mut data = String::new();
            let mut reader = file;
            reader.read_to_string(&mut data).unwrap();
            assert_eq!(data, path.to_str().unwrap());
            assert_eq!(file.metadata().unwrap().nlink(), 0, "{kind}{n}");
            file.set_len(3).unwrap();
            file.set_permissions(PermissionsExt::from_mode(0o640))
                .unwrap();
            let stat = file.metadata().unwrap();
            assert_eq!(
                (stat.len(), stat.mode(), stat.nlink()),
                (3, 0o100_640, 0),
                "{kind}{n}"
            );
            // The file has no name and cannot get one.
            let as_fd = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(file));
            let again = linkat(
                CWD,
                &*as_fd,
                CWD,
                home.join("again"),
                AtFlags::SYMLINK_FOLLOW,
            );
            assert_eq!(again, Err(Errno::NOENT));
        }
    }
    for file in &held.from_below {
        let mut data = [0; 10];
        file.read_exact_at(&mut data, 0).unwrap();
        assert_eq!(
            (&data, file.metadata().unwrap().nlink()),
            (b"FROM below", 0)
        );
    }
    for (n, file) in held.unnamed.iter().enumerate() {
        let stat = rustix::fs::fstat(file).unwrap();
        assert_eq!(
            (stat.st_nlink, stat.st_size),
            (0, n.to_string().len() as i64)
        );
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(file));
        let name = home.join(format!("named{n}"));
        linkat(CWD, &*path, CWD, &name, AtFlags::SYMLINK_FOLLOW).unwrap();
        assert_eq!(fs::read_to_string(&name).unwrap(), n.to_string());
        assert_eq!(name.metadata().unwrap().nlink(), 1, "named{n}");
        fs::hard_link(&name, home.join("second")).unwrap();
        assert_eq!(name.metadata().unwrap().nlink(), 2, "named{n}");
        fs::remove_file(&name).unwrap();
        fs::remove_file(home.join("second")).unwrap();
        assert_eq!(rustix::fs::fstat(file).unwrap().st_nlink, 0);
    }
    for (n, dir) in held.removed.iter().enumerate() {
        look_at_removed(dir, n);
    }
    for (file, n) in held.files.iter().zip(0..) {
        let stat = file.metadata().unwrap();
        assert_eq!(stat.nlink(), 1);
        assert_eq!(
            stat.ino(),
            home.join(format!("file{n}")).metadata().unwrap().ino()
        );
    }
    for dir in &held.dirs {
        assert_eq!(rustix::fs::Dir::read_from(dir).unwrap().count(), 2);
    }
}

fn look_at_removed(dir: &OwnedFd, n: usize) {
    let itself = statat(dir, c"", AtFlags::EMPTY_PATH).unwrap();
    assert_eq!((itself.st_nlink, itself.st_mode), (0, 0o40_755), "dir{n}");
    assert_eq!(itself.st_uid, FLOODER);
    let open = |name: &str, flags| openat(dir, name, flags, Mode::from_raw_mode(0o600)).map(drop);
    assert_eq!(open("x", OFlags::RDONLY), Err(Errno::NOENT));
    assert_eq!(open("x", OFlags::RDWR | OFlags::CREATE), Err(Errno::NOENT));
    assert_eq!(mkdirat(dir, "x", Mode::RWXU), Err(Errno::NOENT));
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(dir));
    fs::set_permissions(&path, PermissionsExt::from_mode(0o711)).unwrap();
    assert_eq!(
        statat(dir, c"", AtFlags::EMPTY_PATH).unwrap().st_mode,
        0o40_711
    );
    let again = File::open(&path).unwrap();
    assert_eq!(errno(again.sync_all()), 0);
    let mut listing = rustix::fs::Dir::read_from(&again).unwrap();
    // The kernel may answer ENOENT for a removed directory; a name would be wrong.
    let names = listing
        .by_ref()
        .take(3)
        .flatten()
        .filter(|e| e.file_name() != c"." && e.file_name() != c"..");
    assert_eq!(names.count(), 0);
}

fn limited(f: &Fixture) -> Pid {
    let server = f.mounted().servers()[0];
    let pid = Pid::from_raw(server as i32).unwrap();
    let (current, maximum) = (Some(LIMIT), Some(LIMIT));
    prlimit(Some(pid), Resource::Nofile, Rlimit { current, maximum }).unwrap();
    pid
}

/// Raises the limit of this process, which needs a descriptor for each object that it holds.
fn unlimited() {
    let current = getrlimit(Resource::Nofile).maximum;
    rustix::process::setrlimit(
        Resource::Nofile,
        Rlimit {
            current,
            maximum: current,
        },
    )
    .unwrap();
}

fn descriptors(pid: Pid) -> usize {
    fs::read_dir(format!("/proc/{}/fd", pid.as_raw_nonzero()))
        .unwrap()
        .count()
}

/// Returns the number of names in the work directory, without the whiteouts that are kept for
/// reuse.
fn left(f: &Fixture) -> usize {
    let work = f.stack.upper.as_ref().unwrap().1.join("work");
    let entries = fs::read_dir(work).unwrap().map(Result::unwrap);
    let kinds = entries.filter_map(|e| e.path().symlink_metadata().ok());
    kinds
        .filter(|stat| stat.mode() & 0o170_000 != 0o020_000)
        .count()
}

fn others_work_beside_a_flood(options: &'static str) {
    let scratch = Scratch::tmpfs();
    let stack = stack(&scratch);
    let mut f = Fixture::over(&Fs::Unionfs(options), scratch, stack);
    unlimited();
    let server = limited(&f);
    let home = f.at("home");
    // The objects that remain from the work exist before.
    for (uid, dir) in [(0, f.at("root")), (WORKER, f.at("work"))] {
        as_user(uid, || work(&dir, 0));
    }
    assert!(poll(|| left(&f) == 0), "{options}: {} left", left(&f));
    let free = || statvfs(f.scratch.path()).unwrap().f_bfree;
    let held = as_user(FLOODER, || {
        fs::create_dir(home.join("sub")).unwrap();
        flood(&home)
    });
    for (uid, dir) in [(0, f.at("root")), (WORKER, f.at("work"))] {
        as_user(uid, || work(&dir, 1));
    }
    assert!(
        left(&f) > FLOOD,
        "{options}: the flood is beyond the budget"
    );
    assert!(descriptors(server) as u64 <= LIMIT);
    as_user(FLOODER, || look_at(&held, &home));
    for (uid, dir) in [(0, f.at("root")), (WORKER, f.at("work"))] {
        as_user(uid, || work(&dir, 2));
    }
    let during = free();
    drop(held);
    as_user(FLOODER, || {
        for n in 0..FLOOD {
            fs::remove_dir(home.join(format!("open{n}"))).unwrap();
            fs::remove_file(home.join(format!("file{n}"))).unwrap();
        }
        fs::remove_dir(home.join("sub")).unwrap();
    });
    assert!(poll(|| left(&f) == 0), "{options}: {} left", left(&f));
    // Each holds at least a page.
    assert!(
        poll(|| free() >= during + 4 * FLOOD as u64),
        "{options}: {} of {during}",
        free()
    );
    f.unmount();
    let upper = f.upper("home");
    let names = fs::read_dir(&upper).unwrap().map(|e| e.unwrap().path());
    let stays: Vec<_> = names
        .filter(|p| p.symlink_metadata().unwrap().mode() & 0o170_000 != 0o020_000)
        .collect();
    assert!(stays.is_empty(), "{options}: {stays:?}");
    assert_eq!(left(&f), 0, "{options}");
}

/// These tests tell the shared whiteout from other files by its type.
fn whiteouts_are_devices() -> Needed {
    without::has(&[Lack::Whiteouts])
}

#[test]
fn others_work_beside_a_flood_cached() {
    need_mounts!();
    need!(without::has(&[Lack::UnnamedFiles]));
    need!(whiteouts_are_devices());
    others_work_beside_a_flood("io=cached,transport=classic");
}

#[test]
fn others_work_beside_a_flood_passed_through() {
    need_mounts!();
    need!(without::has(&[Lack::UnnamedFiles]));
    need!(whiteouts_are_devices());
    others_work_beside_a_flood("io=passthrough,transport=classic");
}

#[test]
fn others_work_beside_a_flood_over_io_uring() {
    need_mounts!();
    need!(without::has(&[Lack::UnnamedFiles]));
    need!(whiteouts_are_devices());
    need!(has_uring());
    others_work_beside_a_flood("io=cached,transport=uring");
    others_work_beside_a_flood("io=passthrough,transport=uring");
}

/// After SIGKILL in the middle, the next mount removes the kept objects.
#[test]
fn what_a_killed_server_kept_is_swept() {
    need_mounts!();
    need!(without::has(&[Lack::UnnamedFiles]));
    let scratch = Scratch::tmpfs();
    let stack = stack(&scratch);
    let mut f = Fixture::over(&Fs::Unionfs("transport=classic"), scratch, stack);
    unlimited();
    let server = limited(&f);
    let home = f.at("home");
    let held = as_user(FLOODER, || flood(&home));
    assert!(left(&f) > FLOOD);
    kill_process(server, Signal::KILL).unwrap();
    drop(held);
    f.remount();
    assert_eq!(left(&f), 0);
    let links = |n: usize| f.at(format!("home/file{n}")).metadata().unwrap().nlink();
    assert!((0..FLOOD).all(|n| links(n) == 1));
    for kind in ["gone", "over", "low", "dir"] {
        assert!(!f.at(format!("home/{kind}7")).exists(), "{kind}");
    }
}

/// A file with several names keeps its link count, whichever of them are removed.
#[test]
fn links_are_counted_beyond_the_budget() {
    need_mounts!();
    need!(without::has_file_handles());
    need!(whiteouts_are_devices());
    let scratch = Scratch::disk();
    let stack = stack(&scratch);
    let lower = stack.lowers[0].join("root");
    for n in 0..FLOOD / 2 {
        let file = lower.join(format!("a{n}"));
        fs::write(&file, "linked").unwrap();
        fs::hard_link(&file, lower.join(format!("b{n}"))).unwrap();
        fs::hard_link(&file, lower.join(format!("c{n}"))).unwrap();
    }
    let mut f = Fixture::over(&Fs::Unionfs("transport=classic"), scratch, stack);
    unlimited();
    limited(&f);
    let mut all = Vec::new();
    for n in 0..FLOOD / 2 {
        for below in [true, false] {
            let at = |name: &str| {
                if below {
                    f.at(format!("root/{name}{n}"))
                } else {
                    f.at(format!("root/up{name}{n}"))
                }
            };
            if !below {
                fs::write(at("a"), "linked").unwrap();
                fs::hard_link(at("a"), at("b")).unwrap();
                fs::hard_link(at("a"), at("c")).unwrap();
                // The names are not cached any more.
            }
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .custom_flags(libc::O_NOATIME)
                .open(at("a"))
                .unwrap();
            let nlink = || file.metadata().unwrap().nlink();
            assert_eq!(nlink(), 3);
            fs::remove_file(at("a")).unwrap();
            assert_eq!(nlink(), 2);
            file.write_all_at(b"LINK", 0).unwrap();
            assert_eq!(fs::read(at("b")).unwrap(), b"LINKed");
            assert_eq!(at("b").metadata().unwrap().nlink(), 2);
            fs::remove_file(at("b")).unwrap();
            assert_eq!((nlink(), at("c").metadata().unwrap().nlink()), (1, 1));
            fs::rename(at("c"), at("a")).unwrap();
            assert_eq!(nlink(), 1);
            if n % 2 == 0 {
                fs::remove_file(at("a")).unwrap();
                assert_eq!(nlink(), 0);
            }
            all.push(file);
        }
    }
    drop(all);
    f.unmount();
    let upper = f.upper("root");
    for entry in fs::read_dir(&upper).unwrap().map(|e| e.unwrap().path()) {
        let stat = entry.symlink_metadata().unwrap();
        let expected = if stat.is_file() { 1..=2 } else { 1..=100_000 };
        assert!(
            expected.contains(&stat.nlink()),
            "{}: {}",
            entry.display(),
            stat.nlink()
        );
    }
    f.remount();
    for n in (1..FLOOD / 2).step_by(2) {
        assert_eq!(f.at(format!("root/a{n}")).metadata().unwrap().nlink(), 1);
        assert_eq!(f.at(format!("root/upa{n}")).metadata().unwrap().nlink(), 1);
    }
}

/// Returns the number of descriptors for which the table of the server has room.
fn room(f: &Fixture) -> u64 {
    let server = f.mounted().servers()[0];
    let status = fs::read_to_string(format!("/proc/{server}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("FDSize:"));
    line.unwrap().trim().parse().unwrap()
}

/// The thread that needs a larger table waits 10 to 20 ms for it, and its caller with it.
#[test]
fn the_table_of_descriptors_is_large_from_the_start() {
    need_mounts!();
    let dirs = (0..300).fold(Layer::new(), |layer, n| layer.dir(format!("d{n}")));
    let f = Fixture::new(&[dirs]);
    let before = room(&f);
    assert!(before >= 1024, "{before}");
    assert_eq!(f.tree().len(), 301, "with the root");
    assert_eq!(room(&f), before);
}
