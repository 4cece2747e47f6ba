//! Finds or creates the one inode of a file, from a name and its resolution.

use std::sync::Arc;

use smallvec::smallvec;

use super::super::inode::{Dir, DirMarks, Identity, Inode, Link, Loc, Lower, UpperState};
use super::super::resolve::Resolved;
use super::super::types::{FileKind, Ino};
use super::{Interned, NameIn, Names};
use crate::layer::at::Stat;
use crate::layer::markers::Protection;
use crate::lowers::FileId;

impl Names {
    /// Adds the root, whose count is never dropped: the kernel does not look it up.
    pub fn add_root(&self, root: Inode) {
        if let Interned::Conflict = self.table.intern(root.ino, |_| false, || root) {
            unreachable!("the table is new");
        }
    }

    /// Returns the inode of a resolved name, counted; all names of a file lead to the same inode.
    pub fn intern(&self, at: NameIn<'_>, resolved: &Resolved) -> Arc<Inode> {
        let mut ino = resolved.ino;
        loop {
            let matches = |inode: &Inode| is_same(inode, at, resolved);
            match self
                .table
                .intern(ino, matches, || self.make(ino, at, resolved))
            {
                Interned::Created(inode) => return inode,
                Interned::Existing(inode) => {
                    self.add_link(&inode, at, resolved);
                    return inode;
                }
                // The number belongs to another file: a removed one that has not been forgotten, or
                // the layers are hostile or show one file twice. This file gets a number of its
                // own.
                Interned::Conflict => {
                    ino = self.numbers.alias_beside(ino, at.parent.ino, at.name);
                }
            }
        }
    }

    fn make(&self, ino: Ino, at: NameIn<'_>, resolved: &Resolved) -> Inode {
        let upper = resolved.upper.as_ref();
        let metacopy = upper.filter(|u| u.metacopy).and(resolved.file.clone());
        let link = Link {
            parent: Arc::clone(at.parent),
            name: resolved
                .shared_name(at.name)
                .unwrap_or_else(|| at.name.into()),
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
        let marks = upper.map_or(DirMarks::default(), |u| DirMarks {
            impure: u.impure,
            xwhiteouts: u.xwhiteouts,
            wh_files: u.wh_files,
        });
        let dir = is_dir.then(|| Dir::new(resolved.dirs.clone(), marks));
        let key = if resolved.dirs.is_empty() {
            self.fresh_key()
        } else {
            ino
        };
        // Only the upper's file system reuses numbers. Numbers of lower files are never reused.
        let generation =
            match upper.filter(|u| self.numbers.own_number(u.stat.dev, u.stat.ino) == ino) {
                Some(upper) => self.generations.of(ino, upper.stat.btime),
                None => 0,
            };
        let identity = Identity {
            ino,
            kind: resolved.kind,
            generation,
            key,
        };
        let inode = Inode::new(identity, loc, dir);
        if let Some(protection) = upper.and_then(|upper| upper.protection) {
            inode.protection.set(protection);
        }
        inode
    }

    fn add_link(&self, inode: &Arc<Inode>, at: NameIn<'_>, resolved: &Resolved) {
        if inode.loc.read().link(at.parent, at.name).is_some() {
            return;
        }
        self.table.pin(at.parent);
        let link = Link {
            parent: Arc::clone(at.parent),
            name: Arc::from(at.name),
            in_upper: resolved.upper.as_ref().is_some_and(|u| u.named),
            in_lower: resolved.upper.as_ref().and_then(|u| u.in_lower),
        };
        let mut loc = inode.loc.write();
        if loc.link(at.parent, at.name).is_none() {
            if link.in_upper {
                loc.is_named_again();
            }
            loc.links.push(link);
            return;
        }
        drop(loc);
        self.table.release(at.parent.ino, 1);
    }

    /// Adds a name that was just created for an inode in the upper. `in_lower`: see
    /// [`Link::in_lower`].
    pub fn linked(&self, inode: &Arc<Inode>, at: NameIn<'_>, in_lower: Option<bool>) {
        self.table.pin(at.parent);
        let mut loc = inode.loc.write();
        // Files with several names are not cached: see `Resolved::is_cacheable`.
        self.forget_answer(at.parent, at.name);
        for link in &loc.links {
            self.forget_answer(&link.parent, &link.name);
        }
        loc.links.push(Link {
            parent: Arc::clone(at.parent),
            name: Arc::from(at.name),
            in_upper: true,
            in_lower,
        });
        if let Some(nlink) = loc.rare_opt().and_then(|rare| rare.nlink.as_mut()) {
            nlink.union = nlink.union.saturating_add(1);
        }
        loc.is_named_again();
    }

    /// Adds a new regular file of the upper that has no name, counted. `None` if another thread
    /// took its number.
    pub fn add_unnamed(&self, stat: &Stat, loc: Loc) -> Option<Arc<Inode>> {
        let own = self.numbers.number(stat);
        // The number may belong to a removed file that has not been forgotten.
        let ino = match self.table.get(own) {
            Some(_) => self.numbers.fresh(),
            None => own,
        };
        self.generations.created(ino, stat.btime);
        let identity = Identity {
            ino,
            kind: FileKind::Regular,
            generation: self.generations.of(ino, stat.btime),
            key: self.fresh_key(),
        };
        let make = || {
            let inode = Inode::new(identity, loc, None);
            inode.protection.set(Protection::NONE);
            inode
        };
        match self.table.intern(ino, |_| false, make) {
            Interned::Created(inode) => Some(inode),
            Interned::Existing(_) | Interned::Conflict => None,
        }
    }

    /// Returns the inode of a plain file of the lowers, counted. An inode that already has this
    /// name is the right one, even if it has been copied up since.
    pub fn intern_plain(
        &self,
        parent: &Arc<Inode>,
        name: &Arc<[u8]>,
        id: FileId,
        stat: &Stat,
    ) -> Arc<Inode> {
        let make = |ino| {
            let link = Link {
                parent: Arc::clone(parent),
                name: Arc::clone(name),
                in_upper: false,
                in_lower: None,
            };
            let loc = Loc {
                links: smallvec![link],
                lower: Some(Lower::Id(id)),
                ..Loc::default()
            };
            let identity = Identity {
                ino,
                kind: stat.kind,
                generation: 0,
                key: 0,
            };
            Inode::new(identity, loc, None)
        };
        let is_it = |inode: &Inode| is_linked(inode, parent, name, stat.kind);
        let mut ino = self.numbers.number(stat);
        loop {
            match self.table.intern(ino, is_it, || make(ino)) {
                Interned::Created(inode) | Interned::Existing(inode) => return inode,
                // The number is taken by another file: see `intern`.
                Interned::Conflict => {
                    ino = self.numbers.alias_beside(ino, parent.ino, name);
                }
            }
        }
    }

    /// Returns the inode of a plain file of the lowers with these attributes, counted, if it is in
    /// the table and has this name.
    pub fn find_plain(&self, parent: &Inode, name: &[u8], stat: &Stat) -> Option<Arc<Inode>> {
        let inode = self.table.count(self.numbers.number(stat))?;
        if is_linked(&inode, parent, name, stat.kind) {
            return Some(inode);
        }
        self.table.release(inode.ino, 1);
        None
    }
}

/// Whether the inode is a file of this kind, no directory, and has this name.
fn is_linked(inode: &Inode, parent: &Inode, name: &[u8], kind: FileKind) -> bool {
    inode.kind == kind && inode.dir.is_none() && inode.has_link(parent, name)
}

/// Whether an inode in the table is the file that a name resolved to.
fn is_same(inode: &Inode, at: NameIn<'_>, resolved: &Resolved) -> bool {
    if inode.kind != resolved.kind {
        return false;
    }
    let loc = inode.loc.read();
    let linked = loc.link(at.parent, at.name).is_some();
    if inode.dir.is_some() {
        return linked;
    }
    let is_link = loc.lower.as_ref().is_some_and(Lower::is_link);
    match (&loc.upper, &resolved.upper) {
        // The names are not compared: a file whose known name was removed may have another name.
        (Some(mine), Some(found)) => mine.id == (found.stat.dev, found.stat.ino),
        // One name of a hard link was copied up, and another is looked up only now. Without an
        // index the two are one file only as long as the union has both in memory.
        (Some(_), None) => is_link && (linked || loc.index().is_some()),
        (None, Some(found)) => is_link && found.index.is_some(),
        (None, None) => linked || is_link,
    }
}
