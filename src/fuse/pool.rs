//! Threads for slow work (copy-up, fsync, large copies), so that it never occupies the
//! threads that read requests. Threads are started on demand up to a limit, reused, and
//! end after a time without work; beyond the limit work waits in the queue, never in the
//! caller. Called by `adapter`; drained by `session` at the end.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::sys::schedule::{self, Policy};

/// Enough to keep a disk busy; each costs a stack and a thread.
const MAX_THREADS: usize = 32;
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
    idle_time: Duration,
    /// The CPUs and the policy of whoever made the pool: a thread that submits may be pinned to
    /// one and SCHED_IDLE, and what it starts would be, too.
    cpus: Option<CpuSet>,
    policy: Option<Policy>,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Job>,
    /// Threads alive.
    threads: usize,
    /// Threads waiting for work.
    idle: usize,
    /// No thread waits for work any more: they end when the queue is empty.
    draining: bool,
}

impl Pool {
    pub(super) fn new() -> Self {
        Self::with_limits(MAX_THREADS, IDLE)
    }

    fn with_limits(max_threads: usize, idle_time: Duration) -> Self {
        Self(Arc::new(Shared {
            state: Mutex::default(),
            work: Condvar::new(),
            ended: Condvar::new(),
            max_threads,
            idle_time,
            cpus: sched_getaffinity(None).ok(),
            policy: schedule::policy(0).ok().flatten(),
        }))
    }

    /// Queues a job. Only when no thread at all can be started it runs in the caller.
    pub(super) fn submit(&self, job: impl FnOnce() + Send + 'static) {
        let mut state = self.0.state.lock();
        state.queue.push_back(Box::new(job));
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
            while let Some(job) = state.queue.pop_front() {
                parking_lot::MutexGuard::unlocked(&mut state, job);
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

fn run(departure: &Departure) {
    let shared = &departure.0;
    // Where it is refused the thread works all the same.
    let _ = shared.cpus.map(|cpus| sched_setaffinity(None, &cpus));
    let _ = shared.policy.map(|policy| schedule::set_policy(0, policy));
    let mut state = shared.state.lock();
    loop {
        while let Some(job) = state.queue.pop_front() {
            parking_lot::MutexGuard::unlocked(&mut state, job);
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
        let pool = Pool::with_limits(2, Duration::from_secs(60));
        let (open, gate) = mpsc::channel::<()>();
        let gate = Arc::new(Mutex::new(gate));
        let done = Arc::new(AtomicUsize::new(0));
        for _ in 0..10 {
            let (gate, done) = (Arc::clone(&gate), Arc::clone(&done));
            pool.submit(move || {
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
        let pool = Pool::with_limits(4, Duration::from_secs(60));
        let (open, gate) = mpsc::channel::<()>();
        pool.submit(move || gate.recv().unwrap());
        let (tell, told) = mpsc::channel();
        pool.submit(move || tell.send(()).unwrap());
        told.recv_timeout(Duration::from_secs(10)).unwrap();
        open.send(()).unwrap();
        pool.drain();
    }

    #[test]
    fn idle_threads_are_reused_and_end() {
        let pool = Pool::with_limits(8, Duration::from_millis(200));
        for _ in 0..20 {
            let (tell, told) = mpsc::channel();
            pool.submit(move || tell.send(()).unwrap());
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
        let pool = Pool::with_limits(1, Duration::from_secs(60));
        let (tell, told) = mpsc::channel();
        pool.submit(|| panic!("expected by the test"));
        pool.submit(move || tell.send(()).unwrap());
        told.recv_timeout(Duration::from_secs(10)).unwrap();
        pool.drain();
    }
}
