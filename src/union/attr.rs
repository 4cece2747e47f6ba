//! Attributes: getattr, setattr, statfs.

use std::sync::Arc;

use rustix::fs::{Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};
use rustix::io::Errno;

use super::Union;
use super::error::Result;
use super::inode::{Inode, Loc, Lower};
use super::types::{Attr, Caller, FileKind, Ino, SetAttr, SetTime, StatFs};
use crate::layer::at::Stat;

impl Union {
    /// Attributes; ESTALE for a number that is not in use.
    pub fn getattr(&self, ino: Ino) -> Result<Attr> {
        self.attr_of(&*self.inode(ino)?)
    }

    pub(crate) fn attr_of(&self, inode: &Inode) -> Result<Attr> {
        let loc = inode.loc.read();
        if loc.upper.is_none() {
            return match (&inode.dir, &loc.lower) {
                (Some(dir), _) => {
                    let top = dir.lowers.top().ok_or(Errno::IO)?;
                    Ok(attr(inode, &loc, &top.stat))
                }
                (None, Some(Lower::File(file))) => Ok(attr(inode, &loc, &file.stat)),
                (None, Some(Lower::Record(record))) => {
                    Ok(attr(inode, &loc, &self.record_stat(*record)?))
                }
                (None, None) => Err(Errno::IO.into()),
            };
        }
        drop(loc);
        let stat = self.with_upper(inode, |at| Ok(at.stat()?))?;
        Ok(upper_attr(inode, &inode.loc.read(), &stat))
    }

    /// Attributes from those of the upper side, if they are of the file that is there now.
    pub(crate) fn upper_attr(inode: &Inode, stat: &Stat) -> Option<Attr> {
        let loc = inode.loc.read();
        let same = loc.upper.as_ref()?.id == (stat.dev, stat.ino);
        same.then(|| upper_attr(inode, &loc, stat))
    }

    /// Attributes from those of the catalog, if the file is only in the lowers.
    pub(crate) fn record_attr(inode: &Inode, stat: &Stat) -> Option<Attr> {
        let loc = inode.loc.read();
        loc.upper.is_none().then(|| attr(inode, &loc, stat))
    }

    /// Changes attributes (copy-up). EROFS without an upper, EINVAL for the size of
    /// something that is no file, else what the upper's file system answers.
    pub fn setattr(&self, caller: &Caller, ino: Ino, set: &SetAttr) -> Result<Attr> {
        self.writable()?;
        let inode = self.inode(ino)?;
        if set.size.is_some() && inode.kind != FileKind::Regular {
            return Err(match inode.kind {
                FileKind::Directory => Errno::ISDIR.into(),
                _ => Errno::INVAL.into(),
            });
        }
        if *set == SetAttr::default() {
            // What Linux sends before somebody without CAP_FSETID writes to a set-id file: the
            // only word we get of writes that are passed through.
            if inode.kind == FileKind::Regular && inode.is_copied_up() {
                self.kill_suid(caller, &inode)?;
            }
            return self.attr_of(&inode);
        }
        // What is cut off need not be copied.
        self.copy_up_to(&inode, set.size)?;
        self.pin_if_unwritable_later(&inode, set.perm)?;
        if let Some(size) = set.size {
            self.kill_suid(caller, &inode)?;
            let data = self.data_fd(&inode, true)?;
            rustix::fs::ftruncate(&data.fd, size)?;
        }
        self.with_upper(&inode, |at| {
            if set.uid.is_some() || set.gid.is_some() {
                at.chown(set.uid, set.gid)?;
            }
            if let Some(perm) = set.perm {
                match inode.kind {
                    FileKind::Symlink => return Err(Errno::OPNOTSUPP.into()),
                    _ => at.chmod(perm)?,
                }
            }
            if set.atime.is_some() || set.mtime.is_some() {
                at.set_times(&Timestamps {
                    last_access: timespec(set.atime),
                    last_modification: timespec(set.mtime),
                })?;
            }
            Ok(())
        })?;
        self.attr_of(&inode)
    }

    /// Clears set-user-id and set-group-id bits when a caller without the privilege to keep
    /// them changes the data; the kernel asks the file system to do so
    /// (FUSE_HANDLE_KILLPRIV_V2). Capabilities go by themselves: the backing file drops them.
    pub(crate) fn kill_suid(&self, caller: &Caller, inode: &Arc<Inode>) -> Result<()> {
        let stat = self.with_upper(inode, |at| Ok(at.stat()?))?;
        if stat.perm & 0o6000 != 0 && !super::acl::keeps_suid(caller) {
            self.drop_suid(caller, inode, &stat)?;
        }
        Ok(())
    }

    /// Clears the bits an unprivileged write by `caller` clears; `stat` is the file's.
    pub(crate) fn drop_suid(&self, caller: &Caller, inode: &Inode, stat: &Stat) -> Result<()> {
        // Without group execution set-group-id does nothing, and stays for members of the
        // group (Linux 6.2, setattr_should_drop_sgid).
        let mut dropped = 0o4000;
        let sgid = stat.perm & 0o2000 != 0;
        if sgid && (stat.perm & 0o010 != 0 || !super::acl::in_group_or_privileged(caller, stat.gid))
        {
            dropped |= 0o2000;
        }
        let kept = stat.perm & !dropped;
        if kept != stat.perm {
            self.with_upper(inode, |at| Ok(at.chmod(kept)?))?;
        }
        Ok(())
    }

    /// File system statistics of the upper (or the top lower).
    pub fn statfs(&self) -> Result<StatFs> {
        let layer = match &self.upper {
            Some(upper) => &upper.layer,
            None => &self.roots[0].layer,
        };
        let s = rustix::fs::fstatvfs(&layer.root)?;
        let narrow = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        Ok(StatFs {
            blocks: s.f_blocks,
            bfree: s.f_bfree,
            bavail: s.f_bavail,
            files: s.f_files,
            ffree: s.f_ffree,
            bsize: narrow(s.f_bsize),
            namelen: u32::try_from(self.name_max).unwrap_or(255),
            frsize: narrow(s.f_frsize),
        })
    }

    /// A file whose owner loses the right to write it stays writable through descriptors
    /// that are open: without privileges we keep one of our own for that.
    fn pin_if_unwritable_later(&self, inode: &Arc<Inode>, perm: Option<u32>) -> Result<()> {
        let Some(perm) = perm else { return Ok(()) };
        let privileged = self.writable()?.privileged;
        if !privileged && inode.kind == FileKind::Regular && perm & 0o600 != 0o600 {
            self.pin_data(inode)?;
        }
        Ok(())
    }
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

fn upper_attr(inode: &Inode, loc: &Loc, stat: &Stat) -> Attr {
    let mut attr = attr(inode, loc, stat);
    if let Some(data) = loc.upper.as_ref().and_then(|u| u.metacopy.as_ref()) {
        attr.blocks = data.stat.blocks;
    }
    attr
}

/// The attributes the union shows for a file with `stat`.
pub(crate) fn attr(inode: &Inode, loc: &Loc, stat: &Stat) -> Attr {
    let nlink = match &inode.dir {
        // As overlayfs: the number of subdirectories of a merge is not known.
        Some(dir) => {
            let parts = dir.lowers.len() + usize::from(loc.upper.is_some());
            if parts > 1 { 1 } else { stat.nlink }
        }
        None => loc.nlink().map_or(stat.nlink, |n| n.union),
    };
    // An upper file that lost its names knows its own count; others have only us to ask.
    let nameless = loc.links.is_empty() && inode.ino != super::ROOT_INO;
    let unlinked = nameless && (loc.upper.is_none() || inode.dir.is_some());
    Attr {
        ino: inode.ino,
        generation: inode.generation,
        kind: stat.kind,
        perm: stat.perm,
        nlink: if unlinked { 0 } else { nlink },
        uid: stat.uid,
        gid: stat.gid,
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
