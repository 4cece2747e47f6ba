//! A request that memory can answer makes no allocation. The tests count allocations on the
//! requesting thread, with an allocator that otherwise is the system's.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use unionfs::union::ROOT_INO;

use crate::support::World;

thread_local! {
    static ALLOCATED: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

fn count() {
    // The counter is gone while a thread ends.
    let _ = ALLOCATED.try_with(|n| n.set(n.get() + 1));
}

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller fulfils the contract.
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller fulfils the contract.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller fulfils the contract.
        unsafe { System.realloc(old, layout, size) }
    }
    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        // SAFETY: the caller fulfils the contract.
        unsafe { System.dealloc(old, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Returns the number of allocations of this thread during `action`.
fn allocations(action: impl FnOnce()) -> u64 {
    let before = ALLOCATED.get();
    action();
    ALLOCATED.get() - before
}

fn world() -> World {
    World::new(4, |n, dir| {
        std::fs::create_dir(dir.join("dir")).unwrap();
        std::fs::write(dir.join(format!("dir/f{n}")), "x").unwrap();
    })
}

#[test]
fn the_allocator_counts() {
    let n = allocations(|| drop(std::hint::black_box(Box::new(1))));
    assert_eq!(n, 1);
}

#[test]
fn a_cached_lookup_allocates_nothing() {
    let world = world();
    let union = &world.union;
    let dir = union.lookup(ROOT_INO, b"dir").unwrap().unwrap().surrender();
    for name in [&b"f0"[..], b"f3"] {
        // Held as the kernel holds it.
        let held = union.lookup(dir, name).unwrap().unwrap();
        let n = allocations(|| {
            for _ in 0..100 {
                let entry = union.lookup(dir, name).unwrap().unwrap();
                union.forget(entry.surrender(), 1);
            }
        });
        assert_eq!(n, 0, "{}", String::from_utf8_lossy(name));
        drop(held);
    }
    assert!(union.lookup(dir, b"no").unwrap().is_none());
    let n = allocations(|| {
        for _ in 0..100 {
            assert!(union.lookup(dir, b"no").unwrap().is_none());
        }
    });
    assert_eq!(n, 0, "a name that is not there");
}

#[test]
fn attributes_of_a_known_file_allocate_nothing() {
    let world = world();
    let union = &world.union;
    let dir = union.lookup(ROOT_INO, b"dir").unwrap().unwrap();
    let file = union.lookup(dir.attr().ino, b"f2").unwrap().unwrap();
    let n = allocations(|| {
        for ino in [ROOT_INO, dir.attr().ino, file.attr().ino] {
            union.getattr(ino).unwrap();
        }
    });
    assert_eq!(n, 0);
}
