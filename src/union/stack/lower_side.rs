//! The lower side of inodes, and the side whose metadata the union shows. If an inode's lower side
//! is the number of a file, a [`LowerFile`] is made from the number when one is needed.

use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::io::Errno;

use super::super::error::Result;
use super::super::inode::{DataFd, Inode, Lower};
use super::super::owners::Side;
use super::Stack;
use crate::layer::Dialect;
use crate::layer::at::At;
use crate::lowers::{FileId, LowerFile};

impl Stack {
    /// Returns the error that getxattr gives for an xattr that is known to be absent. `None` if the
    /// file must be read.
    pub fn known_absent(&self, inode: &Inode, name: &[u8]) -> Option<Errno> {
        let id = self.lower_id(inode)?;
        self.lowers.absent_xattr(id, name, &mut |stored| {
            let asked = self.with_top(inode, |at, _| Ok(at.xattr_raw(stored).map(drop)));
            asked.unwrap_or(Err(Errno::IO))
        })
    }

    /// Returns the lower file of an inode. A `LowerFile` for a number is made on first use and then
    /// kept, with the directories on its path.
    ///
    /// # Errors
    /// EIO when the number refers to no file.
    pub fn lower_of(&self, inode: &Inode) -> Result<Option<Arc<LowerFile>>> {
        let id = match &inode.loc.read().lower {
            None => return Ok(None),
            Some(Lower::File(file)) => return Ok(Some(Arc::clone(file))),
            Some(Lower::Id(id)) => *id,
        };
        let file = Arc::new(self.lowers.file(id)?);
        let mut loc = inode.loc.write();
        if let Some(Lower::File(other)) = &loc.lower {
            return Ok(Some(Arc::clone(other)));
        }
        loc.lower = Some(Lower::File(Arc::clone(&file)));
        Ok(Some(file))
    }

    /// Returns the number of an inode that is in the lowers only.
    pub fn lower_id(&self, inode: &Inode) -> Option<FileId> {
        if !self.lowers.is_indexed() {
            return None;
        }
        let loc = inode.loc.read();
        if loc.upper.is_some() {
            return None;
        }
        match (&inode.dir, &loc.lower) {
            (Some(dir), _) => dir.lowers.id(),
            (None, Some(lower)) => lower.id(),
            (None, None) => None,
        }
    }

    /// Checks that a lower file or directory that is about to be copied up still matches its
    /// attributes in the catalog.
    ///
    /// # Errors
    /// ESTALE when it does not.
    pub fn check_lower(&self, inode: &Inode) -> Result<()> {
        match &inode.dir {
            Some(dir) => Ok(dir.lowers.merged().map_or(Ok(()), |dir| dir.check())?),
            None => match self.lower_of(inode)? {
                Some(file) => Ok(self.lowers.check(&file)?),
                None => Ok(()),
            },
        }
    }

    /// Calls `f` with the file whose metadata the union shows: the open file if there is one.
    pub fn with_top<T>(
        &self,
        inode: &Inode,
        f: impl FnOnce(At<'_>, Dialect) -> Result<T>,
    ) -> Result<T> {
        self.with_top_side(inode, |at, dialect, _| f(at, dialect))
    }

    /// As [`Self::with_top`], with the side of the file.
    pub fn with_top_side<T>(
        &self,
        inode: &Inode,
        f: impl FnOnce(At<'_>, Dialect, Side) -> Result<T>,
    ) -> Result<T> {
        if inode.in_upper() {
            let dialect = self.readable_upper()?.layer.dialect;
            return self.with_upper_metadata(inode, |at| f(at, dialect, Side::Upper));
        }
        if let Some(dir) = &inode.dir {
            let top = dir.lowers.top().ok_or(Errno::IO)?;
            return f(
                At::fd(self.lowers.hold_dir(top)?.as_fd()),
                top.layer.dialect,
                Side::Lower,
            );
        }
        let file = self.lower_of(inode)?.ok_or(Errno::IO)?;
        let dialect = file.dir.layer.dialect;
        if let Some(open) = self.open_lower_of(inode, &file) {
            return f(At::opened(open.fd.as_fd()), dialect, Side::Lower);
        }
        let held = self.lowers.hold(&file)?;
        f(At::fd(held.as_fd()), dialect, Side::Lower)
    }

    /// Returns the descriptor of the data of a lower file, if it is open, and if the same file has the
    /// metadata.
    fn open_lower_of(&self, inode: &Inode, file: &LowerFile) -> Option<Arc<DataFd>> {
        let data = self.open_data_of(inode)?;
        // Only a descriptor that was opened before a copy-up is certainly that of the lower file.
        let is_lower = file.data.is_none() && !data.writable && !inode.in_upper();
        is_lower.then_some(data)
    }
}
