//! Files whose data may be read and written without the union. A transport passes them to the
//! kernel.
//!
//! A returned file stays the file of its inode as long as the inode is known. It is a file that the
//! upper has with all of its data, or any file of a union that cannot be written, whose lowers are
//! sealed. It is never a lower file that a later write would copy up, except that of
//! [`Union::unwritten`], which the caller asks for.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::io::Errno;

use super::Union;
use super::attr::truncate;
use super::error::Result;
use super::inode::DataFd;
use super::protect::{check_changeable, check_open};
use super::stack::Access;
use super::types::{Ino, SetIdLoss};

/// An open file of a layer.
#[derive(Debug)]
pub struct Backing(Arc<DataFd>);

impl AsFd for Backing {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.fd.as_fd()
    }
}

impl Backing {
    /// Whether its file system supports O_DIRECT.
    pub fn takes_direct(&self) -> bool {
        self.0.has_direct()
    }
}

impl Union {
    /// Returns the file that has the data of `ino` permanently; `None` while a write would still
    /// copy it up.
    ///
    /// # Errors
    /// ESTALE; EISDIR or EINVAL if it is not a regular file; else those of open(2).
    pub fn backing(&self, ino: Ino) -> Result<Option<Backing>> {
        let inode = self.names.regular(ino)?;
        let upper = inode.is_copied_up();
        if !upper && (self.stack.is_writable() || !self.stack.is_sealed()) {
            return Ok(None);
        }
        // The kernel opens the file again with flags of its own, so O_NOATIME has no effect. EPERM
        // makes the caller open the file without passthrough.
        if upper && self.stack.guards_access_times() {
            return Err(Errno::PERM.into());
        }
        // Write access is requested because a descriptor of the lower may still be cached from
        // before the copy-up.
        let access = if upper && self.stack.is_writable() {
            Access::Write
        } else {
            Access::Read
        };
        let data = self.stack.data_fd(&inode, access)?;
        Ok(Some(Backing(data)))
    }

    /// Returns the file of a lower that a write would copy up, for a program that runs from it or a
    /// reader. `None` if the upper has a copy, or if lowers are not sealed. It keeps the data that it has
    /// now, also if `ino` is written later.
    ///
    /// # Errors
    /// ESTALE; EISDIR or EINVAL if it is not a regular file; else those of open(2).
    pub fn unwritten(&self, ino: Ino) -> Result<Option<Backing>> {
        let inode = self.names.regular(ino)?;
        if !self.stack.is_sealed() {
            return Ok(None);
        }
        let data = self.stack.data_fd(&inode, Access::Read)?;
        // It is a file of the upper if the file was copied up meanwhile.
        Ok((!inode.is_copied_up()).then_some(Backing(data)))
    }

    /// Copies `ino` up for an open for writing with these `O_` flags.
    ///
    /// # Errors
    /// EROFS without an upper, EPERM for a protected file, else those of the upper's file system.
    pub fn open_for_writing(&self, ino: Ino, flags: u32) -> Result<()> {
        check_open(&self.stack, &*self.names.inode(ino)?, flags)?;
        let inode = self.names.regular(ino)?;
        self.stack.writable()?;
        self.copying().copy_up(&inode)
    }

    /// As [`Self::open_for_writing`] with O_TRUNC: copies the file up without its data.
    ///
    /// # Errors
    /// Those of [`Self::open_for_writing`].
    pub fn open_truncated(&self, ino: Ino, loss: Option<SetIdLoss<'_>>) -> Result<()> {
        self.stack.writable()?;
        let inode = self.names.regular(ino)?;
        check_changeable(&self.stack, &inode)?;
        self.copying().copy_up_to(&inode, 0)?;
        truncate(&self.stack, &inode, 0, loss)
    }

    /// Whether a file that [`Self::backing`] returns can be on a stacking file system: the upper's,
    /// or any layer's if the union cannot be written.
    pub fn is_stacked(&self) -> bool {
        let upper = self.stack.upper();
        upper.is_some_and(|upper| upper.layer.is_stacked())
            || !self.stack.is_writable() && self.stack.lowers().is_stacked()
    }

    /// Returns an unnamed file of the upper, to try passthrough with; `None` if there can be none.
    pub fn sample(&self) -> Option<OwnedFd> {
        let staged = self.stack.writable().ok()?.stage_file(0o600).ok()?;
        Some(staged.1)
    }
}
