//! One user floods a server with limited memory (RLIMIT_AS): hundreds of large writes that wait for
//! copy-ups, huge listings held open, thousands of files without a name, large attributes, deep
//! trees, ioctls. The server keeps running, and another user's work succeeds with the correct
//! content.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rustix::process::{Pid, Resource, Rlimit, prlimit};
use testkit::mount::{Fs, Scratch, Stack, chmod, poll};
use testkit::{ioctl, need_mounts};

/// The user who floods, and the user who works.
const FLOODER: u32 = 1000;
const WORKER: u32 = 1001;
/// The address space that the server may use beyond that of an idle server. Most of it are stacks
/// of threads and arenas of malloc, which are hardly used.
const MORE: u64 = 448 << 20;
/// The limit of its resident memory; it uses a fifth of that here.
const RESIDENT: u64 = 256 << 20;
/// The number of threads of the flood.
const THREADS: usize = 48;
/// The number of large writes, each to a file of its own.
const WRITES: usize = 480;
/// The number of names in the listed directory.
const NAMES: usize = 30_000;
/// FS_IOC_GETFLAGS.
const GET_FLAGS: u32 = 0x8008_6601;

/// Makes the calling thread one of this user.
fn become_user(uid: u32) {
    let (group, user) = (
        rustix::fs::Gid::from_raw(uid),
        rustix::fs::Uid::from_raw(uid),
    );
    rustix::thread::set_thread_groups(&[]).unwrap();
    rustix::thread::set_thread_res_gid(group, group, group).unwrap();
    rustix::thread::set_thread_res_uid(user, user, user).unwrap();
}

/// Returns a size of a process in bytes (proc(5), `status`).
fn size(process: u32, which: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(which))
        .unwrap();
    let kib = line.trim_matches([':', ' ', '\t']).trim_end_matches(" kB");
    kib.parse::<u64>().unwrap() << 10
}

fn stack(scratch: &Scratch) -> Stack {
    let lower = scratch.dir("lower");
    for (name, uid) in [("flood", FLOODER), ("work", WORKER)] {
        let dir = lower.join(name);
        fs::create_dir(&dir).unwrap();
        chmod(&dir, 0o755);
        for n in 0..if uid == FLOODER { WRITES } else { 200 } {
            let file = dir.join(format!("low{n}"));
            fs::write(&file, "from below").unwrap();
            std::os::unix::fs::chown(&file, Some(uid), Some(uid)).unwrap();
        }
        std::os::unix::fs::chown(&dir, Some(uid), Some(uid)).unwrap();
    }
    let huge = lower.join("huge");
    fs::create_dir(&huge).unwrap();
    chmod(&huge, 0o755);
    for n in 0..NAMES {
        let name = format!("{}{n}", "long".repeat(40));
        std::os::unix::fs::symlink("x", huge.join(name)).unwrap();
    }
    Stack::writable(scratch, vec![lower])
}

/// Runs one thread of the flood, which holds all its objects until the end. Its requests may be
/// refused; returns how many were.
fn flood(root: &Path, thread: usize, over: &AtomicBool) -> usize {
    let home = root.join("flood");
    let mut refused = 0;
    let mut held = Vec::new();
    let mut lists = Vec::new();
    let data = vec![thread as u8; 1 << 20];
    let mut n = thread;
    while !over.load(Ordering::SeqCst) {
        let mut note = |done: std::io::Result<()>| refused += usize::from(done.is_err());
        let low = home.join(format!("low{}", n % WRITES));
        note(
            OpenOptions::new()
                .write(true)
                .open(&low)
                .and_then(|f| f.write_all_at(&data, 0)),
        );
        if lists.len() < 20 {
            note(fs::read_dir(root.join("huge")).map(|mut list| {
                list.next();
                lists.push(list);
            }));
        }
        for k in 0..10 {
            let path = home.join(format!("gone{thread}-{n}-{k}"));
            let made = File::create_new(&path).and_then(|file| {
                fs::remove_file(&path)?;
                held.push(file);
                Ok(())
            });
            note(made);
        }
        held.truncate(60);
        let mut deep = home.join(format!("deep{thread}"));
        for _ in 0..30 {
            deep.push("directory");
        }
        note(fs::create_dir_all(&deep));
        let value = vec![7; 3000];
        let flags = rustix::fs::XattrFlags::empty();
        note(rustix::fs::setxattr(&deep, "user.large", &value, flags).map_err(Into::into));
        let mut list = vec![0; 65536];
        note(
            rustix::fs::listxattr(&deep, &mut list[..])
                .map(drop)
                .map_err(Into::into),
        );
        if let Ok(dir) = File::open(&deep) {
            for _ in 0..20 {
                note(ioctl::with_room(&dir, GET_FLAGS, &mut [0; 2048]));
            }
        }
        n += THREADS;
    }
    refused
}

/// Does the work of the other user; each operation must succeed.
fn work(root: &Path, round: usize) {
    let dir = root.join("work");
    let low = dir.join(format!("low{}", round % 200));
    let mut text = String::new();
    File::open(&low).unwrap().read_to_string(&mut text).unwrap();
    let mut file = OpenOptions::new().append(true).open(&low).unwrap();
    file.write_all(b" and above").unwrap();
    drop(file);
    assert_eq!(fs::read_to_string(&low).unwrap(), text + " and above");
    let new = dir.join(format!("new{round}"));
    let data: Vec<u8> = (0..100_000).map(|n| (n + round) as u8).collect();
    fs::write(&new, &data).unwrap();
    assert!(fs::read(&new).unwrap() == data);
    fs::rename(&new, new.with_extension("moved")).unwrap();
    assert!(fs::read_dir(&dir).unwrap().count() > 200);
    fs::create_dir(dir.join("sub")).unwrap();
    fs::remove_dir(dir.join("sub")).unwrap();
}

#[test]
fn bounded_memory_is_enough_for_everybody() {
    need_mounts!();
    for options in ["io=cached", "io=passthrough"] {
        let scratch = Scratch::disk();
        let stack = stack(&scratch);
        let mounted = Fs::Unionfs(options).mount(&stack);
        let (root, server) = (mounted.path(), mounted.servers()[0]);
        let limit = size(server, "VmSize") + MORE;
        let limits = Rlimit {
            current: Some(limit),
            maximum: Some(limit),
        };
        let pid = Pid::from_raw(i32::try_from(server).unwrap());
        prlimit(pid, Resource::As, limits).unwrap();
        let (over, rounds, refused) = (
            AtomicBool::new(false),
            AtomicUsize::new(0),
            AtomicUsize::new(0),
        );
        std::thread::scope(|scope| {
            let over = &over;
            let worker = scope.spawn(|| {
                become_user(WORKER);
                while !over.load(Ordering::SeqCst) {
                    work(root, rounds.fetch_add(1, Ordering::SeqCst));
                }
            });
            assert!(poll(
                || rounds.load(Ordering::SeqCst) > 1 || worker.is_finished()
            ));
            for thread in 0..THREADS {
                let refused = &refused;
                scope.spawn(move || {
                    become_user(FLOODER);
                    refused.fetch_add(flood(root, thread, over), Ordering::SeqCst);
                });
            }
            let before = rounds.load(Ordering::SeqCst);
            std::thread::sleep(std::time::Duration::from_secs(3));
            let on = poll(|| rounds.load(Ordering::SeqCst) > before + 3 || worker.is_finished());
            over.store(true, Ordering::SeqCst);
            assert!(on, "{options}: nobody else gets on");
        });
        look_afterwards(root);
        let used = size(server, "VmHWM");
        assert!(used < RESIDENT, "{options}: {} MiB", used >> 20);
        // A few refusals for lack of memory are correct.
        assert!(refused.load(Ordering::SeqCst) < WRITES, "{options}");
        mounted.unmount();
    }
}

/// Asserts that the tree is unchanged afterwards.
fn look_afterwards(root: &Path) {
    std::thread::scope(|scope| {
        let after = scope.spawn(|| {
            become_user(WORKER);
            work(root, 1_000_000);
            assert_eq!(fs::read_dir(root.join("huge")).unwrap().count(), NAMES);
        });
        after.join().unwrap();
    });
}
