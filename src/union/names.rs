//! The names and inodes that the union has in memory: which inode has which number, which names
//! lead to it, and what the layers answered for a name. Reads no layer.
//!
//! | part | from | to |
//! |---|---|---|
//! | [`inode_table`] | inode number | inode |
//! | [`inode_numbers`] | file of a layer | inode number |
//! | [`generations`] | inode number | how often a file has had it |
//! | [`lookup_cache`] | directory and name | what the layers have |
//!
//! A process that takes over from another one needs the first three: the kernel knows files by
//! their inode numbers and generations, and counts its lookups. The lookup cache can always be
//! filled again. An inode without a name has the descriptor or parked name that keeps its file
//! ([`super::orphans`]).
//!
//! Invariant: an inode that is returned as counted stays in the table until the count is released.

mod generations;
mod inode_numbers;
mod inode_table;
mod intern;
mod lookup_cache;

use std::sync::Arc;

use rustix::io::Errno;

use super::copy_metadata::Copied;
use super::error::Result;
use super::inode::{Inode, Link, Loc};
use super::resolve::{Resolved, WhiteoutKind};
use super::types::{FileKind, Ino, ROOT_INO, Time};
use crate::sys::sync::atomic::{AtomicU64, Ordering};
use generations::Generations;
pub(crate) use inode_numbers::InodeNumbers;
use inode_table::{InodeTable, Interned};
use lookup_cache::LookupCache;
pub(crate) use lookup_cache::{CacheCounters, Cached};

/// A directory and a name in it.
#[derive(Clone, Copy)]
pub(crate) struct NameIn<'a> {
    pub parent: &'a Arc<Inode>,
    pub name: &'a [u8],
}

/// Inodes, their numbers and generations, and cached answers for names.
pub(crate) struct Names {
    table: InodeTable,
    lookup_cache: Arc<LookupCache>,
    numbers: InodeNumbers,
    generations: Generations,
    /// The next lookup cache key for a directory without lowers.
    next_key: AtomicU64,
}

impl std::fmt::Debug for Names {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Names")
            .field("inodes", &self.inodes())
            .finish_non_exhaustive()
    }
}

impl Names {
    /// Creates the names of a union without inodes. `devices`: the layers' file systems, in the
    /// order of the layers. `capacity`: the maximum number of cached answers.
    pub fn new(devices: impl IntoIterator<Item = u64>, capacity: usize) -> Self {
        Self {
            table: InodeTable::default(),
            lookup_cache: Arc::new(LookupCache::new(capacity)),
            numbers: InodeNumbers::new(devices),
            generations: Generations::default(),
            // Directories with lowers use inode numbers as keys, which are smaller.
            next_key: AtomicU64::new(1 << 63),
        }
    }

    /// Returns the inode with a number.
    ///
    /// # Errors
    /// ESTALE when there is none.
    pub fn inode(&self, ino: Ino) -> Result<Arc<Inode>> {
        self.table.get(ino).ok_or_else(|| Errno::STALE.into())
    }

    /// Returns the directory with a number.
    ///
    /// # Errors
    /// ENOTDIR for another kind of file, ESTALE when there is none.
    pub fn directory(&self, ino: Ino) -> Result<Arc<Inode>> {
        let inode = self.inode(ino)?;
        match inode.dir {
            Some(_) => Ok(inode),
            None => Err(Errno::NOTDIR.into()),
        }
    }

    /// Returns the regular file with a number.
    ///
    /// # Errors
    /// EISDIR for a directory, EINVAL for another kind of file, ESTALE when there is none.
    pub fn regular(&self, ino: Ino) -> Result<Arc<Inode>> {
        let inode = self.inode(ino)?;
        match inode.kind {
            FileKind::Regular => Ok(inode),
            FileKind::Directory => Err(Errno::ISDIR.into()),
            _ => Err(Errno::INVAL.into()),
        }
    }

    /// Returns the inode with a number, if it is in the table.
    pub fn get(&self, ino: Ino) -> Option<Arc<Inode>> {
        self.table.get(ino)
    }

    /// Returns at most `most` regular files of the table.
    pub fn some_files(&self, most: usize) -> Vec<Ino> {
        self.table.some_files(most)
    }

    /// Returns the number of inodes in the table.
    pub fn inodes(&self) -> usize {
        self.table.len()
    }

    /// Counts the inode with a number, if it is in the table.
    pub fn count(&self, ino: Ino) -> Option<Arc<Inode>> {
        self.table.count(ino)
    }

    /// Counts a further reference to an inode.
    pub fn pin(&self, inode: &Arc<Inode>) {
        self.table.pin(inode);
    }

    /// Releases one count of an inode.
    pub fn release(&self, ino: Ino) {
        self.table.release(ino, 1);
    }

    /// Releases the parents of links that were removed.
    pub fn unlink(&self, links: impl IntoIterator<Item = Link>) {
        self.table.unlink(links);
    }

    /// Releases `count` lookups of the kernel. After most inodes have left, gives memory back.
    pub fn forget(&self, ino: Ino, count: u64) {
        // The kernel does not count the root.
        if ino != ROOT_INO {
            self.table.release(ino, count);
            if self.table.has_emptied() {
                self.lookup_cache.shrink();
                crate::sys::memory::give_back();
            }
        }
    }

    /// Removes all inodes.
    pub fn clear(&self) {
        self.table.clear();
    }

    /// Returns the numbers of files.
    pub fn numbers(&self) -> &InodeNumbers {
        &self.numbers
    }

    /// Notes that a file has been created in the upper, where its number may have been used before.
    pub fn created(&self, ino: Ino, birth: Option<Time>) {
        self.generations.created(ino, birth);
    }

    /// Returns a lookup cache key that no directory of this mount has had.
    fn fresh_key(&self) -> u64 {
        self.next_key.fetch_add(1, Ordering::Relaxed)
    }

    /// Returns the cached answer for a name and counts a hit or a miss.
    pub fn answer(&self, parent: &Inode, name: &[u8]) -> Option<Cached> {
        self.lookup_cache.get(parent.key, name)
    }

    /// As [`Self::answer`], without counting.
    pub fn peek(&self, parent: &Inode, name: &[u8]) -> Option<Cached> {
        self.lookup_cache.peek(parent.key, name)
    }

    /// Caches what a name resolved to, replacing any earlier answer.
    pub fn remember(&self, parent: &Inode, name: &[u8], resolved: &Arc<Resolved>) {
        if resolved.is_cacheable() {
            self.lookup_cache
                .put(parent.key, name, Cached::Positive(Arc::clone(resolved)));
        } else {
            self.lookup_cache.remove(parent.key, name);
        }
    }

    /// Caches that a name is absent, hidden by a whiteout or not.
    pub fn remember_absent(&self, parent: &Inode, name: &[u8], whiteout: Option<WhiteoutKind>) {
        self.lookup_cache
            .put(parent.key, name, Cached::Negative(whiteout));
    }

    /// Caches what a name is now, or removes the earlier answer when that cannot be cached.
    fn replace_answer(&self, parent: &Inode, name: &[u8], answer: Option<Cached>) {
        match answer {
            Some(answer) => self.lookup_cache.put(parent.key, name, answer),
            None => self.lookup_cache.remove(parent.key, name),
        }
    }

    /// Updates the cached answer for a name whose file was just copied up, and keeps its number. The
    /// caller has `loc` of `inode` locked, still as before the copy-up.
    pub fn remember_copy(&self, link: &Link, inode: &Inode, loc: &Loc, copy: &Copied) {
        if !copy.marked && inode.dir.is_none() {
            self.numbers.keep(&copy.stat, inode.ino);
        }
        let answer = Cached::copied(inode, loc, copy);
        self.replace_answer(&link.parent, &link.name, answer);
    }

    /// Updates the cached answers after a file was renamed from `old` to `new`, where `left` hides
    /// the old name.
    pub fn remember_move(&self, old: NameIn<'_>, new: NameIn<'_>, left: Option<WhiteoutKind>) {
        let known = self.peek(old.parent, old.name);
        self.remember_absent(old.parent, old.name, left);
        let moved = known.and_then(Cached::moved);
        self.replace_answer(new.parent, new.name, moved);
    }

    /// Removes the cached answer for a name.
    pub fn forget_answer(&self, parent: &Inode, name: &[u8]) {
        self.lookup_cache.remove(parent.key, name);
    }

    /// Returns a function that removes all cached answers. It may be called after the union is
    /// dropped.
    pub fn clear_answers(&self) -> impl Fn() + Send + Sync + use<> {
        let cache = Arc::clone(&self.lookup_cache);
        move || cache.clear()
    }

    /// Returns the number of cached answers.
    pub fn answers_held(&self) -> usize {
        self.lookup_cache.len()
    }

    /// Returns how many lookups the cache has answered.
    pub fn cache_counters(&self) -> CacheCounters {
        self.lookup_cache.counters()
    }
}
