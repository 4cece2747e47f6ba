//! Rename: lock the directories, check, prepare, call renameat2(2) once, update the state in
//! memory.
//!
//! Preparation is harmless if the rename never follows: copy-up, the `redirect` marker of a merged
//! directory (which names its lower directories in either case), `opaque` on a directory without
//! lowers.

use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::fs::RenameFlags as Flags;
use rustix::io::Errno;

use super::Union;
use super::error::Result;
use super::inode::{Inode, Link, Loc};
use super::link::in_lower_after;
use super::lock_order::RwLockWriteGuard;
use super::lookup::Hint;
use super::lookup_cache::Cached;
use super::remove::{NameLocks, has_link, is_bare, link_in_upper};
use super::rename_upper::{RenameSide, RenameStep, rename_in_upper};
use super::resolve::WhiteoutKind;
use super::types::{Ino, RenameFlags};
use super::upper::{Upper, WhiteoutForm};
use crate::layer::at::{At, is_valid_name};
use crate::layer::markers::Marker;

/// The maximum length of a redirect in bytes: that of a path.
const REDIRECT_LIMIT: usize = 4095;

impl Union {
    /// Renames a file or directory.
    ///
    /// # Errors
    /// EINVAL for RENAME_WHITEOUT (as overlayfs) and for a directory into itself; EEXIST with
    /// RENAME_NOREPLACE; ENOENT, ENOTEMPTY, EISDIR, ENOTDIR; EXDEV for a merged directory when
    /// redirects are off; EPERM for a protected file; EROFS without an upper; else those of the
    /// upper's file system.
    pub fn rename(
        &self,
        parent: Ino,
        name: &[u8],
        new_parent: Ino,
        new_name: &[u8],
        flags: RenameFlags,
    ) -> Result<()> {
        if flags.whiteout || (flags.exchange && flags.noreplace) || !is_valid_name(name) {
            return Err(Errno::INVAL.into());
        }
        let upper = self.writable()?;
        self.check_new_name(upper, new_name)?;
        let from = self.directory(parent)?;
        let to = self.directory(new_parent)?;
        loop {
            let Some(counted) = self.count_in(&from, name, Hint::Linked)? else {
                return Err(Errno::NOENT.into());
            };
            let source = &counted.inode;
            let target = self.count_in(&to, new_name, Hint::Linked)?;
            let target = target.as_ref().map(|counted| &counted.inode);
            if let Some(target) = target
                && Arc::ptr_eq(target, source)
                && !flags.noreplace
            {
                return Ok(()); // two names of one file
            }
            self.check_changeable(&from)?;
            self.check_changeable(source)?;
            match target {
                Some(target) => {
                    self.check_changeable(&to)?;
                    self.check_changeable(target)?;
                }
                None => self.check_extensible(&to)?,
            }
            check_kinds(source, target, flags)?;
            self.check_tree(source, target, (&from, &to), flags)?;
            self.check_movable(source)?;
            if let Some(target) = target
                && !flags.exchange
                && !self.looks_empty(target)?
            {
                return Err(Errno::NOTEMPTY.into()); // before anything is copied up
            }
            Self::prefer_link(source, &from, name);
            self.copy_up(source)?;
            self.copy_up(&from)?;
            self.copy_up(&to)?;
            if let Some(target) = target {
                Self::prefer_link(target, &to, new_name);
                if flags.exchange {
                    self.check_movable(target)?;
                    self.copy_up(target)?;
                } else if self.counts_links(target) {
                    self.copy_up(target)?;
                }
            }
            let mut involved = vec![&from, &to];
            involved.extend(target.filter(|_| !flags.exchange));
            let mut locks = NameLocks::lock(&involved);
            if locks.is_dead(&from) || locks.is_dead(&to) {
                return Err(Errno::NOENT.into());
            }
            let unchanged = has_link(source, &from, name)
                && match target {
                    Some(target) => has_link(target, &to, new_name),
                    None => self.is_absent(&to, new_name)?,
                };
            if !unchanged {
                continue;
            }
            self.ensure_alias(upper, source, &from, name)?;
            if let Some(target) = target {
                self.ensure_alias(upper, target, &to, new_name)?;
            }
            let old = self.side(&from, name)?;
            let new = self.side(&to, new_name)?;
            match (target, flags.exchange) {
                (Some(target), true) => self.exchange(upper, &old, &new, source, target)?,
                (target, _) => self.replace(upper, &old, &new, source, target)?,
            }
            if let Some(target) = target.filter(|_| !flags.exchange) {
                locks.kill(target);
            }
            return Ok(());
        }
    }

    fn side<'a>(&self, parent: &'a Arc<Inode>, name: &'a [u8]) -> Result<RenameSide<'a>> {
        let dir = self.upper_dir(parent)?;
        Ok(RenameSide { parent, name, dir })
    }

    fn looks_empty(&self, inode: &Inode) -> Result<bool> {
        let Some(dir) = &inode.dir else {
            return Ok(true);
        };
        let _names = dir.ns.read();
        self.is_empty_dir(inode)
    }

    fn is_absent(&self, parent: &Inode, name: &[u8]) -> Result<bool> {
        match self.whiteout_at(parent, name) {
            Ok(_) => Ok(true),
            Err(e) if e.errno() == Errno::EXIST.raw_os_error() => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Checks that the inode is no directory whose lowers would need a redirect that may not be
    /// written.
    ///
    /// # Errors
    /// EXDEV.
    fn check_movable(&self, inode: &Inode) -> Result<()> {
        match &inode.dir {
            Some(dir) if !dir.lowers.is_empty() && !self.redirect_dir => Err(Errno::XDEV.into()),
            _ => Ok(()),
        }
    }

    /// Checks that a directory neither moves into itself nor replaces an ancestor.
    ///
    /// # Errors
    /// EINVAL, ENOTEMPTY.
    fn check_tree(
        &self,
        source: &Arc<Inode>,
        target: Option<&Arc<Inode>>,
        (from, to): (&Arc<Inode>, &Arc<Inode>),
        flags: RenameFlags,
    ) -> Result<()> {
        if source.dir.is_some() && is_below(to, source) {
            return Err(Errno::INVAL.into());
        }
        match target {
            Some(target) if target.dir.is_some() && is_below(from, target) => {
                if flags.exchange {
                    Err(Errno::INVAL.into())
                } else {
                    Err(Errno::NOTEMPTY.into())
                }
            }
            _ => Ok(()),
        }
    }

    fn replace(
        &self,
        upper: &Upper,
        old: &RenameSide<'_>,
        new: &RenameSide<'_>,
        source: &Arc<Inode>,
        target: Option<&Arc<Inode>>,
    ) -> Result<()> {
        if let Some(target) = target {
            if target.dir.is_some() && !self.is_empty_dir(target)? {
                return Err(Errno::NOTEMPTY.into());
            }
            self.store_nlink(upper, target)?;
        }
        let whiteout = match target {
            Some(_) => None,
            None => self.whiteout_at(new.parent, new.name)?,
        };
        self.prepare_move(upper, source, old, new)?;
        let target_in_upper = target.is_some_and(|t| link_in_upper(t, new.parent, new.name));
        if let Some(target) = target
            && target_in_upper
            && target.dir.is_some()
            && upper.form != WhiteoutForm::WhName
        {
            self.bare(upper, target, new)?;
        }
        let replaced = match target.filter(|_| target_in_upper) {
            Some(target) => Some(target.loc.read().upper.as_ref().ok_or(Errno::NOENT)?.id),
            None => None,
        };
        let leaves_whiteout = self.has_lower_name(source, old.parent, old.name)?;
        let known = |t: &Arc<Inode>| t.loc.read().link(new.parent, new.name)?.in_lower;
        let new_in_lower = target.map_or(in_lower_after(whiteout), known);
        let topology = source.dir.is_some().then(|| self.topology.write());
        let (mut source_loc, mut target_loc) = match target {
            Some(target) => {
                let (source, target) = lock_both(source, target);
                (source, Some(target))
            }
            None => (source.loc.write(), None),
        };
        // The target's `loc` is locked, so the parked name does not show in its link count.
        let keep = match (target, &target_loc, replaced) {
            (Some(target), Some(loc), Some(id)) => {
                Some(self.keep(upper, (target, loc), new.at(), id)?)
            }
            _ => None,
        };
        let is_dir = source.dir.is_some();
        let step = RenameStep {
            is_dir,
            replaces: replaced,
            leaves_whiteout,
        };
        let left = rename_in_upper(upper, old, new, step, whiteout)?;
        let mut gone = Vec::new();
        if let (Some(target), Some(loc)) = (target, &mut target_loc) {
            gone.extend(self.unlinked((target, loc), new.parent, new.name, keep));
        }
        relink(&mut source_loc.links, (old, new), new_in_lower, &mut gone);
        drop((source_loc, target_loc, topology));
        self.moved(source, old, new, left);
        self.table.unlink(gone);
        Ok(())
    }

    /// Updates the state in memory after a rename: caches, listings, parents.
    fn moved(
        &self,
        source: &Arc<Inode>,
        old: &RenameSide<'_>,
        new: &RenameSide<'_>,
        left: Option<WhiteoutKind>,
    ) {
        self.table.pin(new.parent);
        self.note_whiteout(old.parent, left);
        let known = self.lookup_cache.peek(old.parent.key, old.name);
        self.lookup_cache
            .put(old.parent.key, old.name, Cached::Negative(left));
        match known.and_then(Cached::moved) {
            Some(answer) => self.lookup_cache.put(new.parent.key, new.name, answer),
            None => self.lookup_cache.remove(new.parent.key, new.name),
        }
        Self::listing_remove(old.parent, old.name);
        Self::listing_add(new.parent, new.name, source.kind, source.ino);
    }

    fn exchange(
        &self,
        upper: &Upper,
        old: &RenameSide<'_>,
        new: &RenameSide<'_>,
        source: &Arc<Inode>,
        target: &Arc<Inode>,
    ) -> Result<()> {
        self.prepare_move(upper, source, old, new)?;
        self.prepare_move(upper, target, new, old)?;
        let any_dir = source.dir.is_some() || target.dir.is_some();
        let topology = any_dir.then(|| self.topology.write());
        let (mut source_loc, mut target_loc) = lock_both(source, target);
        old.at().rename_to(new.at(), Flags::EXCHANGE)?;
        let mut gone = Vec::new();
        relink(&mut source_loc.links, (old, new), None, &mut gone);
        relink(&mut target_loc.links, (new, old), None, &mut gone);
        drop((source_loc, target_loc, topology));
        self.table.pin(new.parent);
        self.table.pin(old.parent);
        for side in [old, new] {
            self.lookup_cache.remove(side.parent.key, side.name);
            Self::listing_remove(side.parent, side.name);
        }
        Self::listing_add(new.parent, new.name, source.kind, source.ino);
        Self::listing_add(old.parent, old.name, target.kind, target.ino);
        self.table.unlink(gone);
        Ok(())
    }

    /// Writes the markers that the inode needs under its new name.
    fn prepare_move(
        &self,
        upper: &Upper,
        inode: &Arc<Inode>,
        old: &RenameSide<'_>,
        new: &RenameSide<'_>,
    ) -> Result<()> {
        let origin = inode.loc.read().upper.as_ref().is_some_and(|u| u.origin);
        let lowers = inode.dir.as_ref().map_or(0, |dir| dir.lowers.len());
        if origin || lowers > 0 {
            self.mark_impure(new.parent)?;
        }
        if inode.dir.is_none() {
            return Ok(());
        }
        if lowers > 0 {
            return self.set_redirect(upper, inode, old, Arc::ptr_eq(old.parent, new.parent));
        }
        let merged_parent = new
            .parent
            .dir
            .as_ref()
            .is_some_and(|dir| !dir.lowers.is_empty());
        if merged_parent {
            self.with_upper(inode, |at| Ok(upper.mark_opaque(at)?))?;
        }
        Ok(())
    }

    /// Writes the `redirect` marker: a name while the directory stays in its parent, else an
    /// absolute path (fs/overlayfs/dir.c, `ovl_set_redirect`).
    fn set_redirect(
        &self,
        upper: &Upper,
        inode: &Arc<Inode>,
        old: &RenameSide<'_>,
        same_dir: bool,
    ) -> Result<()> {
        let current = self.redirect_of(upper, inode)?;
        if let Some(current) = &current
            && (same_dir || current.starts_with(b"/"))
        {
            return Ok(());
        }
        let own = current.unwrap_or_else(|| old.name.to_vec());
        let redirect = if same_dir {
            own
        } else {
            self.absolute_redirect(upper, old.parent, own)?
        };
        if redirect.len() > REDIRECT_LIMIT {
            return Err(Errno::XDEV.into());
        }
        let set = self.with_upper(inode, |at| {
            Ok(upper.markers.set(at, Marker::Redirect, &redirect))
        });
        // No room for the xattr. EXDEV makes mv(1) copy, as with overlayfs.
        set?.map_err(|_| Errno::XDEV.into())
    }

    fn redirect_of(&self, upper: &Upper, inode: &Arc<Inode>) -> Result<Option<Vec<u8>>> {
        self.with_upper(inode, |at| Ok(upper.layer.markers(at)?.redirect))
    }

    /// Returns the path of `name` in the lowers of `parent`, following redirects.
    fn absolute_redirect(
        &self,
        upper: &Upper,
        parent: &Arc<Inode>,
        name: Vec<u8>,
    ) -> Result<Vec<u8>> {
        let mut parts = vec![name];
        let mut at = Arc::clone(parent);
        loop {
            let link = at.loc.read().links.first().cloned();
            let Some(link) = link else { break };
            match self.redirect_of(upper, &at)? {
                Some(redirect) if redirect.starts_with(b"/") => {
                    parts.push(redirect[1..].to_vec());
                    break;
                }
                Some(redirect) => parts.push(redirect),
                None => parts.push(link.name.to_vec()),
            }
            at = link.parent;
        }
        parts.push(Vec::new()); // the leading slash
        parts.reverse();
        Ok(parts.join(&b'/'))
    }

    /// Makes the upper side of an empty directory physically empty, so that a rename can replace
    /// it: an empty opaque directory takes its place (`ovl_clear_empty`).
    fn bare(&self, upper: &Upper, target: &Arc<Inode>, new: &RenameSide<'_>) -> Result<()> {
        let dir = self.upper_dir(target)?;
        if is_bare(&dir)? {
            return Ok(());
        }
        let stat = At::fd(dir.as_fd()).stat()?;
        let staged = upper.stage(|at| at.mkdir(0o700))?;
        upper.mark_opaque(staged.at())?;
        staged.at().chown(Some(stat.uid), Some(stat.gid))?;
        staged.at().chmod(stat.perm)?;
        let bare = staged.at().stat()?.id();
        staged.replace(new.at(), Some(stat.id()))?;
        if let Some(upper) = &mut target.loc.write().upper {
            upper.id = bare;
        }
        if let Some(dir) = &target.dir {
            dir.upper_fd.clear();
        }
        Ok(())
    }
}

/// Moves a link from one side to the other.
fn relink(
    links: &mut [Link],
    (old, new): (&RenameSide<'_>, &RenameSide<'_>),
    in_lower: Option<bool>,
    gone: &mut Vec<Link>,
) {
    let is_old = |l: &&mut Link| l.parent.ino == old.parent.ino && *l.name == *old.name;
    if let Some(link) = links.iter_mut().find(is_old) {
        let (parent, name) = (Arc::clone(new.parent), Arc::from(new.name));
        gone.push(std::mem::replace(
            link,
            Link {
                parent,
                name,
                in_upper: true,
                in_lower,
            },
        ));
    }
}

/// Locks two inodes in the order of their addresses.
fn lock_both<'a>(
    a: &'a Arc<Inode>,
    b: &'a Arc<Inode>,
) -> (RwLockWriteGuard<'a, Loc>, RwLockWriteGuard<'a, Loc>) {
    if Arc::as_ptr(a) < Arc::as_ptr(b) {
        let first = a.loc.write();
        (first, b.loc.write())
    } else {
        let second = b.loc.write();
        (a.loc.write(), second)
    }
}

/// Whether `inode` is `ancestor` or lies in it.
fn is_below(inode: &Arc<Inode>, ancestor: &Arc<Inode>) -> bool {
    let mut at = Some(Arc::clone(inode));
    while let Some(inode) = at {
        if Arc::ptr_eq(&inode, ancestor) {
            return true;
        }
        at = inode
            .loc
            .read()
            .links
            .first()
            .map(|l| Arc::clone(&l.parent));
    }
    false
}

fn check_kinds(source: &Inode, target: Option<&Arc<Inode>>, flags: RenameFlags) -> Result<()> {
    let Some(target) = target else {
        return if flags.exchange {
            Err(Errno::NOENT.into())
        } else {
            Ok(())
        };
    };
    if flags.noreplace {
        return Err(Errno::EXIST.into());
    }
    match (source.dir.is_some(), target.dir.is_some()) {
        _ if flags.exchange => Ok(()),
        (false, true) => Err(Errno::ISDIR.into()),
        (true, false) => Err(Errno::NOTDIR.into()),
        _ => Ok(()),
    }
}
