//! A bounded cache of descriptors. Each owner (a directory of a layer, an open file of the union)
//! has a slot. A clock algorithm closes those that were not used lately.
//!
//! A hit takes only the lock of the slot. Opening takes the lock of the clock.
//!
//! The limit of descriptors is that of the process. If none is left ([`with_spare`]), all shared
//! caches close half of theirs, also if the failed call was not their own.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use rustix::io::Errno;

use crate::sys::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sys::sync::parking_lot::{Mutex, RwLock};

/// The caches that close descriptors when the process has none left.
static SHARED: RwLock<Vec<Weak<FdCache>>> = RwLock::new(Vec::new());

/// The number of further tries, with pauses that grow from a millisecond. Other requests return
/// their descriptors meanwhile.
const TRIES: u32 = 6;

/// Calls `open`. If that fails because the process or the system has no descriptor left, closes
/// cached ones and tries again.
///
/// # Errors
/// Those of `open`; EMFILE and ENFILE only after all tries.
pub fn with_spare<T>(mut open: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    let mut last = match open() {
        Err(e) if e.is_exhausted() => e,
        other => return other,
    };
    for n in 0..TRIES {
        let caches: Vec<_> = SHARED.read().iter().filter_map(Weak::upgrade).collect();
        caches.iter().for_each(|cache| cache.give_back());
        match open() {
            Err(e) if e.is_exhausted() => last = e,
            other => return other,
        }
        std::thread::sleep(std::time::Duration::from_millis(1 << n));
    }
    Err(last)
}

/// A place for one descriptor (or another value that `T` wraps).
#[derive(Debug)]
pub struct Slot<T> {
    held: Mutex<Option<Arc<T>>>,
    used: AtomicBool,
}

impl<T> Default for Slot<T> {
    fn default() -> Self {
        Self {
            held: Mutex::new(None),
            used: AtomicBool::new(false),
        }
    }
}

impl<T> Slot<T> {
    /// Removes the descriptor. Users that hold it keep it.
    pub fn clear(&self) {
        *self.held.lock() = None;
    }
}

/// The descriptors to close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Evicted {
    /// Those that were not used since the last round.
    NotUsedLately,
    /// Any.
    Any,
}

/// A slot as the clock sees it.
trait Evict: Send + Sync {
    /// Takes the descriptor out, if it is one of these and not in use.
    fn evict(&self, which: Evicted) -> Option<Closing>;
}

/// A descriptor that is closed when this is dropped. This may take long and must not happen under a
/// lock.
type Closing = Option<Arc<dyn std::any::Any + Send + Sync>>;

impl<T: Send + Sync + 'static> Evict for Slot<T> {
    fn evict(&self, which: Evicted) -> Option<Closing> {
        let used = self.used.swap(false, Ordering::Relaxed);
        if used && which == Evicted::NotUsedLately {
            return None;
        }
        // A locked slot is in use.
        let mut held = self.held.try_lock()?;
        Some(held.take().map(|fd| fd as _))
    }
}

/// The cache over all slots.
pub struct FdCache {
    clock: Mutex<VecDeque<Weak<dyn Evict>>>,
    capacity: usize,
    hits: AtomicU64,
    misses: AtomicU64,
}

impl FdCache {
    /// Creates a cache of at most `capacity` (at least 16) descriptors.
    pub fn new(capacity: usize) -> Self {
        Self {
            clock: Mutex::new(VecDeque::new()),
            capacity: capacity.max(16),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
        }
    }

    /// As [`Self::new`], for a cache that takes part in [`with_spare`].
    pub fn shared(capacity: usize) -> Arc<Self> {
        let cache = Arc::new(Self::new(capacity));
        let mut shared = SHARED.write();
        shared.retain(|other| other.strong_count() > 0);
        shared.push(Arc::downgrade(&cache));
        cache
    }

    /// Returns the descriptor in `slot`. Opens it with `open` if there is none, or if it fails
    /// `fits`.
    ///
    /// # Errors
    /// Those of `open`.
    pub fn get<T: Send + Sync + 'static, E: From<Errno> + IsExhausted>(
        &self,
        slot: &Arc<Slot<T>>,
        fits: impl Fn(&T) -> bool,
        mut open: impl FnMut() -> Result<T, E>,
    ) -> Result<Arc<T>, E> {
        let mut held = slot.held.lock();
        if let Some(fd) = held.as_ref().filter(|fd| fits(fd)) {
            slot.used.store(true, Ordering::Relaxed);
            self.hits.fetch_add(1, Ordering::Relaxed);
            return Ok(Arc::clone(fd));
        }
        self.misses.fetch_add(1, Ordering::Relaxed);
        let opened = match open() {
            // Descriptors of all kinds may be missing, so this cache closes its own first.
            Err(e) if e.is_exhausted() => {
                self.give_back();
                open()?
            }
            other => other?,
        };
        let fd = Arc::new(opened);
        let old = held.replace(Arc::clone(&fd));
        drop(held);
        if old.is_none() {
            let slot: Weak<Slot<T>> = Arc::downgrade(slot);
            self.admit(slot);
        }
        Ok(fd)
    }

    /// Puts an open descriptor into `slot`.
    pub fn put<T: Send + Sync + 'static>(&self, slot: &Arc<Slot<T>>, opened: T) {
        let known = slot.held.lock().replace(Arc::new(opened)).is_some();
        if !known {
            let slot: Weak<Slot<T>> = Arc::downgrade(slot);
            self.admit(slot);
        }
    }

    /// Returns the descriptor in `slot`, if it is open.
    pub fn cached<T>(&self, slot: &Slot<T>) -> Option<Arc<T>> {
        let fd = slot.held.lock().as_ref().map(Arc::clone)?;
        slot.used.store(true, Ordering::Relaxed);
        self.hits.fetch_add(1, Ordering::Relaxed);
        Some(fd)
    }

    /// As [`Self::cached`], without waiting: also `None` while another thread uses the slot. That
    /// thread may be opening the file, which takes long, and may need locks that the caller holds.
    pub fn cached_if_free<T>(&self, slot: &Slot<T>) -> Option<Arc<T>> {
        let fd = slot.held.try_lock()?.as_ref().map(Arc::clone)?;
        slot.used.store(true, Ordering::Relaxed);
        self.hits.fetch_add(1, Ordering::Relaxed);
        Some(fd)
    }

    fn admit(&self, slot: Weak<dyn Evict>) {
        let mut clock = self.clock.lock();
        clock.push_back(slot);
        let rounds = clock.len() * 2;
        let closing = turn(&mut clock, self.capacity, rounds, Evicted::NotUsedLately);
        drop(clock);
        drop(closing);
    }

    /// Closes half of the descriptors that are not in use. The capacity stays the same: other parts
    /// of the process may have taken the missing ones and will return them.
    fn give_back(&self) {
        let mut clock = self.clock.lock();
        let (left, rounds) = (clock.len() / 2, clock.len());
        let closing = turn(&mut clock, left, rounds, Evicted::Any);
        drop(clock);
        drop(closing);
    }

    /// Returns hits and misses since the start.
    pub fn counters(&self) -> (u64, u64) {
        (
            self.hits.load(Ordering::Relaxed),
            self.misses.load(Ordering::Relaxed),
        )
    }
}

/// Removes slots from the clock until `capacity` are left, in at most this number of rounds.
fn turn(
    clock: &mut VecDeque<Weak<dyn Evict>>,
    capacity: usize,
    mut rounds: usize,
    which: Evicted,
) -> Vec<Closing> {
    let mut closing = Vec::new();
    while clock.len() > capacity && rounds > 0 {
        rounds -= 1;
        let Some(oldest) = clock.pop_front() else {
            break;
        };
        let Some(slot) = oldest.upgrade() else {
            continue;
        };
        match slot.evict(which) {
            Some(fd) => closing.push(fd),
            None => clock.push_back(oldest),
        }
    }
    closing
}

/// Errors that can mean that no descriptor is left.
pub trait IsExhausted {
    /// Whether the error is EMFILE or ENFILE.
    fn is_exhausted(&self) -> bool;
}

impl IsExhausted for Errno {
    fn is_exhausted(&self) -> bool {
        matches!(*self, Errno::MFILE | Errno::NFILE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_no_more_than_its_capacity() {
        let cache = FdCache::new(16);
        let slots: Vec<_> = (0..100).map(|_| Arc::new(Slot::<u32>::default())).collect();
        for (i, slot) in slots.iter().enumerate() {
            cache
                .get(slot, |_| true, || Ok::<_, Errno>(i as u32))
                .unwrap();
        }
        let held = slots.iter().filter(|s| s.held.lock().is_some()).count();
        assert!(held <= 16, "{held} held");
        assert_eq!(
            *cache
                .get(&slots[99], |_| true, || Ok::<_, Errno>(7))
                .unwrap(),
            99
        );
    }

    #[test]
    fn gives_back_when_the_process_is_out_of_descriptors() {
        let cache = FdCache::new(4096);
        let slots: Vec<_> = (0..40).map(|_| Arc::new(Slot::<u32>::default())).collect();
        for slot in &slots {
            cache.get(slot, |_| true, || Ok::<_, Errno>(1)).unwrap();
        }
        let mut first = true;
        let last = Arc::new(Slot::default());
        let open = || {
            if std::mem::take(&mut first) {
                Err(Errno::MFILE)
            } else {
                Ok(2)
            }
        };
        assert_eq!(*cache.get(&last, |_| true, open).unwrap(), 2);
        assert!(slots.iter().filter(|s| s.held.lock().is_some()).count() <= 32);
    }

    #[test]
    fn whoever_is_out_of_descriptors_gets_those_of_all() {
        let cache = FdCache::shared(4096);
        let slots: Vec<_> = (0..40).map(|_| Arc::new(Slot::<u32>::default())).collect();
        for slot in &slots {
            cache.get(slot, |_| true, || Ok::<_, Errno>(1)).unwrap();
        }
        let held = || slots.iter().filter(|s| s.held.lock().is_some()).count();
        let open = || {
            if held() > 8 {
                Err(Errno::MFILE)
            } else {
                Ok(())
            }
        };
        assert_eq!(with_spare(open), Ok(()));
        assert_eq!(with_spare(|| Err::<(), _>(Errno::NFILE)), Err(Errno::NFILE));
        assert_eq!(with_spare(|| Err::<(), _>(Errno::NOENT)), Err(Errno::NOENT));
    }
}
