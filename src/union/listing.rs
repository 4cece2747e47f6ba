//! The merged listing of a directory. Entries are ordered by a keyed hash of their name,
//! which is also their offset: an offset stays right whatever is created, removed or
//! rebuilt meanwhile, so every name that stays is seen exactly once. Merging is pure.
//! Called by `readdir`; every operation that changes a name updates a listing in memory.

use std::collections::BTreeMap;
use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::ops::Bound;
use std::sync::Arc;

use super::types::{FileKind, Ino};

/// Offsets 1 and 2 follow `.` and `..`.
pub(crate) const FIRST_OFFSET: u64 = 3;

/// Where an entry's file comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// The upper has it (and perhaps lowers too): its number needs a lookup.
    Upper,
    /// The topmost lower directory (by position in the merge) that has it.
    Lower(usize),
    /// The lowers, by the catalog's record of the name.
    Record(u32),
}

/// A visible entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Visible {
    pub name: Arc<[u8]>,
    pub kind: Option<FileKind>,
    /// Inode number where it needs no lookup.
    pub ino: Option<Ino>,
    pub source: Source,
}

/// The entries of a directory by offset.
#[derive(Debug)]
pub(crate) struct Listing {
    entries: BTreeMap<u64, Visible>,
    hasher: RandomState,
}

impl Listing {
    pub fn new(hasher: RandomState, entries: impl IntoIterator<Item = Visible>) -> Self {
        let mut listing = Self {
            entries: BTreeMap::new(),
            hasher,
        };
        let free = |entry: Visible| (listing.hash(&entry.name), entry);
        let mut entries: Vec<_> = entries.into_iter().map(free).collect();
        // A tree is made of sorted entries at once; those that collide come after.
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

    fn hash(&self, name: &[u8]) -> u64 {
        (self.hasher.hash_one(name) >> 1).max(FIRST_OFFSET)
    }

    /// The offset of `name`: its hash, or the next free one should two collide.
    fn offset(&self, name: &[u8]) -> u64 {
        let mut offset = self.hash(name);
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
        let offset = self.offset(&entry.name);
        self.entries.insert(offset, entry);
    }

    pub fn remove(&mut self, name: &[u8]) {
        let offset = self.offset(name);
        self.entries.remove(&offset);
    }

    /// Up to `max` entries behind `offset`.
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

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

/// An entry of one layer, as `merge` wants it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LayerEntry {
    pub name: Arc<[u8]>,
    pub kind: Option<FileKind>,
    pub ino: Option<Ino>,
    /// The catalog's record of it.
    pub record: Option<u32>,
    pub whiteout: bool,
}

/// One layer's contribution to a merged directory.
#[derive(Clone, Debug)]
pub(crate) struct LayerListing {
    pub source: Source,
    pub entries: Vec<LayerEntry>,
    /// Names that `.wh.NAME` files of this layer hide in the layers below it.
    pub hides_below: Vec<Box<[u8]>>,
}

/// Merges listings, top first: the first layer that has a name decides it; a whiteout
/// hides the name in its own layer's place and below.
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
        /// The merge of layers equals asking, name by name, layer by layer.
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

        /// Whatever is inserted and removed between two reads, names that stay are seen once.
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
