//! The merged listing of a directory.
//!
//! Entries are ordered by a keyed hash of their name, which is also their offset. An offset
//! therefore stays valid whatever is created, removed or rebuilt between two reads, and every name
//! that stays is returned exactly once. Merging is a pure function.
//!
//! A listing of a directory with more names than may be held at once is a window: the names whose
//! offsets lie in a range. They are selected by hash while the layers are read, so memory is
//! bounded however many names there are; the next window reads the layers again. Every operation
//! that changes a name updates a listing that is in memory.

use std::collections::BTreeMap;
use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::ops::Bound;
use std::sync::Arc;

use super::types::{FileKind, Ino};

/// Offsets 1 and 2 follow `.` and `..`.
pub(crate) const FIRST_OFFSET: u64 = 3;

/// The layer that an entry's file comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// The upper has the name (lowers may have it too): the inode number needs a lookup.
    Upper,
    /// The topmost lower directory that has the name, by position in the merge.
    Lower(usize),
    /// The lowers, by the catalog's record of the name.
    Record(u32),
}

/// A visible entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Visible {
    pub name: Arc<[u8]>,
    pub kind: Option<FileKind>,
    /// The inode number, where it needs no lookup.
    pub ino: Option<Ino>,
    pub source: Source,
}

/// A range of offsets: greater than `after`, at most `until`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    after: u64,
    until: u64,
}

impl Window {
    /// The window that contains all names.
    const ALL: Self = Self::behind(0);

    const fn behind(after: u64) -> Self {
        let until = u64::MAX;
        Self { after, until }
    }

    fn has(self, offset: u64) -> bool {
        self.after < offset && offset <= self.until
    }
}

/// Collects the names of the layers for a listing, never more than a maximum at once.
pub(crate) struct Gather<'h> {
    hasher: &'h RandomState,
    most: usize,
    window: Window,
    /// The number of names in `layers`.
    kept: usize,
    /// The number of names seen, in and outside of the window.
    seen: usize,
    layers: Vec<LayerListing>,
}

impl<'h> Gather<'h> {
    /// Collects names whose offsets are greater than `after`, at most `most`.
    pub fn new(hasher: &'h RandomState, most: usize, after: u64) -> Self {
        Self {
            hasher,
            most,
            window: Window::behind(after),
            kept: 0,
            seen: 0,
            layers: Vec::new(),
        }
    }

    /// Whether a name lies in the window.
    pub fn wants(&mut self, name: &[u8]) -> bool {
        self.seen += 1;
        self.window == Window::ALL || self.window.has(hash(self.hasher, name))
    }

    /// Narrows the window when more names are held than allowed, counting `current` and `hides`.
    pub fn bound<T>(
        &mut self,
        current: &mut Vec<T>,
        name: impl Fn(&T) -> &[u8],
        hides: &mut Vec<Box<[u8]>>,
    ) {
        while self.kept + current.len() + hides.len() > self.most {
            let Window { after, until } = self.window;
            let until = after + (until.min(u64::MAX >> 1) - after) / 2;
            let window = Window { after, until };
            self.window = window;
            let stays = |name: &[u8]| window.has(hash(self.hasher, name));
            current.retain(|entry| stays(name(entry)));
            hides.retain(|name| stays(name));
            self.kept = 0;
            for layer in &mut self.layers {
                layer.entries.retain(|entry| stays(&entry.name));
                layer.hides_below.retain(|name| stays(name));
                self.kept += layer.entries.len() + layer.hides_below.len();
            }
            if until <= after + 1 {
                return;
            }
        }
    }

    /// Adds a layer that has been read completely.
    pub fn layer(&mut self, layer: LayerListing) {
        self.kept += layer.entries.len() + layer.hides_below.len();
        self.layers.push(layer);
    }

    /// Returns the layers, top first.
    pub fn into_layers(self) -> Vec<LayerListing> {
        self.layers
    }

    /// Merges the layers into a listing.
    pub fn into_listing(self) -> Listing {
        let mut listing = Listing::new(self.hasher.clone(), merge(self.layers));
        (listing.window, listing.seen) = (self.window, self.seen);
        listing
    }
}

fn hash(hasher: &RandomState, name: &[u8]) -> u64 {
    (hasher.hash_one(name) >> 1).max(FIRST_OFFSET)
}

/// The entries of a directory, by offset.
#[derive(Debug)]
pub(crate) struct Listing {
    entries: BTreeMap<u64, Visible>,
    hasher: RandomState,
    window: Window,
    /// The number of names that the layers have, in and outside of the window.
    seen: usize,
}

impl Listing {
    pub fn new(hasher: RandomState, entries: impl IntoIterator<Item = Visible>) -> Self {
        let mut listing = Self {
            entries: BTreeMap::new(),
            hasher,
            window: Window::ALL,
            seen: 0,
        };
        let free = |entry: Visible| (hash(&listing.hasher, &entry.name), entry);
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
        let mut offset = hash(&self.hasher, name);
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
        if !self.is_whole() && !self.window.has(hash(&self.hasher, &entry.name)) {
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
        let Window { after, until } = self.window;
        let offset = if offset < FIRST_OFFSET { 0 } else { offset };
        after <= offset && (offset < until || until == u64::MAX)
    }

    /// Returns the offset after which the next window begins, if there is one.
    pub fn next_window(&self) -> Option<u64> {
        (self.window.until != u64::MAX).then_some(self.window.until)
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

/// An entry of one layer, as `merge` takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LayerEntry {
    pub name: Arc<[u8]>,
    pub kind: Option<FileKind>,
    pub ino: Option<Ino>,
    /// The catalog's record.
    pub record: Option<u32>,
    pub whiteout: bool,
}

/// The entries of one layer in a merged directory.
#[derive(Clone, Debug)]
pub(crate) struct LayerListing {
    pub source: Source,
    pub entries: Vec<LayerEntry>,
    /// Names that `.wh.NAME` files of this layer hide in the layers below it.
    pub hides_below: Vec<Box<[u8]>>,
}

/// Merges listings, top first. The topmost layer that has a name decides about it; a whiteout hides
/// the name in its own layer and in those below.
pub(crate) fn merge(layers: Vec<LayerListing>) -> Vec<Visible> {
    let mut visible = Vec::new();
    if let [only] = &layers[..] {
        visible.reserve(only.entries.len());
    }
    let single = layers.len() == 1;
    let mut decided: HashSet<Arc<[u8]>> = HashSet::new();
    for layer in layers {
        for entry in layer.entries {
            if !single && decided.contains(&entry.name) {
                continue;
            }
            if !single {
                decided.insert(Arc::clone(&entry.name));
            }
            if !entry.whiteout {
                visible.push(Visible {
                    name: entry.name,
                    kind: entry.kind,
                    ino: entry.ino,
                    source: entry.record.map_or(layer.source, Source::Record),
                });
            }
        }
        decided.extend(layer.hides_below.into_iter().map(Arc::from));
    }
    visible
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entry(name: u8, whiteout: bool) -> LayerEntry {
        LayerEntry {
            name: Arc::new([name]),
            kind: Some(FileKind::Regular),
            ino: None,
            record: None,
            whiteout,
        }
    }

    proptest! {
        /// Merging gives what a lookup of every name in every layer gives.
        #[test]
        fn merge_agrees_with_lookup(
            layers in prop::collection::vec(
                (prop::collection::btree_map(0u8..12, any::<bool>(), 0..8),
                 prop::collection::btree_set(0u8..12, 0..3)),
                1..5)
        ) {
            let listings = layers.iter().enumerate().map(|(i, (entries, hides))| LayerListing {
                source: Source::Lower(i),
                entries: entries.iter().map(|(n, w)| entry(*n, *w)).collect(),
                hides_below: hides.iter().map(|n| Box::from([*n])).collect(),
            });
            let mut merged: Vec<_> =
                merge(listings.collect()).into_iter().map(|v| (v.name[0], v.source)).collect();
            merged.sort_by_key(|(name, _)| *name);
            let mut expected = Vec::new();
            for name in 0u8..12 {
                for (i, (entries, hides)) in layers.iter().enumerate() {
                    match entries.get(&name) {
                        Some(true) => break,
                        Some(false) => { expected.push((name, Source::Lower(i))); break }
                        None if hides.contains(&name) => break,
                        None => {}
                    }
                }
            }
            prop_assert_eq!(merged, expected);
        }

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
            let listings = || layers.iter().enumerate().map(|(i, (entries, hides))| LayerListing {
                source: Source::Lower(i),
                entries: entries.iter().map(|(n, w)| entry(*n, *w)).collect(),
                hides_below: hides.iter().map(|n| Box::from([*n])).collect(),
            });
            let hasher = RandomState::new();
            let build = |after| {
                let mut gather = Gather::new(&hasher, most, after);
                for mut layer in listings() {
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
                gather.into_listing()
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
                seen.extend(entries.iter().map(|(_, e)| (e.name[0], e.source)));
            }
            seen.sort_by_key(|(name, _)| *name);
            let mut expected: Vec<_> =
                merge(listings().collect()).into_iter().map(|v| (v.name[0], v.source)).collect();
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
                source: Source::Upper,
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
