//! The C library's memory: how much address space it reserves, and giving back what was freed
//! (mallopt(3), malloc_trim(3)).
#![allow(unsafe_code)]

use std::sync::atomic::{AtomicBool, Ordering};

/// The number of arenas of malloc. Threads share them; few of them allocate at the same time.
#[cfg(target_env = "gnu")]
const ARENAS: i32 = 4;
/// Allocations of this size and more, in bytes, are mapped on their own.
#[cfg(target_env = "gnu")]
const MAPPED: i32 = 256 << 10;

/// Keeps malloc from holding memory that nobody uses. To be called before threads are started. Nothing
/// happens with another C library than glibc.
///
/// Limits the arenas. Each reserves 64 MiB of address space, and glibc would make eight
/// for each CPU: a process with a limit of its address space (RLIMIT_AS) has none left for the
/// stacks of its threads then.
///
/// Has large allocations mapped, as they are at first: when the first of them is freed, glibc would take
/// all up to its size from the arenas from then on. Of the data of many waiting writes (1 MiB each, copied
/// for the pool) the arenas kept as much again.
pub fn limit_arenas() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes no pointers.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, ARENAS);
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED);
    }
}

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
