//! The upper side of inodes: opened by the names that the union knows, and checked to be the known
//! file, because another file may have the name now.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::io::Errno;

use super::super::error::Result;
use super::super::inode::{Inode, Link};
use super::super::orphans::Held;
use super::super::types::{FileKind, ROOT_INO};
use super::Stack;
use crate::layer::at::{At, Stat};

impl Stack {
    /// Returns a descriptor of the upper side of a directory.
    ///
    /// # Errors
    /// ENOENT when the directory has no upper side; else as [`Self::with_upper`].
    pub fn upper_dir(&self, inode: &Inode) -> Result<Arc<OwnedFd>> {
        let dir = inode.dir.as_ref().ok_or(Errno::NOTDIR)?;
        if let Some(fd) = self.fds.cached(&dir.upper_fd) {
            return Ok(fd);
        }
        if let Some(fd) = inode.loc.read().orphan().and_then(Held::dir) {
            return Ok(Arc::clone(fd));
        }
        let _topology = self.topology.read();
        self.upper_dir_stable(inode)
    }

    /// As [`Self::upper_dir`]; the caller holds `topology`.
    fn upper_dir_stable(&self, inode: &Inode) -> Result<Arc<OwnedFd>> {
        let upper = self.readable_upper()?;
        // Goes up to the nearest ancestor with a descriptor, then down again.
        let mut missing: Vec<(Arc<Inode>, Arc<[u8]>)> = Vec::new();
        let mut fd = None;
        let mut link = inode.loc.read().links.first().cloned();
        while let Some(Link { parent, name, .. }) = link {
            missing.push((Arc::clone(&parent), name));
            fd = parent
                .dir
                .as_ref()
                .and_then(|dir| self.fds.cached(&dir.upper_fd));
            if fd.is_some() {
                break;
            }
            link = parent.loc.read().links.first().cloned();
        }
        let is_root = missing.is_empty();
        if is_root && inode.ino != ROOT_INO {
            return Err(Errno::NOENT.into());
        }
        let mut fd: Arc<OwnedFd> = match fd {
            Some(fd) => fd,
            None => Arc::new(At::fd(upper.layer.root.as_fd()).open_dir_path()?),
        };
        // `missing` pairs a parent with the name in it; the topmost parent itself is skipped.
        for i in (0..missing.len()).rev() {
            let child: &Inode = if i == 0 { inode } else { &missing[i - 1].0 };
            let name = &missing[i].1;
            let slot = &child.dir.as_ref().ok_or(Errno::NOTDIR)?.upper_fd;
            let id = child.loc.read().upper.as_ref().ok_or(Errno::NOENT)?.id;
            let open = || -> Result<OwnedFd> {
                let held = At::new(fd.as_fd(), name).hold_dir().map_err(mounted_over)?;
                self.check_upper(FileKind::Directory, id, &At::fd(held.as_fd()).stat()?)?;
                Ok(held)
            };
            fd = self.fds.get(slot, |_| true, open)?;
        }
        if is_root && let Some(dir) = &inode.dir {
            fd = self.fds.get(
                &dir.upper_fd,
                |_| true,
                || At::fd(upper.layer.root.as_fd()).open_dir_path(),
            )?;
        }
        Ok(fd)
    }

    /// Calls `f` with an O_PATH descriptor of the upper file of an inode. It is checked to be the
    /// file that the union knows, because another file may have its name now.
    ///
    /// # Errors
    /// ENOENT when the inode has no upper file, ESTALE when another file has its name.
    pub fn with_upper<T>(&self, inode: &Inode, f: impl FnOnce(At<'_>) -> Result<T>) -> Result<T> {
        self.at_upper(inode, |at, id| {
            if at.name.is_empty() {
                return f(at);
            }
            let held = at.hold().map_err(mounted_over)?;
            let held = At::fd(held.as_fd()).recorded_like(at);
            self.check_upper(inode.kind, id, &held.stat()?)?;
            f(held)
        })
    }

    /// As [`Self::with_upper`], for attributes and xattrs of the file. If the file is open for its data,
    /// that descriptor is used: three system calls less. It is the file that the union knows.
    ///
    /// # Errors
    /// As [`Self::with_upper`].
    pub fn with_upper_metadata<T>(
        &self,
        inode: &Inode,
        f: impl FnOnce(At<'_>) -> Result<T>,
    ) -> Result<T> {
        match self.open_upper_of(inode) {
            Some(open) => f(self.at_opened(&open.fd)?),
            None => self.with_upper(inode, f),
        }
    }

    /// Returns the file of a descriptor with which a file of the upper was opened.
    fn at_opened<'f>(&self, fd: &'f OwnedFd) -> Result<At<'f>> {
        let records = self.readable_upper()?.records();
        Ok(At::opened(fd.as_fd()).recorded_as(records))
    }

    /// As [`Self::with_upper_metadata`]. A `copy` that was just made is the upper file of the inode and is not
    /// opened again.
    ///
    /// # Errors
    /// As [`Self::with_upper`].
    pub fn with_copy<T>(
        &self,
        inode: &Inode,
        copy: Option<&OwnedFd>,
        f: impl FnOnce(At<'_>) -> Result<T>,
    ) -> Result<T> {
        match copy {
            Some(copy) => f(self.at_opened(copy)?),
            None => self.with_upper_metadata(inode, f),
        }
    }

    /// Returns the attributes of the upper file of an inode.
    ///
    /// # Errors
    /// As [`Self::with_upper`].
    pub fn upper_stat(&self, inode: &Inode) -> Result<Stat> {
        if let Some(open) = self.open_upper_of(inode) {
            // The number of links is that of the names which `loc` has.
            let _loc = inode.loc.read();
            return Ok(self.at_opened(&open.fd)?.stat()?);
        }
        self.at_upper(inode, |at, id| {
            let stat = at.stat()?;
            if !at.name.is_empty() {
                self.check_upper(inode.kind, id, &stat)?;
            }
            Ok(stat)
        })
    }

    /// Checks that a file found in the upper is the one that the union knows there. The upper's
    /// owner may replace it at any time by a file that only root may access.
    ///
    /// # Errors
    /// ESTALE when it is another file.
    pub fn check_upper(&self, kind: FileKind, id: (u64, u64), found: &Stat) -> Result<()> {
        let numbered = self.readable_upper()?.layer.keeps_numbers;
        if found.kind == kind && (found.id() == id || !numbered) {
            Ok(())
        } else {
            Err(Errno::STALE.into())
        }
    }

    /// Calls `f` with directory and name of the upper file of an inode, and its identity. The union
    /// does not move the file meanwhile.
    ///
    /// # Errors
    /// ENOENT when the inode has no upper file.
    fn at_upper<T>(
        &self,
        inode: &Inode,
        f: impl FnOnce(At<'_>, (u64, u64)) -> Result<T>,
    ) -> Result<T> {
        let records = self.readable_upper()?.records();
        if inode.dir.is_some() {
            let dir = self.upper_dir(inode)?;
            return f(At::fd(dir.as_fd()).recorded_as(records), (0, 0));
        }
        loop {
            let (link, index, id) = {
                let loc = inode.loc.read();
                let id = loc.upper.as_ref().ok_or(Errno::NOENT)?.id;
                if let Some(orphan) = loc.orphan() {
                    return f(orphan.at().recorded_as(records), id);
                }
                let link = loc.links.iter().find(|l| l.in_upper).cloned();
                if let (None, Some(parked)) = (&link, loc.parked()) {
                    return f(parked.at().recorded_as(records), id);
                }
                (link, loc.index().map(Box::<[u8]>::from), id)
            };
            let Some(link) = link else {
                let name = index.ok_or(Errno::NOENT)?;
                let dir = self.readable_upper()?.index_dir_opt()?;
                let dir = dir.ok_or(Errno::NOENT)?;
                return f(At::new(dir.as_fd(), &name).recorded_as(records), id);
            };
            let parent = self.upper_dir(&link.parent)?;
            let loc = inode.loc.read();
            let still = loc.orphan().is_none()
                && loc
                    .links
                    .iter()
                    .any(|l| l.in_upper && l.parent.ino == link.parent.ino && l.name == link.name);
            if still {
                return f(At::new(parent.as_fd(), &link.name).recorded_as(records), id);
            }
        }
    }
}

/// Maps the error for a mount on a directory of the upper. Mounts there are not followed, as in
/// overlayfs, so the file that the union knows cannot be reached.
fn mounted_over(errno: Errno) -> Errno {
    match errno {
        Errno::XDEV => Errno::STALE,
        other => other,
    }
}
