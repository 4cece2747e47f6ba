//! The memory of the C library: limits for the address space that it reserves, and the return of
//! freed memory to the system (mallopt(3), malloc_trim(3)).
#![allow(unsafe_code)]

use std::sync::atomic::{AtomicBool, Ordering};

/// The number of arenas of malloc. Threads share them, since few threads allocate at the same time.
#[cfg(target_env = "gnu")]
const ARENAS: i32 = 4;
/// Allocations of this number of bytes and more get a mapping of their own.
#[cfg(target_env = "gnu")]
const MAPPED: i32 = 256 << 10;

/// Keeps malloc from holding unused memory. The caller must not have started threads yet. With
/// another C library than glibc, this has no effect.
///
/// It limits the arenas. Each reserves 64 MiB of address space, and glibc makes up to eight for each
/// CPU. A process with a limit of its address space (RLIMIT_AS) would have none left for the stacks
/// of its threads.
///
/// It keeps large allocations mapped. By default, when the first of them is freed, glibc takes
/// all up to its size from the arenas from then on. With many waiting writes (1 MiB each, copied
/// for the pool) the arenas kept the same amount once more.
pub fn limit_arenas() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes no pointers.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, ARENAS);
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED);
    }
}

/// Starts a thread that returns freed memory to the system. With much memory this takes
/// milliseconds, and no request should wait for that. One such thread runs at a time. If there can
/// be no thread, or with another C library than glibc, this has no effect.
pub fn give_back() {
    static RUNNING: AtomicBool = AtomicBool::new(false);
    if RUNNING.swap(true, Ordering::AcqRel) {
        return;
    }
    let thread = std::thread::Builder::new().name("unionfs-trim".into());
    let started = thread.spawn(|| {
        // From here on a new call starts another run.
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
