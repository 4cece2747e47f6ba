//! What the threads of one CPU share: counts, answers that wait to be given to the kernel, and spare
//! entries.
//!
//! A spare entry is one that holds a request for which nobody waits (`overflow`). To answer that is
//! the way to offer the entry again: the kernel then puts the request in it that has waited longest
//! for an entry. A new entry that is registered gets a new request only.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::{Condvar, Mutex};

use super::super::idle_priority::Watch;
use super::super::slot::{Answer, LOOK};
use crate::sys::schedule::{self, Policy};
use crate::sys::uring::{Bell, Payload};

/// Entries of one CPU. Each holds a request for which a thread waits, so that there are hardly ever
/// more; where there are, further requests wait in the kernel.
const MAX_ENTRIES: usize = 1 << 16;
/// Bytes of data in requests that wait in their entries, for all CPUs; beyond that no entry is
/// offered but by threads that are free.
const MAX_HELD: usize = 16 << 20;
/// That one CPU may have of it in any case.
const MIN_HELD: usize = 2 << 20;
/// Threads that may wait for their answer rather than leave it to the overflow thread.
const MAX_WAITING: usize = 8;

/// An answer for the kernel.
#[derive(Debug)]
pub(in super::super) struct Due {
    pub(in super::super) payload: Payload,
    pub(in super::super) commit_id: u64,
    pub(in super::super) answer: Answer,
    /// Bytes that were counted as held in its entry.
    pub(in super::super) held: usize,
}

/// The requests of one CPU.
#[derive(Debug)]
pub(in super::super) struct Queue {
    pub(super) cpu: u16,
    pub(super) device: Arc<OwnedFd>,
    payload: usize,
    /// Threads with a ring of one entry.
    pub(super) threads: AtomicUsize,
    /// No more of them than this.
    pub(super) most: usize,
    /// Those that wait for a request, or are about to.
    pub(super) idle: AtomicUsize,
    /// Those that wait for the answer to one.
    waiting: AtomicUsize,
    entries: AtomicUsize,
    held: AtomicUsize,
    max_held: usize,
    /// The last idle thread has taken a request since the overflow thread has looked: others may wait
    /// in the kernel.
    starved: AtomicBool,
    over: AtomicBool,
    /// That it cannot grow.
    told: AtomicBool,
    pub(super) watch: Option<Arc<Watch>>,
    /// Of whoever made it. Its threads may be SCHED_IDLE, and what they start would be, too.
    policy: Option<Policy>,
    /// An overflow thread has been started; it is there.
    wanted: AtomicBool,
    there: AtomicBool,
    bell: Bell,
    due: Mutex<Vec<Due>>,
    spare: Mutex<Vec<Due>>,
    spare_came: Condvar,
}

impl Queue {
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

    /// Whether the overflow thread is to be started now.
    pub(super) fn wants_overflow(&self) -> bool {
        !self.wanted.load(Ordering::Relaxed) && !self.wanted.swap(true, Ordering::Relaxed)
    }

    /// The overflow thread could not be started: the next occasion is another try.
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

    /// The memory of a further entry.
    ///
    /// # Errors
    /// Those of [`Payload::new`]; when there are too many.
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

    /// The kernel refused an entry; its memory is gone.
    pub(super) fn lost_entry(&self, error: &io::Error) {
        self.entries.fetch_sub(1, Ordering::Relaxed);
        self.tell(error);
    }

    /// A request was answered whose thread does not wait for that.
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

    /// The answers that are to be given.
    pub(super) fn all_due(&self) -> Vec<Due> {
        std::mem::take(&mut *self.due.lock())
    }

    /// Requests may wait in the kernel for an entry.
    pub(super) fn starve(&self) {
        if !self.starved.swap(true, Ordering::AcqRel) {
            self.bell.ring();
        }
    }

    pub(super) fn was_starved(&self) -> bool {
        self.starved.swap(false, Ordering::AcqRel)
    }

    /// Bytes of data are held in an entry.
    pub(super) fn hold(&self, bytes: usize) {
        self.held.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Whether no more data should be held.
    pub(super) fn is_full(&self) -> bool {
        self.held.load(Ordering::Relaxed) >= self.max_held
    }

    /// Keeps a spare entry.
    pub(super) fn keep(&self, mut spare: Due) {
        spare.payload.release();
        self.spare.lock().push(spare);
        self.spare_came.notify_one();
    }

    /// A spare entry, if there is one.
    pub(super) fn spare(&self) -> Option<Due> {
        self.spare.lock().pop()
    }

    /// Waits for one.
    pub(super) fn wait_for_spare(&self) {
        let mut spare = self.spare.lock();
        if spare.is_empty() {
            self.spare_came.wait_for(&mut spare, LOOK);
        }
    }

    /// Whether a thread may wait for its answer: as long as others are free, and few do.
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

    /// The connection is gone.
    pub(super) fn end(&self) {
        self.over.store(true, Ordering::Release);
        self.bell.ring();
        self.spare_came.notify_all();
    }

    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    /// A thread could not start, or has no entry. The next request tries again; what is told is told
    /// once.
    pub(super) fn cannot_grow(&self, error: &io::Error) {
        self.threads.fetch_sub(1, Ordering::Relaxed);
        self.tell(error);
    }

    /// Says once that requests of this CPU may have to wait for each other.
    pub(super) fn tell(&self, error: &io::Error) {
        if !self.told.swap(true, Ordering::Relaxed) {
            let cpu = self.cpu;
            tracing::warn!(%error, cpu, "no further thread or entry: requests wait for each other");
        }
    }

    /// For a thread that does not give way to anybody.
    pub(super) fn take_policy(&self) {
        // Where it is refused the thread works all the same.
        let _ = self.policy.map(|policy| schedule::set_policy(0, policy));
    }
}
