//! Threads that give way to their callers: those of rings, and workers that read /dev/fuse.
//!
//! A caller whose answer has come is woken on the CPU of the thread that answers, which is busy:
//! with that thread. So the scheduler moves it to another CPU if one is idle, whose waking costs
//! more than the request, and the next request is for that one's thread, and so on. But a CPU on
//! which all that runs is SCHED_IDLE counts as idle, and such a thread is preempted at once: the
//! caller stays (`select_idle_sibling` in Linux' kernel/sched/fair.c). A request then costs
//! half; docs/PROFILE.md has the figures.
//!
//! A thread of a ring is where its callers are. Workers are not: they follow, to the CPU of a
//! caller that is alone, and leave it when another one comes, or much data, of which the
//! caller uses the first part while the next is read.
//!
//! A caller is looked up in /proc by its thread ID, for the CPU it runs on and nothing else. That
//! may be another's by now, or lie: a thread of ours then runs on a CPU where it helps nobody. No
//! right depends on it.
//!
//! A SCHED_IDLE thread gets next to nothing of a CPU that others want too, so the threads are
//! that only while requests come in numbers and are answered. A watch looks every [`TICK`] and
//! takes it back for a while when one of them could run all the time and hardly did, and when
//! requests no longer come. It sleeps while there are none.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::Thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::sys::schedule::{Policy, Stat, policy, set_policy, stat, this_thread};

/// Fields of proc_pid_stat(5).
const STATE: usize = 3;
/// The CPU on which it runs or ran last.
const PROCESSOR: usize = 39;
/// How often the watch looks.
const TICK: Duration = Duration::from_millis(4);
/// Ticks without the CPU, or nearly, after which a thread counts as starved. The kernel counts
/// what a running thread has run every 4 ms or so: one tick would not tell.
const HUNGRY: u32 = 2;
/// So many requests of one CPU within a tick are worth it.
const MANY: u64 = 4;
/// So many are worth to follow a caller. Compilers ask less, and come and go.
const MANY_TO_FOLLOW: u64 = 20;
/// The watch is woken when so many requests came within [`BURST_TIME`].
const BURST: u32 = 32;
/// See [`BURST`].
const BURST_TIME: Duration = Duration::from_millis(32);
/// Ticks without a request until threads are what they were.
const QUIET: u32 = 8;
/// Ticks without any of that until the watch sleeps.
const SLEEPY: u32 = 25;
/// Ticks for which a CPU that others want is left alone; doubled each time.
const PATIENCE: u32 = 25;
/// The longest such time, in ticks.
const MOST_PATIENCE: u32 = 800;
/// Ticks without being starved after which that begins anew.
const FORGIVEN: u32 = 250;
/// Ticks for which workers follow nobody after two have asked.
const APART: u32 = 5;

/// The watch over the threads that answer for a mount.
#[derive(Debug)]
pub(super) struct Watch {
    crews: Vec<Arc<Crew>>,
    /// Threads in the crews: with the last the watch ends.
    members: AtomicUsize,
    asleep: AtomicBool,
    thread: OnceLock<Thread>,
}

/// The threads of one CPU, or those that follow a caller.
#[derive(Debug, Default)]
pub(super) struct Crew {
    /// Requests taken.
    taken: AtomicU64,
    /// Who asked last, by thread ID; 0 in the beginning.
    caller: AtomicU32,
    /// Not only that one has since the watch looked.
    mixed: AtomicBool,
    state: Mutex<CrewState>,
    /// Where its threads may be when they follow nobody; `None` for threads of a ring.
    cpus: Option<CpuSet>,
}

#[derive(Debug, Default)]
struct CrewState {
    gives_way: bool,
    /// Where the threads have followed their caller to.
    cpu: Option<usize>,
    /// Thread IDs.
    members: Vec<i32>,
    /// For how long they had run when the watch first found one runnable, and for how many ticks
    /// it has found that since.
    found: Option<(Duration, u32)>,
}

/// A thread's place in its crew, left when dropped.
pub(super) struct Membership {
    watch: Arc<Watch>,
    crew: Arc<Crew>,
    /// Requests since `since`.
    burst: u32,
    since: Instant,
}

impl Watch {
    /// Returns the watch of rings for this number of CPUs. `None`: there is only one CPU, or the
    /// process could not leave SCHED_IDLE again, which needs CAP_SYS_NICE or RLIMIT_NICE.
    pub(super) fn of_rings(cpus: u16) -> Option<Arc<Self>> {
        (cpus > 1 && is_possible()).then(|| Self::new((0..cpus).map(|_| Arc::default()).collect()))
    }

    /// For workers; `None` as above.
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

    /// Starts to watch, until the last thread has left.
    pub(super) fn start(self: &Arc<Self>) {
        let watch = Arc::clone(self);
        let builder = std::thread::Builder::new().name("unionfs-watch".into());
        match builder.spawn(move || watch.run()) {
            Ok(thread) => drop(self.thread.set(thread.thread().clone())),
            // Then nobody gives way.
            Err(error) => tracing::warn!(%error, "threads are not watched"),
        }
    }

    /// The calling thread is one of those of a crew: of a CPU, or number 0, the workers'.
    pub(super) fn join(self: &Arc<Self>, crew: u16) -> Option<Membership> {
        let crew = Arc::clone(self.crews.get(usize::from(crew))?);
        let thread = this_thread();
        let mut state = crew.state.lock();
        state.members.push(thread);
        // It may have inherited what the others were a moment ago.
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

    /// All threads have left, if there were any.
    pub(super) fn end(&self) {
        self.unpark();
    }

    fn unpark(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }
}

/// Whether a thread may give way and take it back.
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
    // On a thread of its own, which may not come back.
    match std::thread::spawn(may).join() {
        Ok(Ok(())) => true,
        Ok(Err(error)) => {
            tracing::debug!(%error, "threads do not give way");
            false
        }
        Err(_) => false,
    }
}

impl Membership {
    /// A request was taken that this thread asked for (0: nobody), with much data or not.
    pub(super) fn took_from(&mut self, caller: u32, is_large: bool) {
        let crew = &self.crew;
        if is_large {
            crew.mixed.store(true, Ordering::Relaxed);
        } else if caller != 0 && crew.caller.load(Ordering::Relaxed) != caller {
            crew.caller.store(caller, Ordering::Relaxed);
            crew.mixed.store(true, Ordering::Relaxed);
        }
        self.took();
    }

    /// A request was taken. No system call, but for the first of many.
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
    /// Gives threads the policy and the CPUs that they are to have.
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

    /// The CPU on which the caller runs, or ran last, if threads may follow it there.
    fn callers_cpu(&self) -> Option<usize> {
        let cpus = self.cpus?;
        let caller = self.caller.load(Ordering::Relaxed);
        let cpu = stat(caller)?.field(PROCESSOR)?.parse().ok()?;
        (cpu < CpuSet::MAX_CPU && cpus.is_set(cpu)).then_some(cpu)
    }
}

/// A set of one CPU, which is less than [`CpuSet::MAX_CPU`].
pub(super) fn only(cpu: usize) -> CpuSet {
    let mut set = CpuSet::new();
    set.set(cpu);
    set
}

impl CrewState {
    /// Whether threads could have run for [`HUNGRY`] ticks and hardly did. Who is long at work, or
    /// has just begun, is not starved.
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

/// What the watch remembers of a crew.
#[derive(Debug, Default)]
struct View {
    taken: u64,
    quiet: u32,
    /// Ticks for which it is left alone.
    wait: u32,
    patience: u32,
    /// Ticks since it was last starved.
    fed: u32,
}

impl View {
    /// One tick; whether there is something to watch.
    fn look(&mut self, crew: &Crew) -> bool {
        let taken = crew.taken.load(Ordering::Relaxed);
        let came = taken - std::mem::replace(&mut self.taken, taken);
        let mut state = crew.state.lock();
        // Nearly starved comes to the same: now and then the scheduler is merciful.
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
            self.decide(state.gives_way, came, many, starved)
        };
        let cpu = gives_way.then(|| crew.callers_cpu()).flatten();
        gives_way &= crew.cpus.is_none() || cpu.is_some();
        if (gives_way, cpu) != (state.gives_way, state.cpu) {
            (state.gives_way, state.cpu) = (gives_way, cpu);
            crew.tell(&state, &state.members);
        }
        gives_way || came >= MANY
    }

    /// Two have asked, or for much.
    fn keep_apart(&mut self) -> bool {
        self.wait = self.wait.max(APART);
        self.fed = self.fed.saturating_add(1);
        false
    }

    fn decide(&mut self, gives_way: bool, came: u64, many: u64, starved: bool) -> bool {
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

/// Of a thread of this process.
fn stat_of(thread: i32) -> Option<Stat> {
    stat(format_args!("self/task/{thread}"))
}

/// How long a thread has run: the first number of its schedstat, in nanoseconds
/// (Documentation/scheduler/sched-stats.rst).
fn has_run(thread: i32) -> Option<Duration> {
    let text = std::fs::read_to_string(format!("/proc/self/task/{thread}/schedstat")).ok()?;
    let ran = text.split(' ').next()?.parse().ok()?;
    Some(Duration::from_nanos(ran))
}

#[cfg(test)]
mod tests;
