//! Copy-up: brings a lower file or directory into the upper before its first change.
//!
//! The copy is staged in the work directory, complete with data, owner, mode, xattrs, origin and
//! times, and published by one link or rename. Until then it is invisible, and a failure leaves
//! nothing behind. Data is copied with only the inode's own `busy` lock held.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{OFlags, RenameFlags, XattrFlags};
use rustix::io::Errno;

use super::Union;
use super::copy_data::{Copied as DataCopied, How, copy_file};
use super::copy_metadata::{Copied, copy_metadata, first_perm};
use super::error::Result;
use super::inode::{DataFd, Inode, Link, LowerFile, Nlink, UpperState};
use super::lookup::Hint;
use super::lookup_cache::Cached;
use super::orphans::Keep;
use super::types::{FileKind, Ino};
use super::upper::StagedFile;
use crate::layer::at::{At, Stat, is_valid_name, timestamps};
use crate::layer::markers::Marker;
use crate::layer::origin::Origin;

pub(crate) const CAPABILITY: &std::ffi::CStr = c"security.capability";

/// What a copy is made from.
enum Source {
    /// A file open for its data.
    Data(Arc<DataFd>),
    /// A file of which only metadata is copied.
    Held(OwnedFd),
}

impl AsFd for Source {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Data(data) => data.fd.as_fd(),
            Self::Held(held) => held.as_fd(),
        }
    }
}

/// A name of an inode, with its parent directory locked and open in the upper.
#[derive(Clone, Copy)]
pub(super) struct UpperName<'a> {
    dir: &'a OwnedFd,
    link: &'a Link,
}

impl<'a> UpperName<'a> {
    /// Returns the parent directory and the name.
    pub fn name(&self) -> (&'a Arc<Inode>, &'a [u8]) {
        (&self.link.parent, &self.link.name)
    }
}

impl Union {
    /// Whether a modification of `ino` first copies data up, which is too slow for a request
    /// thread.
    pub fn needs_copy_up(&self, ino: Ino) -> bool {
        self.is_writable()
            && self
                .table
                .get(ino)
                .is_some_and(|inode| inode.kind == FileKind::Regular && !inode.is_copied_up())
    }

    /// As [`Self::needs_copy_up`], for the file with this name.
    pub fn needs_copy_up_name(&self, parent: Ino, name: &[u8]) -> bool {
        if !is_valid_name(name) {
            return false;
        }
        let found = self
            .directory(parent)
            .and_then(|parent| self.count_in(&parent, name, Hint::Linked));
        match found {
            Ok(Some(counted)) => self.needs_copy_up(counted.inode.ino),
            _ => false,
        }
    }

    /// Copies an inode up, with its data, unless it is in the upper already.
    ///
    /// # Errors
    /// EROFS without an upper, ESTALE when the lower file is not the one that was looked up; else
    /// those of the layers' file systems.
    pub(crate) fn copy_up(&self, inode: &Arc<Inode>) -> Result<()> {
        self.copy_up_to(inode, None)
    }

    /// As [`Self::copy_up`], with no more than the first `size` bytes of data.
    pub(crate) fn copy_up_to(&self, inode: &Arc<Inode>, size: Option<u64>) -> Result<()> {
        if inode.is_copied_up() {
            return Ok(());
        }
        self.writable()?;
        // Ancestors first; a loop instead of recursion bounds the stack.
        let mut chain = vec![Arc::clone(inode)];
        while let Some(last) = chain.last() {
            let parent = last.loc.read().links.first().map(|l| Arc::clone(&l.parent));
            match parent {
                Some(parent) if !parent.in_upper() => chain.push(parent),
                _ => break,
            }
        }
        while let Some(next) = chain.pop() {
            let size = if chain.is_empty() { size } else { None };
            self.copy_up_one(&next, size)?;
        }
        Ok(())
    }

    fn copy_up_one(&self, inode: &Arc<Inode>, size: Option<u64>) -> Result<()> {
        let _busy = inode.busy.lock();
        if inode.is_copied_up() {
            return Ok(());
        }
        if !inode.in_upper() {
            self.check_lower(inode)?;
            // Copying up writes the protection as a marker.
            self.protection(inode)?;
        }
        let metacopy = {
            let loc = inode.loc.read();
            loc.upper.as_ref().and_then(|u| u.metacopy.clone())
        };
        let lower = self.lower_of(inode)?;
        match (&inode.dir, metacopy, lower) {
            (_, Some(file), _) => self.complete_metacopy(inode, &file, size)?,
            (Some(_), ..) => self.copy_up_dir(inode)?,
            (None, _, Some(file)) if inode.kind == FileKind::Regular => {
                self.copy_up_file(inode, &file, size)?;
            }
            (None, _, Some(file)) => self.copy_up_node(inode, &file)?,
            (None, _, None) => return Err(Errno::IO.into()),
        }
        self.copy_ups.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn copy_up_dir(&self, inode: &Arc<Inode>) -> Result<()> {
        let upper = self.writable()?;
        let top = inode
            .dir
            .as_ref()
            .and_then(|d| d.lowers.top())
            .ok_or(Errno::IO)?;
        let source = top.fd(&self.fds)?;
        let perm = first_perm(upper, &top.stat, 0o700);
        let staged = upper.stage(|at| at.mkdir(perm))?;
        let origin = Origin::of(At::fd(source.as_fd()), top.layer.uuid).ok();
        let from = (At::fd(source.as_fd()), top.layer.dialect, &top.stat);
        let to = (staged.at(), self.is_bare_below(inode));
        let copy = copy_metadata(upper, from, to, origin.as_ref())?;
        Self::protect_copy(upper, inode, to.0)?;
        self.with_place(inode, |place| {
            let place = place.ok_or(Errno::NOENT)?;
            self.publish(inode, place, copy, |to| {
                staged.publish(to, RenameFlags::NOREPLACE)
            })
        })
    }

    fn copy_up_node(&self, inode: &Arc<Inode>, file: &LowerFile) -> Result<()> {
        let upper = self.writable()?;
        let held = self.hold_lower(file)?;
        let from = At::fd(held.as_fd());
        let staged = match file.stat.kind {
            FileKind::Symlink => {
                let target = from.readlink()?;
                upper.stage(|at| at.symlink(&target))?
            }
            kind => upper.stage(|at| at.mknod(kind, 0o600, file.stat.rdev))?,
        };
        let source = (from, file.dir.layer.dialect, &file.stat);
        let origin = self.origin_of(file)?;
        let to = (staged.at(), self.is_bare_below(inode));
        let copy = copy_metadata(upper, source, to, origin.as_ref())?;
        let origin = origin.filter(|_| copy.marked);
        let index = self.index_entry(inode, file, origin.as_ref(), staged.at())?;
        self.with_place(inode, |place| {
            // It was unlinked meanwhile: only its inode number still leads to it.
            let Some(place) = place else {
                let stat = staged.at().stat()?;
                return self.adopt_orphan(inode, &stat, Keep::Parked(staged.park()));
            };
            let entry = index.as_deref();
            self.enter_index(inode, file, entry, |at| staged.at().link_to(at))?;
            let published = self.publish(inode, place, copy, |to| {
                staged.publish(to, RenameFlags::NOREPLACE)
            });
            published.inspect_err(|_| self.leave_index(inode, entry))
        })
    }

    fn copy_up_file(&self, inode: &Arc<Inode>, file: &LowerFile, size: Option<u64>) -> Result<()> {
        let upper = self.writable()?;
        let (staged, fd) = upper.stage_file(first_perm(upper, &file.stat, 0o600))?;
        let dense = file.data.is_none() && file.stat.blocks >= file.stat.size.div_ceil(512);
        let data = self.copy_data(inode, (file.stat.size, dense), size, &fd)?;
        // The xattrs come from the file whose data was copied, even if another file has its name by
        // now.
        let data_of_it = file.data.is_none() && data != DataCopied::Written(0);
        let source: Source = if data_of_it {
            Source::Data(self.data_fd(inode, false)?)
        } else {
            Source::Held(self.hold_lower(file)?)
        };
        let from = (At::fd(source.as_fd()), file.dir.layer.dialect, &file.stat);
        let origin = self.origin_of(file)?;
        let to = (At::fd(fd.as_fd()), self.is_bare_below(inode));
        let copy = copy_metadata(upper, from, to, origin.as_ref())?;
        Self::protect_copy(upper, inode, to.0)?;
        let origin = origin.filter(|_| copy.marked);
        let index = self.index_entry(inode, file, origin.as_ref(), At::fd(fd.as_fd()))?;
        // File systems with reflinks log their changes in order: extents, metadata, name. overlayfs
        // does not sync a reflink either.
        if data != DataCopied::Cloned {
            upper.sync(&fd)?;
        }
        self.with_place(inode, |place| {
            let Some(place) = place else {
                let stat = At::fd(fd.as_fd()).stat()?;
                let keep = match staged {
                    StagedFile::Unnamed => self.keep_nameless(upper, fd)?,
                    StagedFile::Named(staged) => Keep::Parked(staged.park()),
                };
                return self.adopt_orphan(inode, &stat, keep);
            };
            let entry = index.as_deref();
            self.enter_index(inode, file, entry, |at| staged.link(&fd, at))?;
            let published = self.publish(inode, place, copy, |to| staged.publish(&fd, to));
            published.inspect_err(|_| self.leave_index(inode, entry))
        })?;
        inode.data_opt().inspect(|slot| slot.clear());
        Ok(())
    }

    /// Opens a lower file without data access.
    ///
    /// # Errors
    /// ESTALE when another file has its name by now.
    pub(crate) fn hold_lower(&self, file: &LowerFile) -> Result<OwnedFd> {
        let dir = file.dir.fd(&self.fds)?;
        let held = At::new(dir.as_fd(), &file.name).open(OFlags::PATH, 0)?;
        if file.stat.is_or_resembles(&At::fd(held.as_fd()).stat()?) {
            Ok(held)
        } else {
            Err(Errno::STALE.into())
        }
    }

    /// Whether a lower inode is known to have no xattrs.
    fn is_bare_below(&self, inode: &Inode) -> bool {
        let record = self.catalog_record(inode);
        record.is_some_and(|(catalog, record)| catalog.is_bare(record))
    }

    /// Returns the index name for the copy of a hard link, after marking the copy with its link
    /// count.
    fn index_entry(
        &self,
        inode: &Inode,
        file: &LowerFile,
        origin: Option<&Origin>,
        copy: At<'_>,
    ) -> Result<Option<Vec<u8>>> {
        let Some(origin) = origin.filter(|_| Self::wants_index(file)) else {
            return Ok(None);
        };
        let known = inode.loc.read().nlink();
        let diff = known.map_or(0, |n| i64::from(n.union) - i64::from(n.lower));
        let markers = &self.writable()?.markers;
        markers.set(copy, Marker::Nlink, format!("L{diff:+}").as_bytes())?;
        Ok(Some(origin.index_name()))
    }

    /// Links the staged copy into the index, if it needs an entry, before it is published.
    fn enter_index(
        &self,
        inode: &Inode,
        file: &LowerFile,
        index: Option<&[u8]>,
        link: impl FnOnce(At<'_>) -> Result<(), Errno>,
    ) -> Result<()> {
        let Some(index) = index else { return Ok(()) };
        let dir = self.writable()?.index_dir()?;
        link(At::new(dir.as_fd(), index))?;
        let mut loc = inode.loc.write();
        let lower = file.stat.nlink;
        let nlink = loc.nlink().unwrap_or(Nlink {
            union: lower,
            lower,
        });
        loc.set_index(Some(index.into()), Some(nlink));
        Ok(())
    }

    /// Removes the index entry of a copy that could not be published.
    fn leave_index(&self, inode: &Inode, index: Option<&[u8]>) {
        let Some(index) = index else { return };
        let mut loc = inode.loc.write();
        loc.set_index(Some(index.into()), None);
        self.drop_index(&mut loc);
    }

    /// Copies the data of a metacopy that is in the upper. The metacopy marker is removed last, so
    /// that a crash before leaves the metacopy intact.
    fn complete_metacopy(
        &self,
        inode: &Arc<Inode>,
        file: &LowerFile,
        size: Option<u64>,
    ) -> Result<()> {
        let upper = self.writable()?;
        let (before, capability, fd) = self.with_upper(inode, |at| {
            let fd = at.open(OFlags::RDWR | OFlags::NONBLOCK, 0)?;
            Ok((at.stat()?, at.xattr(CAPABILITY)?, fd))
        })?;
        self.copy_data(inode, (file.stat.size.min(before.size), false), size, &fd)?;
        rustix::fs::ftruncate(&fd, size.map_or(before.size, |s| s.min(before.size)))?;
        let at = At::fd(fd.as_fd());
        if let Some(value) = capability {
            at.set_xattr(CAPABILITY, &value, XattrFlags::empty())?;
        }
        at.set_times(&timestamps(before.atime, before.mtime))?;
        upper.sync(&fd)?;
        upper.markers.clear(at, Marker::Metacopy)?;
        self.with_place(inode, |place| {
            // A cached answer says that the data is in a lower.
            if let Some(Link { parent, name, .. }) = place.map(|place| place.link) {
                self.lookup_cache.remove(parent.key, name);
            }
            if let Some(upper) = &mut inode.loc.write().upper {
                upper.metacopy = None;
            }
            Ok(())
        })?;
        inode.data_opt().inspect(|slot| slot.clear());
        Ok(())
    }

    /// Copies the data of a lower file. `full` is its size, and whether it is known to have no
    /// holes.
    fn copy_data(
        &self,
        inode: &Inode,
        (full, dense): (u64, bool),
        size: Option<u64>,
        to: &OwnedFd,
    ) -> Result<DataCopied> {
        let len = size.map_or(full, |size| size.min(full));
        if len == 0 {
            return Ok(DataCopied::Written(0));
        }
        let from = self.data_fd(inode, false)?;
        let upper = self.writable()?;
        let how = How {
            whole: len == full,
            dense,
            volatile: upper.volatile,
            clones: &upper.clones,
        };
        let copied = copy_file(&from.fd, to, len, &how)?;
        let bytes = match copied {
            DataCopied::Cloned => len,
            DataCopied::Written(bytes) => bytes,
        };
        self.copy_up_bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(copied)
    }

    /// Calls `f` with one of the inode's names, its parent locked and in the upper, or with `None`
    /// when the inode has no name any more.
    pub(super) fn with_place<T>(
        &self,
        inode: &Arc<Inode>,
        f: impl FnOnce(Option<UpperName<'_>>) -> Result<T>,
    ) -> Result<T> {
        loop {
            let Some(link) = inode.loc.read().links.first().cloned() else {
                return f(None);
            };
            // A concurrent rename may have moved the name, but only into an upper directory.
            if !link.parent.in_upper() {
                self.copy_up(&link.parent)?;
            }
            let dir = self.upper_dir(&link.parent)?;
            let parent = link.parent.dir.as_ref().ok_or(Errno::NOTDIR)?;
            let _names = parent.change_names();
            let same = |l: &Link| l.parent.ino == link.parent.ino && l.name == link.name;
            if inode.loc.read().links.iter().any(same) {
                return f(Some(UpperName {
                    dir: &dir,
                    link: &link,
                }));
            }
        }
    }

    /// Publishes the staged copy and updates the inode. The parent directory keeps its times.
    fn publish(
        &self,
        inode: &Arc<Inode>,
        place: UpperName<'_>,
        copy: Copied,
        give_name: impl FnOnce(At<'_>) -> Result<(), Errno>,
    ) -> Result<()> {
        let Link { parent, name, .. } = &place.link;
        let dir = At::fd(place.dir.as_fd());
        self.mark_impure(parent)?;
        let before = dir.stat()?;
        let to = At::new(place.dir.as_fd(), name);
        give_name(to)?;
        // Best effort, as in overlayfs: the copy has its name already. A plain user may not set the
        // times of a directory of another user.
        if let Err(e) = dir.set_times(&timestamps(before.atime, before.mtime)) {
            tracing::debug!("copy-up: the times of its directory: {e}");
        }
        if !copy.marked && inode.dir.is_none() {
            self.inode_numbers.keep(&copy.stat, inode.ino);
        }
        let mut loc = inode.loc.write();
        match Cached::copied(inode, &loc, (copy.stat, copy.marked)) {
            Some(answer) => self.lookup_cache.put(parent.key, name, answer),
            None => self.lookup_cache.remove(parent.key, name),
        }
        loc.upper = Some(Box::new(UpperState {
            id: (copy.stat.dev, copy.stat.ino),
            metacopy: None,
            origin: copy.marked,
        }));
        for link in &mut loc.links {
            if link.parent.ino == parent.ino && link.name == *name {
                (link.in_upper, link.in_lower) = (true, Some(true));
            }
        }
        drop(loc);
        // A listing in memory still says that only a lower has the name.
        Self::listing_add(parent, name, inode.kind, inode.ino);
        Ok(())
    }

    fn adopt_orphan(&self, inode: &Inode, stat: &Stat, keep: Keep) -> Result<()> {
        let mut loc = inode.loc.write();
        loc.upper = Some(Box::new(UpperState {
            id: (stat.dev, stat.ino),
            metacopy: None,
            origin: false,
        }));
        loc.set_kept(keep);
        Ok(())
    }

    /// Marks an upper directory `impure`: it may hold copied-up files.
    ///
    /// # Errors
    /// Those of setxattr(2), except where the file system has no xattrs.
    pub(crate) fn mark_impure(&self, inode: &Inode) -> Result<()> {
        let Some(dir) = &inode.dir else { return Ok(()) };
        if dir.impure.load(Ordering::Acquire) {
            return Ok(());
        }
        let fd = self.upper_dir(inode)?;
        match self
            .writable()?
            .markers
            .set(At::fd(fd.as_fd()), Marker::Impure, b"y")
        {
            // A file system without xattrs stores no origins either.
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::PERM) => {}
            Err(e) => return Err(e.into()),
        }
        dir.impure.store(true, Ordering::Release);
        // Cached answers for the directory are out of date. A thread that inserts one concurrently
        // reads `impure` after inserting.
        for link in &inode.loc.read().links {
            self.lookup_cache.remove(link.parent.key, &link.name);
        }
        Ok(())
    }
}
