//! The kind of the thread that answers a request. It decides what the thread may wait for.

use std::cell::Cell;

/// A thread that answers requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Thread {
    /// A worker: one of the few threads that read /dev/fuse.
    Worker,
    /// A thread of a ring. It may wait for a disk if another thread takes the next request
    /// meanwhile.
    Ring {
        /// Whether another thread takes the next request.
        may_wait: bool,
    },
    /// A thread of the pool. Each user gets only a part of these threads.
    Pool,
}

thread_local! {
    static KIND: Cell<Thread> = const { Cell::new(Thread::Worker) };
}

/// Returns the kind of the calling thread; [`Thread::Worker`] by default.
pub(super) fn current() -> Thread {
    KIND.get()
}

/// Sets the kind of the calling thread.
pub(super) fn is(kind: Thread) {
    KIND.set(kind);
}
