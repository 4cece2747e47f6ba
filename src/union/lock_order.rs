//! Ranked locks: in builds with `debug_assertions`, taking a lock of the union out of order panics.
//!
//! Every lock has a rank from [`rank`]. A thread may take a lock only if it holds none of a higher
//! rank, and none of the same rank at a higher or the same address. All threads then take locks in
//! one order, so they cannot wait for each other in a circle. (Locks of rank [`rank::COPY_UP`] are
//! taken from a file up to its ancestors instead, which is one order too.) In release builds the
//! wrappers are the locks of `parking_lot` and nothing else.
//!
//! ```text
//! let names = dir.ns.write();       // NAMES
//! let loc = inode.loc.write();      // PLACE, higher: fine
//! let names = other.ns.read();      // NAMES while PLACE is held: panics
//! ```

use std::ops::{Deref, DerefMut};

use crate::sys::sync::parking_lot;

/// The ranks of the locks, in the order in which they are taken. `inode` describes the locks.
pub(crate) mod rank {
    /// `Searches::walking`
    pub(crate) const SEARCH: u8 = 1;
    /// `Inode::busy`
    pub(crate) const COPY_UP: u8 = 2;
    /// `Dir::ns`
    pub(crate) const NAMES: u8 = 3;
    /// `Dir::listing`
    pub(crate) const LISTING: u8 = 4;
    /// The slot of `Inode::data`
    pub(crate) const DATA: u8 = 5;
    /// `Stack::topology`
    pub(crate) const TOPOLOGY: u8 = 6;
    /// A shard of the inode table
    pub(crate) const TABLE: u8 = 7;
    /// `Inode::loc`
    pub(crate) const PLACE: u8 = 8;
    /// A shard of the lookup cache
    pub(crate) const LOOKUP_CACHE: u8 = 9;
}

/// A mutex with a rank.
#[derive(Debug, Default)]
pub(crate) struct Mutex<T, const RANK: u8>(parking_lot::Mutex<T>);

/// A reader-writer lock with a rank.
#[derive(Debug, Default)]
pub(crate) struct RwLock<T, const RANK: u8>(parking_lot::RwLock<T>);

/// The guard of a ranked lock.
pub(crate) struct Guard<G> {
    // The guard is dropped first, so that the lock is released before it is removed from the list.
    guard: G,
    _held: Held,
}

/// The guard of a [`Mutex`].
pub(crate) type MutexGuard<'a, T> = Guard<parking_lot::MutexGuard<'a, T>>;
/// The shared guard of an [`RwLock`].
pub(crate) type RwLockReadGuard<'a, T> = Guard<parking_lot::RwLockReadGuard<'a, T>>;
/// The exclusive guard of an [`RwLock`].
pub(crate) type RwLockWriteGuard<'a, T> = Guard<parking_lot::RwLockWriteGuard<'a, T>>;

impl<G: Deref> Deref for Guard<G> {
    type Target = G::Target;

    fn deref(&self) -> &G::Target {
        &self.guard
    }
}

impl<G: DerefMut> DerefMut for Guard<G> {
    fn deref_mut(&mut self) -> &mut G::Target {
        &mut self.guard
    }
}

impl<T, const RANK: u8> Mutex<T, RANK> {
    pub(crate) const fn new(value: T) -> Self {
        Self(parking_lot::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        let _held = enter(RANK, (&raw const *self).addr());
        let guard = self.0.lock();
        Guard { guard, _held }
    }

    /// Takes the lock if it is free. This never waits, so any order is allowed.
    pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        let guard = self.0.try_lock()?;
        let _held = Held::new(RANK, (&raw const *self).addr());
        Some(Guard { guard, _held })
    }
}

impl<T, const RANK: u8> RwLock<T, RANK> {
    pub(crate) const fn new(value: T) -> Self {
        Self(parking_lot::RwLock::new(value))
    }

    pub(crate) fn read(&self) -> RwLockReadGuard<'_, T> {
        let _held = enter(RANK, (&raw const *self).addr());
        let guard = self.0.read();
        Guard { guard, _held }
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, T> {
        let _held = enter(RANK, (&raw const *self).addr());
        let guard = self.0.write();
        Guard { guard, _held }
    }
}

/// Checks the order and records that a lock is held until the result is dropped. It is used for
/// locks that have no ranked wrapper.
pub(crate) fn enter(rank: u8, address: usize) -> Held {
    #[cfg(debug_assertions)]
    tracked::check(rank, address);
    Held::new(rank, address)
}

/// A lock in the list of locks that this thread holds.
#[derive(Debug)]
pub(crate) struct Held {
    #[cfg(debug_assertions)]
    lock: (u8, usize),
}

impl Held {
    #[cfg_attr(not(debug_assertions), expect(unused_variables))]
    fn new(rank: u8, address: usize) -> Self {
        #[cfg(debug_assertions)]
        tracked::push((rank, address));
        Self {
            #[cfg(debug_assertions)]
            lock: (rank, address),
        }
    }
}

#[cfg(debug_assertions)]
impl Drop for Held {
    fn drop(&mut self) {
        tracked::remove(self.lock);
    }
}

/// The locks that this thread holds. The list makes no allocations, because tests count
/// allocations.
#[cfg(debug_assertions)]
mod tracked {
    use std::cell::Cell;

    /// The maximum number of locks in the list; no operation holds as many.
    const MOST: usize = 16;

    crate::sys::sync::thread_local! {
        static HELD: Cell<[Option<(u8, usize)>; MOST]> = const { Cell::new([None; MOST]) };
    }

    pub(super) fn check(rank: u8, address: usize) {
        let held = HELD.with(Cell::get);
        let upwards = rank == super::rank::COPY_UP;
        let wrong = |&&(held, at): &&(u8, usize)| {
            held > rank || held == rank && (at == address || at > address && !upwards)
        };
        let found = held.iter().flatten().find(wrong).map(|(held, _)| held);
        assert!(
            found.is_none(),
            "lock order: a lock of rank {rank} is taken while one of rank {} is held",
            found.unwrap_or(&0)
        );
    }

    pub(super) fn push(lock: (u8, usize)) {
        let mut held = HELD.with(Cell::get);
        if let Some(free) = held.iter_mut().find(|entry| entry.is_none()) {
            *free = Some(lock);
        }
        HELD.with(|cell| cell.set(held));
    }

    pub(super) fn remove(lock: (u8, usize)) {
        let mut held = HELD.with(Cell::get);
        if let Some(entry) = held.iter_mut().find(|entry| **entry == Some(lock)) {
            *entry = None;
        }
        HELD.with(|cell| cell.set(held));
    }
}

#[cfg(all(test, debug_assertions))]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "a lock of rank 11 is taken while one of rank 12 is held")]
    fn a_wrong_order_panics() {
        let (outer, inner) = (Mutex::<_, 11>::new(()), RwLock::<_, 12>::new(()));
        let _inner = inner.read();
        let _outer = outer.lock();
    }

    #[test]
    #[should_panic(expected = "lock order")]
    fn a_lock_taken_twice_panics() {
        let lock = RwLock::<_, 11>::new(());
        let _once = lock.read();
        let _twice = lock.read();
    }

    #[test]
    fn released_locks_and_locks_that_are_not_waited_for_may_be_taken_in_any_order() {
        let (outer, inner) = (Mutex::<_, 11>::new(()), RwLock::<_, 12>::new(()));
        {
            let _outer = outer.lock();
            let _inner = inner.write();
        }
        let guard = inner.read();
        drop(outer.try_lock());
        drop(guard);
        let first = outer.lock();
        drop(first);
        assert!(outer.try_lock().is_some());
    }

    #[test]
    fn locks_of_a_rank_are_taken_by_address() {
        let locks = [Mutex::<_, 11>::new(()), Mutex::new(())];
        let both = (locks[0].lock(), locks[1].lock());
        let wrong = || drop((locks[1].lock(), locks[0].lock()));
        drop(both);
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(wrong)).is_err());
    }
}
