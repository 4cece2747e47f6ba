//! Lookup: from a name to a counted inode, through the lookup cache and the layers. Also access to
//! the upper side of an inode, which all other operations use.
//!
//! Invariant: an inode that is returned is counted, so it stays in the table until it is released.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::io::Errno;
use smallvec::smallvec;

use super::Union;
use super::error::Result;
use super::inode::{Dir, Inode, Link, Loc, Lower, UpperState};
use super::inode_table::Interned;
use super::lookup_cache::Cached;
use super::orphans::Held;
use super::readdir::ASKED_ENOUGH;
use super::resolve::{Answer, Resolved, WhiteoutKind};
use super::types::{Attr, FileKind, Ino, ROOT_INO};
use crate::layer::at::{At, Stat, is_valid_name};

/// An entry whose lookup is counted for the kernel. Dropping it releases the count;
/// [`EntryRef::surrender`] passes the count to the kernel, which gives it back through
/// [`Union::forget`].
#[derive(Debug)]
pub struct EntryRef<'u> {
    union: &'u Union,
    attr: Attr,
    counted: bool,
}

impl<'u> EntryRef<'u> {
    /// Takes over a count that the table already has.
    pub(crate) fn new(union: &'u Union, attr: Attr) -> Self {
        Self {
            union,
            attr,
            counted: true,
        }
    }

    /// Returns the attributes of the entry.
    pub fn attr(&self) -> &Attr {
        &self.attr
    }

    /// Returns the generation, which differs between successive files with the same inode number.
    pub fn generation(&self) -> u64 {
        self.attr.generation.into()
    }

    /// Passes the count to the kernel: the lookup stays counted until [`Union::forget`].
    pub fn surrender(mut self) -> Ino {
        self.counted = false;
        self.attr.ino
    }
}

impl Drop for EntryRef<'_> {
    fn drop(&mut self) {
        if self.counted {
            self.union.table.release(self.attr.ino, 1);
        }
    }
}

/// An inode that stays counted, and so in the table, as long as this value exists.
pub(crate) struct CountedInode<'u> {
    union: &'u Union,
    pub inode: Arc<Inode>,
    /// Attributes that were read during the lookup.
    stat: Option<Seen>,
    handed_on: bool,
}

/// Attributes that were read during a lookup.
pub(crate) enum Seen {
    /// Those of the upper file.
    Upper(Stat),
    /// Those in the catalog's record.
    Record(Stat),
}

/// What the caller of a lookup knows about the name.
#[derive(Clone, Copy)]
pub(crate) enum Hint<'a> {
    /// Nothing.
    Nothing,
    /// The kernel has looked it up, so its inode is probably in the table.
    Linked,
    /// What a listing said, valid as long as the names have the same `version`: the upper and the
    /// first `skip` lowers do not have the name.
    Listed {
        skip: usize,
        version: u64,
        /// The catalog's record.
        record: Option<u32>,
        name: &'a Arc<[u8]>,
    },
}

/// An inode, counted, and the attributes read during the lookup.
pub(super) type Found = (Arc<Inode>, Option<Seen>);

impl Drop for CountedInode<'_> {
    fn drop(&mut self) {
        if !self.handed_on {
            self.union.table.release(self.inode.ino, 1);
        }
    }
}

impl Union {
    /// Looks up `name` in the directory `parent`. `Ok(None)`: there is no such name, which the
    /// kernel may cache.
    ///
    /// # Errors
    /// ENOTDIR when `parent` is no directory, ENAMETOOLONG, EINVAL for a name with `/`, ESTALE for
    /// a number that is not in use; else those of the layers' file systems.
    pub fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Option<EntryRef<'_>>> {
        if !is_valid_name(name) {
            return Err(Errno::INVAL.into());
        }
        let parent = self.directory(parent)?;
        let entry = self.lookup_in(&parent, name, Hint::Nothing)?;
        if let (Some(_), Some(dir)) = (&entry, &parent.dir)
            && dir.asked.load(Ordering::Relaxed) < ASKED_ENOUGH
        {
            dir.asked.fetch_add(1, Ordering::Relaxed);
        }
        Ok(entry)
    }

    /// Drops `count` lookups of `ino`.
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

    /// Whether `ino` is in the inode table.
    pub fn is_known(&self, ino: Ino) -> bool {
        self.table.get(ino).is_some()
    }

    /// Looks a name up and counts its inode.
    pub(crate) fn count_in(
        &self,
        parent: &Arc<Inode>,
        name: &[u8],
        hint: Hint<'_>,
    ) -> Result<Option<CountedInode<'_>>> {
        let dir = parent.dir.as_ref().ok_or(Errno::NOTDIR)?;
        let names = dir.ns.read();
        if names.dead {
            return Ok(None);
        }
        let hint = match hint {
            Hint::Listed { version, .. } if version != names.version => Hint::Nothing,
            hint => hint,
        };
        let found = match self.find_record(parent, name, hint)? {
            Some(found) => found,
            None => self.find(parent, name, hint)?,
        };
        Ok(found.map(|(inode, stat)| CountedInode {
            union: self,
            inode,
            stat,
            handed_on: false,
        }))
    }

    /// As [`Self::count_in`], with attributes.
    pub(crate) fn lookup_in(
        &self,
        parent: &Arc<Inode>,
        name: &[u8],
        hint: Hint<'_>,
    ) -> Result<Option<EntryRef<'_>>> {
        let Some(mut counted) = self.count_in(parent, name, hint)? else {
            return Ok(None);
        };
        let known = match &counted.stat {
            Some(Seen::Upper(stat)) => Self::upper_attr(&counted.inode, stat),
            Some(Seen::Record(stat)) => Self::record_attr(&counted.inode, stat),
            None => None,
        };
        let attr = match known {
            Some(attr) => attr,
            None => self.attr_of(&counted.inode)?,
        };
        counted.handed_on = true;
        Ok(Some(EntryRef::new(self, attr)))
    }

    /// Finds a name and counts its inode; the caller holds the parent's name lock. Includes the
    /// attributes of the upper side when they were read from the layer.
    fn find(&self, parent: &Arc<Inode>, name: &[u8], hint: Hint<'_>) -> Result<Option<Found>> {
        let cached = self.lookup_cache.get(parent.key, name);
        if let (None, Hint::Linked) = (&cached, hint)
            && let Some(inode) = self.find_linked(parent, name)
        {
            return Ok(Some((inode, None)));
        }
        let skip = match hint {
            Hint::Listed { skip, .. } => Some(skip),
            Hint::Nothing | Hint::Linked => None,
        };
        let resolved = match cached {
            Some(Cached::Negative(_)) => return Ok(None),
            Some(Cached::Positive(resolved)) => {
                let inode = self.intern(parent, name, &resolved)?;
                return Ok(Some((inode, None)));
            }
            None => match self.resolve(parent, name, skip)? {
                Answer::Absent(whiteout) => {
                    self.lookup_cache
                        .put(parent.key, name, Cached::Negative(whiteout));
                    return Ok(None);
                }
                Answer::Found(resolved) => {
                    self.remember(parent, name, &resolved);
                    resolved
                }
            },
        };
        let inode = self.intern(parent, name, &resolved)?;
        let upper = resolved.upper.as_ref();
        // The directory may have become impure since its markers were read: see `mark_impure`.
        if let Some(dir) = &inode.dir
            && dir.impure.load(Ordering::Acquire)
            && upper.is_some_and(|upper| !upper.impure)
        {
            self.lookup_cache.remove(parent.key, name);
        }
        Ok(Some((inode, upper.map(|upper| Seen::Upper(upper.stat)))))
    }

    /// Caches what a name resolved to, replacing any earlier answer.
    pub(crate) fn remember(&self, parent: &Inode, name: &[u8], resolved: &Arc<Resolved>) {
        if resolved.is_cacheable() {
            self.lookup_cache
                .put(parent.key, name, Cached::Positive(Arc::clone(resolved)))
        } else {
            self.lookup_cache.remove(parent.key, name)
        }
    }

    /// Returns the whiteout that hides `name`, which must be absent; the caller holds the name
    /// lock.
    ///
    /// # Errors
    /// EEXIST when the name exists.
    pub(crate) fn whiteout_at(&self, parent: &Inode, name: &[u8]) -> Result<Option<WhiteoutKind>> {
        if let Some(Cached::Negative(whiteout)) = self.lookup_cache.peek(parent.key, name) {
            return Ok(whiteout);
        }
        match self.resolve(parent, name, None)? {
            Answer::Absent(whiteout) => Ok(whiteout),
            Answer::Found(_) => Err(Errno::EXIST.into()),
        }
    }

    /// Returns the inode of a resolved name, counted; all names of a file lead to the same inode.
    pub(crate) fn intern(
        &self,
        parent: &Arc<Inode>,
        name: &[u8],
        resolved: &Resolved,
    ) -> Result<Arc<Inode>> {
        let mut ino = resolved.ino;
        loop {
            let matches = |inode: &Inode| is_same(inode, parent, name, resolved);
            match self
                .table
                .intern(ino, matches, || self.make(ino, parent, name, resolved))
            {
                Interned::Created(inode) => return Ok(inode),
                Interned::Existing(inode) => {
                    self.add_link(&inode, parent, name, resolved);
                    return Ok(inode);
                }
                // The number belongs to another file: the layers are hostile, or show one file
                // twice. The second file gets a number of its own.
                Interned::Conflict => {
                    let alias = self.inode_numbers.alias(parent.ino, name);
                    if ino == alias {
                        return Err(Errno::STALE.into());
                    }
                    ino = alias;
                }
            }
        }
    }

    fn make(&self, ino: Ino, parent: &Arc<Inode>, name: &[u8], resolved: &Resolved) -> Inode {
        let upper = resolved.upper.as_ref();
        let metacopy = upper.filter(|u| u.metacopy).and(resolved.file.clone());
        let link = Link {
            parent: Arc::clone(parent),
            name: resolved.shared_name(name).unwrap_or_else(|| name.into()),
            in_upper: upper.is_some_and(|u| u.named),
            in_lower: upper.and_then(|u| u.in_lower),
        };
        let mut loc = Loc {
            links: smallvec![link],
            upper: upper.map(|u| {
                Box::new(UpperState {
                    id: (u.stat.dev, u.stat.ino),
                    origin: u.origin,
                    metacopy,
                })
            }),
            lower: resolved.file.clone().map(Lower::File),
            ..Loc::default()
        };
        if let Some(upper) = upper {
            loc.set_index(upper.index.clone(), upper.nlink);
        }
        let is_dir = resolved.kind == FileKind::Directory;
        let marks = upper.map_or((false, false), |u| (u.impure, u.xwhiteouts));
        let dir = is_dir.then(|| Dir::new(resolved.dirs.clone(), marks));
        let key = if resolved.dirs.is_empty() {
            self.fresh_key()
        } else {
            ino
        };
        // Only the upper's file system reuses numbers; those of lower files stay.
        let generation =
            match upper.filter(|u| self.inode_numbers.own_number(u.stat.dev, u.stat.ino) == ino) {
                Some(upper) => self.generations.of(ino, upper.stat.btime),
                None => 0,
            };
        let inode = Inode::new(ino, resolved.kind, (key, generation), loc, dir);
        if let Some(protection) = upper.and_then(|upper| upper.protection) {
            inode.protection.set(protection);
        }
        inode
    }

    /// Returns a lookup cache key that no directory of this mount has had.
    pub(crate) fn fresh_key(&self) -> u64 {
        self.next_key.fetch_add(1, Ordering::Relaxed)
    }

    fn add_link(&self, inode: &Arc<Inode>, parent: &Arc<Inode>, name: &[u8], resolved: &Resolved) {
        let has = |loc: &Loc| {
            loc.links
                .iter()
                .any(|l| l.parent.ino == parent.ino && *l.name == *name)
        };
        if has(&inode.loc.read()) {
            return;
        }
        self.table.pin(parent);
        let link = Link {
            parent: Arc::clone(parent),
            name: Arc::from(name),
            in_upper: resolved.upper.as_ref().is_some_and(|u| u.named),
            in_lower: resolved.upper.as_ref().and_then(|u| u.in_lower),
        };
        let mut loc = inode.loc.write();
        if !has(&loc) {
            if link.in_upper {
                loc.is_named_again();
            }
            loc.links.push(link);
            return;
        }
        drop(loc);
        self.table.release(parent.ino, 1);
    }

    /// Returns a descriptor of the upper side of a directory.
    ///
    /// # Errors
    /// ENOENT when the directory has no upper side; else as [`Self::with_upper`].
    pub(crate) fn upper_dir(&self, inode: &Inode) -> Result<Arc<OwnedFd>> {
        let dir = inode.dir.as_ref().ok_or(Errno::NOTDIR)?;
        if let Some(fd) = self.fds.cached(&dir.upper_fd) {
            return Ok(fd);
        }
        if let Some(fd) = inode.loc.read().orphan().and_then(Held::dir) {
            return Ok(Arc::clone(fd));
        }
        let _topology = self.topology.read();
        self.upper_dir_stable(inode)
    }

    /// As [`Self::upper_dir`]; the caller holds `topology`.
    pub(crate) fn upper_dir_stable(&self, inode: &Inode) -> Result<Arc<OwnedFd>> {
        let upper = self.readable_upper()?;
        // Up to the nearest ancestor with a descriptor, then down again.
        let mut missing: Vec<(Arc<Inode>, Arc<[u8]>)> = Vec::new();
        let mut fd = None;
        let mut link = inode.loc.read().links.first().cloned();
        while let Some(Link { parent, name, .. }) = link {
            missing.push((Arc::clone(&parent), name));
            fd = parent
                .dir
                .as_ref()
                .and_then(|dir| self.fds.cached(&dir.upper_fd));
            if fd.is_some() {
                break;
            }
            link = parent.loc.read().links.first().cloned();
        }
        let is_root = missing.is_empty();
        if is_root && inode.ino != ROOT_INO {
            return Err(Errno::NOENT.into());
        }
        let mut fd: Arc<OwnedFd> = match fd {
            Some(fd) => fd,
            None => Arc::new(At::fd(upper.layer.root.as_fd()).open_dir_path()?),
        };
        // `missing` pairs a parent with the name in it; the topmost parent itself is skipped.
        for i in (0..missing.len()).rev() {
            let child: &Inode = if i == 0 { inode } else { &missing[i - 1].0 };
            let name = &missing[i].1;
            let slot = &child.dir.as_ref().ok_or(Errno::NOTDIR)?.upper_fd;
            let id = child.loc.read().upper.as_ref().ok_or(Errno::NOENT)?.id;
            let open = || -> Result<OwnedFd> {
                let held = At::new(fd.as_fd(), name).hold_dir().map_err(mounted_over)?;
                self.check_upper(FileKind::Directory, id, &At::fd(held.as_fd()).stat()?)?;
                Ok(held)
            };
            fd = self.fds.get(slot, |_| true, open)?;
        }
        if is_root && let Some(dir) = &inode.dir {
            fd = self.fds.get(
                &dir.upper_fd,
                |_| true,
                || At::fd(upper.layer.root.as_fd()).open_dir_path(),
            )?;
        }
        Ok(fd)
    }

    /// Calls `f` with an O_PATH descriptor of the upper file of an inode. It is the file that the
    /// union knows, whatever has its name by now.
    ///
    /// # Errors
    /// ENOENT when the inode has no upper file, ESTALE when another file has its name.
    pub(crate) fn with_upper<T>(
        &self,
        inode: &Inode,
        f: impl FnOnce(At<'_>) -> Result<T>,
    ) -> Result<T> {
        self.at_upper(inode, |at, id| {
            if at.name.is_empty() {
                return f(at);
            }
            let held = at.hold().map_err(mounted_over)?;
            let held = At::fd(held.as_fd());
            self.check_upper(inode.kind, id, &held.stat()?)?;
            f(held)
        })
    }

    /// Returns the attributes of the upper file of an inode.
    ///
    /// # Errors
    /// As [`Self::with_upper`].
    pub(crate) fn upper_stat(&self, inode: &Inode) -> Result<Stat> {
        self.at_upper(inode, |at, id| {
            let stat = at.stat()?;
            if !at.name.is_empty() {
                self.check_upper(inode.kind, id, &stat)?;
            }
            Ok(stat)
        })
    }

    /// Checks that a file found in the upper is the one that the union knows there. The upper's
    /// owner may replace it at any time by a file that only root may access.
    ///
    /// # Errors
    /// ESTALE when it is another file.
    pub(crate) fn check_upper(&self, kind: FileKind, id: (u64, u64), found: &Stat) -> Result<()> {
        let numbered = self.readable_upper()?.layer.keeps_numbers;
        if found.kind == kind && (found.id() == id || !numbered) {
            Ok(())
        } else {
            Err(Errno::STALE.into())
        }
    }

    /// Calls `f` with directory and name of the upper file of an inode, and its identity. The union
    /// does not move the file meanwhile.
    ///
    /// # Errors
    /// ENOENT when the inode has no upper file.
    fn at_upper<T>(
        &self,
        inode: &Inode,
        f: impl FnOnce(At<'_>, (u64, u64)) -> Result<T>,
    ) -> Result<T> {
        if inode.dir.is_some() {
            return f(At::fd(self.upper_dir(inode)?.as_fd()), (0, 0));
        }
        loop {
            let (link, index, id) = {
                let loc = inode.loc.read();
                let id = loc.upper.as_ref().ok_or(Errno::NOENT)?.id;
                if let Some(orphan) = loc.orphan() {
                    return f(orphan.at(), id);
                }
                let link = loc.links.iter().find(|l| l.in_upper).cloned();
                if let (None, Some(parked)) = (&link, loc.parked()) {
                    return f(parked.at(), id);
                }
                (link, loc.index().map(Box::<[u8]>::from), id)
            };
            let Some(link) = link else {
                let name = index.ok_or(Errno::NOENT)?;
                let dir = self.readable_upper()?.index_dir_opt()?;
                return f(At::new(dir.ok_or(Errno::NOENT)?.as_fd(), &name), id);
            };
            let parent = self.upper_dir(&link.parent)?;
            let loc = inode.loc.read();
            let still = loc.orphan().is_none()
                && loc
                    .links
                    .iter()
                    .any(|l| l.in_upper && l.parent.ino == link.parent.ino && l.name == link.name);
            if still {
                return f(At::new(parent.as_fd(), &link.name), id);
            }
        }
    }
}

/// Maps the error for a mount on a directory of the upper. Mounts there are not followed, as in
/// overlayfs: the file that the union knows is out of reach.
fn mounted_over(errno: Errno) -> Errno {
    match errno {
        Errno::XDEV => Errno::STALE,
        other => other,
    }
}

/// Whether an inode in the table is the file that a name resolved to.
fn is_same(inode: &Inode, parent: &Arc<Inode>, name: &[u8], resolved: &Resolved) -> bool {
    if inode.kind != resolved.kind {
        return false;
    }
    let loc = inode.loc.read();
    let linked = loc
        .links
        .iter()
        .any(|l| l.parent.ino == parent.ino && *l.name == *name);
    if inode.dir.is_some() {
        return linked;
    }
    let is_link = loc.lower.as_ref().is_some_and(Lower::is_link);
    match (&loc.upper, &resolved.upper) {
        // The names do not matter: a file whose known name was removed may have another.
        (Some(mine), Some(found)) => mine.id == (found.stat.dev, found.stat.ino),
        // One name of a hard link was copied up, and another is looked up only now. Without an
        // index the two are one file only as long as the union remembers both.
        (Some(_), None) => is_link && (linked || loc.index().is_some()),
        (None, Some(found)) => is_link && found.index.is_some(),
        (None, None) => linked || is_link,
    }
}
