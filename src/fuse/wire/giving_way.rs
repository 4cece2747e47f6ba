//! Threads of rings that give way to their callers. Called by `rings`.
//!
//! A caller whose answer has come is woken on the CPU of the thread that answers, which is busy:
//! with that thread. So the scheduler moves it to another CPU if one is idle, whose waking costs
//! more than the request, and the next request is for that one's thread, and so on. But a CPU on
//! which all that runs is SCHED_IDLE counts as idle, and such a thread is preempted at once: the
//! caller stays (`select_idle_sibling` in Linux' kernel/sched/fair.c). A request then costs
//! half; docs/PROFILE.md has the figures.
//!
//! A SCHED_IDLE thread gets next to nothing of a CPU that others want too, so the threads are
//! that only while requests come in numbers and are answered. A watch looks every [`TICK`] and
//! takes it back for a while when one of them could run and hardly did, and when requests no longer
//! come. It sleeps while there are none.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::Thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::sys::schedule::{Policy, policy, set_policy, this_thread};

/// How often the watch looks. What is starved waits for two of them.
const TICK: Duration = Duration::from_millis(4);
/// So many requests of one CPU within a tick are worth it.
const MANY: u64 = 4;
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

/// The watch over the threads of all rings of a mount.
#[derive(Debug)]
pub(super) struct Watch {
    crews: Vec<Arc<Crew>>,
    /// Threads in the crews: with the last the watch ends.
    members: AtomicUsize,
    asleep: AtomicBool,
    thread: OnceLock<Thread>,
}

/// The threads of one CPU.
#[derive(Debug, Default)]
pub(super) struct Crew {
    /// Requests taken.
    taken: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    gives_way: bool,
    members: Vec<Member>,
}

/// A thread, and the file that tells whether it runs.
#[derive(Debug)]
struct Member {
    thread: i32,
    stat: File,
}

/// A thread's place in its crew, left when dropped.
pub(super) struct Place {
    watch: Arc<Watch>,
    crew: Arc<Crew>,
    /// Requests since `since`.
    burst: u32,
    since: Instant,
}

impl Watch {
    /// For rings of so many CPUs; `None` where there is nobody to give way to, or no way back:
    /// that takes CAP_SYS_NICE or RLIMIT_NICE.
    pub(super) fn new(cpus: u16) -> Option<Arc<Self>> {
        let may = || {
            let me = this_thread();
            if policy(me)? != Some(Policy::Other) {
                return Err(io::ErrorKind::Unsupported.into());
            }
            set_policy(me, Policy::Idle)?;
            set_policy(me, Policy::Other)?;
            stat(me).map(drop)
        };
        if cpus < 2 {
            return None;
        }
        // On a thread of its own, which may not come back.
        let tried = std::thread::spawn(may).join();
        if let Ok(Err(error)) = &tried {
            tracing::debug!(%error, "threads of rings do not give way");
        }
        tried.ok()?.ok()?;
        Some(Arc::new(Self {
            crews: (0..cpus).map(|_| Arc::default()).collect(),
            members: AtomicUsize::new(0),
            asleep: AtomicBool::new(true),
            thread: OnceLock::new(),
        }))
    }

    /// Starts to watch, until the last thread has left.
    pub(super) fn start(self: &Arc<Self>) {
        let watch = Arc::clone(self);
        let builder = std::thread::Builder::new().name("unionfs-watch".into());
        match builder.spawn(move || watch.run()) {
            Ok(thread) => drop(self.thread.set(thread.thread().clone())),
            // Then nobody gives way.
            Err(error) => tracing::warn!(%error, "threads of rings are not watched"),
        }
    }

    /// The calling thread is one of those of `cpu`.
    pub(super) fn join(self: &Arc<Self>, cpu: u16) -> Option<Place> {
        let crew = Arc::clone(self.crews.get(usize::from(cpu))?);
        let thread = this_thread();
        let stat = stat(thread).ok()?;
        let mut state = crew.state.lock();
        state.members.push(Member { thread, stat });
        // It may have inherited what the others were a moment ago.
        state.tell(state.members.last());
        drop(state);
        self.members.fetch_add(1, Ordering::Relaxed);
        Some(Place {
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
        if self.asleep.swap(false, Ordering::AcqRel)
            && let Some(thread) = self.thread.get()
        {
            thread.unpark();
        }
    }
}

impl Place {
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

impl Drop for Place {
    fn drop(&mut self) {
        let me = this_thread();
        self.crew.state.lock().members.retain(|m| m.thread != me);
        if self.watch.members.fetch_sub(1, Ordering::Relaxed) == 1
            && let Some(thread) = self.watch.thread.get()
        {
            thread.unpark();
        }
    }
}

impl State {
    /// Gives threads the policy that they are to have.
    fn tell<'a>(&'a self, members: impl IntoIterator<Item = &'a Member>) {
        let policy = match self.gives_way {
            true => Policy::Idle,
            false => Policy::Other,
        };
        for member in members {
            if let Err(error) = set_policy(member.thread, policy) {
                tracing::warn!(%error, thread = member.thread, ?policy, "policy not changed");
            }
        }
    }

    /// Whether a thread could run and does not, or does for so long that it may as well.
    fn is_runnable(&self) -> bool {
        self.members.iter().any(|member| {
            let mut text = [0; 64];
            let read = member.stat.read_at(&mut text, 0).unwrap_or_default();
            // "123 (unionfs-cpu0) R 1 ...": the name is ours, without a parenthesis.
            let mut fields = text[..read].split(|&b| b == b')');
            fields.nth(1).is_some_and(|rest| rest.starts_with(b" R"))
        })
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
        let starved = state.gives_way && came < MANY && state.is_runnable();
        let gives_way = self.decide(state.gives_way, came, starved);
        if gives_way != state.gives_way {
            state.gives_way = gives_way;
            state.tell(&state.members);
        }
        gives_way || came >= MANY
    }

    fn decide(&mut self, gives_way: bool, came: u64, starved: bool) -> bool {
        self.wait = self.wait.saturating_sub(1);
        self.fed = self.fed.saturating_add(1);
        self.quiet = if came > 0 { 0 } else { self.quiet + 1 };
        if starved {
            let again = self.patience > 0 && self.fed < FORGIVEN + self.patience;
            let longer = (self.patience * 2).min(MOST_PATIENCE);
            self.patience = if again { longer } else { PATIENCE };
            (self.wait, self.fed) = (self.patience, 0);
            return false;
        }
        match gives_way {
            true => self.quiet < QUIET,
            false => came >= MANY && self.wait == 0,
        }
    }
}

fn stat(thread: i32) -> io::Result<File> {
    File::open(format!("/proc/self/task/{thread}/stat"))
}

#[cfg(test)]
mod tests;
