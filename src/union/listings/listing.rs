//! The merged listing of a directory.
//!
//! Entries are ordered by a keyed hash of their name, which is also their offset. An offset
//! therefore stays valid when names are created, removed or rebuilt between two reads, and every
//! name that stays is returned exactly once.
//!
//! A listing of a directory with more names than may be in memory is a window, as
//! [`crate::lowers::Gather`] collects it. The next window reads the layers again. Every operation
//! that changes a name updates a listing that is in memory.

use std::collections::BTreeMap;
use std::hash::RandomState;
use std::ops::Bound;

use crate::lowers::{FIRST_OFFSET, Gather, Visible, Window, merge, offset_of};

/// The entries of a directory, by offset.
#[derive(Debug)]
pub(crate) struct Listing {
    entries: BTreeMap<u64, Visible>,
    hasher: RandomState,
    window: Window,
    /// The number of names that the layers have, inside and outside of the window.
    seen: usize,
}

impl From<Gather<'_>> for Listing {
    fn from(gather: Gather<'_>) -> Self {
        let (hasher, window, seen) = (gather.hasher().clone(), gather.window(), gather.seen());
        let listing = Self::new(hasher, merge(gather.into_layers()));
        Self {
            window,
            seen,
            ..listing
        }
    }
}

impl Listing {
    pub fn new(hasher: RandomState, entries: impl IntoIterator<Item = Visible>) -> Self {
        let mut listing = Self {
            entries: BTreeMap::new(),
            hasher,
            window: Window::ALL,
            seen: 0,
        };
        let free = |entry: Visible| (offset_of(&listing.hasher, &entry.name), entry);
        let mut entries: Vec<_> = entries.into_iter().map(free).collect();
        // Building the tree from sorted entries is fastest; colliding entries are inserted
        // afterwards.
        entries.sort_unstable_by(|a, b| (a.0, &a.1.name).cmp(&(b.0, &b.1.name)));
        let mut colliding = Vec::new();
        let mut last = None;
        let first = entries.into_iter().filter_map(|(offset, entry)| {
            if last.replace(offset) == Some(offset) {
                colliding.push(entry);
                return None;
            }
            Some((offset, entry))
        });
        listing.entries = first.collect();
        colliding
            .into_iter()
            .for_each(|entry| listing.insert(entry));
        listing
    }

    /// Returns the offset of `name`: its hash, or the next free one in case of a collision.
    fn offset(&self, name: &[u8]) -> u64 {
        let mut offset = offset_of(&self.hasher, name);
        while self
            .entries
            .get(&offset)
            .is_some_and(|taken| *taken.name != *name)
        {
            offset = (offset + 1) & (u64::MAX >> 1);
        }
        offset
    }

    pub fn insert(&mut self, entry: Visible) {
        if !self.is_whole() && !self.window.has(offset_of(&self.hasher, &entry.name)) {
            return;
        }
        let offset = self.offset(&entry.name);
        self.entries.insert(offset, entry);
    }

    pub fn remove(&mut self, name: &[u8]) {
        let offset = self.offset(name);
        self.entries.remove(&offset);
    }

    /// Returns up to `max` entries whose offsets are greater than `offset`.
    pub fn after(&self, offset: u64, max: usize) -> Vec<(u64, Visible)> {
        self.entries
            .range((
                Bound::Excluded(offset.max(FIRST_OFFSET - 1)),
                Bound::Unbounded,
            ))
            .take(max)
            .map(|(offset, entry)| (*offset, entry.clone()))
            .collect()
    }

    /// Whether the listing has all names of the directory.
    pub fn is_whole(&self) -> bool {
        self.window == Window::ALL
    }

    /// Whether the listing has the names that follow `offset`.
    pub fn covers(&self, offset: u64) -> bool {
        let (after, until) = self.window.bounds();
        let offset = if offset < FIRST_OFFSET { 0 } else { offset };
        after <= offset && (offset < until || until == u64::MAX)
    }

    /// Returns the offset after which the next window begins, if there is one.
    pub fn next_window(&self) -> Option<u64> {
        (self.window.bounds().1 != u64::MAX).then_some(self.window.bounds().1)
    }

    /// Returns the approximate number of names of the directory.
    pub fn length(&self) -> usize {
        if self.is_whole() {
            self.entries.len()
        } else {
            self.seen
        }
    }

    /// Returns the number of entries held.
    pub fn held(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::lowers::{FoundIn, sample_listings};
    use proptest::prelude::*;

    proptest! {
        /// All windows together have every name once, and each holds no more names than allowed.
        #[test]
        fn windows_have_every_name_once(
            layers in prop::collection::vec(
                (prop::collection::btree_map(0u8..250, any::<bool>(), 0..200),
                 prop::collection::btree_set(0u8..250, 0..9)),
                1..4),
            // A name and the whiteout form that hides it, for each layer.
            most in 8usize..300,
            batch in 1usize..20,
        ) {
            let hasher = RandomState::new();
            let build = |after| {
                let mut gather = Gather::new(&hasher, &|_, ino| ino, most, after);
                for mut layer in sample_listings(&layers) {
                    let (mut current, mut hides) = (Vec::new(), Vec::new());
                    for entry in layer.entries.drain(..) {
                        if gather.wants(&entry.name) {
                            current.push(entry);
                            gather.bound(&mut current, |e| &e.name, &mut hides);
                        }
                    }
                    for name in layer.hides_below.drain(..) {
                        if gather.wants(&name) {
                            hides.push(name);
                            gather.bound(&mut current, |e| &e.name, &mut hides);
                        }
                    }
                    (layer.entries, layer.hides_below) = (current, hides);
                    gather.layer(layer);
                }
                Listing::from(gather)
            };
            let (mut listing, mut seen, mut offset) = (build(0), Vec::new(), 2);
            loop {
                prop_assert!(listing.covers(offset) && listing.held() <= most);
                let entries = listing.after(offset, batch);
                match (entries.last(), listing.next_window()) {
                    (Some((last, _)), _) => offset = *last,
                    (None, Some(next)) => {
                        offset = offset.max(next);
                        listing = build(offset);
                    }
                    (None, None) => break,
                }
                seen.extend(entries.iter().map(|(_, e)| (e.name[0], e.found_in)));
            }
            seen.sort_by_key(|(name, _)| *name);
            let mut expected: Vec<_> =
                merge(sample_listings(&layers)).into_iter().map(|v| (v.name[0], v.found_in)).collect();
            expected.sort_by_key(|(name, _)| *name);
            prop_assert_eq!(seen, expected);
        }

        /// Names that stay are seen once, whatever is inserted and removed between two reads.
        #[test]
        fn offsets_survive_changes(
            stay in prop::collection::btree_set(0u16..500, 1..60),
            changes in prop::collection::vec((500u16..1000, any::<bool>()), 0..60),
            batch in 1usize..10,
        ) {
            let visible = |n: u16| Visible {
                name: Arc::from(&n.to_le_bytes()[..]), kind: None, ino: None,
                found_in: FoundIn::Upper,
            };
            let mut listing = Listing::new(RandomState::new(), stay.iter().map(|n| visible(*n)));
            let mut changes = changes.into_iter();
            let (mut seen, mut offset) = (Vec::new(), 0);
            loop {
                let entries = listing.after(offset, batch);
                let Some((last, _)) = entries.last() else { break };
                offset = *last;
                seen.extend(entries.iter().map(|(_, e)| u16::from_le_bytes([e.name[0], e.name[1]])));
                if let Some((name, add)) = changes.next() {
                    if add { listing.insert(visible(name)) } else { listing.remove(&name.to_le_bytes()) }
                }
            }
            let mut stayed: Vec<_> = seen.into_iter().filter(|n| *n < 500).collect();
            stayed.sort_unstable();
            prop_assert_eq!(stayed, stay.into_iter().collect::<Vec<_>>());
        }
    }
}
