//! Descriptors of the data of files. A bounded cache keeps them; an inode does not own one.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{OFlags, fcntl_setfl};
use rustix::io::Errno;

use super::super::error::Result;
use super::super::inode::{DataFd, Inode};
use super::super::lock_order::{self, rank};
use super::Stack;
use crate::layer::fds::with_spare;

/// The purpose of a descriptor of data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// For reading, from whichever layer has the data.
    Read,
    /// For writing, to a file that the upper has with all of its data.
    Write,
}

impl Stack {
    /// Returns a descriptor of the data of a file. One for writing can be read too, if the file
    /// permits it.
    ///
    /// # Errors
    /// EIO for writing to a file that was not copied up; else those of open(2).
    pub fn data_fd(&self, inode: &Inode, access: Access) -> Result<Arc<DataFd>> {
        let slot = inode.data();
        let _order = lock_order::enter(rank::DATA, Arc::as_ptr(slot).addr());
        self.fds.get(
            slot,
            |held: &DataFd| held.writable || access == Access::Read,
            || self.open_data(inode, access),
        )
    }

    fn open_data(&self, inode: &Inode, access: Access) -> Result<DataFd> {
        let place = {
            let loc = inode.loc.read();
            if let Some(pinned) = loc.rare().and_then(|rare| rare.pinned.as_ref()) {
                let fd = with_spare(|| rustix::io::fcntl_dupfd_cloexec(&pinned.0, 0))?;
                return Ok(DataFd::writable(fd));
            }
            loc.upper.as_ref().map(|upper| upper.metacopy.clone())
        };
        let place = match place {
            Some(metacopy) => metacopy,
            None => Some(self.lower_of(inode)?.ok_or(Errno::IO)?),
        };
        if let Some(file) = place {
            if access == Access::Write {
                return Err(Errno::IO.into());
            }
            let fd = self.lowers.open(&file)?;
            return Ok(DataFd::read_only(fd));
        }
        let observed = self.writable().is_err();
        self.with_upper(inode, |at| {
            if observed {
                return Ok(DataFd::read_only(at.open_quietly()?));
            }
            let flags = OFlags::RDWR | OFlags::NONBLOCK;
            let opened = if self.noatime {
                // This fails if the file belongs to another user and the server is not privileged.
                let quiet = at.open(flags | OFlags::NOATIME, 0);
                quiet.or_else(|_| at.open(flags, 0))
            } else {
                at.open(flags, 0)
            };
            match opened {
                Ok(fd) => Ok(DataFd::writable(fd)),
                // The file can only be read: it is being executed, or the server is not privileged.
                Err(Errno::ACCESS | Errno::TXTBSY | Errno::ROFS | Errno::PERM)
                    if access == Access::Read =>
                {
                    Ok(DataFd::read_only(at.open_quietly()?))
                }
                // The file can only be written.
                Err(Errno::ACCESS) => {
                    let fd = at.open(OFlags::WRONLY | OFlags::NONBLOCK, 0)?;
                    Ok(DataFd::writable(fd))
                }
                Err(e) => Err(e.into()),
            }
        })
    }

    /// Takes over the descriptor of a new file, open for reading and writing. With `noatime`, sets
    /// O_NOATIME on it: the file belongs to the server's user.
    pub fn put_data(&self, inode: &Inode, fd: OwnedFd) {
        if self.noatime
            && let Err(error) = fcntl_setfl(&fd, OFlags::NONBLOCK | OFlags::NOATIME)
        {
            tracing::debug!(%error, "access times of a new file move");
        }
        self.fds.put(inode.data(), DataFd::writable(fd));
    }

    /// Returns the descriptor of an inode's data, if one is open and the slot is free. It does not
    /// wait: a thread that opens the file holds the slot and may wait for the inode's `loc`.
    pub fn open_data_of(&self, inode: &Inode) -> Option<Arc<DataFd>> {
        self.fds.cached_if_free(inode.data_opt()?)
    }

    /// As [`Self::open_data_of`], for the file of the upper. One that is only read may be that of a lower.
    pub fn open_upper_of(&self, inode: &Inode) -> Option<Arc<DataFd>> {
        self.open_data_of(inode).filter(|data| data.writable)
    }

    /// Returns the descriptor of the upper side of a directory, if one is open.
    pub fn open_dir_of(&self, inode: &Inode) -> Option<Arc<OwnedFd>> {
        self.fds.cached(&inode.dir.as_ref()?.upper_fd)
    }
}
