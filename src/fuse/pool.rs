//! Threads for slow work (copy-up, fsync, large copies), so that it never occupies the
//! threads that read requests. Threads are started on demand up to a limit, reused, and
//! end after a time without work; beyond the limit work waits in the queue.
//!
//! What waits is bounded, in jobs and in bytes of data that they hold: each is admitted first
//! ([`Pool::admit`]), and where there is no room the caller does the work itself. It then reads no
//! further request meanwhile, so whoever asks for much waits in the kernel, where it costs the
//! kernel's memory of that process and none of ours. That cannot deadlock: a job that waits in the
//! queue holds no lock, and one that runs waits for locks of running work only, never for the queue.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::sys::schedule::{self, Policy};

/// Enough to keep a disk busy; each costs a stack and a thread.
const MAX_THREADS: usize = 32;
/// Jobs that wait or run, at most.
const MAX_JOBS: usize = 1024;
/// Bytes of data that they hold, at most.
const MAX_HELD: usize = 64 << 20;
/// How long a thread waits for more work.
const IDLE: Duration = Duration::from_secs(10);

type Job = Box<dyn FnOnce() + Send>;

/// The pool; clones share it.
#[derive(Clone)]
pub(super) struct Pool(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    work: Condvar,
    ended: Condvar,
    max_threads: usize,
    max_jobs: usize,
    idle_time: Duration,
    /// The CPUs and the policy of whoever made the pool: a thread that submits may be pinned to
    /// one and SCHED_IDLE, and what it starts would be, too.
    cpus: Option<CpuSet>,
    policy: Option<Policy>,
}

#[derive(Default)]
struct State {
    queue: VecDeque<(Room, Job)>,
    /// Jobs admitted that have not ended, and bytes that they hold.
    jobs: usize,
    held: usize,
    /// Threads alive.
    threads: usize,
    /// Threads waiting for work.
    idle: usize,
    /// No thread waits for work any more: they end when the queue is empty.
    draining: bool,
}

/// The right to submit one job; given back when that has ended, or when it is dropped.
pub(super) struct Room {
    shared: Arc<Shared>,
    bytes: usize,
}

impl Drop for Room {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        state.jobs = state.jobs.saturating_sub(1);
        state.held = state.held.saturating_sub(self.bytes);
    }
}

impl Pool {
    pub(super) fn new() -> Self {
        Self::with_limits(MAX_THREADS, MAX_JOBS, IDLE)
    }

    fn with_limits(max_threads: usize, max_jobs: usize, idle_time: Duration) -> Self {
        Self(Arc::new(Shared {
            state: Mutex::default(),
            work: Condvar::new(),
            ended: Condvar::new(),
            max_threads,
            max_jobs,
            idle_time,
            cpus: sched_getaffinity(None).ok(),
            policy: schedule::policy(0).ok().flatten(),
        }))
    }

    /// Room for a job that holds so many bytes; `None`: too much waits already, or there is no
    /// memory, and the caller is to do the work itself.
    pub(super) fn admit(&self, bytes: usize) -> Option<Room> {
        let mut state = self.0.state.lock();
        let held = state.held.saturating_add(bytes);
        if state.jobs >= self.0.max_jobs || held > MAX_HELD {
            return None;
        }
        state.queue.try_reserve(1).ok()?;
        state.jobs += 1;
        state.held = held;
        drop(state);
        Some(Room {
            shared: Arc::clone(&self.0),
            bytes,
        })
    }

    /// Queues a job. Only when no thread at all can be started it runs in the caller.
    pub(super) fn submit(&self, room: Room, job: impl FnOnce() + Send + 'static) {
        let mut state = self.0.state.lock();
        state.queue.push_back((room, Box::new(job)));
        // Idle threads may each already be owed to an earlier job of the queue.
        if state.queue.len() <= state.idle {
            self.0.work.notify_one();
            return;
        }
        if state.threads >= self.0.max_threads {
            return;
        }
        state.threads += 1;
        drop(state);
        self.start_thread();
    }

    fn start_thread(&self) {
        let shared = Arc::clone(&self.0);
        let spawned = std::thread::Builder::new()
            .name("unionfs-slow".into())
            .spawn(move || run(&Departure(shared)));
        let Err(error) = spawned else {
            return;
        };
        tracing::warn!(%error, "cannot start a thread for slow work");
        let mut state = self.0.state.lock();
        state.threads -= 1;
        if state.threads == 0 {
            while let Some(next) = state.queue.pop_front() {
                parking_lot::MutexGuard::unlocked(&mut state, || end(next));
            }
        }
        self.0.ended.notify_all();
    }

    /// Waits until all submitted work is done and every thread has ended. Work submitted
    /// meanwhile is done too.
    pub(super) fn drain(&self) {
        let mut state = self.0.state.lock();
        state.draining = true;
        self.0.work.notify_all();
        while state.threads > 0 {
            self.0.ended.wait(&mut state);
        }
        state.draining = false;
    }
}

/// Counts the thread off when it ends, also by a panic in a job.
struct Departure(Arc<Shared>);

impl Drop for Departure {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.threads -= 1;
        let orphaned = std::thread::panicking() && !state.queue.is_empty();
        if orphaned {
            state.threads += 1;
        }
        self.0.ended.notify_all();
        drop(state);
        if orphaned {
            Pool(Arc::clone(&self.0)).start_thread();
        }
    }
}

/// Does a job; its room is given back after it, also when it panics.
fn end((_room, job): (Room, Job)) {
    job();
}

fn run(departure: &Departure) {
    let shared = &departure.0;
    // Where it is refused the thread works all the same.
    let _ = shared.cpus.map(|cpus| sched_setaffinity(None, &cpus));
    let _ = shared.policy.map(|policy| schedule::set_policy(0, policy));
    let mut state = shared.state.lock();
    loop {
        while let Some(next) = state.queue.pop_front() {
            parking_lot::MutexGuard::unlocked(&mut state, || end(next));
        }
        if state.draining {
            return;
        }
        state.idle += 1;
        let timeout = shared.work.wait_for(&mut state, shared.idle_time);
        state.idle -= 1;
        if timeout.timed_out() && state.queue.is_empty() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    #[test]
    fn the_caller_never_waits_and_nothing_is_lost() {
        let pool = Pool::with_limits(2, 100, Duration::from_secs(60));
        let (open, gate) = mpsc::channel::<()>();
        let gate = Arc::new(Mutex::new(gate));
        let done = Arc::new(AtomicUsize::new(0));
        for _ in 0..10 {
            let (gate, done) = (Arc::clone(&gate), Arc::clone(&done));
            pool.submit(pool.admit(0).unwrap(), move || {
                gate.lock().recv().unwrap();
                done.fetch_add(1, Ordering::SeqCst);
            });
        }
        assert_eq!(done.load(Ordering::SeqCst), 0);
        assert_eq!(pool.0.state.lock().threads, 2);
        for _ in 0..10 {
            open.send(()).unwrap();
        }
        pool.drain();
        assert_eq!(done.load(Ordering::SeqCst), 10);
        assert_eq!(pool.0.state.lock().threads, 0);
    }

    #[test]
    fn blocked_jobs_do_not_delay_others() {
        let pool = Pool::with_limits(4, 100, Duration::from_secs(60));
        let (open, gate) = mpsc::channel::<()>();
        pool.submit(pool.admit(0).unwrap(), move || gate.recv().unwrap());
        let (tell, told) = mpsc::channel();
        pool.submit(pool.admit(0).unwrap(), move || tell.send(()).unwrap());
        told.recv_timeout(Duration::from_secs(10)).unwrap();
        open.send(()).unwrap();
        pool.drain();
    }

    #[test]
    fn idle_threads_are_reused_and_end() {
        let pool = Pool::with_limits(8, 100, Duration::from_millis(200));
        for _ in 0..20 {
            let (tell, told) = mpsc::channel();
            pool.submit(pool.admit(0).unwrap(), move || tell.send(()).unwrap());
            told.recv_timeout(Duration::from_secs(10)).unwrap();
            while pool.0.state.lock().idle == 0 {
                std::thread::yield_now();
            }
        }
        assert!(pool.0.state.lock().threads <= 2);
        let mut state = pool.0.state.lock();
        while state.threads > 0 {
            assert!(
                !pool
                    .0
                    .ended
                    .wait_for(&mut state, Duration::from_secs(10))
                    .timed_out()
            );
        }
    }

    #[test]
    fn a_panicking_job_takes_no_other_with_it() {
        let pool = Pool::with_limits(1, 100, Duration::from_secs(60));
        let (tell, told) = mpsc::channel();
        pool.submit(pool.admit(0).unwrap(), || panic!("expected by the test"));
        pool.submit(pool.admit(0).unwrap(), move || tell.send(()).unwrap());
        told.recv_timeout(Duration::from_secs(10)).unwrap();
        pool.drain();
    }

    #[test]
    fn what_waits_is_bounded_and_room_comes_back() {
        let pool = Pool::with_limits(1, 3, Duration::from_secs(60));
        let (open, gate) = mpsc::channel::<()>();
        let half = MAX_HELD / 2;
        pool.submit(pool.admit(half).unwrap(), move || gate.recv().unwrap());
        assert!(pool.admit(half + 1).is_none(), "too many bytes");
        pool.submit(pool.admit(half).unwrap(), || panic!("expected by the test"));
        assert!(pool.admit(1).is_none(), "not one more byte");
        let unused = pool.admit(0).unwrap();
        assert!(pool.admit(0).is_none(), "too many jobs");
        drop(unused);
        assert!(pool.admit(0).is_some());
        open.send(()).unwrap();
        pool.drain();
        let state = pool.0.state.lock();
        assert_eq!((state.jobs, state.held), (0, 0));
    }
}
