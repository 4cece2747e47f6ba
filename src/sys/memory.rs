//! Memory that was freed, back to the system: `malloc_trim(3)`. Called by `union::inode_table`.
#![allow(unsafe_code)]

use std::sync::atomic::{AtomicBool, Ordering};

/// Starts giving back what was freed, in a thread of its own: with much to give back it takes
/// milliseconds, for which nobody who waits for an answer should wait. One at a time; where
/// there is no thread to be had, or another C library than glibc, nothing happens.
pub fn give_back() {
    static RUNNING: AtomicBool = AtomicBool::new(false);
    if RUNNING.swap(true, Ordering::AcqRel) {
        return;
    }
    let thread = std::thread::Builder::new().name("unionfs-trim".into());
    let started = thread.spawn(|| {
        // Until here what comes after counts as a further request.
        RUNNING.store(false, Ordering::Release);
        trim();
    });
    if started.is_err() {
        RUNNING.store(false, Ordering::Release);
    }
}

#[cfg(target_env = "gnu")]
fn trim() {
    // SAFETY: takes no pointers and may be called from any thread at any time.
    unsafe { libc::malloc_trim(0) };
}

#[cfg(not(target_env = "gnu"))]
fn trim() {}
