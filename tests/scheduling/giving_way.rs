//! Threads of the server that yield to their callers: when this begins, when it ends, and that no
//! thread starves. The gain is measured and not tested: docs/PROFILE.md. A unit test covers the
//! detection of a starving thread (`fuse/wire/idle_priority`).

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use testkit::fixture::Fixture;
use testkit::layers::{self, Form};
use testkit::mount::{Fs, poll};
use testkit::need::has_uring;
use testkit::task::{Task, bind, tasks};
use testkit::{need, need_mounts};

/// Held by each test.
static ALONE: Mutex<()> = Mutex::new(());

fn gives_way(task: &Task) -> bool {
    task.policy == libc::SCHED_IDLE
}

/// Returns the server's threads whose names begin with `name`.
fn named(server: u32, name: &str) -> Vec<Task> {
    let mut tasks = tasks(server);
    tasks.retain(|task| task.name.starts_with(name));
    tasks
}

/// Threads, one for each CPU, that use all of its time.
struct Hogs(Arc<AtomicBool>);

impl Hogs {
    fn new() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        for cpu in 0..std::thread::available_parallelism().unwrap().get() {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || {
                bind(cpu);
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

/// Sends `count` requests with new names, so that no cache answers.
fn ask(root: &Path, count: usize) {
    static NAMES: AtomicUsize = AtomicUsize::new(0);
    for _ in 0..count {
        let name = format!("absent-{}", NAMES.fetch_add(1, Ordering::Relaxed));
        root.join(name).symlink_metadata().unwrap_err();
    }
}

/// Tests a transport whose threads are called `name`.
fn begins_ends_and_starves_nobody(fs: &Fs, name: &str) {
    let f = Fixture::with(fs, &layers::standard(), Form::Kernel, true);
    let server = f.mounted().servers()[0];
    let all = || named(server, name);
    // While the kernel knows no regular file, requests may stay with the overflow thread
    // (fuse/wire/rings/overflow.rs).
    f.root().join("plain.txt").symlink_metadata().unwrap();
    let before = all();
    assert!(!before.iter().any(gives_way), "{before:?}");
    let begins = || {
        poll(|| {
            ask(f.root(), 200);
            all().iter().any(gives_way)
        })
    };
    let ends = || poll(|| !all().iter().any(gives_way));
    assert!(begins(), "never: {:?}", tasks(server));
    // A copy-up may start threads for slow work; they do not inherit the priority.
    f.ok("write plain.txt 0 changed");
    let everywhere = fs::read_to_string("/sys/devices/system/cpu/online").unwrap();
    for slow in named(server, "unionfs-slow") {
        assert_eq!(
            (slow.policy, &*slow.cpus),
            (libc::SCHED_OTHER, everywhere.trim())
        );
    }
    assert!(ends(), "for good: {:?}", all());
    assert!(begins(), "not again: {:?}", all());
    // Whatever the watch decides, every request is answered.
    let hogs = Hogs::new();
    ask(f.root(), 5000);
    drop(hogs);
    // The threads are as before. Threads of rings are started and ended; each has the CPU of its
    // name.
    let like = |task: &Task| (task.name.clone(), task.policy, task.cpus.clone());
    let places: Vec<_> = before.iter().map(like).collect();
    let is_back = || {
        let now = all();
        !now.is_empty() && now.iter().all(|task| places.contains(&like(task)))
    };
    assert!(poll(is_back), "{before:?}, now {:?}", all());
}

#[test]
fn threads_of_rings() {
    need_mounts!();
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    need!(has_uring());
    begins_ends_and_starves_nobody(&Fs::Unionfs("transport=uring"), "unionfs-cpu");
}

#[test]
fn workers() {
    need_mounts!();
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    begins_ends_and_starves_nobody(&Fs::Unionfs("transport=classic"), "unionfs-0");
}

/// A thread moves to the CPU of a caller that is alone there, and away when another one comes.
#[test]
fn workers_follow_one_caller_but_not_two() {
    need_mounts!();
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let fs = Fs::Unionfs("transport=classic");
    let f = Fixture::with(&fs, &layers::standard(), Form::Kernel, true);
    let server = f.mounted().servers()[0];
    let worker = || named(server, "unionfs-0").pop().unwrap();
    let free = worker().cpus;
    let is = |policy, cpus: &str| {
        let worker = worker();
        (worker.policy, &*worker.cpus) == (policy, cpus)
    };
    for cpu in [0, 1, 0] {
        bind(cpu);
        let follows = poll(|| {
            ask(f.root(), 200);
            is(libc::SCHED_IDLE, &cpu.to_string())
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
            is(libc::SCHED_OTHER, &free)
        });
        stop.store(true, Ordering::Relaxed);
        assert!(apart, "{:?}", worker());
    });
}

/// An answer wakes the caller before the worker goes on, so the next request of the caller finds
/// workers that have answered and are not done. They count as free: nothing goes to other threads.
#[test]
fn changes_of_one_caller_stay_with_the_workers() {
    need_mounts!();
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let fs = Fs::Unionfs("transport=classic");
    let f = Fixture::with(&fs, &layers::standard(), Form::Kernel, true);
    let server = f.mounted().servers()[0];
    bind(0);
    let mut made = 0;
    let follow = poll(|| {
        for _ in 0..500 {
            fs::create_dir(f.root().join(format!("made-{made}"))).unwrap();
            made += 1;
        }
        named(server, "unionfs-").iter().any(gives_way) && made >= 4000
    });
    assert!(follow, "{:?}", tasks(server));
    assert!(
        named(server, "unionfs-slow").is_empty(),
        "{:?}",
        tasks(server)
    );
}
