//! The shared state of the threads of one CPU: counts, answers for the kernel, and spare entries.
//!
//! A spare entry holds a request for which no caller waits (`overflow`). An answer to that request
//! offers the entry again, and the kernel puts the oldest request that waits for an entry into it.
//! A newly registered entry receives only new requests.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::{Condvar, Mutex};

use super::super::idle_priority::Watch;
use super::super::slot::{Answer, LOOK};
use crate::sys::schedule::{self, Policy};
use crate::sys::uring::{Bell, Payload};

/// The maximum number of entries of one CPU. Each of them holds a request for which a thread waits,
/// so there are rarely as many. Further requests wait in the kernel.
const MAX_ENTRIES: usize = 1 << 16;
/// The maximum number of bytes of data in requests that wait in their entries, for all CPUs. Beyond
/// it only idle threads offer entries.
const MAX_HELD: usize = 16 << 20;
/// The share of [`MAX_HELD`] in bytes that one CPU has at least.
const MIN_HELD: usize = 2 << 20;
/// The maximum number of threads that wait for their answer and do not leave it to the overflow
/// thread.
const MAX_WAITING: usize = 8;

/// An answer for the kernel.
#[derive(Debug)]
pub(in super::super) struct Due {
    pub(in super::super) payload: Payload,
    pub(in super::super) commit_id: u64,
    pub(in super::super) answer: Answer,
    /// The number of bytes that were counted as held in its entry.
    pub(in super::super) held: usize,
}

/// The requests of one CPU.
#[derive(Debug)]
pub(in super::super) struct Queue {
    pub(super) cpu: u16,
    pub(super) device: Arc<OwnedFd>,
    payload: usize,
    /// The number of threads with a ring of one entry.
    pub(super) threads: AtomicUsize,
    /// The maximum of `threads`.
    pub(super) most: usize,
    /// The number of threads that wait for a request, or are about to.
    pub(super) idle: AtomicUsize,
    /// The number of threads that wait for the answer to their request.
    waiting: AtomicUsize,
    entries: AtomicUsize,
    held: AtomicUsize,
    max_held: usize,
    /// Whether the last idle thread took a request since the overflow thread last checked. Other
    /// requests may wait in the kernel then.
    starved: AtomicBool,
    over: AtomicBool,
    /// Whether a warning was logged that the threads or entries of this CPU cannot grow.
    told: AtomicBool,
    pub(super) watch: Option<Arc<Watch>>,
    /// The scheduling policy of the thread that created the queue. The threads of the queue may be
    /// SCHED_IDLE, and threads that they start would inherit that.
    policy: Option<Policy>,
    /// Whether the start of an overflow thread was requested (`wanted`), and whether it runs
    /// (`there`).
    wanted: AtomicBool,
    there: AtomicBool,
    bell: Bell,
    due: Mutex<Vec<Due>>,
    spare: Mutex<Vec<Due>>,
    spare_came: Condvar,
}

impl Queue {
    /// Creates the queue of a CPU.
    ///
    /// # Errors
    /// Those of [`Bell::new`].
    pub(super) fn new(
        cpu: u16,
        device: &Arc<OwnedFd>,
        payload: usize,
        cpus: u16,
        most: usize,
        watch: Option<Arc<Watch>>,
    ) -> io::Result<Self> {
        Ok(Self {
            cpu,
            device: Arc::clone(device),
            payload,
            threads: AtomicUsize::new(1),
            most,
            idle: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            entries: AtomicUsize::new(0),
            held: AtomicUsize::new(0),
            max_held: (MAX_HELD / usize::from(cpus).max(1)).max(MIN_HELD),
            starved: AtomicBool::new(false),
            over: AtomicBool::new(false),
            told: AtomicBool::new(false),
            watch,
            policy: schedule::policy(0).ok().flatten(),
            wanted: AtomicBool::new(false),
            there: AtomicBool::new(false),
            bell: Bell::new()?,
            due: Mutex::default(),
            spare: Mutex::default(),
            spare_came: Condvar::new(),
        })
    }

    /// Returns whether the caller is to start the overflow thread now.
    pub(super) fn wants_overflow(&self) -> bool {
        !self.wanted.load(Ordering::Relaxed) && !self.wanted.swap(true, Ordering::Relaxed)
    }

    /// Notes that the overflow thread could not be started. The next occasion tries again.
    pub(super) fn cannot_overflow(&self, error: &io::Error) {
        self.wanted.store(false, Ordering::Relaxed);
        self.tell(error);
    }

    pub(super) fn overflow_is_there(&self) {
        self.there.store(true, Ordering::Release);
    }

    pub(super) fn has_overflow(&self) -> bool {
        self.there.load(Ordering::Acquire)
    }

    pub(super) fn bell(&self) -> &Bell {
        &self.bell
    }

    /// Allocates the memory of a further entry.
    ///
    /// # Errors
    /// `OutOfMemory` if [`Payload::new`] fails or there are too many entries.
    pub(super) fn new_payload(&self) -> io::Result<Payload> {
        if self.entries.fetch_add(1, Ordering::Relaxed) < MAX_ENTRIES {
            let made = Payload::new(self.payload);
            if made.is_ok() {
                return made;
            }
        }
        self.entries.fetch_sub(1, Ordering::Relaxed);
        Err(io::ErrorKind::OutOfMemory.into())
    }

    /// Notes that the kernel refused an entry, whose memory is freed.
    pub(super) fn lost_entry(&self, error: &io::Error) {
        self.entries.fetch_sub(1, Ordering::Relaxed);
        self.tell(error);
    }

    /// Passes an answer to the overflow thread, if the request's own thread does not wait for it.
    pub(in super::super) fn finish(&self, mut due: Due) {
        if due.held > 0 {
            if due.answer.len <= rustix::param::page_size() {
                let kept: Vec<u8> = due
                    .payload
                    .get(..due.answer.len)
                    .map_or(Vec::new(), Vec::from);
                due.payload.release();
                if let Some(place) = due.payload.get_mut(..kept.len()) {
                    place.copy_from_slice(&kept);
                }
            }
            self.held.fetch_sub(due.held, Ordering::Relaxed);
        }
        let mut all = self.due.lock();
        let is_first = all.is_empty();
        all.push(due);
        drop(all);
        if is_first {
            self.bell.ring();
        }
    }

    /// Takes the answers that wait to be given to the kernel.
    pub(super) fn all_due(&self) -> Vec<Due> {
        std::mem::take(&mut *self.due.lock())
    }

    /// Notes that requests may wait in the kernel for an entry.
    pub(super) fn starve(&self) {
        if !self.starved.swap(true, Ordering::AcqRel) {
            self.bell.ring();
        }
    }

    pub(super) fn was_starved(&self) -> bool {
        self.starved.swap(false, Ordering::AcqRel)
    }

    /// Counts bytes of data that are held in an entry.
    pub(super) fn hold(&self, bytes: usize) {
        self.held.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Whether the limit of held data is reached.
    pub(super) fn is_full(&self) -> bool {
        self.held.load(Ordering::Relaxed) >= self.max_held
    }

    /// Keeps a spare entry.
    pub(super) fn keep(&self, mut spare: Due) {
        spare.payload.release();
        self.spare.lock().push(spare);
        self.spare_came.notify_one();
    }

    /// Takes a spare entry; `None` if there is none.
    pub(super) fn spare(&self) -> Option<Due> {
        self.spare.lock().pop()
    }

    /// Waits for a spare entry, up to [`LOOK`].
    pub(super) fn wait_for_spare(&self) {
        let mut spare = self.spare.lock();
        if spare.is_empty() {
            self.spare_came.wait_for(&mut spare, LOOK);
        }
    }

    /// Whether a thread may wait for its answer. It may while other threads are idle and few
    /// threads wait. The caller then calls [`Self::end_waiting`].
    pub(super) fn begin_waiting(&self) -> bool {
        let more = |waiting| (waiting < MAX_WAITING).then_some(waiting + 1);
        self.idle.load(Ordering::Relaxed) > 0
            && self
                .waiting
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more)
                .is_ok()
    }

    pub(super) fn end_waiting(&self) {
        self.waiting.fetch_sub(1, Ordering::Relaxed);
    }

    /// Ends the threads after the connection is gone.
    pub(super) fn end(&self) {
        self.over.store(true, Ordering::Release);
        self.bell.ring();
        self.spare_came.notify_all();
    }

    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    /// Notes that a thread could not start, or has no entry. The next request tries again. A
    /// warning is logged once.
    pub(super) fn cannot_grow(&self, error: &io::Error) {
        self.threads.fetch_sub(1, Ordering::Relaxed);
        self.tell(error);
    }

    /// Logs once that requests of this CPU may have to wait for each other.
    pub(super) fn tell(&self, error: &io::Error) {
        if !self.told.swap(true, Ordering::Relaxed) {
            let cpu = self.cpu;
            tracing::warn!(%error, cpu, "no further thread or entry: requests wait for each other");
        }
    }

    /// Gives the current thread the policy of the queue's creator, so that it is not SCHED_IDLE.
    pub(super) fn take_policy(&self) {
        // If the change is refused, the thread works with its present policy.
        let _ = self.policy.map(|policy| schedule::set_policy(0, policy));
    }
}
