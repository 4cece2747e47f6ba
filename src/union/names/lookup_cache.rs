//! The lookup cache: what the layers have under a name, positive and negative.
//!
//! It is bounded (LRU), sharded, and updated by every operation that changes a name. It answers for
//! names that the kernel has forgotten, and saves CREATE a second lookup after the negative LOOKUP
//! before it.

use std::borrow::Borrow;
use std::hash::{BuildHasher, Hash, Hasher};
use std::num::NonZeroUsize;
use std::sync::Arc;

use foldhash::quality::RandomState;
use lru::LruCache;

use super::super::copy_metadata::Copied;
use super::super::inode::{Inode, Loc, Lower};
use super::super::lock_order::{Mutex, rank};
use super::super::resolve::{Resolved, UpperFound, WhiteoutKind};
use super::super::types::FileKind;
use crate::layer::at::Stat;
use crate::sys::sync::atomic::{AtomicU64, Ordering};

/// A cached answer.
#[derive(Clone, Debug)]
pub(crate) enum Cached {
    /// There is no such name; the upper may hold a whiteout.
    Negative(Option<WhiteoutKind>),
    /// The name exists, with these files of the layers.
    Positive(Arc<Resolved>),
}

impl Cached {
    /// Returns the answer for the new name of a file that was renamed: the same answer if the upper
    /// has all of the file. `None` for directories, because a rename may change their markers.
    pub fn moved(self) -> Option<Self> {
        let Self::Positive(resolved) = self else {
            return None;
        };
        let upper = resolved.upper.as_ref()?;
        if resolved.kind == FileKind::Directory || upper.metacopy || !upper.named {
            return None;
        }
        let mut resolved = (*resolved).clone();
        if let Some(upper) = &mut resolved.upper {
            upper.in_lower = None;
        }
        Some(Self::Positive(Arc::new(resolved)))
    }

    /// Returns the answer for a name whose file was just copied up.
    pub fn copied(inode: &Inode, loc: &Loc, copy: &Copied) -> Option<Self> {
        let is_link = loc.lower.as_ref().is_some_and(Lower::is_link);
        if is_link || loc.index().is_some() || loc.links.len() != 1 {
            return None;
        }
        let dirs = inode.dir.as_ref().map(|dir| dir.lowers.clone());
        // The stat was read before the copy got its name, so its link count is 0.
        let stat = Stat {
            nlink: 1,
            ..copy.stat
        };
        let upper = UpperFound {
            origin: copy.marked,
            metacopy: copy.metacopy.is_some(),
            protection: inode.protection.get(),
            in_lower: Some(true),
            ..UpperFound::new(stat)
        };
        Some(Self::Positive(Arc::new(Resolved {
            dirs: dirs.unwrap_or_default(),
            file: copy.metacopy.clone(),
            ..Resolved::in_upper(inode.kind, upper, inode.ino)
        })))
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Key {
    dir: u64,
    name: Arc<[u8]>,
}

/// A key that borrows its name, so that a lookup does not allocate.
trait KeyView {
    fn view(&self) -> (u64, &[u8]);
}

impl KeyView for Key {
    fn view(&self) -> (u64, &[u8]) {
        (self.dir, &self.name)
    }
}

impl KeyView for (u64, &[u8]) {
    fn view(&self) -> (u64, &[u8]) {
        *self
    }
}

impl Hash for dyn KeyView + '_ {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.view().hash(state);
    }
}

impl PartialEq for dyn KeyView + '_ {
    fn eq(&self, other: &Self) -> bool {
        self.view() == other.view()
    }
}

impl Eq for dyn KeyView + '_ {}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.view().hash(state);
    }
}

impl<'a> Borrow<dyn KeyView + 'a> for Key {
    fn borrow(&self) -> &(dyn KeyView + 'a) {
        self
    }
}

const SHARDS: usize = 16;

/// When the cache shrinks, it keeps one name out of this number.
const KEPT: usize = 16;

type Shard = Mutex<LruCache<Key, Cached>, { rank::LOOKUP_CACHE }>;

/// The numbers of lookups that a cache has answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CacheCounters {
    /// Names that exist.
    pub hits: u64,
    /// Names that do not exist.
    pub negative_hits: u64,
    /// Names that the cache did not contain.
    pub misses: u64,
}

/// The cache: from names to answers.
pub(crate) struct LookupCache {
    shards: Box<[Shard]>,
    hasher: RandomState,
    hits: AtomicU64,
    negative_hits: AtomicU64,
    misses: AtomicU64,
}

impl LookupCache {
    /// Creates a cache of at most about `capacity` names.
    pub fn new(capacity: usize) -> Self {
        let each = NonZeroUsize::new(capacity / SHARDS).unwrap_or(NonZeroUsize::MIN);
        let shard = |_| Mutex::new(LruCache::sparse(each));
        Self {
            shards: (0..SHARDS).map(shard).collect(),
            hasher: RandomState::default(),
            hits: AtomicU64::new(0),
            negative_hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
        }
    }

    fn shard(&self, dir: u64, name: &[u8]) -> &Shard {
        &self.shards[self.hasher.hash_one((dir, name)) as usize % SHARDS]
    }

    /// Returns the cached answer and counts a hit or a miss.
    pub fn get(&self, dir: u64, name: &[u8]) -> Option<Cached> {
        let found = self.peek(dir, name);
        let counter = match &found {
            Some(Cached::Positive(_)) => &self.hits,
            Some(Cached::Negative(_)) => &self.negative_hits,
            None => &self.misses,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        found
    }

    /// Returns the cached answer without counting.
    pub fn peek(&self, dir: u64, name: &[u8]) -> Option<Cached> {
        let key: &dyn KeyView = &(dir, name);
        self.shard(dir, name).lock().get(key).cloned()
    }

    /// Caches an answer.
    pub fn put(&self, dir: u64, name: &[u8], answer: Cached) {
        let shared = match &answer {
            Cached::Positive(resolved) => resolved.shared_name(name),
            Cached::Negative(_) => None,
        };
        let name = shared.unwrap_or_else(|| name.into());
        self.shard(dir, &name).lock().put(Key { dir, name }, answer);
    }

    /// Removes an answer.
    pub fn remove(&self, dir: u64, name: &[u8]) {
        let key: &dyn KeyView = &(dir, name);
        self.shard(dir, name).lock().pop(key);
    }

    /// Removes all answers.
    pub fn clear(&self) {
        self.shards.iter().for_each(|shard| shard.lock().clear());
    }

    /// Removes most answers and gives their memory back, after the kernel has forgotten most names.
    pub fn shrink(&self) {
        for shard in &self.shards {
            let mut shard = shard.lock();
            let mut small = LruCache::sparse(shard.cap());
            let keep = shard.cap().get() / KEPT;
            let recent: Vec<_> = std::iter::from_fn(|| shard.pop_mru()).take(keep).collect();
            for (key, answer) in recent.into_iter().rev() {
                small.put(key, answer);
            }
            let old = std::mem::replace(&mut *shard, small);
            // Dropping thousands of names does not need the lock.
            drop(shard);
            drop(old);
        }
    }

    /// Returns the number of names held.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len()).sum()
    }

    /// Returns the numbers of lookups that the cache has answered.
    pub fn counters(&self) -> CacheCounters {
        CacheCounters {
            hits: self.hits.load(Ordering::Relaxed),
            negative_hits: self.negative_hits.load(Ordering::Relaxed),
            misses: self.misses.load(Ordering::Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_bounded_and_counts() {
        let cache = LookupCache::new(64);
        for i in 0..10_000u64 {
            cache.put(i, b"name", Cached::Negative(None));
        }
        assert!(cache.len() <= 64);
        cache.put(1, b"here", Cached::Negative(None));
        assert!(cache.get(1, b"here").is_some());
        assert!(cache.get(1, b"elsewhere").is_none());
        assert!(cache.get(2, b"here").is_none());
        cache.remove(1, b"here");
        assert!(cache.get(1, b"here").is_none());
        let counters = CacheCounters {
            hits: 0,
            negative_hits: 1,
            misses: 3,
        };
        assert_eq!(cache.counters(), counters);
    }

    #[test]
    fn shrinks_to_what_was_asked_last() {
        let cache = LookupCache::new(16_384);
        for i in 0..40_000u64 {
            cache.put(i, b"name", Cached::Negative(None));
        }
        cache.shrink();
        assert!((1..=1024).contains(&cache.len()), "{}", cache.len());
        assert!(cache.peek(39_999, b"name").is_some());
        cache.shrink();
        assert!(cache.peek(39_999, b"name").is_some());
    }
}
