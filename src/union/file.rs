//! File data: read, write, fsync, fallocate, copy_file_range, lseek, by inode number.
//!
//! Descriptors come from a bounded cache. The first modification copies the file up.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{FallocateFlags, OFlags, SeekFrom};
use rustix::io::Errno;

use super::Union;
use super::direct_io::{aligned, aligned_into};
use super::error::Result;
use super::inode::{DataFd, Inode};
use super::lock_order::{self, rank};
use super::types::{FileKind, Ino, SetIdLoss, Write};
use crate::layer::at::At;
use crate::layer::fds::with_spare;

const SEEK_DATA: u32 = 3;
const SEEK_HOLE: u32 = 4;

impl Union {
    /// Reads into `buf` at `offset` and returns the number of bytes, which is short only at the end
    /// of the file. `direct`: use O_DIRECT, where the file system of the data has it.
    ///
    /// # Errors
    /// EISDIR, EINVAL for what is no regular file or misaligned with `direct`, ESTALE; else those
    /// of read(2).
    pub fn read(&self, ino: Ino, offset: u64, buf: &mut [u8], direct: bool) -> Result<usize> {
        let data = self.data_fd(&*self.regular(ino)?, false)?;
        let fd = data.for_io(direct);
        if direct {
            aligned_into(buf, |buf| read_all(fd, offset, buf))
        } else {
            read_all(fd, offset, buf)
        }
    }

    /// Writes all of `data` at `offset`; copies the file up.
    ///
    /// # Errors
    /// EROFS without an upper, EPERM for a protected file, ESTALE; else those of write(2), when
    /// nothing was written.
    pub fn write(
        &self,
        ino: Ino,
        (offset, data): (u64, &[u8]),
        how: Write,
        loss: Option<&SetIdLoss<'_>>,
    ) -> Result<usize> {
        let inode = self.regular(ino)?;
        self.writable()?;
        let skip = self.check_write(&inode, (offset, data.len()), (how.append, how.pages))?;
        let (whole, offset) = (data.len(), offset.saturating_add(skip as u64));
        let data = data.get(skip..).unwrap_or_default();
        if data.is_empty() && skip > 0 {
            return Ok(whole);
        }
        self.copy_up(&inode)?;
        let file = self.data_fd(&inode, true)?;
        if let Some(loss) = loss {
            self.drop_set_id(&inode, At::fd(file.fd.as_fd()), loss)?;
        }
        let fd = file.for_io(how.direct);
        let written = if how.direct {
            aligned(data, |data| write_all(fd, offset, data))
        } else {
            write_all(fd, offset, data)
        };
        written.map(|written| skip + written)
    }

    /// Calls fsync(2) or fdatasync(2) on a file. Does nothing for a file that is not in the upper,
    /// and on a `volatile` mount.
    ///
    /// # Errors
    /// ESTALE; else those of fsync(2).
    pub fn fsync(&self, ino: Ino, datasync: bool) -> Result<()> {
        let inode = self.inode(ino)?;
        if inode.dir.is_some() {
            return self.fsyncdir(ino, datasync);
        }
        let Some(upper) = self.upper.as_ref().filter(|u| !u.volatile) else {
            return Ok(());
        };
        if !inode.in_upper() {
            return Ok(());
        }
        if inode.kind != FileKind::Regular {
            return Ok(rustix::fs::syncfs(&upper.layer.root)?);
        }
        let data = self.data_fd(&inode, false)?;
        if datasync {
            Ok(rustix::fs::fdatasync(&data.fd)?)
        } else {
            Ok(rustix::fs::fsync(&data.fd)?)
        }
    }

    /// Writes all dirty data of the upper's file system to disk. Does nothing on a `volatile` mount
    /// and without an upper.
    ///
    /// # Errors
    /// Those of syncfs(2).
    pub fn syncfs(&self) -> Result<()> {
        match self.upper.as_ref().filter(|u| !u.volatile) {
            Some(upper) => Ok(rustix::fs::syncfs(&upper.layer.root)?),
            None => Ok(()),
        }
    }

    /// Calls fsync(2) on a directory.
    ///
    /// # Errors
    /// ENOTDIR, ESTALE; else those of fsync(2).
    pub fn fsyncdir(&self, ino: Ino, datasync: bool) -> Result<()> {
        let inode = self.directory(ino)?;
        if self.upper.as_ref().is_none_or(|u| u.volatile) || !inode.in_upper() {
            return Ok(());
        }
        if Self::is_gone(&inode) {
            return Ok(());
        }
        let fd = self.upper_dir(&inode)?;
        let dir = At::fd(fd.as_fd()).open(OFlags::RDONLY | OFlags::DIRECTORY, 0)?;
        if datasync {
            Ok(rustix::fs::fdatasync(dir)?)
        } else {
            Ok(rustix::fs::fsync(dir)?)
        }
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
        (offset, len): (u64, u64),
        loss: Option<&SetIdLoss<'_>>,
    ) -> Result<()> {
        let inode = self.regular(ino)?;
        self.writable()?;
        let mode = FallocateFlags::from_bits(mode).ok_or(Errno::OPNOTSUPP)?;
        self.check_allocate(&inode, mode)?;
        self.copy_up(&inode)?;
        let data = self.data_fd(&inode, true)?;
        if let Some(loss) = loss {
            self.drop_set_id(&inode, At::fd(data.fd.as_fd()), loss)?;
        }
        Ok(rustix::fs::fallocate(&data.fd, mode, offset, len)?)
    }

    /// Calls copy_file_range(2); copies the destination up.
    ///
    /// # Errors
    /// EROFS without an upper, EPERM for a protected destination; else those of copy_file_range(2).
    pub fn copy_file_range(
        &self,
        src: (Ino, u64),
        dst: (Ino, u64),
        len: u64,
        loss: Option<&SetIdLoss<'_>>,
    ) -> Result<usize> {
        let source = self.regular(src.0)?;
        let target = self.regular(dst.0)?;
        self.writable()?;
        self.check_changeable(&target)?;
        self.copy_up(&target)?;
        let from = self.data_fd(&source, false)?;
        let to = self.data_fd(&target, true)?;
        if let Some(loss) = loss {
            self.drop_set_id(&target, At::fd(to.fd.as_fd()), loss)?;
        }
        let (mut from_off, mut to_off) = (src.1, dst.1);
        let len = usize::try_from(len).unwrap_or(usize::MAX).min(1 << 30);
        let copied = rustix::fs::copy_file_range(
            &from.fd,
            Some(&mut from_off),
            &to.fd,
            Some(&mut to_off),
            len,
        )?;
        Ok(copied)
    }

    /// Finds data (`whence` SEEK_DATA, 3) or a hole (SEEK_HOLE, 4).
    ///
    /// # Errors
    /// ENXIO beyond the end, EINVAL for another `whence`; else those of lseek(2).
    pub fn lseek(&self, ino: Ino, offset: u64, whence: u32) -> Result<u64> {
        let data = self.data_fd(&*self.regular(ino)?, false)?;
        let to = match whence {
            SEEK_DATA => SeekFrom::Data(offset),
            SEEK_HOLE => SeekFrom::Hole(offset),
            _ => return Err(Errno::INVAL.into()),
        };
        Ok(rustix::fs::seek(&data.fd, to)?)
    }

    pub(crate) fn regular(&self, ino: Ino) -> Result<Arc<Inode>> {
        let inode = self.inode(ino)?;
        match inode.kind {
            FileKind::Regular => Ok(inode),
            FileKind::Directory => Err(Errno::ISDIR.into()),
            _ => Err(Errno::INVAL.into()),
        }
    }

    /// Returns a descriptor of the data of a file, writable (and so of the upper) if asked.
    pub(crate) fn data_fd(&self, inode: &Inode, write: bool) -> Result<Arc<DataFd>> {
        let slot = inode.data();
        let _order = lock_order::enter(rank::DATA, Arc::as_ptr(slot).addr());
        self.fds.get(
            slot,
            |held: &DataFd| held.writable || !write,
            || self.open_data(inode, write),
        )
    }

    fn open_data(&self, inode: &Inode, write: bool) -> Result<DataFd> {
        let place = {
            let loc = inode.loc.read();
            if let Some(pinned) = loc.rare().and_then(|rare| rare.pinned.as_ref()) {
                let fd = with_spare(|| rustix::io::fcntl_dupfd_cloexec(&pinned.0, 0))?;
                return Ok(DataFd::new(fd, true));
            }
            loc.upper.as_ref().map(|upper| upper.metacopy.clone())
        };
        let place = match place {
            Some(metacopy) => metacopy,
            None => Some(self.lower_of(inode)?.ok_or(Errno::IO)?),
        };
        if let Some(file) = place {
            if write {
                return Err(Errno::IO.into());
            }
            let (dir, name) = file.data_place();
            let dir = dir.fd(&self.fds)?;
            let held = At::new(dir.as_fd(), name).open(OFlags::PATH, 0)?;
            // The layer's owner may have put another file there.
            if !file.has_data_of(&At::fd(held.as_fd()).stat()?) {
                return Err(Errno::STALE.into());
            }
            let fd = open_quietly(At::fd(held.as_fd()))?;
            self.check_identity(&file, At::fd(fd.as_fd()))?;
            return Ok(DataFd::new(fd, false));
        }
        let observed = self.writable().is_err();
        self.with_upper(inode, |at| {
            if observed {
                let fd = open_quietly(at)?;
                let writable = false;
                return Ok(DataFd::new(fd, writable));
            }
            let quiet = if self.noatime {
                at.open(OFlags::RDWR | OFlags::NOATIME | OFlags::NONBLOCK, 0)
            } else {
                // The file belongs to another user, and the server is not privileged.
                Err(Errno::PERM)
            };
            let open = |_| at.open(OFlags::RDWR | OFlags::NONBLOCK, 0);
            match quiet.or_else(open) {
                Ok(fd) => Ok(DataFd::new(fd, true)),
                // It can be read only: it is being executed, or the server is not privileged.
                Err(Errno::ACCESS | Errno::TXTBSY | Errno::ROFS | Errno::PERM) if !write => {
                    Ok(DataFd::new(open_quietly(at)?, false))
                }
                // It can be written only.
                Err(Errno::ACCESS) => {
                    let fd = at.open(OFlags::WRONLY | OFlags::NONBLOCK, 0)?;
                    Ok(DataFd::new(fd, true))
                }
                Err(e) => Err(e.into()),
            }
        })
    }

    /// Keeps a writable descriptor of an upper file until the kernel forgets the inode, if the
    /// limit allows it; without one, later writes through open descriptors fail with EACCES.
    pub(crate) fn pin_data(&self, inode: &Inode) -> Result<()> {
        if inode.loc.read().orphan().is_some() {
            return Ok(());
        }
        let Some(permit) = self.orphans.take() else {
            return Ok(());
        };
        let opened = self.with_upper(inode, |at| Ok(at.open(OFlags::RDWR | OFlags::NONBLOCK, 0)));
        if let Ok(fd) = opened? {
            inode.loc.write().rare_mut().pinned = Some((fd, permit));
        }
        Ok(())
    }
}

fn read_all(fd: BorrowedFd<'_>, offset: u64, buf: &mut [u8]) -> Result<usize> {
    let mut done = 0;
    while done < buf.len() {
        let at = offset.checked_add(done as u64).ok_or(Errno::INVAL)?;
        match rustix::io::pread(fd, &mut buf[done..], at) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(Errno::INTR) => {}
            Err(e) if done == 0 => return Err(e.into()),
            Err(_) => break,
        }
    }
    Ok(done)
}

fn write_all(fd: BorrowedFd<'_>, offset: u64, data: &[u8]) -> Result<usize> {
    let mut done = 0;
    while done < data.len() {
        let at = offset.checked_add(done as u64).ok_or(Errno::FBIG)?;
        match rustix::io::pwrite(fd, &data[done..], at) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(Errno::INTR) => {}
            // Reports what was written; the next write gets the error.
            Err(_) if done > 0 => break,
            Err(e) => return Err(e.into()),
        }
    }
    Ok(done)
}

/// Opens for reading, with O_NOATIME where that is permitted.
fn open_quietly(at: At<'_>) -> Result<OwnedFd, Errno> {
    match at.open(OFlags::RDONLY | OFlags::NOATIME | OFlags::NONBLOCK, 0) {
        Err(Errno::PERM) => at.open(OFlags::RDONLY | OFlags::NONBLOCK, 0),
        other => other,
    }
}
