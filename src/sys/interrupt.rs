//! Signals that end a command which changes a store. The thread that waits for signals calls
//! [`raise`]. Unfinished work notices it, fails, and removes what it has made. A process that never
//! calls `raise`, such as a user of the library, is never interrupted.
//!
//! ```text
//!  work:   begin() ── counted, then asks whether it is interrupted ──► make something ─► drop
//!  signal: raise() ── noted, then asks how much is at work ──► nothing: the process may end
//! ```
//! Both sides write before they read, so one of them sees the other. Nothing is made after the
//! process has found that there is nothing to remove.

use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};

static SIGNAL: AtomicI32 = AtomicI32::new(0);
static AT_WORK: AtomicUsize = AtomicUsize::new(0);

/// A signal ended the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("interrupted by a signal")]
pub struct Interrupted;

impl From<Interrupted> for std::io::Error {
    fn from(interrupted: Interrupted) -> Self {
        Self::other(interrupted)
    }
}

/// Records a signal. Returns whether something must be removed before the process ends.
pub fn raise(signal: i32) -> bool {
    SIGNAL.store(signal, Ordering::SeqCst);
    AT_WORK.load(Ordering::SeqCst) > 0
}

/// Returns the signal that ends this process, if there is one.
pub fn signal() -> Option<i32> {
    Some(SIGNAL.load(Ordering::SeqCst)).filter(|signal| *signal != 0)
}

/// Checks that the work may continue.
///
/// # Errors
/// [`Interrupted`] if it may not.
pub fn check() -> Result<(), Interrupted> {
    match SIGNAL.load(Ordering::Relaxed) {
        0 => Ok(()),
        _ => Err(Interrupted),
    }
}

/// Work whose result must be removed if the process is interrupted during the life of this value.
#[derive(Debug)]
#[must_use = "the work counts as done when this is dropped"]
pub struct AtWork(());

/// Begins such work.
///
/// # Errors
/// [`Interrupted`] if the work must not begin.
pub fn begin() -> Result<AtWork, Interrupted> {
    AT_WORK.fetch_add(1, Ordering::SeqCst);
    let at_work = AtWork(());
    match signal() {
        None => Ok(at_work),
        Some(_) => Err(Interrupted),
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        AT_WORK.fetch_sub(1, Ordering::SeqCst);
    }
}
