//! Collects the names of a merged directory from its layers.
//!
//! A name's offset in a listing is a keyed hash of it. If a directory has more names than may be
//! held at once, a window is collected: the names whose offsets lie in a range. They are selected
//! while the layers are read, so memory is bounded for any number of names. Merging is a pure
//! function.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};

use super::FileId;
use super::listed_name::ListedName;
use crate::layer::types::FileKind;

/// Offsets 1 and 2 follow `.` and `..`.
pub(crate) const FIRST_OFFSET: u64 = 3;

/// The layer that an entry's file comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FoundIn {
    /// The upper has the name (lowers may have it too): the inode number needs a lookup.
    Upper,
    /// The topmost lower directory that has the name, by position in the merge.
    Lower(usize),
    /// The lowers, which gave the file this number.
    Known(FileId),
}

/// A visible entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Visible {
    /// Name.
    pub name: ListedName,
    /// Type, if the file system reports it.
    pub kind: Option<FileKind>,
    /// The inode number in the union, if no lookup is needed for it.
    pub ino: Option<u64>,
    /// Where the name was found.
    pub found_in: FoundIn,
}

/// A range of offsets: greater than `after`, at most `until`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    after: u64,
    until: u64,
}

impl Window {
    /// The window that contains all names.
    pub(crate) const ALL: Self = Self::behind(0);

    const fn behind(after: u64) -> Self {
        let until = u64::MAX;
        Self { after, until }
    }

    /// Returns `after` and `until`.
    pub(crate) const fn bounds(self) -> (u64, u64) {
        (self.after, self.until)
    }

    /// Whether a name with this offset lies in the window.
    pub(crate) fn has(self, offset: u64) -> bool {
        self.after < offset && offset <= self.until
    }
}

/// Collects the names of the layers for a listing, never more than a maximum at once.
#[expect(missing_debug_implementations, reason = "it holds a closure")]
pub struct Gather<'h> {
    hasher: &'h RandomState,
    number: &'h dyn Fn(u64, u64) -> u64,
    most: usize,
    window: Window,
    /// The number of names in `layers`.
    kept: usize,
    /// The number of names seen, in and outside of the window.
    seen: usize,
    layers: Vec<LayerListing>,
}

impl<'h> Gather<'h> {
    /// Collects names whose offsets are greater than `after`, at most `most`. `number` returns the
    /// inode number in the union for the device and inode number of a file in a layer.
    pub fn new(
        hasher: &'h RandomState,
        number: &'h dyn Fn(u64, u64) -> u64,
        most: usize,
        after: u64,
    ) -> Self {
        Self {
            hasher,
            number,
            most,
            window: Window::behind(after),
            kept: 0,
            seen: 0,
            layers: Vec::new(),
        }
    }

    /// Returns the function from the device and inode number of a file in a layer to the inode
    /// number in the union.
    pub fn numbers(&self) -> &'h dyn Fn(u64, u64) -> u64 {
        self.number
    }

    /// Whether a name lies in the window.
    pub fn wants(&mut self, name: &[u8]) -> bool {
        self.seen += 1;
        self.window == Window::ALL || self.window.has(offset_of(self.hasher, name))
    }

    /// Narrows the window when more names are held than allowed, counting `current` and `hides`.
    /// `offset` returns that of an entry, with [`offset_of`] its name.
    pub(crate) fn bound<T>(
        &mut self,
        current: &mut Vec<T>,
        offset: impl Fn(&RandomState, &T) -> u64,
        hides: &mut Vec<Box<[u8]>>,
    ) {
        while self.kept + current.len() + hides.len() > self.most {
            let Window { after, until } = self.window;
            let until = after + (until.min(u64::MAX >> 1) - after) / 2;
            let window = Window { after, until };
            self.window = window;
            let stays = |name: &[u8]| window.has(offset_of(self.hasher, name));
            current.retain(|entry| window.has(offset(self.hasher, entry)));
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

    /// Returns the hash that orders listings.
    pub(crate) fn hasher(&self) -> &'h RandomState {
        self.hasher
    }

    /// Returns the range of offsets for which the names are complete.
    pub(crate) fn window(&self) -> Window {
        self.window
    }

    /// Returns the number of names seen, in and outside of the window.
    pub(crate) fn seen(&self) -> usize {
        self.seen
    }

    /// Returns the layers, top first.
    pub fn into_layers(self) -> Vec<LayerListing> {
        self.layers
    }
}

/// Returns the offset of a name in listings ordered by `hasher`.
pub(crate) fn offset_of(hasher: &RandomState, name: &[u8]) -> u64 {
    (hasher.hash_one(name) >> 1).max(FIRST_OFFSET)
}

/// An entry of one layer, for `merge`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerEntry {
    /// Name.
    pub name: ListedName,
    /// Type, if the file system reports it.
    pub kind: Option<FileKind>,
    /// The inode number in the union, if no lookup is needed for it.
    pub ino: Option<u64>,
    /// The number that the lowers gave the file.
    pub id: Option<FileId>,
    /// The entry hides the name.
    pub whiteout: bool,
}

/// The entries of one layer in a merged directory.
#[derive(Clone, Debug)]
pub struct LayerListing {
    /// The layer.
    pub found_in: FoundIn,
    /// The entries, including whiteouts.
    pub entries: Vec<LayerEntry>,
    /// Names that `.wh.NAME` files of this layer hide in the layers below it.
    pub hides_below: Vec<Box<[u8]>>,
}

/// Merges listings, top first. The topmost layer that has a name decides about it; a whiteout hides
/// the name in its own layer and in those below.
pub fn merge(mut layers: Vec<LayerListing>) -> Vec<Visible> {
    // Nothing is below the last layer, so its names decide nothing. Where nothing is above it
    // either, its entries become the answer in place.
    let Some(last) = layers.pop() else {
        return Vec::new();
    };
    let mut visible = Vec::new();
    let mut decided: HashSet<ListedName> = HashSet::new();
    for layer in layers {
        for entry in layer.entries {
            if decided.insert(entry.name.clone()) && !entry.whiteout {
                visible.push(shown(entry, layer.found_in));
            }
        }
        let hidden = layer.hides_below.iter();
        decided.extend(hidden.map(|name| ListedName::from(&**name)));
    }
    let found_in = last.found_in;
    let is_shown = |entry: &LayerEntry| !entry.whiteout && !decided.contains(&entry.name);
    let rest = last.entries.into_iter().filter(is_shown);
    let rest = rest.map(|entry| shown(entry, found_in));
    if visible.is_empty() {
        return rest.collect();
    }
    visible.extend(rest);
    visible
}

fn shown(entry: LayerEntry, found_in: FoundIn) -> Visible {
    Visible {
        name: entry.name,
        kind: entry.kind,
        ino: entry.ino,
        found_in: entry.id.map_or(found_in, FoundIn::Known),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use proptest::prelude::*;

    /// A layer of a test: its names, each with whether it is a whiteout, and the names that `.wh.`
    /// files hide.
    pub(crate) type Sample = (BTreeMap<u8, bool>, BTreeSet<u8>);

    /// Returns the listings of such layers, top first.
    pub(crate) fn listings(layers: &[Sample]) -> Vec<LayerListing> {
        let entry = |(name, whiteout): (&u8, &bool)| LayerEntry {
            name: ListedName::from(&[*name][..]),
            kind: Some(FileKind::Regular),
            ino: None,
            id: None,
            whiteout: *whiteout,
        };
        let listing = |(i, (entries, hides)): (usize, &Sample)| LayerListing {
            found_in: FoundIn::Lower(i),
            entries: entries.iter().map(entry).collect(),
            hides_below: hides.iter().map(|n| Box::from([*n])).collect(),
        };
        layers.iter().enumerate().map(listing).collect()
    }

    proptest! {
        /// Merging gives the same result as a lookup of every name in every layer.
        #[test]
        fn merge_agrees_with_lookup(
            layers in prop::collection::vec(
                (prop::collection::btree_map(0u8..12, any::<bool>(), 0..8),
                 prop::collection::btree_set(0u8..12, 0..3)),
                1..5)
        ) {
            let mut merged: Vec<_> =
                merge(listings(&layers)).into_iter().map(|v| (v.name[0], v.found_in)).collect();
            merged.sort_by_key(|(name, _)| *name);
            let mut expected = Vec::new();
            for name in 0u8..12 {
                for (i, (entries, hides)) in layers.iter().enumerate() {
                    match entries.get(&name) {
                        Some(true) => break,
                        Some(false) => { expected.push((name, FoundIn::Lower(i))); break }
                        None if hides.contains(&name) => break,
                        None => {}
                    }
                }
            }
            prop_assert_eq!(merged, expected);
        }
    }
}
