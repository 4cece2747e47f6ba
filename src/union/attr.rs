//! Attributes: getattr, setattr, statfs.

use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::fs::{Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};
use rustix::io::Errno;

use super::error::Result;
use super::inode::{Inode, Loc, Lower};
use super::orphans::Orphans;
use super::owners::{Owners, Side};
use super::stack::{Access, Stack};
use super::types::{Attr, Caller, FileKind, Ino, SetAttr, SetIdLoss, SetTime, StatFs};
use super::{Union, orphans, protect};
use crate::layer::at::{At, Stat};

impl Union {
    /// Returns the attributes of `ino`.
    ///
    /// # Errors
    /// ESTALE when the number is not in use; else those of stat(2).
    pub fn getattr(&self, ino: Ino) -> Result<Attr> {
        attr_of(&self.stack, &*self.names.inode(ino)?)
    }

    /// Changes attributes; copies the file up.
    ///
    /// # Errors
    /// EROFS without an upper, EINVAL for the size of something that is not a regular file, ESTALE,
    /// EPERM for a protected file, EOVERFLOW for an owner outside of the mapping ([`Owners`]); else
    /// those of the upper's file system.
    pub fn setattr(&self, caller: &Caller, ino: Ino, set: &SetAttr) -> Result<Attr> {
        self.stack.writable()?;
        let inode = self.names.inode(ino)?;
        let owners = self.stack.owners();
        let set = &owners.change(set)?;
        if set.size.is_some() && inode.kind != FileKind::Regular {
            return Err(match inode.kind {
                FileKind::Directory => Errno::ISDIR.into(),
                _ => Errno::INVAL.into(),
            });
        }
        let nothing = SetAttr {
            drops_set_id: set.drops_set_id,
            ..SetAttr::default()
        };
        if *set == nothing {
            return self.drop_unasked(caller, &inode);
        }
        if inode.dir.is_some() && orphans::set_gone(&inode, set) {
            return attr_of(&self.stack, &inode);
        }
        protect::check_setattr(&self.stack, &inode, set)?;
        let copy = match set.size {
            // Data beyond the new size need not be copied.
            Some(size) => self.copying().copy_up_to(&inode, size)?,
            None => self.copying().copy_up_metadata(&inode)?,
        };
        pin_if_unwritable_later(&self.stack, &self.orphans, &inode, set.perm)?;
        if let Some(size) = set.size {
            // The reply carries the new mode, so no separate notification is needed.
            let (caller, fell) = (*caller, &|_| ());
            // A mode together with a size comes from a kernel that removes set-id bits itself. The
            // bits are dropped before the data changes, and those that the kernel keeps are set
            // below.
            let drops = set.drops_set_id || set.perm.is_some();
            let loss = drops.then_some(SetIdLoss { caller, fell });
            truncate(&self.stack, &inode, size, loss)?;
        }
        self.stack.with_copy(&inode, copy.as_ref(), |at| {
            let owner = set.uid.is_some() || set.gid.is_some();
            // For a truncation alone, the bits were dropped above.
            let asks = set.drops_set_id && (owner || set.perm.is_some());
            let loses_bare = asks && loses_bare(owners, at, &inode, caller)?;
            let kept = |perm| {
                if loses_bare && is_bare(perm) {
                    perm & !SET_GID
                } else {
                    perm
                }
            };
            if owner {
                owners.tolerate(at.chown(set.uid, set.gid))?;
            }
            match (set.perm, inode.kind) {
                (Some(_), FileKind::Symlink) => return Err(Errno::OPNOTSUPP.into()),
                (Some(perm), _) => at.chmod(kept(perm))?,
                // chown(2) by the server itself leaves the bit.
                (None, _) if owner && loses_bare => {
                    let perm = at.stat()?.perm;
                    if kept(perm) != perm {
                        at.chmod(kept(perm))?;
                    }
                }
                (None, _) => {}
            }
            if set.atime.is_some() || set.mtime.is_some() {
                at.set_times(&Timestamps {
                    last_access: timespec(set.atime),
                    last_modification: timespec(set.mtime),
                })?;
            }
            Ok(())
        })?;
        attr_of(&self.stack, &inode)
    }

    /// Handles a setattr without any attribute. Linux sends one before a write that drops set-id
    /// bits (the only notice when the write itself is passed through), and for a chown to no owner,
    /// which drops them too. It sends the same before root writes to a file with a capability, and
    /// the request does not say which of these it is: the bits are dropped, unless the set-group-ID
    /// bit has no effect (no group execution) and root asks.
    fn drop_unasked(&self, caller: &Caller, inode: &Arc<Inode>) -> Result<Attr> {
        let attr = attr_of(&self.stack, inode)?;
        if inode.kind == FileKind::Directory || attr.perm & SET_ID == 0 {
            return Ok(attr);
        }
        self.copying().copy_up_metadata(inode)?;
        self.stack.with_upper_metadata(inode, |at| {
            let stat = at.stat()?;
            let bare = if caller.uid == 0 {
                BareSetGid::Kept
            } else {
                BareSetGid::after_change_by(self.stack.owners(), caller, &stat)
            };
            Ok(drop_bits(at, &stat, bare)?)
        })?;
        attr_of(&self.stack, inode)
    }

    /// Returns file system statistics of the upper, or of the top lower without an upper.
    ///
    /// # Errors
    /// Those of statvfs(3).
    pub fn statfs(&self) -> Result<StatFs> {
        let s = match self.stack.upper() {
            Some(upper) => rustix::fs::fstatvfs(&upper.layer.root)?,
            None => self.stack.lowers().statfs()?,
        };
        let narrow = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        Ok(StatFs {
            blocks: s.f_blocks,
            bfree: s.f_bfree,
            bavail: s.f_bavail,
            files: s.f_files,
            ffree: s.f_ffree,
            bsize: narrow(s.f_bsize),
            namelen: u32::try_from(self.stack.name_max()).unwrap_or(255),
            frsize: narrow(s.f_frsize),
        })
    }
}

/// Returns the attributes of an inode.
///
/// # Errors
/// Those of stat(2).
pub(crate) fn attr_of(stack: &Stack, inode: &Inode) -> Result<Attr> {
    let owners = stack.owners();
    let loc = inode.loc.read();
    if loc.upper.is_none() {
        return match (&inode.dir, &loc.lower) {
            (Some(dir), _) => {
                let top = dir.lowers.top().ok_or(Errno::IO)?;
                Ok(attr(owners, inode, &loc, &top.stat))
            }
            (None, Some(Lower::File(file))) => Ok(attr(owners, inode, &loc, &file.stat)),
            (None, Some(Lower::Id(id))) => {
                Ok(attr(owners, inode, &loc, &stack.lowers().stat(*id)?))
            }
            (None, None) => Err(Errno::IO.into()),
        };
    }
    if let Some(stat) = loc.gone() {
        return Ok(attr(owners, inode, &loc, stat));
    }
    drop(loc);
    let stat = stack.upper_stat(inode)?;
    Ok(located_upper_attr(owners, inode, &inode.loc.read(), &stat))
}

/// Computes attributes from a stat of the upper file. Returns `None` if the inode has another
/// upper file now.
pub(crate) fn upper_attr(owners: &Owners, inode: &Inode, stat: &Stat) -> Option<Attr> {
    let loc = inode.loc.read();
    let same = loc.upper.as_ref()?.id == (stat.dev, stat.ino);
    same.then(|| located_upper_attr(owners, inode, &loc, stat))
}

/// Computes attributes from those of the lower file. Returns `None` once the inode is in the
/// upper.
pub(crate) fn lower_attr(owners: &Owners, inode: &Inode, stat: &Stat) -> Option<Attr> {
    let loc = inode.loc.read();
    loc.upper.is_none().then(|| attr(owners, inode, &loc, stat))
}

/// Truncates or extends a file that is in the upper.
pub(crate) fn truncate(
    stack: &Stack,
    inode: &Inode,
    size: u64,
    loss: Option<SetIdLoss<'_>>,
) -> Result<()> {
    let data = stack.data_fd(inode, Access::Write)?;
    if let Some(loss) = loss {
        drop_set_id(stack, inode, At::opened(data.fd.as_fd()), &loss)?;
    }
    Ok(rustix::fs::ftruncate(&data.fd, size)?)
}

/// Drops the set-id bits of the upper file `at` of `inode`, as a change of its data by a
/// process without CAP_FSETID does. Capabilities need nothing here: the backing file system
/// removes them.
pub(crate) fn drop_set_id(
    stack: &Stack,
    inode: &Inode,
    at: At<'_>,
    loss: &SetIdLoss<'_>,
) -> Result<()> {
    let at = at.recorded_as(stack.writable()?.records());
    let stat = at.stat()?;
    let bare = BareSetGid::after_change_by(stack.owners(), &loss.caller, &stat);
    if stat.perm & SET_ID != 0 && drop_bits(at, &stat, bare)? {
        (loss.fell)(inode.ino);
    }
    Ok(())
}

/// Keeps a writable descriptor of a file whose owner loses the right to write it: descriptors
/// that are open must stay writable, and a server without privileges could not open the file
/// again.
fn pin_if_unwritable_later(
    stack: &Stack,
    orphans: &Orphans,
    inode: &Inode,
    perm: Option<u32>,
) -> Result<()> {
    let Some(perm) = perm else { return Ok(()) };
    let privileged = stack.writable()?.privileged;
    if !privileged && inode.kind == FileKind::Regular && perm & 0o600 != 0o600 {
        orphans.pin(stack, inode)?;
    }
    Ok(())
}

const SET_ID: u32 = 0o6000;
/// Set-group-ID, and group execution, without which set-group-ID grants nothing.
const SET_GID: u32 = 0o2000;
const GROUP_EXEC: u32 = 0o010;

/// Whether set-group-ID is set without group execution.
fn is_bare(perm: u32) -> bool {
    perm & (SET_GID | GROUP_EXEC) == SET_GID
}

/// What becomes of set-group-ID without group execution when set-id bits are dropped.
#[derive(Clone, Copy, PartialEq, Eq)]
enum BareSetGid {
    /// It stays, as for members of the file's group (Linux 6.2, `setattr_should_drop_sgid`).
    Kept,
    Dropped,
}

impl BareSetGid {
    /// Of a caller's groups only the fsgid is known, so other members of the file's group lose the
    /// bit too.
    fn after_change_by(owners: &Owners, caller: &Caller, stat: &Stat) -> Self {
        if owners.is_in_group(caller, stat) {
            Self::Kept
        } else {
            Self::Dropped
        }
    }
}

/// Drops set-id bits and returns whether there were any to drop.
fn drop_bits(at: At<'_>, stat: &Stat, bare: BareSetGid) -> Result<bool, Errno> {
    let lost = |perm| {
        if is_bare(perm) && bare == BareSetGid::Kept {
            perm & SET_ID & !SET_GID
        } else {
            perm & SET_ID
        }
    };
    if lost(stat.perm) == 0 {
        return Ok(false);
    }
    // The kernel drops the bits in one step, so a concurrent chmod is not undone. It leaves a
    // set-group-ID bit without group execution, and some file systems ignore the call.
    at.chown(None, None)?;
    let perm = at.stat()?.perm;
    if lost(perm) != 0 {
        at.chmod(perm & !lost(perm))?;
    }
    Ok(true)
}

/// Whether the caller may not keep set-group-ID without group execution, which only root and members
/// of the group may.
fn loses_bare(owners: &Owners, at: At<'_>, inode: &Inode, caller: &Caller) -> Result<bool, Errno> {
    let may = caller.uid == 0 || inode.kind == FileKind::Directory;
    Ok(!may && !owners.is_in_group(caller, &at.stat()?))
}

fn timespec(set: Option<SetTime>) -> Timespec {
    match set {
        None => Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
        Some(SetTime::Now) => Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_NOW,
        },
        Some(SetTime::At(time)) => Timespec {
            tv_sec: time.sec,
            tv_nsec: time.nsec.into(),
        },
    }
}

fn located_upper_attr(owners: &Owners, inode: &Inode, loc: &Loc, stat: &Stat) -> Attr {
    let mut attr = attr(owners, inode, loc, stat);
    if let Some(data) = loc.upper.as_ref().and_then(|u| u.metacopy.as_ref()) {
        attr.blocks = data.stat.blocks;
    }
    attr
}

/// Computes the attributes that the union shows for a file with `stat`.
pub(crate) fn attr(owners: &Owners, inode: &Inode, loc: &Loc, stat: &Stat) -> Attr {
    let nlink = match &inode.dir {
        // The number of subdirectories of a merged directory is not known; overlayfs reports 1 too.
        Some(dir) => {
            let parts = dir.lowers.len() + usize::from(loc.upper.is_some());
            if parts > 1 { 1 } else { stat.nlink }
        }
        None => match loc.nlink() {
            Some(nlink) => nlink.union,
            // The name in the work directory is not counted.
            None => stat.nlink.saturating_sub(u32::from(loc.parked().is_some())),
        },
    };
    // An upper file without names has its own link count; for others the union keeps it.
    let nameless = loc.links.is_empty() && inode.ino != super::ROOT_INO;
    let unlinked = nameless && (loc.upper.is_none() || inode.dir.is_some());
    let side = match loc.upper {
        Some(_) => Side::Upper,
        None => Side::Lower,
    };
    let owner = owners.shown(side, stat);
    Attr {
        ino: inode.ino,
        generation: inode.generation,
        kind: stat.kind,
        perm: stat.perm,
        nlink: if unlinked { 0 } else { nlink },
        uid: owner.uid,
        gid: owner.gid,
        rdev: stat.rdev,
        size: stat.size,
        blocks: stat.blocks,
        blksize: stat.blksize,
        atime: stat.atime,
        mtime: stat.mtime,
        ctime: stat.ctime,
        btime: stat.btime,
    }
}
