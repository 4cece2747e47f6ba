//! How many workers that read /dev/fuse are busy, so that others are left for the next requests.
//!
//! A worker of `wire` counts until it answers, not until it is done: the answer wakes the caller, and the
//! scheduler may then run the caller before the worker. Its next request would find the worker
//! still busy. While workers give way to callers (`wire::idle_priority`) this happens with almost
//! each answer.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How long an operation may occupy a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// A few system calls.
    Quick,
    /// It may copy data, sync, or wait for a lock.
    Slow,
}

impl Work {
    pub(super) fn slow_if(condition: bool) -> Self {
        if condition { Self::Slow } else { Self::Quick }
    }
}

/// How many workers may be busy at the same time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// The limit for slow work.
    slow: usize,
    /// The limit for any changes. It is lower than the number of workers: a disk that takes no
    /// writes for a while (frozen, hung, throttled) must not keep all other users from reading.
    all: usize,
}

impl Limits {
    /// Returns the limits for this number of workers.
    pub(super) fn of(workers: usize) -> Self {
        Self {
            slow: workers / 2,
            all: workers.saturating_sub(1).max(1),
        }
    }
}

/// The workers of a mount that change something now.
#[derive(Debug)]
pub(super) struct Workers {
    limits: Limits,
    /// The number of those that do slow work.
    slow: AtomicUsize,
    all: AtomicUsize,
}

thread_local! {
    /// The work for which this thread is counted.
    static COUNTED: Cell<Option<Counted>> = const { Cell::new(None) };
}

/// One worker in the numbers of [`Workers`].
struct Counted {
    workers: Arc<Workers>,
    work: Work,
}

impl Workers {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            slow: AtomicUsize::new(0),
            all: AtomicUsize::new(0),
        }
    }

    /// Counts the calling worker as busy until it answers, or drops the guard. `None` if so many
    /// are busy already that it must not be.
    pub(super) fn enter(self: &Arc<Self>, work: Work) -> Option<Busy> {
        let all_before = self.all.fetch_add(1, Ordering::Relaxed);
        let slow_before = match work {
            Work::Slow => self.slow.fetch_add(1, Ordering::Relaxed),
            Work::Quick => 0,
        };
        let counted = Counted {
            workers: Arc::clone(self),
            work,
        };
        let is_spare =
            all_before < self.limits.all && (work == Work::Quick || slow_before < self.limits.slow);
        is_spare.then(|| {
            COUNTED.set(Some(counted));
            Busy(())
        })
    }
}

/// Ends the counting of the calling thread, if it is counted.
pub(super) fn answers() {
    drop(COUNTED.take());
}

/// A guard of a worker that may be counted.
#[must_use]
pub(super) struct Busy(());

impl Busy {
    /// Returns the guard of a thread that is not counted.
    pub(super) fn uncounted() -> Self {
        Self(())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        answers();
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.workers.all.fetch_sub(1, Ordering::Relaxed);
        if self.work == Work::Slow {
            self.workers.slow.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now(workers: &Workers) -> (usize, usize) {
        (
            workers.all.load(Ordering::Relaxed),
            workers.slow.load(Ordering::Relaxed),
        )
    }

    #[test]
    fn a_worker_is_busy_until_it_answers() {
        let workers = Arc::new(Workers::new(Limits::of(4)));
        let busy = workers.enter(Work::Slow);
        assert!(busy.is_some());
        assert_eq!(now(&workers), (1, 1));
        answers();
        assert_eq!(now(&workers), (0, 0));
        drop(busy);
        assert_eq!(now(&workers), (0, 0));
        drop(workers.enter(Work::Quick));
        assert_eq!(now(&workers), (0, 0), "it was dropped without an answer");
    }

    #[test]
    fn workers_are_left_for_reads() {
        let workers = Arc::new(Workers::new(Limits::of(4)));
        let works = |work: Work, most: usize| {
            let (tell, told) = std::sync::mpsc::channel();
            std::thread::scope(|scope| {
                let gates: Vec<_> = (0..4)
                    .map(|_| {
                        let (open, gate) = std::sync::mpsc::channel::<()>();
                        let (workers, tell) = (&workers, tell.clone());
                        scope.spawn(move || {
                            let busy = workers.enter(work);
                            tell.send(busy.is_some()).unwrap();
                            gate.recv().unwrap();
                        });
                        (open, told.recv().unwrap())
                    })
                    .collect();
                let entered = gates.iter().filter(|(_, entered)| *entered).count();
                assert_eq!(entered, most, "{work:?}");
                assert_eq!(now(&workers).0, most, "others do not count");
                gates.iter().for_each(|(gate, _)| gate.send(()).unwrap());
            });
            assert_eq!(now(&workers), (0, 0));
        };
        works(Work::Quick, 3);
        works(Work::Slow, 2);
    }
}
