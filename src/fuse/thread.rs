//! What kind of thread answers a request, which decides what it may wait for.

use std::cell::Cell;

/// A thread that answers requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Thread {
    /// One of a few that read /dev/fuse.
    Worker,
    /// Of a ring. It may wait for a disk if another thread takes the next request meanwhile.
    Ring {
        /// Whether one does.
        may_wait: bool,
    },
    /// Of the pool, whose users have a part of it each.
    Pool,
}

thread_local! {
    static KIND: Cell<Thread> = const { Cell::new(Thread::Worker) };
}

/// What the calling thread is; [`Thread::Worker`] unless it has said otherwise.
pub(super) fn current() -> Thread {
    KIND.get()
}

/// The calling thread is one of these from now on.
pub(super) fn is(kind: Thread) {
    KIND.set(kind);
}
