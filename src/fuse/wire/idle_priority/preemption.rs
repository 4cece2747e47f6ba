//! Notices soon that a caller has left the CPU to which workers have followed it.
//!
//! Its own CPU makes the caller preempt the worker that answers it. An interrupt or a thread of the
//! kernel can move the caller to another CPU. Then no answer preempts a worker, and each request
//! wakes two CPUs. The watch would notice it within a tick, which is a hundred requests. Workers
//! notice it within a few, by the number of times that they were preempted.
//!
//! Callers that do not preempt (SCHED_BATCH, for example) look the same. So workers look less often
//! after each time that the caller had not moved.

use std::time::{Duration, Instant};

use super::TICK;
use crate::sys::schedule::preemptions;

/// The number of requests of a worker after which it looks at the number of preemptions. Looking
/// takes 0.3 µs.
const CHECKED: u32 = 3;
/// The shortest time between two looks at the CPU of the caller, each of which takes about 10 µs.
const SHORTEST: Duration = Duration::from_micros(100);

/// The preemptions of one worker.
#[derive(Debug, Default)]
pub(super) struct Preemptions {
    /// The number of requests since `seen`.
    requests: u32,
    seen: u64,
}

impl Preemptions {
    /// Counts a request. Whether nothing has preempted the calling worker for the last ones.
    pub(super) fn have_ended(&mut self) -> bool {
        self.requests += 1;
        if self.requests < CHECKED {
            return false;
        }
        self.requests = 0;
        let now = preemptions();
        std::mem::replace(&mut self.seen, now) == now
    }
}

/// When workers may look again where their caller is.
#[derive(Debug)]
pub(super) struct Pace {
    pause: Duration,
    next: Option<Instant>,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            pause: SHORTEST,
            next: None,
        }
    }
}

impl Pace {
    pub(super) fn allows(&self, now: Instant) -> bool {
        self.next.is_none_or(|next| now >= next)
    }

    /// Records that a worker has looked, and whether the caller had moved.
    pub(super) fn looked(&mut self, now: Instant, has_moved: bool) {
        self.pause = if has_moved {
            SHORTEST
        } else {
            (self.pause * 2).min(TICK)
        };
        self.next = Some(now + self.pause);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuse::wire::idle_priority::tests::busy;
    use crate::sys::schedule::{Policy, set_policy};

    #[test]
    fn a_thread_that_nothing_preempts_notices_it() {
        let noticed = std::thread::spawn(|| {
            let mut preemptions = Preemptions::default();
            poll(|| {
                std::thread::sleep(Duration::from_micros(10));
                preemptions.have_ended()
            })
        });
        assert!(noticed.join().unwrap());
    }

    #[test]
    fn a_thread_that_gives_way_sees_its_preemptions() {
        let _hog = busy(Policy::Other);
        let noticed = std::thread::spawn(|| {
            rustix::thread::sched_setaffinity(None, &super::super::only(0)).unwrap();
            set_policy(0, Policy::Idle).unwrap();
            let before = preemptions();
            poll(|| preemptions() > before)
        });
        assert!(noticed.join().unwrap());
    }

    /// Calls `is` until it is true, for a minute at most.
    fn poll(mut is: impl FnMut() -> bool) -> bool {
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(60) {
            if is() {
                return true;
            }
        }
        false
    }

    #[test]
    fn looks_in_vain_become_rare() {
        let mut pace = Pace::default();
        let mut now = Instant::now();
        assert!(pace.allows(now));
        let mut pauses = Vec::new();
        for _ in 0..8 {
            pace.looked(now, false);
            assert!(!pace.allows(now));
            pauses.push(pace.pause.as_micros());
            now += pace.pause;
            assert!(pace.allows(now));
        }
        assert_eq!(pauses, [200, 400, 800, 1600, 3200, 4000, 4000, 4000]);
        pace.looked(now, true);
        assert!(pace.allows(now + SHORTEST));
    }
}
