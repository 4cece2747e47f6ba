//! Threads of rings, and workers that read /dev/fuse, give way to their callers.
//!
//! The answer wakes a caller on the CPU of the thread that answers, which is busy with that thread.
//! So the scheduler moves the caller to an idle CPU. Waking that CPU costs more than the request,
//! and the next request goes to a thread there, and so on. But a CPU on which only SCHED_IDLE
//! threads run counts as idle, and such a thread is preempted at once: the caller stays
//! (`select_idle_sibling` in Linux' kernel/sched/fair.c). A request then costs half;
//! docs/PROFILE.md has the figures.
//!
//! A thread of a ring is on the CPU of its callers. Workers are not: they follow a caller that is
//! alone to its CPU. They leave it when another caller comes, or with much data, because the caller
//! uses the first part while the next is read.
//!
//! The CPU of a caller is read from /proc by its thread ID. That ID may belong to another thread
//! now, or be wrong. Then a thread of the server runs on a CPU where it does not help. No
//! permission depends on it.
//!
//! A SCHED_IDLE thread gets almost no time on a CPU that other threads want too, so threads are
//! SCHED_IDLE only while many requests arrive and are answered. A watch checks this every [`TICK`].
//! It gives the threads their old policy for a while if a thread could run all the time and hardly
//! did, and if requests no longer arrive. The watch sleeps while there are none.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::Thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::sys::schedule::{Policy, Stat, policy, set_policy, stat, this_thread};

/// The state of the thread: a field of proc_pid_stat(5).
const STATE: usize = 3;
/// The CPU on which it runs, or ran last.
const PROCESSOR: usize = 39;
/// The interval of the watch.
const TICK: Duration = Duration::from_millis(4);
/// The number of ticks with almost no CPU time after which a thread counts as starved. The kernel
/// updates the time of a running thread every 4 ms or so, so one tick is not enough.
const HUNGRY: u32 = 2;
/// The number of requests of one CPU within a tick from which threads of rings give way.
const MANY: u64 = 4;
/// The number from which workers follow a caller. Compilers send fewer, and are short-lived.
const MANY_TO_FOLLOW: u64 = 20;
/// The watch wakes up after this number of requests within [`BURST_TIME`].
const BURST: u32 = 32;
/// See [`BURST`].
const BURST_TIME: Duration = Duration::from_millis(32);
/// The number of ticks without a request after which threads get their old policy.
const QUIET: u32 = 8;
/// The number of further ticks without a request after which the watch sleeps.
const SLEEPY: u32 = 25;
/// The number of ticks for which threads do not give way on a CPU that others want. It doubles each
/// time.
const PATIENCE: u32 = 25;
/// The maximum of that number.
const MOST_PATIENCE: u32 = 800;
/// The number of ticks without being starved after which that number is small again.
const FORGIVEN: u32 = 250;
/// The number of ticks for which workers follow no caller after two have sent requests.
const APART: u32 = 5;

/// The watch over the threads that answer for a mount.
#[derive(Debug)]
pub(super) struct Watch {
    crews: Vec<Arc<Crew>>,
    /// The number of threads in the crews. The watch ends with the last thread.
    members: AtomicUsize,
    asleep: AtomicBool,
    thread: OnceLock<Thread>,
}

/// The threads of one CPU, or those that follow a caller.
#[derive(Debug, Default)]
pub(super) struct Crew {
    /// The number of requests.
    taken: AtomicU64,
    /// The thread ID of the last caller; 0 at first.
    caller: AtomicU32,
    /// Whether other callers have sent requests since the watch looked.
    mixed: AtomicBool,
    state: Mutex<CrewState>,
    /// The CPUs of its threads when they follow no caller; `None` for threads of a ring.
    cpus: Option<CpuSet>,
}

#[derive(Debug, Default)]
struct CrewState {
    gives_way: bool,
    /// The CPU to which the threads have followed their caller.
    cpu: Option<usize>,
    /// Thread IDs.
    members: Vec<i32>,
    /// The run time of the threads when the watch first found one runnable, and the number of ticks
    /// for which it has found that since.
    found: Option<(Duration, u32)>,
}

/// A thread's membership in its crew, which ends when this is dropped.
pub(super) struct Membership {
    watch: Arc<Watch>,
    crew: Arc<Crew>,
    /// The number of requests since `since`.
    burst: u32,
    since: Instant,
}

impl Watch {
    /// Returns the watch of rings for this number of CPUs. `None` if there is only one CPU, or if
    /// the process could not leave SCHED_IDLE again, which needs CAP_SYS_NICE or RLIMIT_NICE.
    pub(super) fn of_rings(cpus: u16) -> Option<Arc<Self>> {
        (cpus > 1 && is_possible()).then(|| Self::new((0..cpus).map(|_| Arc::default()).collect()))
    }

    /// Returns the watch of workers; `None` as for [`Self::of_rings`].
    pub(super) fn of_workers() -> Option<Arc<Self>> {
        let cpus = sched_getaffinity(None).ok()?;
        let crew = Crew {
            cpus: Some(cpus),
            ..Crew::default()
        };
        (cpus.count() > 1 && is_possible()).then(|| Self::new(vec![Arc::new(crew)]))
    }

    fn new(crews: Vec<Arc<Crew>>) -> Arc<Self> {
        Arc::new(Self {
            crews,
            members: AtomicUsize::new(0),
            asleep: AtomicBool::new(true),
            thread: OnceLock::new(),
        })
    }

    /// Starts the watch, which runs until the last thread has left.
    pub(super) fn start(self: &Arc<Self>) {
        let watch = Arc::clone(self);
        let builder = std::thread::Builder::new().name("unionfs-watch".into());
        match builder.spawn(move || watch.run()) {
            Ok(thread) => drop(self.thread.set(thread.thread().clone())),
            // Without the watch no thread gives way.
            Err(error) => tracing::warn!(%error, "threads are not watched"),
        }
    }

    /// Adds the calling thread to a crew: that of a CPU, or number 0, that of the workers.
    pub(super) fn join(self: &Arc<Self>, crew: u16) -> Option<Membership> {
        let crew = Arc::clone(self.crews.get(usize::from(crew))?);
        let thread = this_thread();
        let mut state = crew.state.lock();
        state.members.push(thread);
        // The thread may have inherited the policy of another thread of the crew.
        crew.tell(&state, &[thread]);
        drop(state);
        self.members.fetch_add(1, Ordering::Relaxed);
        Some(Membership {
            watch: Arc::clone(self),
            crew,
            burst: 0,
            since: Instant::now(),
        })
    }

    fn run(&self) {
        let mut views: Vec<_> = self.crews.iter().map(|_| View::default()).collect();
        let mut calm = 0;
        loop {
            if self.asleep.load(Ordering::Acquire) {
                std::thread::park();
            } else {
                std::thread::sleep(TICK);
            }
            if self.members.load(Ordering::Relaxed) == 0 {
                return;
            }
            let mut active = false;
            for (crew, view) in self.crews.iter().zip(&mut views) {
                active |= view.look(crew);
            }
            calm = if active { 0 } else { calm + 1 };
            self.asleep.store(calm >= SLEEPY, Ordering::Release);
        }
    }

    fn wake(&self) {
        if self.asleep.swap(false, Ordering::AcqRel) {
            self.unpark();
        }
    }

    /// Whether all threads have left.
    pub(super) fn end(&self) {
        self.unpark();
    }

    fn unpark(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }
}

/// Whether a thread may become SCHED_IDLE and leave that again.
fn is_possible() -> bool {
    let may = || -> io::Result<()> {
        let me = this_thread();
        if policy(me)? != Some(Policy::Other) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        set_policy(me, Policy::Idle)?;
        set_policy(me, Policy::Other)?;
        let seen = stat_of(me).zip(has_run(me));
        seen.map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    };
    // This happens in a new thread, which may not be able to return.
    match std::thread::spawn(may).join() {
        Ok(Ok(())) => true,
        Ok(Err(error)) => {
            tracing::debug!(%error, "threads do not give way");
            false
        }
        Err(_) => false,
    }
}

/// How much data a request moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moves {
    LittleData,
    /// So much that the caller may use a part while the server moves the next.
    MuchData,
}

impl Membership {
    /// Counts a request of the caller with this thread ID (0 if it has none).
    pub(super) fn took_from(&mut self, caller: u32, moves: Moves) {
        let crew = &self.crew;
        if moves == Moves::MuchData {
            crew.mixed.store(true, Ordering::Relaxed);
        } else if caller != 0 && crew.caller.load(Ordering::Relaxed) != caller {
            crew.caller.store(caller, Ordering::Relaxed);
            crew.mixed.store(true, Ordering::Relaxed);
        }
        self.took();
    }

    /// Counts a request. Only the first of many makes a system call.
    pub(super) fn took(&mut self) {
        self.crew.taken.fetch_add(1, Ordering::Relaxed);
        if !self.watch.asleep.load(Ordering::Relaxed) {
            return;
        }
        self.burst += 1;
        if self.burst < BURST {
            return;
        }
        let now = Instant::now();
        if now.duration_since(self.since) < BURST_TIME {
            self.watch.wake();
        }
        (self.burst, self.since) = (0, now);
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        let me = this_thread();
        self.crew.state.lock().members.retain(|m| *m != me);
        if self.watch.members.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.watch.end();
        }
    }
}

impl Crew {
    /// Sets the policy and the CPUs of threads.
    fn tell(&self, state: &CrewState, members: &[i32]) {
        let policy = if state.gives_way {
            Policy::Idle
        } else {
            Policy::Other
        };
        let cpus = self.cpus.map(|all| state.cpu.map_or(all, only));
        for &thread in members {
            let moved = cpus.zip(Pid::from_raw(thread));
            if let Some(Err(error)) = moved.map(|(cpus, pid)| sched_setaffinity(Some(pid), &cpus)) {
                tracing::debug!(%error, thread, "thread not moved");
            }
            if let Err(error) = set_policy(thread, policy) {
                tracing::warn!(%error, thread, ?policy, "policy not changed");
            }
        }
    }

    /// Returns the CPU on which the caller runs, or ran last, if threads may follow it there.
    /// Only the watch may ask: reading the /proc of a caller can wait for the caller, which may be
    /// waiting for a worker.
    fn callers_cpu(&self) -> Option<usize> {
        let cpus = self.cpus?;
        let caller = self.caller.load(Ordering::Relaxed);
        let cpu = stat(caller)?.field(PROCESSOR)?.parse().ok()?;
        (cpu < CpuSet::MAX_CPU && cpus.is_set(cpu)).then_some(cpu)
    }
}

/// Returns a set of one CPU, whose number is less than [`CpuSet::MAX_CPU`].
pub(super) fn only(cpu: usize) -> CpuSet {
    let mut set = CpuSet::new();
    set.set(cpu);
    set
}

impl CrewState {
    /// Whether threads could have run for [`HUNGRY`] ticks and hardly did. A thread that works for
    /// long, or has just begun, is not starved.
    fn is_starved(&mut self) -> bool {
        let runnable = |m: &i32| stat_of(*m).is_some_and(|s| s.field(STATE) == Some("R"));
        if !self.members.iter().any(runnable) {
            self.found = None;
            return false;
        }
        let ran = self.members.iter().filter_map(|m| has_run(*m)).sum();
        let (first, ticks) = match self.found {
            Some((first, ticks)) => (first, ticks + 1),
            None => (ran, 0),
        };
        let judged = ticks >= HUNGRY;
        self.found = Some(if judged { (ran, 0) } else { (first, ticks) });
        judged && ran < first + TICK * HUNGRY / 2
    }
}

/// The state of a crew in the watch.
#[derive(Debug, Default)]
struct View {
    taken: u64,
    quiet: u32,
    /// The number of ticks for which it does not give way.
    wait: u32,
    patience: u32,
    /// The number of ticks since it was last starved.
    fed: u32,
}

impl View {
    /// Does the work of one tick. Returns whether there is something to watch.
    fn look(&mut self, crew: &Crew) -> bool {
        let taken = crew.taken.load(Ordering::Relaxed);
        let came = taken - std::mem::replace(&mut self.taken, taken);
        let mut state = crew.state.lock();
        // A crew that is nearly starved counts too: sometimes the scheduler runs such a thread.
        let starved = if state.gives_way && came < MANY {
            state.is_starved()
        } else {
            state.found = None;
            false
        };
        let mixed = crew.mixed.swap(false, Ordering::Relaxed) && crew.cpus.is_some();
        let many = crew.cpus.map_or(MANY, |_| MANY_TO_FOLLOW);
        let mut gives_way = if mixed && !starved {
            self.keep_apart()
        } else {
            self.decide(Seen {
                gives_way: state.gives_way,
                came,
                many,
                starved,
            })
        };
        // Reading the /proc of the caller can take long. Threads that join or leave must not wait for
        // that. Only the watch changes what it has read from the state.
        drop(state);
        let cpu = gives_way.then(|| crew.callers_cpu()).flatten();
        gives_way &= crew.cpus.is_none() || cpu.is_some();
        let mut state = crew.state.lock();
        if (gives_way, cpu) != (state.gives_way, state.cpu) {
            (state.gives_way, state.cpu) = (gives_way, cpu);
            crew.tell(&state, &state.members);
        }
        gives_way || came >= MANY
    }

    /// Whether workers stay away from the caller, because two callers have sent requests, or one
    /// has requested much data.
    fn keep_apart(&mut self) -> bool {
        self.wait = self.wait.max(APART);
        self.fed = self.fed.saturating_add(1);
        false
    }

    fn decide(&mut self, seen: Seen) -> bool {
        let Seen {
            gives_way,
            came,
            many,
            starved,
        } = seen;
        self.wait = self.wait.saturating_sub(1);
        self.fed = self.fed.saturating_add(1);
        self.quiet = if came > 0 {
            0
        } else {
            self.quiet.saturating_add(1)
        };
        if starved {
            let again = self.patience > 0 && self.fed < FORGIVEN + self.patience;
            let longer = (self.patience * 2).min(MOST_PATIENCE);
            self.patience = if again { longer } else { PATIENCE };
            (self.wait, self.fed) = (self.patience, 0);
            return false;
        }
        if gives_way {
            self.quiet < QUIET
        } else {
            came >= many && self.wait == 0
        }
    }
}

/// What was seen of a crew since the last look.
#[derive(Clone, Copy)]
struct Seen {
    /// Whether it gives way now.
    gives_way: bool,
    /// The number of requests that came.
    came: u64,
    /// The number from which a crew gives way.
    many: u64,
    /// Whether it could hardly run.
    starved: bool,
}

/// Returns the stat of a thread of this process.
fn stat_of(thread: i32) -> Option<Stat> {
    stat(format_args!("self/task/{thread}"))
}

/// Returns the run time of a thread: the first number of its schedstat, in nanoseconds
/// (Documentation/scheduler/sched-stats.rst).
fn has_run(thread: i32) -> Option<Duration> {
    let text = std::fs::read_to_string(format!("/proc/self/task/{thread}/schedstat")).ok()?;
    let ran = text.split(' ').next()?.parse().ok()?;
    Some(Duration::from_nanos(ran))
}

#[cfg(test)]
mod tests;
