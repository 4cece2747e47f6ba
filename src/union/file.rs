//! File data: read, write, fsync, fallocate, copy_file_range, lseek, by inode number.
//!
//! Descriptors come from a bounded cache. The first modification copies the file up.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{FallocateFlags, OFlags, SeekFrom};
use rustix::io::Errno;

use super::Union;
use super::attr::drop_set_id;
use super::direct_io::{aligned, aligned_into};
use super::error::{Error, Result};
use super::inode::Inode;
use super::interrupted::Interruptions;
use super::protect::{check_allocate, check_changeable, check_write};
use super::stack::Access;
use super::types::{Caching, FileKind, Ino, Position, SetIdLoss, SyncExtent, Write};
use crate::layer::at::At;

const SEEK_DATA: u32 = 3;
const SEEK_HOLE: u32 = 4;

impl Union {
    /// Reads into `buf` at `offset` and returns the number of bytes, which is short only at the end
    /// of the file. To the kernel a short answer about cached data is the end, so an error is an error
    /// for all of `buf`: the kernel asks again, page by page. With [`Caching::Direct`] the bytes before
    /// the error are returned, as by read(2).
    ///
    /// # Errors
    /// EISDIR, EINVAL for a file that is not regular or for misaligned access with
    /// [`Caching::Direct`], ESTALE; else those of read(2).
    pub fn read(&self, ino: Ino, offset: u64, buf: &mut [u8], caching: Caching) -> Result<usize> {
        let data = self
            .stack
            .data_fd(&*self.names.regular(ino)?, Access::Read)?;
        let fd = data.for_io(caching);
        if caching == Caching::Direct {
            aligned_into(buf, |buf| part_or_error(read_all(fd, offset, buf)))
        } else {
            all_or_error(read_all(fd, offset, buf))
        }
    }

    /// Writes `data` at `offset` and returns the number of bytes; copies the file up. Fewer than all
    /// are written before an error. Of pages of the kernel all are written, or the error is returned: the
    /// kernel ignores how many were (`fuse_writepage_end` of fs/fuse/file.c), and would drop the rest.
    ///
    /// # Errors
    /// EROFS without an upper, EPERM for a protected file, ESTALE; else those of write(2).
    pub fn write(
        &self,
        ino: Ino,
        offset: u64,
        data: &[u8],
        how: Write,
        loss: Option<&SetIdLoss<'_>>,
    ) -> Result<usize> {
        let inode = self.names.regular(ino)?;
        self.stack.writable()?;
        let skip = check_write(&self.stack, &inode, offset, data.len(), how)?;
        let (whole, offset) = (data.len(), offset.saturating_add(skip as u64));
        let data = data.get(skip..).unwrap_or_default();
        if data.is_empty() && skip > 0 {
            return Ok(whole);
        }
        self.copying().copy_up(&inode)?;
        let file = self.stack.data_fd(&inode, Access::Write)?;
        if let Some(loss) = loss {
            drop_set_id(&self.stack, &inode, At::opened(file.fd.as_fd()), loss)?;
        }
        let fd = file.for_io(how.caching);
        let written = if how.caching == Caching::Direct {
            aligned(data, |data| write_all(fd, offset, data))
        } else {
            write_all(fd, offset, data)
        };
        let written = if how.pages {
            all_or_error(written)
        } else {
            part_or_error(written)
        };
        written.map(|written| skip + written)
    }

    /// Calls fsync(2) or fdatasync(2) on a file. Does nothing for a file that is not in the upper,
    /// and on a `volatile` mount.
    ///
    /// # Errors
    /// ESTALE; else those of fsync(2).
    pub fn fsync(&self, ino: Ino, extent: SyncExtent) -> Result<()> {
        let inode = self.names.inode(ino)?;
        if inode.dir.is_some() {
            return self.fsyncdir(ino, extent);
        }
        let Some(upper) = self.stack.upper().filter(|u| !u.volatile) else {
            return Ok(());
        };
        if !inode.in_upper() {
            return Ok(());
        }
        if inode.kind != FileKind::Regular {
            return Ok(rustix::fs::syncfs(&upper.layer.root)?);
        }
        if inode.is_metacopy() {
            return self.fsync_metacopy(&inode, extent);
        }
        let data = self.stack.data_fd(&inode, Access::Read)?;
        Ok(extent.sync(&data.fd)?)
    }

    /// Calls fsync(2) on a file of which the upper has the metadata. The data is in a lower, so
    /// fdatasync(2) has nothing to do (fs/overlayfs/file.c, `ovl_fsync`).
    fn fsync_metacopy(&self, inode: &Inode, extent: SyncExtent) -> Result<()> {
        if extent == SyncExtent::Data {
            return Ok(());
        }
        let file = self.stack.with_upper(inode, |at| Ok(at.open_quietly()?))?;
        Ok(extent.sync(&file)?)
    }

    /// Writes all dirty data of the upper's file system to disk. Does nothing on a `volatile` mount
    /// and without an upper.
    ///
    /// # Errors
    /// Those of syncfs(2).
    pub fn syncfs(&self) -> Result<()> {
        match self.stack.upper().filter(|u| !u.volatile) {
            Some(upper) => Ok(rustix::fs::syncfs(&upper.layer.root)?),
            None => Ok(()),
        }
    }

    /// Calls fsync(2) on a directory.
    ///
    /// # Errors
    /// ENOTDIR, ESTALE; else those of fsync(2).
    pub fn fsyncdir(&self, ino: Ino, extent: SyncExtent) -> Result<()> {
        let inode = self.names.directory(ino)?;
        if self.stack.upper().is_none_or(|u| u.volatile) || !inode.in_upper() {
            return Ok(());
        }
        if inode.is_gone() {
            return Ok(());
        }
        let fd = self.stack.upper_dir(&inode)?;
        let dir = At::fd(fd.as_fd()).open(OFlags::RDONLY | OFlags::DIRECTORY, 0)?;
        Ok(extent.sync(dir)?)
    }

    /// Calls fallocate(2) with its `mode`; copies the file up.
    ///
    /// # Errors
    /// EOPNOTSUPP for a mode that the upper's file system does not support, EPERM for a protected
    /// file, EROFS without an upper; else those of fallocate(2).
    pub fn fallocate(
        &self,
        ino: Ino,
        mode: u32,
        offset: u64,
        len: u64,
        loss: Option<&SetIdLoss<'_>>,
    ) -> Result<()> {
        let inode = self.names.regular(ino)?;
        self.stack.writable()?;
        let mode = FallocateFlags::from_bits(mode).ok_or(Errno::OPNOTSUPP)?;
        check_allocate(&self.stack, &inode, mode)?;
        self.copying().copy_up(&inode)?;
        let data = self.stack.data_fd(&inode, Access::Write)?;
        if let Some(loss) = loss {
            drop_set_id(&self.stack, &inode, At::opened(data.fd.as_fd()), loss)?;
        }
        Ok(rustix::fs::fallocate(&data.fd, mode, offset, len)?)
    }

    /// Calls copy_file_range(2); copies the destination up.
    ///
    /// # Errors
    /// EROFS without an upper, EPERM for a protected destination; else those of copy_file_range(2).
    pub fn copy_file_range(
        &self,
        from: Position,
        to: Position,
        len: u64,
        loss: Option<&SetIdLoss<'_>>,
    ) -> Result<usize> {
        let source = self.names.regular(from.ino)?;
        let target = self.names.regular(to.ino)?;
        self.stack.writable()?;
        check_changeable(&self.stack, &target)?;
        self.copying().copy_up(&target)?;
        let source = self.stack.data_fd(&source, Access::Read)?;
        let written = self.stack.data_fd(&target, Access::Write)?;
        if let Some(loss) = loss {
            drop_set_id(&self.stack, &target, At::opened(written.fd.as_fd()), loss)?;
        }
        let (mut from_offset, mut to_offset) = (from.offset, to.offset);
        let len = usize::try_from(len).unwrap_or(usize::MAX).min(1 << 30);
        let copied = rustix::fs::copy_file_range(
            &source.fd,
            Some(&mut from_offset),
            &written.fd,
            Some(&mut to_offset),
            len,
        )?;
        Ok(copied)
    }

    /// Finds data (`whence` SEEK_DATA, 3) or a hole (SEEK_HOLE, 4).
    ///
    /// # Errors
    /// ENXIO beyond the end, EINVAL for another `whence`; else those of lseek(2).
    pub fn lseek(&self, ino: Ino, offset: u64, whence: u32) -> Result<u64> {
        let data = self
            .stack
            .data_fd(&*self.names.regular(ino)?, Access::Read)?;
        let to = match whence {
            SEEK_DATA => SeekFrom::Data(offset),
            SEEK_HOLE => SeekFrom::Hole(offset),
            _ => return Err(Errno::INVAL.into()),
        };
        Ok(rustix::fs::seek(&data.fd, to)?)
    }
}

/// Returns the bytes before an error, if there are any, as read(2) and write(2) do: the next call gets the
/// error.
fn part_or_error(done: Result<usize, (Error, usize)>) -> Result<usize> {
    match done {
        Err((_, done)) if done > 0 => Ok(done),
        other => all_or_error(other),
    }
}

/// Returns the error whatever was done before it.
fn all_or_error(done: Result<usize, (Error, usize)>) -> Result<usize> {
    done.map_err(|(error, _)| error)
}

/// Reads up to the end of the file. The error has the number of bytes before it.
fn read_all(fd: BorrowedFd<'_>, offset: u64, buf: &mut [u8]) -> Result<usize, (Error, usize)> {
    let mut done = 0;
    let mut interruptions = Interruptions::default();
    while done < buf.len() {
        let at = offset.checked_add(done as u64);
        let at = at.ok_or_else(|| (Errno::INVAL.into(), done))?;
        match rustix::io::pread(fd, &mut buf[done..], at) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) => interruptions.ignore(e).map_err(|e| (e.into(), done))?,
        }
    }
    Ok(done)
}

/// Writes all of the data. The error has the number of bytes that were written before it.
fn write_all(fd: BorrowedFd<'_>, offset: u64, data: &[u8]) -> Result<usize, (Error, usize)> {
    let mut done = 0;
    let mut interruptions = Interruptions::default();
    while done < data.len() {
        let at = offset.checked_add(done as u64);
        let at = at.ok_or_else(|| (Errno::FBIG.into(), done))?;
        match rustix::io::pwrite(fd, &data[done..], at) {
            // Only a file system in user space answers so.
            Ok(0) => return Err((Errno::IO.into(), done)),
            Ok(n) => done += n,
            Err(e) => interruptions.ignore(e).map_err(|e| (e.into(), done))?,
        }
    }
    Ok(done)
}
