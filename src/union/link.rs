//! Hard links, and the link counts that link, unlink and rename maintain.
//!
//! A file that had several names in its lower layer has one inode number and one link count in the
//! union, whichever of its names were copied up. The count is kept relative to that of the upper or
//! lower file (marker `nlink`), as in kernel overlayfs.

use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::fs::RenameFlags;
use rustix::io::Errno;

use super::Union;
use super::error::Result;
use super::inode::{Inode, Link, Loc, Lower, Nlink};
use super::lookup::EntryRef;
use super::orphans::Keep;
use super::resolve::WhiteoutKind;
use super::types::Ino;
use super::upper::Upper;
use crate::layer::at::At;
use crate::layer::markers::{Marker, WH_PREFIX};

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
        let inode = self.inode(ino)?;
        let parent = self.directory(parent)?;
        let upper = self.writable()?;
        self.check_new_name(upper, name)?;
        if inode.dir.is_some() {
            return Err(Errno::PERM.into());
        }
        self.check_extensible(&parent)?;
        self.check_changeable(&inode)?;
        self.copy_up(&inode)?;
        self.copy_up(&parent)?;
        let names = parent.dir.as_ref().ok_or(Errno::NOTDIR)?.change_names();
        if names.dead {
            return Err(Errno::NOENT.into());
        }
        let whiteout = self.whiteout_at(&parent, name)?;
        if inode.loc.read().upper.as_ref().is_some_and(|u| u.origin) {
            self.mark_impure(&parent)?;
        }
        let dir = self.upper_dir(&parent)?;
        self.store_nlink(upper, &inode)?;
        if is_removed(&inode) {
            return Err(Errno::NOENT.into());
        }
        self.with_upper(&inode, |at| {
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
                    At::new(dir.as_fd(), &[WH_PREFIX, name].concat()).unlink()?;
                }
            }
            Ok(())
        })?;
        self.linked(&inode, &parent, name, in_lower_after(whiteout));
        Self::listing_add(&parent, name, inode.kind, inode.ino);
        drop(names);
        self.table.pin(&inode);
        match self.attr_of(&inode) {
            Ok(attr) => Ok(EntryRef::new(self, attr)),
            Err(e) => {
                self.table.release(inode.ino, 1);
                Err(e)
            }
        }
    }

    fn linked(&self, inode: &Arc<Inode>, parent: &Arc<Inode>, name: &[u8], in_lower: Option<bool>) {
        self.table.pin(parent);
        let mut loc = inode.loc.write();
        // Files with several names are not cached: see `Resolved::is_cacheable`.
        self.lookup_cache.remove(parent.key, name);
        for link in &loc.links {
            self.lookup_cache.remove(link.parent.key, &link.name);
        }
        let (parent, name) = (Arc::clone(parent), Arc::from(name));
        loc.links.push(Link {
            parent,
            name,
            in_upper: true,
            in_lower,
        });
        if let Some(nlink) = loc.rare_opt().and_then(|rare| rare.nlink.as_mut()) {
            nlink.union = nlink.union.saturating_add(1);
        }
        loc.is_named_again();
    }

    /// Whether the lowers have this name of the inode, so that its removal needs a whiteout.
    pub(crate) fn has_lower_name(
        &self,
        inode: &Inode,
        parent: &Inode,
        name: &[u8],
    ) -> Result<bool> {
        match inode.loc.read().link(parent, name) {
            // A name that is not in the upper is in a lower.
            Some(link) if !link.in_upper => return Ok(true),
            Some(Link {
                in_lower: Some(known),
                ..
            }) => return Ok(*known),
            _ => {}
        }
        self.exists_in_lower(parent, name)
    }

    /// Makes this name of the inode the one that copy-up publishes.
    pub(crate) fn prefer_link(inode: &Inode, parent: &Inode, name: &[u8]) {
        let mut loc = inode.loc.write();
        let is_it = |l: &Link| l.parent.ino == parent.ino && *l.name == *name;
        if let Some(position) = loc.links.iter().position(is_it) {
            loc.links.swap(0, position);
        }
    }

    /// Creates in the upper a name of a copied-up hard link that only a lower has, so that removing
    /// or moving the name changes the link count of the upper file (`ovl_link_up`). The caller
    /// holds the name lock, and the directory is in the upper.
    pub(crate) fn ensure_alias(
        &self,
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
        self.mark_impure(parent)?;
        let dir = self.upper_dir(parent)?;
        let to = At::new(dir.as_fd(), name);
        self.with_upper(inode, |at| {
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

    /// Stores the difference between the union's link count and the upper file's in the `nlink`
    /// marker. Done before both change together, which leaves the difference the same
    /// (`ovl_nlink_start`).
    pub(crate) fn store_nlink(&self, upper: &Upper, inode: &Inode) -> Result<()> {
        let Some(nlink) = inode.loc.read().nlink() else {
            return Ok(());
        };
        self.with_upper(inode, |at| {
            let diff = i64::from(nlink.union) - i64::from(at.stat()?.nlink);
            Ok(upper
                .markers
                .set(at, Marker::Nlink, format!("U{diff:+}").as_bytes())?)
        })
    }

    /// Removes a link from an inode after the name was removed from the file systems. `keep` keeps
    /// an upper file that may have lost its last name. The caller gets the removed link and
    /// releases its parent (`InodeTable::unlink`) once `loc` is unlocked.
    pub(crate) fn unlinked(
        &self,
        (inode, loc): (&Inode, &mut Loc),
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
                self.drop_index(loc);
            }
        }
        Some(link)
    }

    /// Removes the index entry of a file without names.
    pub(crate) fn drop_index(&self, loc: &mut Loc) {
        let Some(index) = loc.rare_opt().and_then(|rare| rare.index.take()) else {
            return;
        };
        let removed = self
            .writable()
            .and_then(Upper::index_dir)
            .and_then(|dir| Ok(At::new(dir.as_fd(), &index).unlink()?));
        if let Err(e) = removed {
            tracing::warn!("cannot remove an index entry: {e}");
        }
    }

    /// Whether a lower file must be copied up before one of its names is removed, so that the link
    /// count can be stored.
    pub(crate) fn counts_links(&self, inode: &Inode) -> bool {
        let loc = inode.loc.read();
        loc.upper.is_none()
            && loc
                .lower
                .as_ref()
                .is_some_and(|lower| matches!(lower, Lower::File(file) if Self::wants_index(file)))
    }
}
