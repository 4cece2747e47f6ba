//! Copy-up: brings a lower file or directory into the upper before its first change.
//!
//! The copy is staged in the work directory, complete with data, owner, mode, xattrs, origin and
//! times, and published by one link or rename. Until then it is invisible, and a failure leaves
//! nothing behind. Data is copied with only the inode's own `busy` lock held.
//!
//! With [`super::Options::metacopy`], a change of metadata copies no data: the copy is a metacopy, a
//! sparse file of the same size with a marker (fs/overlayfs/copy_up.c, `ovl_need_meta_copy_up`). The
//! first change of its data completes it, in place.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{
    FallocateFlags, OFlags, RenameFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, XattrFlags,
};
use rustix::io::Errno;

use super::copy_data::{Copied as DataCopied, How, copy_file};
use super::copy_metadata::{Copied, Original, copy_metadata, first_perm};
use super::error::Result;
use super::hardlink_index::wants_index;
use super::inode::{DataFd, Inode, Link, Nlink, UpperState};
use super::lookup::Hint;
use super::names::Names;
use super::orphans::{Keep, Orphans};
use super::protect::{protect_copy, protection};
use super::stack::{Access, Stack};
use super::types::{Change, FileKind, Ino};
use super::upper::{StagedFile, Upper};
use super::wh_files::allow_wh_name;
use super::{Union, listings};
use crate::layer::at::{At, Stat, is_valid_name, timestamps};
use crate::layer::markers::Marker;
use crate::layer::origin::Origin;
use crate::lowers::LowerFile;
use crate::sys::sync::atomic::{AtomicU64, Ordering};

pub(crate) const CAPABILITY: &std::ffi::CStr = c"security.capability";

/// The source of a copy.
enum Source {
    /// A file open for its data.
    Data(Arc<DataFd>),
    /// A file of which only metadata is copied.
    Held(OwnedFd),
}

impl Source {
    fn at(&self) -> At<'_> {
        match self {
            Self::Data(data) => At::opened(data.fd.as_fd()),
            Self::Held(held) => At::fd(held.as_fd()),
        }
    }
}

/// The data of a lower file.
struct SourceData {
    /// Bytes.
    size: u64,
    /// Whether it is known to have no holes.
    is_dense: bool,
}

/// How much of a regular file is copied up. Other files are always copied whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Amount {
    /// Owner, mode, xattrs and times. The data too, unless the union makes metacopies.
    Metadata,
    /// All data.
    Whole,
    /// No more than this number of bytes of data.
    First(u64),
}

impl Amount {
    /// Returns the number of bytes of data that suffice; `None` for all of them.
    fn limit(self) -> Option<u64> {
        match self {
            Self::First(size) => Some(size),
            Self::Metadata | Self::Whole => None,
        }
    }
}

/// The times of a copy that lacks the end of its file because a truncation follows. If the
/// truncation never happens, the copy looks like a truncated file.
const MODIFIED_NOW: Timestamps = Timestamps {
    last_access: Timespec {
        tv_sec: 0,
        tv_nsec: UTIME_OMIT,
    },
    last_modification: Timespec {
        tv_sec: 0,
        tv_nsec: UTIME_NOW,
    },
};

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

/// The amount that was copied up.
#[derive(Default)]
pub(crate) struct CopyUpCounters {
    inodes: AtomicU64,
    bytes: AtomicU64,
}

impl CopyUpCounters {
    /// Returns the number of files and directories that were copied up.
    pub fn inodes(&self) -> u64 {
        self.inodes.load(Ordering::Relaxed)
    }

    /// Returns the bytes of file data that were copied; holes do not count.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

/// Copies inodes up. It borrows all that it changes: the layers, the names that lead to the copies,
/// and the orphans, which keep a copy that lost its name meanwhile.
#[derive(Clone, Copy)]
pub(crate) struct CopyUp<'u> {
    pub(super) stack: &'u Stack,
    pub(super) names: &'u Names,
    pub(super) orphans: &'u Orphans,
    pub(super) counters: &'u CopyUpCounters,
    /// Whether changes of metadata leave the data in the lowers.
    pub(super) metacopies: bool,
}

impl Union {
    /// Whether a change of `ino` first copies data up, which is too slow for a request thread.
    pub fn needs_copy_up(&self, ino: Ino, change: Change) -> bool {
        if change == Change::Metadata && self.always_metacopies() {
            return false;
        }
        self.stack.is_writable()
            && self
                .names
                .get(ino)
                .is_some_and(|inode| inode.kind == FileKind::Regular && !inode.is_copied_up())
    }

    /// Whether a change of metadata never copies data. Where users with fewer rights own a layer, it
    /// may: see [`CopyUp::may_be_metacopy`].
    fn always_metacopies(&self) -> bool {
        self.metacopies && !self.stack.has_foreign_layer()
    }

    /// As [`Self::needs_copy_up`], for a new name of the file with this name.
    pub fn needs_copy_up_name(&self, parent: Ino, name: &[u8]) -> bool {
        if self.always_metacopies() || !is_valid_name(name) {
            return false;
        }
        let found = self
            .names
            .directory(parent)
            .and_then(|parent| self.lookups().count_in(&parent, name, Hint::Linked));
        match found {
            Ok(Some(counted)) => self.needs_copy_up(counted.inode.ino, Change::Metadata),
            _ => false,
        }
    }
}

impl CopyUp<'_> {
    /// Copies an inode up, with its data, unless it is in the upper already.
    ///
    /// # Errors
    /// EROFS without an upper, ESTALE when the lower file is not the one that was looked up; else
    /// those of the layers' file systems.
    pub fn copy_up(self, inode: &Arc<Inode>) -> Result<()> {
        self.copy_up_as(inode, Amount::Whole).map(drop)
    }

    /// As [`Self::copy_up`], with no more than the first `size` bytes of data. Returns the copy, if this
    /// call made one of a file: the caller need not open it.
    pub fn copy_up_to(self, inode: &Arc<Inode>, size: u64) -> Result<Option<OwnedFd>> {
        self.copy_up_as(inode, Amount::First(size))
    }

    /// As [`Self::copy_up`], for a change that leaves the data as it is: the data stays in the lowers
    /// if the union makes metacopies. Returns the copy as [`Self::copy_up_to`] does.
    pub fn copy_up_metadata(self, inode: &Arc<Inode>) -> Result<Option<OwnedFd>> {
        self.copy_up_as(inode, Amount::Metadata)
    }

    /// Whether the upper has enough of an inode.
    fn suffices(self, inode: &Inode, amount: Amount) -> bool {
        if self.metacopies && amount == Amount::Metadata {
            inode.in_upper()
        } else {
            inode.is_copied_up()
        }
    }

    fn copy_up_as(self, inode: &Arc<Inode>, amount: Amount) -> Result<Option<OwnedFd>> {
        if self.suffices(inode, amount) {
            return Ok(None);
        }
        self.stack.writable()?;
        // Ancestors first; a loop instead of recursion bounds the stack.
        let mut chain = vec![Arc::clone(inode)];
        while let Some(last) = chain.last() {
            let parent = last.loc.read().links.first().map(|l| Arc::clone(&l.parent));
            match parent {
                Some(parent) if !parent.in_upper() => chain.push(parent),
                _ => break,
            }
        }
        let mut copy = None;
        // The inode itself is the last one.
        while let Some(next) = chain.pop() {
            copy = self.copy_up_one(&next, amount)?;
        }
        Ok(copy)
    }

    fn copy_up_one(self, inode: &Arc<Inode>, amount: Amount) -> Result<Option<OwnedFd>> {
        let _busy = inode.busy.lock();
        if self.suffices(inode, amount) {
            return Ok(None);
        }
        if !inode.in_upper() {
            self.stack.check_lower(inode)?;
            // Copying up writes the protection as a marker.
            protection(self.stack, inode)?;
        }
        let metacopy = {
            let loc = inode.loc.read();
            loc.upper.as_ref().and_then(|u| u.metacopy.clone())
        };
        let lower = self.stack.lower_of(inode)?;
        let mut copy = None;
        match (&inode.dir, metacopy, lower) {
            (_, Some(file), _) => self.complete_metacopy(inode, &file, amount.limit())?,
            (Some(_), ..) => self.copy_up_dir(inode)?,
            (None, _, Some(file)) if inode.kind == FileKind::Regular => {
                copy = self.copy_up_file(inode, &file, amount)?;
            }
            (None, _, Some(file)) => self.copy_up_node(inode, &file)?,
            (None, _, None) => return Err(Errno::IO.into()),
        }
        self.counters.inodes.fetch_add(1, Ordering::Relaxed);
        Ok(copy)
    }

    fn copy_up_dir(self, inode: &Arc<Inode>) -> Result<()> {
        let upper = self.stack.writable()?;
        let top = inode
            .dir
            .as_ref()
            .and_then(|d| d.lowers.top())
            .ok_or(Errno::IO)?;
        let source = self.stack.lowers().hold_dir(top)?;
        let perm = first_perm(upper, &top.stat, 0o700);
        let staged = upper.stage(|at| at.mkdir(perm))?;
        let origin = self.stack.lowers().dir_origin(top, source.as_fd());
        let from = Original {
            at: (!self.is_bare_below(inode)).then(|| At::fd(source.as_fd())),
            dialect: top.layer.dialect,
            stat: &top.stat,
            owners: self.stack.owners(),
        };
        let copy = copy_metadata(upper, &from, staged.at(), origin.as_ref())?;
        protect_copy(upper, inode, staged.at())?;
        self.with_place(inode, |place| {
            let place = place.ok_or(Errno::NOENT)?;
            self.publish(inode, place, copy, |to| {
                staged.publish(to, RenameFlags::NOREPLACE)
            })
        })
    }

    fn copy_up_node(self, inode: &Arc<Inode>, file: &LowerFile) -> Result<()> {
        let upper = self.stack.writable()?;
        let held = self.stack.lowers().hold(file)?;
        let from = At::fd(held.as_fd());
        let staged = match file.stat.kind {
            FileKind::Symlink => {
                let target = from.readlink()?;
                upper.stage(|at| at.symlink(&target))?
            }
            kind => upper.stage(|at| at.mknod(kind, 0o600, file.stat.rdev))?,
        };
        let source = Original {
            at: (!self.is_bare_below(inode)).then_some(from),
            dialect: file.dir.layer.dialect,
            stat: &file.stat,
            owners: self.stack.owners(),
        };
        let origin = self.stack.lowers().origin(file)?;
        let copy = copy_metadata(upper, &source, staged.at(), origin.as_ref())?;
        let origin = origin.filter(|_| copy.marked);
        let index = self.index_entry(inode, file, origin.as_ref(), staged.at())?;
        self.with_place(inode, |place| {
            // The file was unlinked meanwhile. Only its inode number still leads to it.
            let Some(place) = place else {
                let stat = staged.at().stat()?;
                return adopt_orphan(inode, &stat, None, Keep::Parked(staged.park()));
            };
            let entry = index.as_deref();
            self.enter_index(inode, file, entry, |at| staged.at().link_to(at))?;
            let published = self.publish(inode, place, copy, |to| {
                staged.publish(to, RenameFlags::NOREPLACE)
            });
            published.inspect_err(|_| self.leave_index(inode, entry))
        })
    }

    /// Returns the copy, if it has a name.
    fn copy_up_file(
        self,
        inode: &Arc<Inode>,
        file: &Arc<LowerFile>,
        amount: Amount,
    ) -> Result<Option<OwnedFd>> {
        let upper = self.stack.writable()?;
        let (staged, fd) = upper.stage_file(first_perm(upper, &file.stat, 0o600))?;
        let origin = self.stack.lowers().origin(file)?;
        let size = amount.limit();
        let is_metacopy = amount == Amount::Metadata && self.may_be_metacopy(file, origin.as_ref());
        let data = if is_metacopy {
            // A marker that is missing would make the file one of zeros, so it comes first.
            upper
                .markers
                .set(At::opened(fd.as_fd()), Marker::Metacopy, b"")?;
            rustix::fs::ftruncate(&fd, file.stat.size)?;
            DataCopied::Written(0)
        } else {
            let source = SourceData {
                size: file.stat.size,
                is_dense: file.data.is_none() && file.stat.blocks >= file.stat.size.div_ceil(512),
            };
            self.copy_data(inode, source, size, &fd)?
        };
        // The xattrs are read from the file whose data was copied, even if another file has its
        // name now.
        let data_of_it = file.data.is_none() && data != DataCopied::Written(0);
        let is_bare = file.is_bare || self.is_bare_below(inode);
        let source = if data_of_it {
            Some(Source::Data(self.stack.data_fd(inode, Access::Read)?))
        } else if is_metacopy && is_bare {
            // Nothing is read from the file.
            None
        } else {
            Some(Source::Held(self.stack.lowers().hold(file)?))
        };
        let at = source.as_ref().filter(|_| !is_bare);
        let from = Original {
            at: at.map(Source::at),
            dialect: file.dir.layer.dialect,
            stat: &file.stat,
            owners: self.stack.owners(),
        };
        let to = At::opened(fd.as_fd()).recorded_as(upper.records());
        let mut copy = copy_metadata(upper, &from, to, origin.as_ref())?;
        copy.metacopy = is_metacopy.then(|| Arc::clone(file));
        if size.is_some_and(|size| size < file.stat.size) {
            to.set_times(&MODIFIED_NOW)?;
        }
        protect_copy(upper, inode, to)?;
        let origin = origin.filter(|_| copy.marked);
        let index = self.index_entry(inode, file, origin.as_ref(), At::opened(fd.as_fd()))?;
        // File systems with reflinks log their changes in order: extents, metadata, name. overlayfs
        // does not sync a reflink either, nor a metacopy, which has no data of its own.
        if data != DataCopied::Cloned && !is_metacopy {
            upper.sync(&fd)?;
        }
        let copy = self.with_place(inode, |place| {
            let Some(place) = place else {
                let stat = At::fd(fd.as_fd()).recorded_as(upper.records()).stat()?;
                let keep = match staged {
                    StagedFile::Unnamed => self.orphans.keep_unnamed(upper, fd)?,
                    StagedFile::Named(staged) => Keep::Parked(staged.park()),
                };
                return adopt_orphan(inode, &stat, copy.metacopy, keep).map(|()| None);
            };
            let entry = index.as_deref();
            self.enter_index(inode, file, entry, |at| staged.link(&fd, at))?;
            let published = self.publish(inode, place, copy, |to| staged.publish(&fd, to));
            published.inspect_err(|_| self.leave_index(inode, entry))?;
            Ok(Some(fd))
        })?;
        if !is_metacopy {
            inode.data_opt().inspect(|slot| slot.clear());
        }
        Ok(copy)
    }

    /// Whether the copy of a file with this origin can be a metacopy, which shows the data of the
    /// file with the owner and mode of the copy. A user with fewer rights must not be able to exchange
    /// that file: in a lower of such a user it has other data at the next mount, and in an upper only
    /// the origin ties a metacopy to its data.
    fn may_be_metacopy(self, file: &LowerFile, origin: Option<&Origin>) -> bool {
        let in_upper = |upper: &Upper| upper.layer.is_foreign;
        let is_tied = origin.is_some() || !self.stack.upper().is_none_or(in_upper);
        let (data, _) = file.data_place();
        self.metacopies && is_tied && !file.dir.layer.is_foreign && !data.layer.is_foreign
    }

    /// Whether a lower inode is known to have no xattrs.
    fn is_bare_below(self, inode: &Inode) -> bool {
        let id = self.stack.lower_id(inode);
        id.is_some_and(|id| self.stack.lowers().has_no_xattrs(id))
    }

    /// Returns the index name for the copy of a hard link, after marking the copy with its link
    /// count.
    fn index_entry(
        self,
        inode: &Inode,
        file: &LowerFile,
        origin: Option<&Origin>,
        copy: At<'_>,
    ) -> Result<Option<Vec<u8>>> {
        let Some(origin) = origin.filter(|_| wants_index(file)) else {
            return Ok(None);
        };
        let known = inode.loc.read().nlink();
        let diff = known.map_or(0, |n| i64::from(n.union) - i64::from(n.lower));
        let markers = &self.stack.writable()?.markers;
        markers.set(copy, Marker::Nlink, format!("L{diff:+}").as_bytes())?;
        Ok(Some(origin.index_name()))
    }

    /// Links the staged copy into the index, if it needs an entry, before it is published.
    fn enter_index(
        self,
        inode: &Inode,
        file: &LowerFile,
        index: Option<&[u8]>,
        link: impl FnOnce(At<'_>) -> Result<(), Errno>,
    ) -> Result<()> {
        let Some(index) = index else { return Ok(()) };
        let dir = self.stack.writable()?.index_dir()?;
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
    fn leave_index(self, inode: &Inode, index: Option<&[u8]>) {
        let Some(index) = index else { return };
        let mut loc = inode.loc.write();
        loc.set_index(Some(index.into()), None);
        if let Some(upper) = self.stack.upper() {
            upper.drop_index_entry(&mut loc);
        }
    }

    /// Copies the data of a metacopy that is in the upper. The metacopy marker is removed last, so
    /// that a crash before leaves the metacopy intact.
    fn complete_metacopy(
        self,
        inode: &Arc<Inode>,
        file: &LowerFile,
        size: Option<u64>,
    ) -> Result<()> {
        let upper = self.stack.writable()?;
        let (before, capability, fd) = self.stack.with_upper(inode, |at| {
            let fd = at.open(OFlags::RDWR | OFlags::NONBLOCK, 0)?;
            Ok((at.stat()?, at.xattr(CAPABILITY)?, fd))
        })?;
        let source = SourceData {
            size: file.stat.size.min(before.size),
            is_dense: false,
        };
        let at = At::opened(fd.as_fd()).recorded_as(upper.records());
        let copied = self.copy_data(inode, source, size, &fd);
        let sized = if copied.is_ok() {
            rustix::fs::ftruncate(&fd, size.map_or(before.size, |s| s.min(before.size)))
        } else {
            give_space_back(&fd, before.size);
            Ok(())
        };
        // All of this drops the capability and changes the time, also if it fails.
        let restored = capability.map_or(Ok(()), |value| {
            at.set_xattr(CAPABILITY, &value, XattrFlags::empty())
        });
        let times = at.set_times(&timestamps(before.atime, before.mtime));
        copied?;
        sized.and(restored).and(times)?;
        if size.is_some_and(|size| size < before.size) {
            at.set_times(&MODIFIED_NOW)?;
        }
        upper.sync(&fd)?;
        upper.markers.clear(at, Marker::Metacopy)?;
        self.with_place(inode, |place| {
            // The cached answer says that the data is in a lower.
            if let Some(Link { parent, name, .. }) = place.map(|place| place.link) {
                self.names.forget_answer(parent, name);
            }
            if let Some(upper) = &mut inode.loc.write().upper {
                upper.metacopy = None;
            }
            Ok(())
        })?;
        inode.data_opt().inspect(|slot| slot.clear());
        Ok(())
    }

    /// Copies the data of a lower file, or no more than the first `size` bytes.
    fn copy_data(
        self,
        inode: &Inode,
        source: SourceData,
        size: Option<u64>,
        to: &OwnedFd,
    ) -> Result<DataCopied> {
        let len = size.map_or(source.size, |size| size.min(source.size));
        if len == 0 {
            return Ok(DataCopied::Written(0));
        }
        let from = self.stack.data_fd(inode, Access::Read)?;
        let upper = self.stack.writable()?;
        let how = How {
            whole: len == source.size,
            dense: source.is_dense,
            volatile: upper.volatile,
            clones: &upper.clones,
        };
        let copied = copy_file(&from.fd, to, len, &how)?;
        let bytes = match copied {
            DataCopied::Cloned => len,
            DataCopied::Written(bytes) => bytes,
        };
        self.counters.bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(copied)
    }

    /// Calls `f` with one of the inode's names, its parent locked and in the upper, or with `None`
    /// when the inode has no name any more.
    pub fn with_place<T>(
        self,
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
            let dir = self.stack.upper_dir(&link.parent)?;
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
        self,
        inode: &Arc<Inode>,
        place: UpperName<'_>,
        copy: Copied,
        give_name: impl FnOnce(At<'_>) -> Result<(), Errno>,
    ) -> Result<()> {
        let Link { parent, name, .. } = &place.link;
        let dir = At::fd(place.dir.as_fd());
        mark_impure(self.stack, self.names, parent)?;
        allow_wh_name(self.stack, self.names, parent, name)?;
        let before = dir.stat()?;
        let to = At::new(place.dir.as_fd(), name);
        give_name(to)?;
        // Best effort, as in overlayfs: the copy has its name already. A plain user may not set the
        // times of a directory of another user.
        if let Err(e) = dir.set_times(&timestamps(before.atime, before.mtime)) {
            tracing::debug!("copy-up: the times of its directory: {e}");
        }
        let mut loc = inode.loc.write();
        self.names.remember_copy(place.link, inode, &loc, &copy);
        loc.upper = Some(Box::new(UpperState {
            id: (copy.stat.dev, copy.stat.ino),
            metacopy: copy.metacopy,
            origin: copy.marked,
        }));
        for link in &mut loc.links {
            if link.parent.ino == parent.ino && link.name == *name {
                (link.in_upper, link.in_lower) = (true, Some(true));
            }
        }
        drop(loc);
        // A listing in memory still says that only a lower has the name.
        listings::add(parent, name, inode.kind, inode.ino);
        Ok(())
    }
}

/// Records that the copy of an inode has no name, where its data is if it is a metacopy, and what
/// keeps the copy.
fn adopt_orphan(
    inode: &Inode,
    stat: &Stat,
    metacopy: Option<Arc<LowerFile>>,
    keep: Keep,
) -> Result<()> {
    let mut loc = inode.loc.write();
    loc.upper = Some(Box::new(UpperState {
        id: (stat.dev, stat.ino),
        metacopy,
        origin: false,
    }));
    loc.set_kept(keep);
    Ok(())
}

/// Frees the blocks of a metacopy whose data could not be copied. Its size stays.
fn give_space_back(fd: &OwnedFd, size: u64) {
    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    // A file system without holes keeps the blocks until the next try.
    if let Err(error) = rustix::fs::fallocate(fd, hole, 0, size.max(1)) {
        tracing::debug!(%error, "an incomplete metacopy keeps its blocks");
    }
}

/// Marks an upper directory `impure`: it may hold copied-up files.
///
/// # Errors
/// Those of setxattr(2), except if the file system has no xattrs.
pub(crate) fn mark_impure(stack: &Stack, names: &Names, inode: &Inode) -> Result<()> {
    let Some(dir) = &inode.dir else { return Ok(()) };
    if dir.impure.load(Ordering::Acquire) {
        return Ok(());
    }
    let fd = stack.upper_dir(inode)?;
    match stack
        .writable()?
        .markers
        .set(At::fd(fd.as_fd()), Marker::Impure, b"y")
    {
        // A file system without xattrs stores no origins either.
        Ok(()) | Err(Errno::OPNOTSUPP | Errno::PERM) => {}
        Err(e) => return Err(e.into()),
    }
    dir.impure.store(true, Ordering::Release);
    forget_answers(names, inode);
    Ok(())
}

/// Forgets the cached answers for a directory whose markers changed. A thread that inserts one
/// concurrently reads the markers of the inode after inserting.
pub(crate) fn forget_answers(names: &Names, inode: &Inode) {
    for link in &inode.loc.read().links {
        names.forget_answer(&link.parent, &link.name);
    }
}
