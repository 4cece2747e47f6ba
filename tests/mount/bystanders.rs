//! Waiting requests of one user do not stop another user's work: requests for a lock that is never
//! released, and searches for invalid file handles; nor do large copies.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _, PermissionsExt as _, chown};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};
use testkit::fixture::Fixture;
use testkit::layers::Layer;
use testkit::map::Map;
use testkit::mount::{Fs, poll};
use testkit::need::{has_tools, has_uring};
use testkit::stats::stats;
use testkit::strace::Trace;
use testkit::task::bind;
use testkit::{need, need_mounts};
use unionfs::sys::handle::{FileHandle, name_to_handle, open_by_handle};

use crate::descriptors::as_user;

/// Many more than the server has workers, and more than its pool has threads for one user.
const WAITING: usize = 200;
/// The number of threads that search for handles.
const SEEKING: usize = 100;
/// Far more than the io_uring threads of one CPU.
const WAITING_THERE: usize = 500;
/// The user whose requests wait, and the user who works.
const WAITER: u32 = 1000;
const WORKER: u32 = 1001;
/// Far more than the work takes, also on a busy machine.
const LONG: Duration = Duration::from_secs(60);

fn owned_by(user: u32, path: &PathBuf) {
    fs::write(path, "old").unwrap();
    chown(path, Some(user), Some(user)).unwrap();
}

/// Does the work of the other user: names, data, a copy-up, and operations that go to the pool.
fn work(f: &Fixture) {
    let dir = f.at("work");
    fs::create_dir(&dir).unwrap();
    fs::set_permissions(&dir, Permissions::from_mode(0o777)).unwrap();
    let low = f.at("low");
    as_user(WORKER, || {
        fs::write(dir.join("new"), "new").unwrap();
        File::open(dir.join("new")).unwrap().sync_all().unwrap();
        fs::write(&low, "copied up").unwrap();
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
        fs::remove_file(dir.join("new")).unwrap();
    });
    fs::remove_dir(&dir).unwrap();
}

/// Runs [`work`] with a time limit, on a CPU if given, on a thread that is abandoned if it hangs.
fn works(f: &std::sync::Arc<Fixture>, cpu: Option<usize>) -> bool {
    let (tell, told) = mpsc::channel();
    let f = std::sync::Arc::clone(f);
    std::thread::spawn(move || {
        cpu.into_iter().for_each(bind);
        work(&f);
        tell.send(()).unwrap();
    });
    told.recv_timeout(LONG).is_ok()
}

fn layer() -> Layer {
    Layer::new().file("low", "from below").own(WORKER, WORKER)
}

/// Tells whether all threads of a process have stopped.
fn all_stopped(process: u32) -> bool {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).unwrap();
    tasks.flatten().all(|task| {
        let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        stat.rsplit(')')
            .next()
            .is_some_and(|rest| rest.starts_with(" T"))
    })
}

/// A page of a file that cannot be read because its server is stopped. The server continues on
/// drop.
struct Never {
    page: Map,
    server: Pid,
    _mount: Fixture,
}

impl Never {
    fn new() -> Self {
        let mount = Fixture::with(
            &Fs::Unionfs("io=cached"),
            &[Layer::new().file("page", vec![7; 4096])],
            testkit::layers::Form::Kernel,
            false,
        );
        let file = File::open(mount.at("page")).unwrap();
        let page = Map::shared(&file, false).unwrap();
        // Closed while the server can answer.
        drop(file);
        let number = mount.mounted().servers()[0];
        let server = Pid::from_raw(number.cast_signed()).unwrap();
        kill_process(server, Signal::STOP).unwrap();
        assert!(poll(|| all_stopped(number)));
        Self {
            page,
            server,
            _mount: mount,
        }
    }
}

impl Drop for Never {
    fn drop(&mut self) {
        kill_process(self.server, Signal::CONT).unwrap();
    }
}

/// A user writes from such a page to a file that is passed through, without the server, and so
/// holds the lock of the layer's file. Many threads run `wait` meanwhile, which needs that lock in
/// the server. They and the other user all run on one CPU, if given.
fn a_lock_held(
    options: &'static str,
    (waiting, cpu): (usize, Option<usize>),
    wait: impl Fn(&PathBuf) + Sync,
) {
    let f = std::sync::Arc::new(Fixture::with(
        &Fs::Unionfs(options),
        &[layer()],
        testkit::layers::Form::Kernel,
        true,
    ));
    let mine = f.at("mine");
    owned_by(WAITER, &mine);
    let never = Never::new();
    let file = OpenOptions::new().write(true).open(&mine).unwrap();
    let begun = AtomicUsize::new(0);
    let worked = std::thread::scope(|scope| {
        scope.spawn(|| as_user(WAITER, || never.page.write_to(&file)));
        // The writer has the lock when its thread sleeps in the page fault; then other threads wait
        // for it.
        let blocked = || {
            let (file, tell) = (file.try_clone().unwrap(), mpsc::channel());
            std::thread::spawn(move || {
                file.set_len(3).unwrap();
                let _ = tell.0.send(());
            });
            tell.1.recv_timeout(Duration::from_millis(300)).is_err()
        };
        assert!(poll(blocked), "the write does not wait");
        for _ in 0..waiting {
            scope.spawn(|| {
                cpu.into_iter().for_each(bind);
                as_user(WAITER, || {
                    begun.fetch_add(1, Ordering::SeqCst);
                    wait(&mine);
                });
            });
        }
        assert!(poll(|| begun.load(Ordering::SeqCst) == waiting));
        std::thread::sleep(Duration::from_millis(500));
        let worked = works(&f, cpu);
        kill_process(never.server, Signal::CONT).unwrap();
        worked
    });
    assert!(worked, "another user cannot work meanwhile");
    work(&f);
}

fn open_truncated(mine: &PathBuf) {
    let mut options = OpenOptions::new();
    options.write(true).truncate(true).open(mine).unwrap();
}

fn read_direct(mine: &PathBuf) {
    let mut options = OpenOptions::new();
    let file = options.read(true).custom_flags(libc::O_DIRECT).open(mine);
    let mut page = page_of_memory();
    // Whether the file is longer than the data read does not matter: the read must only return.
    let _ = file.unwrap().read_at(&mut page.0, 0).unwrap();
}

#[test]
fn work_beside_opens_that_wait_for_a_writer() {
    need_mounts!();
    a_lock_held("io=passthrough", (WAITING, None), open_truncated);
}

#[test]
fn work_beside_direct_reads_that_wait_for_a_writer() {
    need_mounts!();
    a_lock_held("io=passthrough", (WAITING, None), read_direct);
}

/// The kernel has a queue for each CPU; a request takes an entry of it until it is answered.
#[test]
fn work_on_a_cpu_over_io_uring_on_which_opens_wait() {
    need_mounts!();
    need_mounts!();
    need!(has_uring());
    let options = "io=passthrough,transport=uring";
    a_lock_held(options, (WAITING_THERE, Some(0)), open_truncated);
}

#[test]
fn work_on_a_cpu_over_io_uring_on_which_direct_reads_wait() {
    need_mounts!();
    need_mounts!();
    need!(has_uring());
    let options = "io=passthrough,transport=uring";
    a_lock_held(options, (WAITING_THERE, Some(0)), read_direct);
}

#[repr(align(4096))]
struct Page([u8; 4096]);

fn page_of_memory() -> Page {
    Page([0; 4096])
}

/// Handles of directories that do not exist. Root of a user namespace may open such handles; root
/// does so here.
#[test]
fn work_beside_searches_for_made_up_handles() {
    need_mounts!();
    let mut below = layer();
    for n in 0..300 {
        below = below.dir(format!("dir{n}"));
    }
    let f = std::sync::Arc::new(Fixture::new(&[below]));
    let root = File::open(f.root()).unwrap();
    let known = name_to_handle(&root, c"dir1").unwrap();
    let searches = || stats(f.root()).union["searches"];
    assert_eq!(searches(), 0);
    let made_up = |n: u64| {
        let mut bytes = known.bytes.clone();
        // As the kernel writes a node's number (fs/fuse/inode.c): the upper half first.
        bytes[..4].copy_from_slice(&0u32.to_ne_bytes());
        let number = 0x7000_0000 + u32::try_from(n).unwrap();
        bytes[4..8].copy_from_slice(&number.to_ne_bytes());
        FileHandle {
            bytes,
            ..known.clone()
        }
    };
    let look = |n: u64| -> rustix::io::Result<OwnedFd> { open_by_handle(&root, &made_up(n)) };
    let asked = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..SEEKING {
            scope.spawn(|| {
                for _ in 0..10 {
                    let n = asked.fetch_add(1, Ordering::SeqCst);
                    assert_eq!(look(n as u64).unwrap_err(), Errno::STALE);
                }
            });
        }
        assert!(works(&f, None), "another user cannot work meanwhile");
    });
    let (asked, searches) = (asked.into_inner() as u64, searches());
    eprintln!("{asked} handles, {searches} searches");
    // How many requests share a search depends on how many wait at a time.
    assert!(
        searches > 0 && searches < asked / 2,
        "{searches} of {asked}"
    );
    let mut log = OpenOptions::new().append(true).open(f.at("low")).unwrap();
    log.write_all(b".").unwrap();
}

/// A kernel without preemption runs nothing else on a CPU during one call, so a copy-up of a large
/// file makes many short calls (`union/copy_data`).
#[test]
fn a_copy_up_makes_short_calls() {
    const LENGTH: usize = 3 << 20;
    const STEP: usize = 256 << 10;
    need_mounts!();
    need!(has_tools(&["strace"]));
    let data: Vec<u8> = (0..LENGTH).map(|n| (n % 251) as u8).collect();
    let f = Fixture::new(&[Layer::new().file("large", &data)]);
    let trace = Trace::of(&f, &["-e", "trace=copy_file_range,pwrite64,ioctl"]);
    fs::set_permissions(f.at("large"), Permissions::from_mode(0o600)).unwrap();
    let lines = trace.end();
    let is_cloned = |line: &String| line.contains("FICLONE") && line.ends_with("= 0");
    let copied: Vec<usize> = lines
        .iter()
        .filter(|line| line.contains("copy_file_range(") || line.contains("pwrite64("))
        .filter_map(|line| line.rsplit_once("= ")?.1.parse().ok())
        .collect();
    let expected = if lines.iter().any(is_cloned) {
        0
    } else {
        LENGTH
    };
    assert_eq!(copied.iter().sum::<usize>(), expected, "{lines:?}");
    assert!(copied.iter().all(|bytes| *bytes <= STEP), "{lines:?}");
    assert_eq!(fs::read(f.at("large")).unwrap(), data);
}
