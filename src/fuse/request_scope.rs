//! The request that a thread is answering, for the log: a warning from deep inside the union shows
//! the request without having it as an argument. This costs three stores into thread-local memory
//! per request.
//!
//! A thread answers one request at a time. Work that moves to another thread takes the request with
//! it: [`current`] in the old thread, [`enter`] in the new one.

use std::cell::Cell;
use std::fmt;

use super::counters::Op;
use super::operations::Context;

/// A request, as the log shows it.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    operation: Option<Op>,
    ino: u64,
    pid: u32,
    user: u32,
}

impl Request {
    /// Returns the user who waits for it.
    pub(super) fn user(&self) -> u32 {
        self.user
    }
}

thread_local! {
    static CURRENT: Cell<Option<Request>> = const { Cell::new(None) };
}

/// Returns the request that this thread answers; `None` outside of requests.
pub fn current() -> Option<Request> {
    CURRENT.get()
}

/// A guard: the thread answers the request until it is dropped.
#[must_use]
pub(super) struct Scope(Option<Request>);

/// Begins a new request about inode `ino`. The process number may belong to another namespace.
pub(super) fn begin(ino: u64, context: Context) -> Scope {
    enter(Some(Request {
        operation: None,
        ino,
        pid: context.pid,
        user: context.uid,
    }))
}

/// Continues a request of another thread.
pub(super) fn enter(request: Option<Request>) -> Scope {
    Scope(CURRENT.replace(request))
}

/// Records that the current request is an `operation`.
pub(super) fn is_a(operation: Op) {
    if let Some(request) = CURRENT.get() {
        let operation = Some(operation);
        CURRENT.set(Some(Request {
            operation,
            ..request
        }));
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        CURRENT.set(self.0);
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            operation,
            ino,
            pid,
            user: _,
        } = self;
        if let Some(operation) = operation {
            write!(f, "operation={} ", operation.name())?;
        }
        write!(f, "inode={ino} pid={pid}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(pid: u32, uid: u32) -> Context {
        Context { uid, gid: 0, pid }
    }

    #[test]
    fn a_request_lasts_as_long_as_its_scope() {
        assert!(current().is_none());
        let outer = begin(7, from(1234, 1000));
        is_a(Op::Write);
        let carried = current();
        let shown = || current().map(|request| request.to_string());
        assert_eq!(shown().as_deref(), Some("operation=WRITE inode=7 pid=1234"));
        {
            let _inner = begin(8, from(1, 0));
            assert_eq!(shown().as_deref(), Some("inode=8 pid=1"));
        }
        drop(outer);
        assert!(current().is_none());
        let _scope = enter(carried);
        assert_eq!(shown().as_deref(), Some("operation=WRITE inode=7 pid=1234"));
    }
}
