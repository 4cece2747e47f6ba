//! Rename: lock the directories, check, prepare, call renameat2(2) once, update the state in
//! memory.
//!
//! Preparation is harmless if the rename never follows: copy-up, the `redirect` marker of a merged
//! directory or a metacopy (which names what the lowers have in either case), `opaque` on a directory
//! without lowers.

use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::fs::RenameFlags as Flags;
use rustix::io::Errno;

use super::copy_up::mark_impure;
use super::create::check_new_name;
use super::error::Result;
use super::inode::{Inode, Link, Loc};
use super::link::{counts_links, ensure_alias, in_lower_after, prefer_link, store_nlink, unlinked};
use super::lock_order::RwLockWriteGuard;
use super::lookup::Hint;
use super::names::Names;
use super::protect::{check_changeable, check_extensible};
use super::redirect::{self, redirect_dir, redirect_metacopy};
use super::remove::{NameLocks, is_bare, note_whiteout};
use super::rename_upper::{RenameSide, RenameStep, rename_in_upper};
use super::resolve::WhiteoutKind;
use super::stack::Stack;
use super::types::{Ino, RenameFlags};
use super::upper::{Upper, WhiteoutForm};
use super::wh_files::allow_wh_name;
use super::{Union, listings};
use crate::layer::at::{At, is_valid_name};

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
        let upper = self.stack.writable()?;
        check_new_name(&self.stack, upper, new_name)?;
        let from = self.names.directory(parent)?;
        let to = self.names.directory(new_parent)?;
        loop {
            let Some(counted) = self.lookups().count_in(&from, name, Hint::Linked)? else {
                return Err(Errno::NOENT.into());
            };
            let source = &counted.inode;
            let target = self.lookups().count_in(&to, new_name, Hint::Linked)?;
            let target = target.as_ref().map(|counted| &counted.inode);
            if let Some(target) = target
                && Arc::ptr_eq(target, source)
                && !flags.noreplace
            {
                return Ok(()); // two names of one file
            }
            check_changeable(&self.stack, &from)?;
            check_changeable(&self.stack, source)?;
            match target {
                Some(target) => {
                    check_changeable(&self.stack, &to)?;
                    check_changeable(&self.stack, target)?;
                }
                None => check_extensible(&self.stack, &to)?,
            }
            check_kinds(source, target, flags)?;
            check_tree(source, target, &from, &to, flags)?;
            self.check_movable(source)?;
            if let Some(target) = target
                && !flags.exchange
                && !self.looks_empty(target)?
            {
                return Err(Errno::NOTEMPTY.into()); // before anything is copied up
            }
            prefer_link(source, &from, name);
            self.copying().copy_up_metadata(source)?;
            self.copying().copy_up(&from)?;
            self.copying().copy_up(&to)?;
            if let Some(target) = target {
                prefer_link(target, &to, new_name);
                if flags.exchange {
                    self.check_movable(target)?;
                    self.copying().copy_up_metadata(target)?;
                } else if counts_links(target) {
                    self.copying().copy_up_metadata(target)?;
                }
            }
            let mut involved = vec![&from, &to];
            involved.extend(target.filter(|_| !flags.exchange));
            let mut locks = NameLocks::lock(&involved);
            if locks.is_dead(&from) || locks.is_dead(&to) {
                return Err(Errno::NOENT.into());
            }
            let unchanged = source.has_link(&from, name)
                && match target {
                    Some(target) => target.has_link(&to, new_name),
                    None => self.is_absent(&to, new_name)?,
                };
            if !unchanged {
                continue;
            }
            ensure_alias(&self.stack, &self.names, upper, source, &from, name)?;
            if let Some(target) = target {
                ensure_alias(&self.stack, &self.names, upper, target, &to, new_name)?;
            }
            allow_wh_name(&self.stack, &self.names, &to, new_name)?;
            let old = side(&self.stack, &from, name)?;
            let new = side(&self.stack, &to, new_name)?;
            let renamed = match (target, flags.exchange) {
                (Some(target), true) => self.exchange(upper, &old, &new, source, target),
                (target, _) => self.replace(upper, &old, &new, source, target),
            };
            match renamed {
                Err(error) if redirect::is_refused(&error) => {
                    // Without a redirect, metacopies need their data.
                    let both = [Some(source), target.filter(|_| flags.exchange)];
                    let metacopies = || both.iter().flatten().filter(|file| file.is_metacopy());
                    if metacopies().next().is_none() {
                        return Err(error);
                    }
                    drop(locks);
                    for metacopy in metacopies() {
                        self.copying().copy_up(metacopy)?;
                    }
                    continue;
                }
                other => other?,
            }
            if let Some(target) = target.filter(|_| !flags.exchange) {
                locks.kill(target);
            }
            return Ok(());
        }
    }

    fn looks_empty(&self, inode: &Inode) -> Result<bool> {
        let Some(dir) = &inode.dir else {
            return Ok(true);
        };
        let _names = dir.ns.read();
        self.is_empty_dir(inode)
    }

    fn is_absent(&self, parent: &Inode, name: &[u8]) -> Result<bool> {
        match self.lookups().whiteout_at(parent, name) {
            Ok(_) => Ok(true),
            Err(e) if e.errno() == Errno::EXIST.raw_os_error() => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Checks that the inode is not a directory whose lowers would need a redirect that may not be
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
            store_nlink(&self.stack, upper, target)?;
        }
        let whiteout = match target {
            Some(_) => None,
            None => self.lookups().whiteout_at(new.parent, new.name)?,
        };
        prepare_move(&self.stack, &self.names, upper, source, old, new)?;
        let target_in_upper = target.is_some_and(|t| t.has_upper_link(new.parent, new.name));
        if let Some(target) = target
            && target_in_upper
            && target.dir.is_some()
            && upper.form != WhiteoutForm::WhName
        {
            empty_upper_dir(&self.stack, upper, target, new)?;
        }
        let replaced = match target.filter(|_| target_in_upper) {
            Some(target) => Some(target.loc.read().upper.as_ref().ok_or(Errno::NOENT)?.id),
            None => None,
        };
        let leaves_whiteout = self
            .lookups()
            .has_lower_name(source, old.parent, old.name)?;
        let known = |t: &Arc<Inode>| t.loc.read().link(new.parent, new.name)?.in_lower;
        let new_in_lower = target.map_or(in_lower_after(whiteout), known);
        let topology = source.dir.is_some().then(|| self.stack.lock_tree());
        let (mut source_loc, mut target_loc) = match target {
            Some(target) => {
                let (source, target) = lock_both(source, target);
                (source, Some(target))
            }
            None => (source.loc.write(), None),
        };
        // The target's `loc` is locked, so the parked name does not show in its link count.
        let keep = match (target, &target_loc, replaced) {
            (Some(target), Some(loc), Some(_)) => {
                Some(
                    self.orphans
                        .keep(&self.stack, upper, target, loc, new.at())?,
                )
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
            gone.extend(unlinked(upper, target, loc, new.parent, new.name, keep));
        }
        gone.extend(relink(&mut source_loc.links, old, new, new_in_lower));
        drop((source_loc, target_loc, topology));
        self.moved(source, old, new, left);
        self.names.unlink(gone);
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
        self.names.pin(new.parent);
        note_whiteout(old.parent, left);
        self.names.remember_move(old.name_in(), new.name_in(), left);
        listings::remove(old.parent, old.name);
        listings::add(new.parent, new.name, source.kind, source.ino);
    }

    fn exchange(
        &self,
        upper: &Upper,
        old: &RenameSide<'_>,
        new: &RenameSide<'_>,
        source: &Arc<Inode>,
        target: &Arc<Inode>,
    ) -> Result<()> {
        prepare_move(&self.stack, &self.names, upper, source, old, new)?;
        prepare_move(&self.stack, &self.names, upper, target, new, old)?;
        let any_dir = source.dir.is_some() || target.dir.is_some();
        let topology = any_dir.then(|| self.stack.lock_tree());
        let (mut source_loc, mut target_loc) = lock_both(source, target);
        // A program that exchanges names relies on one step. A file system without it answers EINVAL.
        let exchanged = old.at().rename_to(new.at(), Flags::EXCHANGE);
        exchanged.map_err(|error| match error {
            Errno::NOSYS => Errno::INVAL,
            other => other,
        })?;
        let gone = [
            relink(&mut source_loc.links, old, new, None),
            relink(&mut target_loc.links, new, old, None),
        ];
        drop((source_loc, target_loc, topology));
        self.names.pin(new.parent);
        self.names.pin(old.parent);
        for side in [old, new] {
            self.names.forget_answer(side.parent, side.name);
            listings::remove(side.parent, side.name);
        }
        listings::add(new.parent, new.name, source.kind, source.ino);
        listings::add(old.parent, old.name, target.kind, target.ino);
        self.names.unlink(gone.into_iter().flatten());
        Ok(())
    }
}

fn side<'a>(stack: &Stack, parent: &'a Arc<Inode>, name: &'a [u8]) -> Result<RenameSide<'a>> {
    let dir = stack.upper_dir(parent)?;
    Ok(RenameSide { parent, name, dir })
}

/// Checks that a directory neither moves into itself nor replaces an ancestor.
///
/// # Errors
/// EINVAL, ENOTEMPTY.
fn check_tree(
    source: &Arc<Inode>,
    target: Option<&Arc<Inode>>,
    from: &Arc<Inode>,
    to: &Arc<Inode>,
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

/// Writes the markers that the inode needs under its new name.
fn prepare_move(
    stack: &Stack,
    names: &Names,
    upper: &Upper,
    inode: &Arc<Inode>,
    old: &RenameSide<'_>,
    new: &RenameSide<'_>,
) -> Result<()> {
    let lowers = inode.dir.as_ref().map_or(0, |dir| dir.lowers.len());
    if inode.has_markers() || lowers > 0 {
        mark_impure(stack, names, new.parent)?;
    }
    if inode.is_metacopy() {
        return redirect_metacopy(stack, upper, inode);
    }
    if inode.dir.is_none() {
        return Ok(());
    }
    if lowers > 0 {
        return redirect_dir(stack, upper, inode, old, new);
    }
    let merged_parent = new
        .parent
        .dir
        .as_ref()
        .is_some_and(|dir| !dir.lowers.is_empty());
    if merged_parent {
        stack.with_upper(inode, |at| Ok(upper.mark_opaque(at)?))?;
    }
    Ok(())
}

/// Makes the upper side of an empty directory physically empty, so that a rename can replace
/// it: an empty opaque directory takes its place (`ovl_clear_empty`).
fn empty_upper_dir(
    stack: &Stack,
    upper: &Upper,
    target: &Inode,
    new: &RenameSide<'_>,
) -> Result<()> {
    let dir = stack.upper_dir(target)?;
    if is_bare(&dir)? {
        return Ok(());
    }
    let stat = At::fd(dir.as_fd()).recorded_as(upper.records()).stat()?;
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

/// Moves a link from one side to the other. Returns the link as it was.
fn relink(
    links: &mut [Link],
    old: &RenameSide<'_>,
    new: &RenameSide<'_>,
    in_lower: Option<bool>,
) -> Option<Link> {
    let is_old = |l: &&mut Link| l.parent.ino == old.parent.ino && *l.name == *old.name;
    let link = links.iter_mut().find(is_old)?;
    let moved = Link {
        parent: Arc::clone(new.parent),
        name: Arc::from(new.name),
        in_upper: true,
        in_lower,
    };
    Some(std::mem::replace(link, moved))
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

/// Whether `inode` is `ancestor` or is below it.
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
