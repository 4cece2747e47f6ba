//! Threads of the server that give way to their callers: when they begin, when they end, and
//! that nobody starves. What it brings is measured, not tested: docs/PROFILE.md. How it is seen
//! that a thread starves is tested beside it (`fuse/wire/giving_way`).

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rustix::thread::{CpuSet, sched_setaffinity};

use crate::common::fixture::Fixture;
use crate::common::layers::{self, Form};
use crate::common::mount::{Fs, poll};
use crate::common::need_mounts;
use crate::common::uring::need_uring;

/// A thread of the server, as it is scheduled.
#[derive(Debug, PartialEq)]
struct Task {
    policy: i32,
    cpus: String,
}

impl Task {
    fn gives_way(&self) -> bool {
        self.policy == libc::SCHED_IDLE
    }
}

/// The server's threads whose names begin so.
fn tasks(server: u32, name: &str) -> Vec<Task> {
    let tasks = fs::read_dir(format!("/proc/{server}/task")).unwrap();
    let task = |entry: std::io::Result<fs::DirEntry>| {
        let path = entry.ok()?.path();
        let stat = fs::read_to_string(path.join("stat")).ok()?;
        let status = fs::read_to_string(path.join("status")).ok()?;
        // proc_pid_stat(5): field 41; behind the name comes the third.
        let (named, fields) = stat.split_once('(')?.1.split_once(") ")?;
        let policy = fields.split(' ').nth(38)?.parse().unwrap();
        let list = |line: &str| Some(line.strip_prefix("Cpus_allowed_list:")?.trim().to_owned());
        let cpus = status.lines().find_map(list)?;
        named.starts_with(name).then_some(Task { policy, cpus })
    };
    tasks.filter_map(task).collect()
}

/// A thread on each CPU that wants all of it.
struct Hogs(Arc<AtomicBool>);

impl Hogs {
    fn new() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        for cpu in 0..std::thread::available_parallelism().unwrap().get() {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || {
                let mut one = CpuSet::new();
                one.set(cpu);
                sched_setaffinity(None, &one).unwrap();
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        Self(stop)
    }
}

impl Drop for Hogs {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Sends so many requests: names that are new, so that no cache answers.
fn ask(root: &Path, count: usize) {
    static NAMES: AtomicUsize = AtomicUsize::new(0);
    for _ in 0..count {
        let name = format!("absent-{}", NAMES.fetch_add(1, Ordering::Relaxed));
        root.join(name).symlink_metadata().unwrap_err();
    }
}

/// Over a transport whose threads are called `name`.
fn begins_ends_and_starves_nobody(fs: &Fs, name: &str) {
    let f = Fixture::with(fs, &layers::standard(), Form::Kernel, true);
    let server = f.mounted().servers()[0];
    let all = || tasks(server, name);
    let before = all();
    assert!(!before.iter().any(Task::gives_way), "{before:?}");
    let begins = || {
        poll(|| {
            ask(f.root(), 200);
            all().iter().any(Task::gives_way)
        })
    };
    let ends = || poll(|| !all().iter().any(Task::gives_way));
    assert!(begins());
    // A copy-up: threads for slow work may begin, which inherit nothing.
    f.ok("write plain.txt 0 changed");
    let everywhere = fs::read_to_string("/sys/devices/system/cpu/online").unwrap();
    for slow in tasks(server, "unionfs-slow") {
        assert_eq!(
            (slow.policy, &*slow.cpus),
            (libc::SCHED_OTHER, everywhere.trim())
        );
    }
    assert!(ends(), "for good: {:?}", all());
    assert!(begins());
    // Whatever the watch makes of it: everything is answered.
    let hogs = Hogs::new();
    ask(f.root(), 5000);
    drop(hogs);
    // Where they were.
    assert!(
        poll(|| before.iter().all(|task| all().contains(task))),
        "{:?}",
        all()
    );
}

#[test]
fn threads_of_rings() {
    need_uring!();
    begins_ends_and_starves_nobody(&Fs::Unionfs("transport=uring"), "unionfs-cpu");
}

#[test]
fn workers() {
    need_mounts!();
    begins_ends_and_starves_nobody(&Fs::Unionfs("transport=classic"), "unionfs-0");
}

/// To the CPU of a caller that is alone, and away when another one comes.
#[test]
fn workers_follow_one_caller_but_not_two() {
    need_mounts!();
    let fs = Fs::Unionfs("transport=classic");
    let f = Fixture::with(&fs, &layers::standard(), Form::Kernel, true);
    let server = f.mounted().servers()[0];
    let worker = || tasks(server, "unionfs-0").pop().unwrap();
    let free = worker().cpus;
    for cpu in [0, 1, 0] {
        let mut one = CpuSet::new();
        one.set(cpu);
        sched_setaffinity(None, &one).unwrap();
        let follows = poll(|| {
            ask(f.root(), 200);
            worker()
                == Task {
                    policy: libc::SCHED_IDLE,
                    cpus: cpu.to_string(),
                }
        });
        assert!(follows, "to CPU {cpu}: {:?}", worker());
    }
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                ask(f.root(), 10);
            }
        });
        let apart = poll(|| {
            ask(f.root(), 10);
            worker()
                == Task {
                    policy: libc::SCHED_OTHER,
                    cpus: free.clone(),
                }
        });
        stop.store(true, Ordering::Relaxed);
        assert!(apart, "{:?}", worker());
    });
}
