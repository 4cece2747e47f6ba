//! The inode table: inode numbers to inodes, sharded, with exact reference counts.
//!
//! An inode's count is the number of lookups that the kernel has not forgotten plus the number of
//! links of other inodes that name it as parent. At zero the inode leaves the table and releases
//! the parents of its own links. The count changes only under the shard lock of its entry, so a
//! lookup never returns an inode that is leaving.

use std::sync::Arc;

use smallvec::SmallVec;

use super::super::inode::{Inode, Link};
use super::super::lock_order::{self, Held, rank};
use super::super::types::{FileKind, Ino};
use crate::sys::sync::FastMap;
use crate::sys::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use crate::sys::sync::dashmap::mapref::entry::Entry;

/// Inodes by number.
#[derive(Default)]
pub(crate) struct InodeTable {
    /// A fast keyed hash suffices: numbers come from file systems.
    map: FastMap<Ino, Arc<Inode>>,
    /// The number of inodes in `map`; may be out of date for a moment.
    held: AtomicUsize,
    /// The highest `held` since memory was last returned to the system.
    peak: AtomicUsize,
    /// Whether most inodes have left, so that memory should be returned.
    emptied: AtomicBool,
}

/// A table with fewer inodes at its peak does not return memory.
const WORTH_SHRINKING: usize = 8192;

/// Records that a shard is locked; the map itself takes the lock.
fn shard() -> Held {
    lock_order::enter(rank::TABLE, 0)
}

/// The result of [`InodeTable::intern`].
pub(crate) enum Interned {
    /// The inode was in the table; it has been counted.
    Existing(Arc<Inode>),
    /// The inode was created; it has been counted, and so have the parents of its links.
    Created(Arc<Inode>),
    /// The number is taken by another file.
    Conflict,
}

impl InodeTable {
    /// Returns the inode with this number.
    pub fn get(&self, ino: Ino) -> Option<Arc<Inode>> {
        let _order = shard();
        self.map.get(&ino).map(|entry| Arc::clone(entry.value()))
    }

    /// Counts the inode with this number, if it is in the table.
    pub fn count(&self, ino: Ino) -> Option<Arc<Inode>> {
        let _order = shard();
        // While the guard lives, the entry cannot leave.
        let entry = self.map.get_mut(&ino)?;
        entry.count.fetch_add(1, Ordering::Relaxed);
        Some(Arc::clone(entry.value()))
    }

    /// Counts the inode with this number if it `matches`; creates it if there is none.
    pub fn intern(
        &self,
        ino: Ino,
        matches: impl FnOnce(&Inode) -> bool,
        make: impl FnOnce() -> Inode,
    ) -> Interned {
        let order = shard();
        let (created, parents) = match self.map.entry(ino) {
            Entry::Occupied(entry) => {
                let inode = entry.get();
                if !matches(inode) {
                    return Interned::Conflict;
                }
                inode.count.fetch_add(1, Ordering::Relaxed);
                return Interned::Existing(Arc::clone(inode));
            }
            Entry::Vacant(entry) => {
                let inode = Arc::new(make());
                inode.count.store(1, Ordering::Relaxed);
                // The parents are read before another thread can add a link. That thread counts the
                // link's parent itself.
                let parents: SmallVec<[_; 1]> = {
                    let loc = inode.loc.read();
                    loc.links.iter().map(|l| Arc::clone(&l.parent)).collect()
                };
                entry.insert(Arc::clone(&inode));
                self.entered();
                (inode, parents)
            }
        };
        drop(order);
        parents.iter().for_each(|parent| self.pin(parent));
        Interned::Created(created)
    }

    /// Counts a further reference to an inode.
    pub fn pin(&self, inode: &Arc<Inode>) {
        let _order = shard();
        match self.map.entry(inode.ino) {
            Entry::Occupied(entry) => {
                entry.get().count.fetch_add(1, Ordering::Relaxed);
            }
            // The inode left meanwhile. It is put back, so that there is never a second inode with
            // its number.
            Entry::Vacant(entry) => {
                inode.count.store(1, Ordering::Relaxed);
                entry.insert(Arc::clone(inode));
                self.entered();
            }
        }
    }

    fn entered(&self) {
        let held = self.held.fetch_add(1, Ordering::Relaxed) + 1;
        // Usually only a load: the table rarely grows beyond its previous peak.
        if held > self.peak.load(Ordering::Relaxed) {
            self.peak.fetch_max(held, Ordering::Relaxed);
        }
    }

    /// Accounts for one inode that has left.
    fn left(&self) {
        let held = self.held.fetch_sub(1, Ordering::Relaxed).saturating_sub(1);
        let peak = self.peak.load(Ordering::Relaxed);
        if peak >= WORTH_SHRINKING && held < peak / 4 {
            self.peak.store(held, Ordering::Relaxed);
            self.emptied.store(true, Ordering::Relaxed);
        }
    }

    /// Whether most inodes have left since memory was last returned. Shrinks the map and returns
    /// true once each time.
    pub fn has_emptied(&self) -> bool {
        if !self.emptied.load(Ordering::Relaxed) || !self.emptied.swap(false, Ordering::Relaxed) {
            return false;
        }
        self.map.shrink_to_fit();
        true
    }

    /// Drops `count` references. At zero the inode leaves, and then possibly its parents.
    pub fn release(&self, ino: Ino, count: u64) {
        let mut next = Some((ino, count));
        let mut todo = Vec::new();
        while let Some((ino, count)) = next.take().or_else(|| todo.pop()) {
            let order = shard();
            let gone = self.map.remove_if(&ino, |_, inode| {
                let held = inode.count.load(Ordering::Relaxed);
                let left = held.saturating_sub(count);
                inode.count.store(left, Ordering::Relaxed);
                left == 0
            });
            drop(order);
            if let Some((_, inode)) = gone {
                self.left();
                let links = std::mem::take(&mut inode.loc.write().links);
                todo.extend(links.iter().map(|link| (link.parent.ino, 1)));
            }
        }
    }

    /// Releases the parents of links that were removed.
    pub fn unlink(&self, links: impl IntoIterator<Item = Link>) {
        for link in links {
            self.release(link.parent.ino, 1);
        }
    }

    /// Drops all inodes, without recursion along parents.
    pub fn clear(&self) {
        for inode in self.map.iter() {
            inode.loc.write().links.clear();
        }
        self.map.clear();
    }

    /// Returns at most `most` regular files of the table.
    pub fn some_files(&self, most: usize) -> Vec<Ino> {
        let _order = shard();
        let regular = |inode: &Inode| inode.kind == FileKind::Regular;
        let files = self.map.iter().filter(|entry| regular(entry.value()));
        files.map(|entry| *entry.key()).take(most).collect()
    }

    /// Returns the number of inodes in the table.
    pub fn len(&self) -> usize {
        self.map.len()
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::inode::{Identity, Loc};
    use super::*;

    fn inode(ino: Ino, parent: Option<&Arc<Inode>>) -> Inode {
        let links = parent
            .map(|p| Link {
                parent: Arc::clone(p),
                name: Arc::from(&b"x"[..]),
                in_upper: true,
                in_lower: None,
            })
            .into_iter()
            .collect();
        let identity = Identity {
            ino,
            kind: FileKind::Regular,
            generation: 0,
            key: 0,
        };
        let loc = Loc {
            links,
            ..Loc::default()
        };
        Inode::new(identity, loc, None)
    }

    fn create(table: &InodeTable, ino: Ino, parent: Option<&Arc<Inode>>) -> Arc<Inode> {
        match table.intern(ino, |_| true, || inode(ino, parent)) {
            Interned::Created(inode) | Interned::Existing(inode) => inode,
            Interned::Conflict => unreachable!("always matches"),
        }
    }

    #[test]
    fn parents_stay_as_long_as_their_children() {
        let table = InodeTable::default();
        let root = create(&table, 1, None);
        let dir = create(&table, 2, Some(&root));
        create(&table, 3, Some(&dir));
        table.release(2, 1);
        assert_eq!(table.len(), 3, "a child names it");
        table.release(3, 1);
        assert_eq!(table.len(), 1, "the chain is gone");
        table.release(1, 1);
        assert_eq!(table.len(), 0);
    }

    #[test]
    fn a_table_that_was_large_gives_back_and_a_small_one_does_not() {
        let table = InodeTable::default();
        let many = WORTH_SHRINKING as Ino;
        (1..=many).for_each(|ino| drop(create(&table, ino, None)));
        let room = table.map.capacity();
        (1..=many).for_each(|ino| table.release(ino, 1));
        assert_eq!(table.len(), 0);
        assert!(table.has_emptied() && !table.has_emptied());
        assert!(table.map.capacity() < room / 2, "{room} before");
        assert!(table.peak.load(Ordering::Relaxed) < WORTH_SHRINKING);
        create(&table, 1, None);
        table.release(1, 1);
        assert!(!table.has_emptied(), "one inode");
        assert_eq!(table.held.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn too_many_forgets_do_no_harm() {
        let table = InodeTable::default();
        create(&table, 5, None);
        table.release(5, u64::MAX);
        table.release(5, 1);
        assert_eq!(table.len(), 0);
    }

    #[test]
    fn a_number_taken_by_another_file_is_a_conflict() {
        let table = InodeTable::default();
        create(&table, 5, None);
        assert!(matches!(
            table.intern(5, |_| false, || inode(5, None)),
            Interned::Conflict
        ));
    }
}
