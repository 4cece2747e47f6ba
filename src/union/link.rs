//! Hard links, and the link counts that link, unlink and rename maintain.
//!
//! A file that had several names in its lower layer has one inode number and one link count in the
//! union, whichever of its names were copied up. The count is kept relative to that of the upper or
//! lower file (marker `nlink`), as in kernel overlayfs.

use std::os::fd::AsFd;

use rustix::fs::RenameFlags;
use rustix::io::Errno;

use super::attr::attr_of;
use super::copy_up::mark_impure;
use super::create::check_new_name;
use super::error::Result;
use super::hardlink_index::wants_index;
use super::inode::{Inode, Link, Loc, Lower, Nlink};
use super::lookup::EntryRef;
use super::names::{NameIn, Names};
use super::orphans::Keep;
use super::protect::{check_changeable, check_extensible};
use super::redirect::{self, redirect_metacopy};
use super::remove::clear_wh_name;
use super::resolve::WhiteoutKind;
use super::stack::Stack;
use super::types::Ino;
use super::upper::Upper;
use super::wh_files::allow_wh_name;
use super::{Union, listings};
use crate::layer::at::At;
use crate::layer::markers::Marker;

/// [`Link::in_lower`] of a new name: no lower has it, unless there was a whiteout, which may
/// or may not hide a lower file.
pub(crate) fn in_lower_after(whiteout: Option<WhiteoutKind>) -> Option<bool> {
    whiteout.is_none().then_some(false)
}

/// Whether an unnamed file must stay unnamed, although the upper's file system would allow a new
/// link to it.
fn is_removed(inode: &Inode) -> bool {
    let loc = inode.loc.read();
    loc.links.is_empty() && loc.parked().is_some_and(|parked| !parked.linkable)
}

impl Union {
    /// Creates a further name for a file; copies it up.
    ///
    /// # Errors
    /// EPERM for a directory or a protected file, EEXIST, EMLINK, EROFS without an upper; ENOENT
    /// for a file whose last name was removed.
    pub fn link(&self, ino: Ino, parent: Ino, name: &[u8]) -> Result<EntryRef<'_>> {
        let inode = self.names.inode(ino)?;
        let parent = self.names.directory(parent)?;
        let upper = self.stack.writable()?;
        check_new_name(&self.stack, upper, name)?;
        if inode.dir.is_some() {
            return Err(Errno::PERM.into());
        }
        check_extensible(&self.stack, &parent)?;
        check_changeable(&self.stack, &inode)?;
        self.copying().copy_up_metadata(&inode)?;
        self.copying().copy_up(&parent)?;
        if inode.is_metacopy()
            && let Err(error) = redirect_metacopy(&self.stack, upper, &inode)
        {
            if !redirect::is_refused(&error) {
                return Err(error);
            }
            self.copying().copy_up(&inode)?;
        }
        let names = parent.dir.as_ref().ok_or(Errno::NOTDIR)?.change_names();
        if names.dead {
            return Err(Errno::NOENT.into());
        }
        let whiteout = self.lookups().whiteout_at(&parent, name)?;
        if inode.has_markers() {
            mark_impure(&self.stack, &self.names, &parent)?;
        }
        allow_wh_name(&self.stack, &self.names, &parent, name)?;
        let dir = self.stack.upper_dir(&parent)?;
        store_nlink(&self.stack, upper, &inode)?;
        if is_removed(&inode) {
            return Err(Errno::NOENT.into());
        }
        self.stack.with_upper(&inode, |at| {
            let to = At::new(dir.as_fd(), name);
            match whiteout {
                None => at.link_to(to)?,
                Some(WhiteoutKind::Node) => {
                    upper
                        .stage(|staged| at.link_to(staged))?
                        .publish(to, RenameFlags::empty())?;
                }
                Some(WhiteoutKind::WhName) => {
                    at.link_to(to)?;
                    clear_wh_name(to.dir, name)?;
                }
            }
            Ok(())
        })?;
        let at = NameIn {
            parent: &parent,
            name,
        };
        self.names.linked(&inode, at, in_lower_after(whiteout));
        listings::add(&parent, name, inode.kind, inode.ino);
        drop(names);
        self.names.pin(&inode);
        match attr_of(&self.stack, &inode) {
            Ok(attr) => Ok(EntryRef::new(&self.names, attr)),
            Err(e) => {
                self.names.release(inode.ino);
                Err(e)
            }
        }
    }
}

/// Moves this name of the inode to the front, so that copy-up publishes it.
pub(crate) fn prefer_link(inode: &Inode, parent: &Inode, name: &[u8]) {
    let mut loc = inode.loc.write();
    let is_it = |l: &Link| l.parent.ino == parent.ino && *l.name == *name;
    if let Some(position) = loc.links.iter().position(is_it) {
        loc.links.swap(0, position);
    }
}

/// Creates in the upper a name of a copied-up hard link that so far only a lower has. Removing or
/// moving the name then changes the link count of the upper file (`ovl_link_up`). The caller holds the
/// name lock, and the directory is in the upper.
pub(crate) fn ensure_alias(
    stack: &Stack,
    names: &Names,
    upper: &Upper,
    inode: &Inode,
    parent: &Inode,
    name: &[u8],
) -> Result<()> {
    let nlink = {
        let loc = inode.loc.read();
        let is_it = |l: &&Link| l.parent.ino == parent.ino && *l.name == *name;
        let named = loc.links.iter().find(is_it).is_none_or(|l| l.in_upper);
        if named || loc.upper.is_none() {
            return Ok(());
        }
        loc.nlink()
    };
    mark_impure(stack, names, parent)?;
    allow_wh_name(stack, names, parent, name)?;
    let dir = stack.upper_dir(parent)?;
    let to = At::new(dir.as_fd(), name);
    stack.with_upper(inode, |at| {
        if let Some(Nlink { union, lower }) = nlink {
            let diff = i64::from(union) - i64::from(lower);
            upper
                .markers
                .set(at, Marker::Nlink, format!("L{diff:+}").as_bytes())?;
        }
        Ok(at.link_to(to)?)
    })?;
    let mut loc = inode.loc.write();
    for link in &mut loc.links {
        link.in_upper |= link.parent.ino == parent.ino && *link.name == *name;
    }
    Ok(())
}

/// Stores the difference between the union's link count and the upper file's in the `nlink` marker.
/// This happens before both counts change together, which does not change the difference
/// (`ovl_nlink_start`).
pub(crate) fn store_nlink(stack: &Stack, upper: &Upper, inode: &Inode) -> Result<()> {
    let Some(nlink) = inode.loc.read().nlink() else {
        return Ok(());
    };
    stack.with_upper(inode, |at| {
        let diff = i64::from(nlink.union) - i64::from(at.stat()?.nlink);
        Ok(upper
            .markers
            .set(at, Marker::Nlink, format!("U{diff:+}").as_bytes())?)
    })
}

/// Removes a link from an inode after the name was removed from the file systems. `keep` keeps an
/// upper file that may have lost its last name. `loc` is the location of `inode`. The caller gets
/// the removed link and releases its parent ([`Names::unlink`]) once `loc` is unlocked.
pub(crate) fn unlinked(
    upper: &Upper,
    inode: &Inode,
    loc: &mut Loc,
    parent: &Inode,
    name: &[u8],
    keep: Option<Keep>,
) -> Option<Link> {
    let position = loc
        .links
        .iter()
        .position(|l| l.parent.ino == parent.ino && *l.name == *name)?;
    let link = loc.links.swap_remove(position);
    if let Some(nlink) = loc.rare_opt().and_then(|rare| rare.nlink.as_mut()) {
        nlink.union = nlink.union.saturating_sub(1);
    }
    if !loc.links.iter().any(|l| l.in_upper) {
        if let (Some(_), Some(keep)) = (&loc.upper, keep) {
            if let (Keep::Gone(_), Some(dir)) = (&keep, &inode.dir) {
                dir.upper_fd.clear();
            }
            loc.set_kept(keep);
        }
        if loc.nlink().is_some_and(|n| n.union == 0) {
            upper.drop_index_entry(loc);
        }
    }
    Some(link)
}

/// Whether a lower file must be copied up before one of its names is removed, so that the link
/// count can be stored.
pub(crate) fn counts_links(inode: &Inode) -> bool {
    let loc = inode.loc.read();
    loc.upper.is_none()
        && loc
            .lower
            .as_ref()
            .is_some_and(|lower| matches!(lower, Lower::File(file) if wants_index(file)))
}
