//! Inode flags: what chattr(1) sets and lsattr(1) shows, and the two flags that protect a file.
//!
//! As in overlayfs, a file or directory is immutable or append-only when the topmost layer's is, or
//! when the upper's has the marker `protattr`. chattr on the union writes that marker, because a
//! file that really is immutable could not be copied up, linked or marked. All other flags are
//! those of the file itself. FUSE has no flag for an immutable inode, so the checks that the kernel
//! would do are done here: EPERM, before anything is copied up.
//!
//! The kernel has checked who may change flags (`vfs_fileattr_set`): the owner or CAP_FOWNER, and
//! CAP_LINUX_IMMUTABLE for these two.

use std::os::fd::AsFd;

use rustix::fs::{FallocateFlags, OFlags};
use rustix::io::Errno;

use super::Union;
use super::attr::attr_of;
use super::error::Result;
use super::inode::{Inode, Lower};
use super::stack::{Access, Stack};
use super::types::{FileFlags, FileKind, Ino, SetAttr, SetTime, Write};
use super::upper::Upper;
use crate::layer::at::At;
use crate::layer::markers::{Marker, Protection};
use crate::sys::fileattr::{self, FsxAttr};

/// `FS_IMMUTABLE_FL` and `FS_APPEND_FL` of linux/fs.h.
const IMMUTABLE_FL: u32 = 0x10;
const APPEND_FL: u32 = 0x20;
/// `FS_JOURNAL_DATA_FL`: ext4 lets only CAP_SYS_RESOURCE change it, which the server has and the
/// caller may lack.
const JOURNAL_DATA_FL: u32 = 0x4000;
/// `FS_XFLAG_IMMUTABLE` and `FS_XFLAG_APPEND`.
const IMMUTABLE_XFLAG: u32 = 0x8;
const APPEND_XFLAG: u32 = 0x10;

impl Union {
    /// Whether a file may be written at its end only.
    ///
    /// # Errors
    /// ESTALE for a number that is not in use.
    pub fn is_append_only(&self, ino: Ino) -> Result<bool> {
        Ok(protection(&self.stack, &*self.names.inode(ino)?)?.is_append())
    }

    /// Returns the flags of a file or directory.
    ///
    /// # Errors
    /// ENOTTY for other kinds of files, and if the file system has no flags; ESTALE.
    pub fn file_flags(&self, ino: Ino) -> Result<FileFlags> {
        let inode = self.names.inode(ino)?;
        let protection = protection(&self.stack, &inode)?;
        let flags = with_open(&self.stack, &inode, |fd| Ok(fileattr::flags(fd)?))?;
        Ok(FileFlags(flags | protection.bits(IMMUTABLE_FL, APPEND_FL)))
    }

    /// Returns the flags as a `struct fsxattr`.
    ///
    /// # Errors
    /// As [`Self::file_flags`].
    pub fn file_xflags(&self, ino: Ino) -> Result<FsxAttr> {
        let inode = self.names.inode(ino)?;
        let protection = protection(&self.stack, &inode)?;
        let mut attr = with_open(&self.stack, &inode, |fd| Ok(fileattr::fsx(fd)?))?;
        attr.xflags |= protection.bits(IMMUTABLE_XFLAG, APPEND_XFLAG);
        Ok(attr)
    }

    /// Changes the flags, for a caller that the kernel has checked; copies the file up.
    ///
    /// # Errors
    /// EROFS without an upper, EPERM for protecting a file if the upper has no xattrs; else as
    /// [`Self::file_flags`].
    pub fn set_file_flags(&self, ino: Ino, flags: FileFlags) -> Result<()> {
        let FileFlags(flags) = flags;
        let protection = Protection::of(flags, IMMUTABLE_FL, APPEND_FL);
        let rest = flags & !(IMMUTABLE_FL | APPEND_FL);
        self.set_flags(ino, protection, |fd| {
            if (fileattr::flags(fd)? ^ rest) & JOURNAL_DATA_FL != 0 {
                return Err(Errno::PERM.into());
            }
            Ok(fileattr::set_flags(fd, rest)?)
        })
    }

    /// Changes the flags in a `struct fsxattr`.
    ///
    /// # Errors
    /// As [`Self::set_file_flags`].
    pub fn set_file_xflags(&self, ino: Ino, mut attr: FsxAttr) -> Result<()> {
        let protection = Protection::of(attr.xflags, IMMUTABLE_XFLAG, APPEND_XFLAG);
        attr.xflags &= !(IMMUTABLE_XFLAG | APPEND_XFLAG);
        self.set_flags(ino, protection, |fd| Ok(fileattr::set_fsx(fd, &attr)?))
    }

    fn set_flags(
        &self,
        ino: Ino,
        wanted: Protection,
        set: impl FnOnce(std::os::fd::BorrowedFd<'_>) -> Result<()>,
    ) -> Result<()> {
        let inode = self.names.inode(ino)?;
        let upper = self.stack.writable()?;
        if !matches!(inode.kind, FileKind::Regular | FileKind::Directory) {
            return Err(Errno::NOTTY.into());
        }
        let before = protection(&self.stack, &inode)?;
        self.copying().copy_up_metadata(&inode)?;
        self.copying().with_place(&inode, |place| {
            self.stack
                .with_upper(&inode, |at| mark(upper, at, before, wanted))?;
            inode.protection.set(wanted);
            // The cached answer is out of date and is removed. No other thread inserts one
            // meanwhile.
            if let Some((parent, name)) = place.map(|place| place.name()) {
                self.names.forget_answer(parent, name);
            }
            Ok(())
        })?;
        with_open(&self.stack, &inode, set)
    }
}

/// Returns the protection of an inode.
///
/// # Errors
/// Those of reading the marker.
pub(crate) fn protection(stack: &Stack, inode: &Inode) -> Result<Protection> {
    if let Some(known) = inode.protection.get() {
        return Ok(known);
    }
    if !matches!(inode.kind, FileKind::Regular | FileKind::Directory) {
        return Ok(Protection::NONE);
    }
    if !inode.in_upper() {
        let read = lower_protection(inode)?;
        inode.protection.set(read);
        return Ok(read);
    }
    // The inode was looked up in an upper directory without lowers, where markers are not read.
    let dialect = stack.readable_upper()?.layer.dialect;
    let read = stack.with_upper(inode, |at| {
        Ok(Protection::read(at, dialect)? | at.stat()?.protection)
    })?;
    inode.protection.set(read);
    Ok(read)
}

fn lower_protection(inode: &Inode) -> Result<Protection> {
    let loc = inode.loc.read();
    match (&inode.dir, &loc.lower) {
        (Some(dir), _) => Ok(dir.lowers.top().ok_or(Errno::IO)?.stat.protection),
        (None, Some(Lower::File(file))) => Ok(file.stat.protection),
        // Protected files have no numbers.
        (None, _) => Ok(Protection::NONE),
    }
}

/// Checks that names, attributes and xattrs of an inode may change.
///
/// # Errors
/// EPERM for an immutable or append-only inode.
pub(crate) fn check_changeable(stack: &Stack, inode: &Inode) -> Result<()> {
    match protection(stack, inode)? {
        Protection::NONE => Ok(()),
        _ => Err(Errno::PERM.into()),
    }
}

/// Checks that names may be created in a directory.
///
/// # Errors
/// EPERM for an immutable directory.
pub(crate) fn check_extensible(stack: &Stack, dir: &Inode) -> Result<()> {
    if protection(stack, dir)?.is_immutable() {
        Err(Errno::PERM.into())
    } else {
        Ok(())
    }
}

/// Checks that the inode's protection allows a change of attributes (`may_setattr`).
///
/// # Errors
/// EPERM when it does not.
pub(crate) fn check_setattr(stack: &Stack, inode: &Inode, set: &SetAttr) -> Result<()> {
    let protection = protection(stack, inode)?;
    if protection == Protection::NONE {
        return Ok(());
    }
    let now = Some(SetTime::Now);
    let touched = set.atime == now && set.mtime == now;
    let other = set.perm.is_some() || set.uid.is_some() || set.gid.is_some();
    let timed = (set.atime.is_some() || set.mtime.is_some()) && !touched && !set.of_writes;
    if protection.is_immutable() || other || timed || set.size.is_some() {
        Err(Errno::PERM.into())
    } else {
        Ok(())
    }
}

/// Returns how many of the `len` bytes at `offset` a write must skip: none, except for an
/// append-only file, whose content may not change. Data from the kernel's cache may contain more
/// than is new.
///
/// # Errors
/// EPERM when the write is not allowed.
pub(crate) fn check_write(
    stack: &Stack,
    inode: &Inode,
    offset: u64,
    len: usize,
    how: Write,
) -> Result<usize> {
    let protection = protection(stack, inode)?;
    if protection == Protection::NONE {
        return Ok(0);
    }
    if protection.is_immutable() || !(how.append || how.pages) {
        return Err(Errno::PERM.into());
    }
    let old = attr_of(stack, inode)?.size.saturating_sub(offset);
    match usize::try_from(old).unwrap_or(usize::MAX).min(len) {
        0 => Ok(0),
        known if how.pages => Ok(known),
        _ => Err(Errno::PERM.into()),
    }
}

/// Checks a fallocate(2).
///
/// # Errors
/// EPERM for an immutable file, and for an append-only one unless only space is added.
pub(crate) fn check_allocate(stack: &Stack, inode: &Inode, mode: FallocateFlags) -> Result<()> {
    let protection = protection(stack, inode)?;
    let adds = (mode - FallocateFlags::KEEP_SIZE).is_empty();
    if protection.is_immutable() || protection.is_append() && !adds {
        Err(Errno::PERM.into())
    } else {
        Ok(())
    }
}

/// Checks an open with these `O_` flags.
///
/// # Errors
/// EPERM when the file is protected against it.
pub(crate) fn check_open(stack: &Stack, inode: &Inode, flags: u32) -> Result<()> {
    let has = |flag: i32| flags & flag.cast_unsigned() != 0;
    let protection = protection(stack, inode)?;
    let writes = has(libc::O_WRONLY | libc::O_RDWR);
    let refused = if protection.is_immutable() {
        writes || has(libc::O_TRUNC)
    } else {
        protection.is_append() && (writes && !has(libc::O_APPEND) || has(libc::O_TRUNC))
    };
    if refused {
        Err(Errno::PERM.into())
    } else {
        Ok(())
    }
}

/// Writes the protection marker of a staged copy. Where the upper has no xattrs the copy is not
/// protected, as in overlayfs.
pub(crate) fn protect_copy(upper: &Upper, inode: &Inode, to: At<'_>) -> Result<()> {
    let Some(protection) = inode.protection.get().filter(|p| *p != Protection::NONE) else {
        return Ok(());
    };
    match upper.markers.set(to, Marker::Protattr, protection.text()) {
        Err(Errno::OPNOTSUPP | Errno::PERM) => Ok(()),
        other => Ok(other?),
    }
}

/// Calls `f` with a file or directory open for reading: the upper's, if it has only the metadata.
fn with_open<T>(
    stack: &Stack,
    inode: &Inode,
    f: impl FnOnce(std::os::fd::BorrowedFd<'_>) -> Result<T>,
) -> Result<T> {
    match inode.kind {
        FileKind::Regular if inode.is_metacopy() => {
            let file = stack.with_upper(inode, |at| Ok(at.open_quietly()?))?;
            f(file.as_fd())
        }
        FileKind::Regular => f(stack.data_fd(inode, Access::Read)?.fd.as_fd()),
        FileKind::Directory => {
            let dir = stack.with_top(inode, |at, _| {
                Ok(at.open(OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NONBLOCK, 0)?)
            })?;
            f(dir.as_fd())
        }
        _ => Err(Errno::NOTTY.into()),
    }
}

/// Replaces the protection marker of an upper file.
fn mark(upper: &Upper, at: At<'_>, before: Protection, protection: Protection) -> Result<()> {
    if protection != Protection::NONE {
        return match upper.markers.set(at, Marker::Protattr, protection.text()) {
            Err(Errno::OPNOTSUPP) => Err(Errno::PERM.into()),
            other => Ok(other?),
        };
    }
    if before == Protection::NONE {
        return Ok(());
    }
    match upper.markers.clear(at, Marker::Protattr) {
        Err(Errno::OPNOTSUPP | Errno::NODATA) => Ok(()),
        other => Ok(other?),
    }
}
