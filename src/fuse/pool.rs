//! Threads for slow work (copy-up, fsync, large copies, and work that may wait for other users),
//! which therefore never occupies the threads that read requests. Threads are started on demand up
//! to a limit, are used again, and end after a time without work. Beyond the limit, work waits in
//! the queue.
//!
//! Users take turns, and one user has only a part of the threads: work that waits for ever, for
//! example for the lock of a file, prevents no work of other users. Each job belongs to a request,
//! for which a thread of the kernel waits, so the kernel bounds their number. The bytes of data
//! that they hold are bounded here, where a job is admitted ([`Pool::admit`]). If there is no room,
//! the caller does the work itself and reads no further request meanwhile. That cannot deadlock: a
//! job that waits in the queue holds no lock, and a running job waits only for locks of running
//! work, never for the queue.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use super::thread::{self, Thread};
use crate::sys::schedule::{self, Policy};

/// The stack of a thread in bytes. Nothing here recurses, and there may be hundreds of threads in a
/// process whose address space is limited.
const STACK: usize = 1 << 20;
/// The limit for several users together. Each thread costs a stack while there is work for it.
const MAX_THREADS: usize = 256;
/// The limit of one user. It is enough to keep a disk busy.
const MAX_OF_ONE: usize = 32;
/// The maximum number of jobs that wait or run: more than there can be threads that wait for them.
const MAX_JOBS: usize = 1 << 20;
/// The maximum number of bytes of data that they hold.
const MAX_HELD: usize = 64 << 20;
/// How long a thread waits for more work.
const IDLE: Duration = Duration::from_secs(10);

type Job = Box<dyn FnOnce() + Send>;

/// The pool. Clones share it.
#[derive(Clone)]
pub(super) struct Pool(Arc<Shared>);

struct Shared {
    state: Mutex<PoolState>,
    work: Condvar,
    ended: Condvar,
    max_threads: usize,
    max_of_one: usize,
    max_jobs: usize,
    idle_time: Duration,
    /// The CPUs and the policy of the thread that made the pool. A submitting thread may be pinned
    /// to a CPU and SCHED_IDLE, and the threads that it starts would inherit that.
    cpus: Option<CpuSet>,
    policy: Option<Policy>,
}

/// The work of one user. It exists while some of it waits or runs.
#[derive(Default)]
struct Lane {
    queue: VecDeque<(Room, Job)>,
    running: usize,
}

#[derive(Default)]
struct PoolState {
    lanes: HashMap<u32, Lane>,
    /// The users with waiting work who may have another thread, each once.
    turns: VecDeque<u32>,
    /// The number of jobs that wait only for a thread.
    ready: usize,
    /// The number of admitted jobs that have not ended, and of the bytes that they hold.
    jobs: usize,
    held: usize,
    /// The number of live threads.
    threads: usize,
    /// The number of threads that wait for work.
    idle: usize,
    /// Threads do not wait for work any more. They end when the queue is empty.
    draining: bool,
}

impl PoolState {
    /// Queues a job of `user`. Returns whether one more job now waits only for a thread.
    fn add(&mut self, user: u32, job: (Room, Job), max_of_one: usize) -> bool {
        let lane = self.lanes.entry(user).or_default();
        lane.queue.push_back(job);
        if lane.queue.len() + lane.running > max_of_one {
            return false;
        }
        if lane.queue.len() == 1 {
            self.turns.push_back(user);
        }
        self.ready += 1;
        true
    }

    /// Returns the next job of the user whose turn it is. [`Self::ended`] must be called after it.
    fn take(&mut self, max_of_one: usize) -> Option<(u32, (Room, Job))> {
        let user = self.turns.pop_front()?;
        let lane = self.lanes.get_mut(&user)?;
        let next = lane.queue.pop_front()?;
        lane.running += 1;
        self.ready -= 1;
        if !lane.queue.is_empty() && lane.running < max_of_one {
            self.turns.push_back(user);
        }
        Some((user, next))
    }

    /// Records that a job of this user has ended.
    fn ended(&mut self, user: u32, max_of_one: usize) {
        let Some(lane) = self.lanes.get_mut(&user) else {
            return;
        };
        if lane.running == max_of_one && !lane.queue.is_empty() {
            // The user had no turn before.
            self.turns.push_back(user);
        }
        if lane.queue.len() + lane.running > max_of_one {
            self.ready += 1;
        }
        lane.running -= 1;
        if lane.queue.is_empty() && lane.running == 0 {
            self.lanes.remove(&user);
        }
    }
}

/// The right to submit one job. It is returned when the job has ended, or when this is dropped.
pub(super) struct Room {
    shared: Arc<Shared>,
    bytes: usize,
}

impl Room {
    /// The number of bytes that the job holds.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
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
        Self::with_limits(MAX_THREADS, MAX_OF_ONE, MAX_JOBS, IDLE)
    }

    fn with_limits(
        max_threads: usize,
        max_of_one: usize,
        max_jobs: usize,
        idle_time: Duration,
    ) -> Self {
        Self(Arc::new(Shared {
            state: Mutex::default(),
            work: Condvar::new(),
            ended: Condvar::new(),
            max_threads,
            max_of_one,
            max_jobs,
            idle_time,
            cpus: sched_getaffinity(None).ok(),
            policy: schedule::policy(0).ok().flatten(),
        }))
    }

    /// Returns room for a job that holds this number of bytes. `None` if too much waits already, or
    /// there is no memory; the caller must do the work itself then.
    pub(super) fn admit(&self, bytes: usize) -> Option<Room> {
        let mut state = self.0.state.lock();
        let held = state.held.saturating_add(bytes);
        if state.jobs >= self.0.max_jobs || held > MAX_HELD {
            return None;
        }
        state.turns.try_reserve(1).ok()?;
        state.lanes.try_reserve(1).ok()?;
        state.jobs += 1;
        state.held = held;
        drop(state);
        Some(Room {
            shared: Arc::clone(&self.0),
            bytes,
        })
    }

    /// Returns room for a job that continues an unfinished one. `None` also while the pool is
    /// ending.
    pub(super) fn admit_more(&self, bytes: usize) -> Option<Room> {
        let draining = self.0.state.lock().draining;
        self.admit(bytes).filter(|_| !draining)
    }

    /// Queues a job of a user. If no thread can be started at all, the caller runs it.
    pub(super) fn submit(&self, room: Room, user: u32, job: impl FnOnce() + Send + 'static) {
        let mut state = self.0.state.lock();
        if !state.add(user, (room, Box::new(job)), self.0.max_of_one) {
            // A thread that works for this user takes the job afterwards.
            return;
        }
        // Idle threads may already be assigned to earlier jobs.
        if state.ready <= state.idle {
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
            .stack_size(STACK)
            .spawn(move || run(&Departure(shared)));
        let Err(error) = spawned else {
            return;
        };
        tracing::warn!(%error, "cannot start a thread for slow work");
        let mut state = self.0.state.lock();
        state.threads -= 1;
        if state.threads == 0 {
            work(&self.0, &mut state);
        }
        self.0.ended.notify_all();
    }

    /// Waits until all submitted work is done and every thread has ended, including work that is
    /// submitted meanwhile.
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

/// Subtracts the thread when it ends, also after a panic in a job.
struct Departure(Arc<Shared>);

impl Drop for Departure {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.threads -= 1;
        let orphaned = std::thread::panicking() && !state.turns.is_empty();
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

/// Runs all jobs that may run now.
fn work(shared: &Shared, state: &mut MutexGuard<'_, PoolState>) {
    while let Some((user, (room, job))) = state.take(shared.max_of_one) {
        MutexGuard::unlocked(state, || {
            let _turn = Turn { shared, user };
            // The room is returned after the job, also after a panic.
            let _room = room;
            job();
        });
    }
}

/// Records that a job has ended, also after a panic.
struct Turn<'p> {
    shared: &'p Shared,
    user: u32,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        state.ended(self.user, self.shared.max_of_one);
    }
}

fn run(departure: &Departure) {
    let shared = &departure.0;
    thread::is(Thread::Pool);
    // If this is refused, the thread works all the same.
    let _ = shared.cpus.map(|cpus| sched_setaffinity(None, &cpus));
    let _ = shared.policy.map(|policy| schedule::set_policy(0, policy));
    let mut state = shared.state.lock();
    loop {
        work(shared, &mut state);
        if state.draining {
            return;
        }
        state.idle += 1;
        let timeout = shared.work.wait_for(&mut state, shared.idle_time);
        state.idle -= 1;
        if timeout.timed_out() && state.turns.is_empty() {
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
        let pool = Pool::with_limits(2, 2, 100, Duration::from_secs(60));
        let (open, gate) = mpsc::channel::<()>();
        let gate = Arc::new(Mutex::new(gate));
        let done = Arc::new(AtomicUsize::new(0));
        for _ in 0..10 {
            let (gate, done) = (Arc::clone(&gate), Arc::clone(&done));
            pool.submit(pool.admit(0).unwrap(), 0, move || {
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
        let pool = Pool::with_limits(4, 4, 100, Duration::from_secs(60));
        let (open, gate) = mpsc::channel::<()>();
        pool.submit(pool.admit(0).unwrap(), 0, move || gate.recv().unwrap());
        let (tell, told) = mpsc::channel();
        pool.submit(pool.admit(0).unwrap(), 0, move || tell.send(()).unwrap());
        told.recv_timeout(Duration::from_secs(10)).unwrap();
        open.send(()).unwrap();
        pool.drain();
    }

    #[test]
    fn a_user_whose_jobs_never_end_keeps_no_other_from_working() {
        let pool = Pool::with_limits(3, 2, 100, Duration::from_secs(60));
        let (open, gate) = mpsc::channel::<()>();
        let gate = Arc::new(Mutex::new(gate));
        for _ in 0..50 {
            let gate = Arc::clone(&gate);
            pool.submit(pool.admit(0).unwrap(), 1, move || {
                gate.lock().recv().unwrap();
            });
        }
        for user in [2, 3, 2] {
            let (tell, told) = mpsc::channel();
            pool.submit(pool.admit(0).unwrap(), user, move || tell.send(()).unwrap());
            told.recv_timeout(Duration::from_secs(10)).unwrap();
        }
        assert_eq!(pool.0.state.lock().lanes[&1].running, 2);
        for _ in 0..50 {
            open.send(()).unwrap();
        }
        pool.drain();
        let state = pool.0.state.lock();
        assert_eq!((state.jobs, state.ready), (0, 0));
        assert!(state.lanes.is_empty() && state.turns.is_empty());
    }

    #[test]
    fn idle_threads_are_reused_and_end() {
        let pool = Pool::with_limits(8, 8, 100, Duration::from_millis(200));
        for _ in 0..20 {
            let (tell, told) = mpsc::channel();
            pool.submit(pool.admit(0).unwrap(), 0, move || tell.send(()).unwrap());
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
        let pool = Pool::with_limits(1, 1, 100, Duration::from_secs(60));
        let (tell, told) = mpsc::channel();
        pool.submit(pool.admit(0).unwrap(), 0, || panic!("expected by the test"));
        pool.submit(pool.admit(0).unwrap(), 0, move || tell.send(()).unwrap());
        told.recv_timeout(Duration::from_secs(10)).unwrap();
        pool.drain();
    }

    #[test]
    fn what_waits_is_bounded_and_room_comes_back() {
        let pool = Pool::with_limits(1, 1, 3, Duration::from_secs(60));
        let (open, gate) = mpsc::channel::<()>();
        let half = MAX_HELD / 2;
        pool.submit(pool.admit(half).unwrap(), 0, move || gate.recv().unwrap());
        assert!(pool.admit(half + 1).is_none(), "too many bytes");
        pool.submit(pool.admit(half).unwrap(), 0, || {
            panic!("expected by the test")
        });
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
