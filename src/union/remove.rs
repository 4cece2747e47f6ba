//! Removal of names: unlink and rmdir. One system call removes the name. If a lower has the name,
//! the same call puts a whiteout in its place.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::RenameFlags;
use rustix::io::Errno;

use super::error::Result;
use super::inode::{Dir, DirNames, Inode, Loc};
use super::link::{counts_links, ensure_alias, prefer_link, store_nlink, unlinked};
use super::lock_order::RwLockWriteGuard;
use super::lookup::Hint;
use super::protect::check_changeable;
use super::resolve::WhiteoutKind;
use super::types::Ino;
use super::upper::{Upper, WhiteoutForm};
use super::wh_files::allow_wh_name;
use super::{Union, listings};
use crate::layer::at::{At, is_valid_name};
use crate::layer::lower::read_dir;
use crate::layer::markers::WH_PREFIX;

/// The type of file that a removal expects under the name.
#[derive(Clone, Copy)]
enum Removed {
    /// Anything but a directory.
    File,
    Directory,
}

/// Write guards of the topology and of an inode's `loc`.
type Shape<'a> = (Option<RwLockWriteGuard<'a, ()>>, RwLockWriteGuard<'a, Loc>);

/// The name locks of several directories, taken in the order of their addresses.
pub(crate) struct NameLocks<'a>(Vec<(*const Inode, RwLockWriteGuard<'a, DirNames>)>);

impl<'a> NameLocks<'a> {
    /// Locks the names of all `inodes` that are directories.
    pub fn lock(inodes: &[&'a Arc<Inode>]) -> Self {
        let dir = |inode: &&'a Arc<Inode>| Some((Arc::as_ptr(inode), inode.dir.as_deref()?));
        let mut dirs: Vec<_> = inodes.iter().filter_map(dir).collect();
        dirs.sort_by_key(|(_, dir)| &raw const dir.ns);
        dirs.dedup_by_key(|(inode, _)| *inode);
        let lock = |(inode, dir): (_, &'a Dir)| (inode, dir.change_names());
        Self(dirs.into_iter().map(lock).collect())
    }

    /// Whether a directory has been removed.
    pub fn is_dead(&self, inode: &Arc<Inode>) -> bool {
        self.0
            .iter()
            .any(|(ptr, names)| *ptr == Arc::as_ptr(inode) && names.dead)
    }

    /// Marks a directory as removed.
    pub fn kill(&mut self, inode: &Arc<Inode>) {
        for (ptr, names) in &mut self.0 {
            if *ptr == Arc::as_ptr(inode) {
                names.dead = true;
            }
        }
    }
}

impl Union {
    /// Removes a name.
    ///
    /// # Errors
    /// ENOENT, EISDIR for a directory, EPERM for a protected file or directory, EROFS without an
    /// upper; else those of the upper's file system.
    pub fn unlink(&self, parent: Ino, name: &[u8]) -> Result<()> {
        self.remove(parent, name, Removed::File)
    }

    /// Removes a directory that is empty in the union: its upper may contain whiteouts.
    ///
    /// # Errors
    /// ENOENT, ENOTDIR, ENOTEMPTY, EPERM for a protected directory, EROFS without an upper; else
    /// those of the upper's file system.
    pub fn rmdir(&self, parent: Ino, name: &[u8]) -> Result<()> {
        self.remove(parent, name, Removed::Directory)
    }

    fn remove(&self, parent: Ino, name: &[u8], wanted: Removed) -> Result<()> {
        if !is_valid_name(name) {
            return Err(Errno::INVAL.into());
        }
        let parent = self.names.directory(parent)?;
        let upper = self.stack.writable()?;
        loop {
            let Some(counted) = self.lookups().count_in(&parent, name, Hint::Linked)? else {
                return Err(Errno::NOENT.into());
            };
            let inode = &counted.inode;
            check_changeable(&self.stack, &parent)?;
            check_changeable(&self.stack, inode)?;
            match (inode.dir.is_some(), wanted) {
                (true, Removed::File) => return Err(Errno::ISDIR.into()),
                (false, Removed::Directory) => return Err(Errno::NOTDIR.into()),
                _ => {}
            }
            self.copying().copy_up(&parent)?;
            if counts_links(inode) {
                prefer_link(inode, &parent, name);
                self.copying().copy_up_metadata(inode)?;
            }
            let mut locks = NameLocks::lock(&[&parent, inode]);
            if locks.is_dead(&parent) {
                return Err(Errno::NOENT.into());
            }
            if !inode.has_link(&parent, name) {
                continue; // renamed or replaced meanwhile
            }
            ensure_alias(&self.stack, &self.names, upper, inode, &parent, name)?;
            store_nlink(&self.stack, upper, inode)?;
            self.remove_locked(upper, &parent, name, inode)?;
            locks.kill(inode);
            return Ok(());
        }
    }

    /// Removes the name; the caller holds all locks.
    fn remove_locked(
        &self,
        upper: &Upper,
        parent: &Arc<Inode>,
        name: &[u8],
        inode: &Arc<Inode>,
    ) -> Result<()> {
        let dir = self.stack.upper_dir(parent)?;
        let hide = self.lookups().has_lower_name(inode, parent, name)?;
        let is_dir = inode.dir.is_some();
        // Without lowers, rmdir(2) itself checks that the directory is empty.
        let plain = inode.dir.as_ref().is_some_and(|dir| dir.lowers.is_empty()) && !hide;
        if is_dir && !plain && !self.is_empty_dir(inode)? {
            return Err(Errno::NOTEMPTY.into());
        }
        if hide {
            allow_wh_name(&self.stack, &self.names, parent, name)?;
        }
        // Only directories are part of the topology.
        let mut topology = is_dir.then(|| self.stack.lock_tree());
        let mut loc = inode.loc.write();
        let in_upper = loc.has_upper_link(parent, name);
        let at = At::new(dir.as_fd(), name);
        let id = loc.upper.as_ref().map(|upper| upper.id);
        let keep = match id.filter(|_| in_upper) {
            Some(_) => Some(self.orphans.keep(&self.stack, upper, inode, &loc, at)?),
            None => None,
        };
        let whiteout = match (in_upper, hide) {
            (true, true) => {
                let dir_id = id.filter(|_| is_dir);
                Some(replace_by_whiteout(upper, &dir, name, dir_id)?)
            }
            (true, false) => {
                let removed = if is_dir { at.rmdir() } else { at.unlink() };
                match removed {
                    Err(Errno::NOTEMPTY | Errno::EXIST) if is_dir => {
                        (topology, loc) = self.empty_and_locked(inode, (topology, loc))?;
                        upper.remove_whole(at, id.ok_or(Errno::NOENT)?)?;
                    }
                    other => other?,
                }
                None
            }
            (false, _) => Some(upper.whiteout(dir.as_fd(), name)?),
        };
        note_whiteout(parent, whiteout);
        let removed = unlinked(upper, inode, &mut loc, parent, name, keep);
        drop((loc, topology));
        self.names.remember_absent(parent, name, whiteout);
        listings::remove(parent, name);
        self.names.unlink(removed);
        Ok(())
    }

    /// Checks that an upper directory contains nothing but whiteouts. Releases the locks while it
    /// lists the directory, whose names are locked.
    fn empty_and_locked<'a>(&'a self, inode: &'a Inode, locks: Shape<'a>) -> Result<Shape<'a>> {
        drop(locks);
        if !self.is_empty_dir(inode)? {
            return Err(Errno::NOTEMPTY.into());
        }
        let topology = self.stack.lock_tree();
        Ok((Some(topology), inode.loc.write()))
    }
}

/// Records that a directory got a `.wh.` file.
pub(crate) fn note_whiteout(parent: &Inode, whiteout: Option<WhiteoutKind>) {
    if let (Some(WhiteoutKind::WhName), Some(dir)) = (whiteout, &parent.dir) {
        dir.upper_wh.set(true);
    }
}

/// Replaces a name in the upper, of the directory `dir_id` or of a file, by a whiteout.
fn replace_by_whiteout(
    upper: &Upper,
    dir: &OwnedFd,
    name: &[u8],
    dir_id: Option<(u64, u64)>,
) -> Result<WhiteoutKind, Errno> {
    let at = At::new(dir.as_fd(), name);
    if upper.form == WhiteoutForm::WhName {
        // The whiteout is created first, so that the lower name never shows.
        let kind = upper.whiteout(dir.as_fd(), name)?;
        remove_from_upper(upper, at, dir_id)?;
        return Ok(kind);
    }
    if upper.form == WhiteoutForm::Xattr {
        upper.mark_xwhiteouts(dir.as_fd())?;
    }
    // The directory is exchanged with the whiteout. It is then removed from the work directory,
    // with the whiteouts in it.
    let whiteout = upper.stage_whiteout()?;
    match dir_id {
        Some(_) => whiteout.replace(at, dir_id)?,
        None => whiteout.publish(at, RenameFlags::empty())?,
    }
    Ok(WhiteoutKind::Node)
}

/// Removes a name from the upper; the directory `dir_id` may contain whiteouts.
pub(crate) fn remove_from_upper(
    upper: &Upper,
    at: At<'_>,
    dir_id: Option<(u64, u64)>,
) -> Result<(), Errno> {
    let Some(id) = dir_id else {
        return at.unlink();
    };
    match at.rmdir() {
        Err(Errno::NOTEMPTY | Errno::EXIST) => upper.remove_whole(at, id),
        other => other,
    }
}

/// Whether an upper directory has no entry at all, not even a whiteout.
pub(crate) fn is_bare(dir: &OwnedFd) -> Result<bool, Errno> {
    let mut any = false;
    read_dir(dir, |_| any = true)?;
    Ok(!any)
}

/// Removes the `.wh.` file of a name that exists again.
pub(crate) fn clear_wh_name(dir: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    At::new(dir, &[WH_PREFIX, name].concat()).unlink()
}
