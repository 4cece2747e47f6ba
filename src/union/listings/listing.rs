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

use crate::lowers::{FIRST_OFFSET, Gather, Visible, Window, in_order, merge, offset_of};

/// The entries of a directory, by offset.
#[derive(Debug)]
pub(crate) struct Listing {
    /// The entries that were read from the layers, in order of their offsets. No two are equal.
    read: Vec<(u64, Visible)>,
    /// What was changed since: names that were added, and offsets in `read` whose names were removed
    /// (`None`). Where both have an offset, this one counts.
    changes: BTreeMap<u64, Option<Visible>>,
    /// The number of entries.
    length: usize,
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
    pub fn new(hasher: RandomState, entries: Vec<Visible>) -> Self {
        // Sorting small pairs is much faster than sorting entries.
        let mut order: Vec<(u64, usize)> = Vec::with_capacity(entries.len());
        let offsets = entries.iter().map(|e| offset_of(&hasher, &e.name));
        order.extend(offsets.zip(0..));
        order.sort_unstable();
        let mut colliding = Vec::new();
        order.dedup_by(|next, kept| {
            if next.0 != kept.0 {
                return false;
            }
            // The first name has the offset, so that a listing that is built again has the same.
            let name = |at: usize| &entries[at].name;
            if name(next.1) < name(kept.1) {
                std::mem::swap(next, kept);
            }
            colliding.push(entries[next.1].clone());
            true
        });
        let sorted = order.iter().map(|(offset, at)| {
            let entry = &entries[*at];
            (
                &entry.name,
                (*offset, entry.kind, entry.ino, entry.found_in),
            )
        });
        let read = in_order(sorted).map(|(name, (offset, kind, ino, found_in))| {
            let entry = Visible {
                name,
                kind,
                ino,
                found_in,
            };
            (offset, entry)
        });
        let mut listing = Self {
            length: order.len(),
            read: read.collect(),
            changes: BTreeMap::new(),
            hasher,
            window: Window::ALL,
            seen: 0,
        };
        colliding.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        colliding
            .into_iter()
            .for_each(|entry| listing.insert(entry));
        listing
    }

    /// Returns the entry with this offset.
    fn get(&self, offset: u64) -> Option<&Visible> {
        if let Some(changed) = self.changes.get(&offset) {
            return changed.as_ref();
        }
        self.place(offset).map(|place| &self.read[place].1)
    }

    /// Returns the position of an offset in `read`.
    fn place(&self, offset: u64) -> Option<usize> {
        self.read.binary_search_by_key(&offset, |(at, _)| *at).ok()
    }

    /// Returns the offset of `name`: its hash, or the next free one in case of a collision.
    fn offset(&self, name: &[u8]) -> u64 {
        let mut offset = offset_of(&self.hasher, name);
        while self.get(offset).is_some_and(|taken| *taken.name != *name) {
            offset = (offset + 1) & (u64::MAX >> 1);
        }
        offset
    }

    pub fn insert(&mut self, entry: Visible) {
        if !self.is_whole() && !self.window.has(offset_of(&self.hasher, &entry.name)) {
            return;
        }
        let offset = self.offset(&entry.name);
        self.length += usize::from(self.get(offset).is_none());
        self.changes.insert(offset, Some(entry));
    }

    pub fn remove(&mut self, name: &[u8]) {
        let offset = self.offset(name);
        if self.get(offset).is_none() {
            return;
        }
        self.length -= 1;
        if self.place(offset).is_some() {
            self.changes.insert(offset, None);
        } else {
            self.changes.remove(&offset);
        }
    }

    /// Returns up to `max` entries whose offsets are greater than `offset`.
    pub fn after(&self, offset: u64, max: usize) -> Vec<(u64, Visible)> {
        let after = offset.max(FIRST_OFFSET - 1);
        let mut place = self.read.partition_point(|(at, _)| *at <= after);
        let range = (Bound::Excluded(after), Bound::Unbounded);
        let mut changes = self.changes.range(range).peekable();
        let mut found = Vec::with_capacity(max.min(self.read.len() - place + self.changes.len()));
        while found.len() < max {
            let read = self.read.get(place).map(|(offset, _)| *offset);
            let changed = changes.peek().map(|(offset, _)| **offset);
            let Some(next) = [read, changed].into_iter().flatten().min() else {
                break;
            };
            let entry = if changed == Some(next) {
                changes.next().and_then(|(_, entry)| entry.as_ref())
            } else {
                self.read.get(place).map(|(_, entry)| entry)
            };
            found.extend(entry.map(|entry| (next, entry.clone())));
            place += usize::from(read == Some(next));
        }
        found
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
            self.length
        } else {
            self.seen
        }
    }

    /// Returns the number of entries held.
    pub fn held(&self) -> usize {
        self.length
    }

    pub fn is_empty(&self) -> bool {
        self.length == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lowers::{FoundIn, LayerEntry, ListedName, sample_listings};
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
                let by_name = |hasher: &_, e: &LayerEntry| offset_of(hasher, &e.name);
                for mut layer in sample_listings(&layers) {
                    let (mut current, mut hides) = (Vec::new(), Vec::new());
                    for entry in layer.entries.drain(..) {
                        if gather.wants(&entry.name) {
                            current.push(entry);
                            gather.bound(&mut current, by_name, &mut hides);
                        }
                    }
                    for name in layer.hides_below.drain(..) {
                        if gather.wants(&name) {
                            hides.push(name);
                            gather.bound(&mut current, by_name, &mut hides);
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
                name: ListedName::from(&n.to_le_bytes()[..]), kind: None, ino: None,
                found_in: FoundIn::Upper,
            };
            let mut listing = Listing::new(
                RandomState::new(), stay.iter().map(|n| visible(*n)).collect(),
            );
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
