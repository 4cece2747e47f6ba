//! A signal that ends a command that changes a store: whoever waits for it says so by
//! [`raise`]; what is half done hears of it, fails, and takes away what it has made. A process that
//! never calls `raise`, such as one that uses the library, is never interrupted.
//!
//! ```text
//!  work:   begin() ── counted, then asks whether it is interrupted ──► make something ─► drop
//!  signal: raise() ── noted, then asks how much is at work ──► nothing: the process may end
//! ```
//! Both write before they read, so one of them sees the other: nothing is made after the process
//! has found that there is nothing to take away.

use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};

static SIGNAL: AtomicI32 = AtomicI32::new(0);
static AT_WORK: AtomicUsize = AtomicUsize::new(0);

/// What was being done was ended by a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("interrupted by a signal")]
pub struct Interrupted;

impl From<Interrupted> for std::io::Error {
    fn from(interrupted: Interrupted) -> Self {
        Self::other(interrupted)
    }
}

/// Notes a signal; whether something has to be taken away before the process ends.
pub fn raise(signal: i32) -> bool {
    SIGNAL.store(signal, Ordering::SeqCst);
    AT_WORK.load(Ordering::SeqCst) > 0
}

/// The signal that ends this process, if there is one.
pub fn signal() -> Option<i32> {
    Some(SIGNAL.load(Ordering::SeqCst)).filter(|signal| *signal != 0)
}

/// Whether to go on.
///
/// # Errors
/// [`Interrupted`].
pub fn check() -> Result<(), Interrupted> {
    match SIGNAL.load(Ordering::Relaxed) {
        0 => Ok(()),
        _ => Err(Interrupted),
    }
}

/// Something that must be taken away when the process is interrupted, as long as this lives.
#[derive(Debug)]
#[must_use = "the work counts as done when this is dropped"]
pub struct AtWork(());

/// Begins such work.
///
/// # Errors
/// [`Interrupted`]: it must not begin any more.
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
