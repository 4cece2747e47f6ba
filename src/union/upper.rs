//! The writable side: the upper layer, its work directory, and staging in it. A change that takes
//! several steps is prepared in the work directory under an unused name and published by one
//! rename or link.
//!
//! The layout of the work directory is that of kernel overlayfs: `work/` for staging (emptied by
//! every mount), `index/` for copied-up hard links.

use std::hash::{BuildHasher, RandomState};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, RenameFlags, XattrFlags};
use rustix::io::Errno;

use super::Options;
use super::error::{Error, Result};
use super::inode::Dir;
use super::orphans::Parked;
use super::resolve::WhiteoutKind;
use super::types::FileKind;
use super::upper_lock::{self, LockFiles};
use crate::layer::at::{At, Stat};
use crate::layer::fds::with_spare;
use crate::layer::lower::{Layer, read_dir, read_names};
use crate::layer::markers::{Marker, Markers, WH_PREFIX, Writer};
use crate::layer::{Records, UpperSpec};
use crate::sys::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sys::sync::parking_lot::Mutex;

/// The form of whiteouts that this upper supports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WhiteoutForm {
    /// A character device 0:0.
    CharDevice,
    /// An empty file with the `whiteout` xattr, in a directory marked `opaque=x`.
    Xattr,
    /// A file `.wh.NAME`.
    WhName,
}

/// The user and group of a file or process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    pub uid: u32,
    pub gid: u32,
}

impl Owner {
    /// Returns the owner of a file.
    pub fn of(stat: &Stat) -> Self {
        Self {
            uid: stat.uid,
            gid: stat.gid,
        }
    }
}

/// The upper layer and its work directory.
pub(crate) struct Upper {
    pub layer: Arc<Layer>,
    /// Writes markers in the right namespace.
    pub markers: Writer,
    pub form: WhiteoutForm,
    /// The markers of the upper's root.
    pub root: Markers,
    /// Whether the server may ignore permission bits.
    pub privileged: bool,
    /// User and group of this process; constant.
    pub own_ids: Owner,
    pub volatile: bool,
    /// Whether it was opened by [`super::Union::observe`]: nothing may be changed.
    pub observed: bool,
    work_base: OwnedFd,
    staging: Arc<OwnedFd>,
    index: Mutex<Option<Arc<OwnedFd>>>,
    tmpfile: AtomicBool,
    /// Whether reflinks are tried; cleared once the file system has refused one.
    pub clones: AtomicBool,
    names: AtomicU64,
    tag: u64,
    whiteout: Mutex<Option<Vec<u8>>>,
    lock_files: LockFiles,
}

/// The prefix of staged names, which kernel overlayfs uses too.
const STAGED: &[u8] = b"#";

/// Begins the records of an upper that has none and shall have them.
fn with_records(mut layer: Layer, spec: &UpperSpec) -> Result<Layer> {
    let begun = match layer.dialect.records {
        Records::Made(form) => Some(form.of_empty_upper()),
        // An empty upper of podman's has one mark; fuse-overlayfs 1.10 adds its own too.
        Records::Kept(form) if form != form.of_empty_upper() => {
            let mut is_empty = true;
            read_dir(&layer.root, |_| is_empty = false)?;
            is_empty.then(|| form.of_empty_upper())
        }
        _ => None,
    };
    if let Some(form) = begun {
        let begun = At::fd(layer.root.as_fd()).begin_records(form);
        let form = begun.map_err(|e| {
            let what = "cannot record owners in extended attributes (xattr_permissions) in";
            Error::from(e).context(what, spec.layer.path())
        })?;
        layer.dialect.records = Records::Kept(form);
    }
    Ok(layer)
}

fn open_work(spec: &UpperSpec) -> Result<OwnedFd> {
    let opened = spec.work.reopen();
    opened.map_err(|e| Error::from(e).context("cannot open the work directory", spec.work.path()))
}

impl Upper {
    /// Opens and locks an upper and its work directory; see [`upper_lock`] for [`Options::locks`].
    ///
    /// # Errors
    /// As [`super::Union::new`].
    pub fn open(spec: &UpperSpec, options: &Options) -> Result<Self> {
        let layer = Layer::open_apart(&spec.layer).map_err(|e| {
            Error::from(e).context("cannot open the upper directory", spec.layer.path())
        })?;
        let work_base = open_work(spec)?;
        let dirs = [
            (layer.root.as_fd(), spec.layer.path()),
            (work_base.as_fd(), spec.work.path()),
        ];
        let lock_files = upper_lock::lock(&dirs, options.locks.as_ref())?;
        let layer = with_records(layer, spec)?;
        let mut upper = Self::unprobed(layer, work_base, spec)?;
        upper.lock_files = lock_files;
        upper.volatile = options.volatile;
        let staging = open_staging(upper.work_base.as_fd(), upper.own_ids).map_err(|e| {
            Error::from(e).context("cannot set up the work directory", spec.work.path())
        })?;
        upper.staging = Arc::new(staging);
        upper.probe().map_err(|e| {
            let what = match e {
                Errno::OPNOTSUPP => {
                    "whiteouts cannot be kept on this file system, neither as devices, xattrs nor \
                     files: use another work and upper directory than"
                }
                _ => "cannot write to the work directory",
            };
            Error::from(e).context(what, spec.work.path())
        })?;
        if upper.form == WhiteoutForm::WhName && !upper.layer.dialect.wh_names {
            let what = "whiteouts can only be .wh. files here, the file system taking neither \
                device nodes nor xattrs, and without dialect=all these are ordinary files: \
                use dialect=all or another upper directory than";
            return Err(Error::from(Errno::OPNOTSUPP).context(what, spec.layer.path()));
        }
        Ok(upper)
    }

    /// Opens an upper for reading: see [`super::Union::observe`].
    pub fn observe(spec: &UpperSpec) -> Result<Self> {
        let layer = Layer::open_apart(&spec.layer).map_err(|e| {
            Error::from(e).context("cannot open the upper directory", spec.layer.path())
        })?;
        let work_base = open_work(spec)?;
        let mut upper = Self::unprobed(layer, work_base, spec)?;
        upper.observed = true;
        Ok(upper)
    }

    /// Opens an upper without a staging directory, and without probing what its file system
    /// supports.
    fn unprobed(layer: Layer, work_base: OwnedFd, spec: &UpperSpec) -> Result<Self> {
        let work_stat = At::fd(work_base.as_fd()).stat()?;
        if work_stat.dev != layer.stat.dev {
            let what = "not on the same file system as the upper directory: work directory";
            return Err(Error::from(Errno::XDEV).context(what, spec.work.path()));
        }
        let staging = At::fd(work_base.as_fd()).open_dir_path().map_err(|e| {
            Error::from(e).context("cannot open the work directory", spec.work.path())
        })?;
        let root = layer.markers(At::fd(layer.root.as_fd()))?;
        let tag = RandomState::new().hash_one(std::process::id());
        Ok(Self {
            markers: Writer { trusted: false },
            form: WhiteoutForm::CharDevice,
            root,
            privileged: rustix::process::geteuid().is_root(),
            own_ids: Owner {
                uid: rustix::process::geteuid().as_raw(),
                gid: rustix::process::getegid().as_raw(),
            },
            volatile: false,
            observed: false,
            layer: Arc::new(layer),
            work_base,
            staging: Arc::new(staging),
            index: Mutex::new(None),
            tmpfile: AtomicBool::new(true),
            clones: AtomicBool::new(true),
            names: AtomicU64::new(0),
            tag,
            whiteout: Mutex::new(None),
            lock_files: LockFiles::default(),
        })
    }

    /// Probes which markers and whiteouts the upper's file system supports.
    fn probe(&mut self) -> Result<(), Errno> {
        let name = self.unique();
        let at = At::new(self.staging.as_fd(), &name);
        // If files support it, directories do too, and a file is ten times faster.
        at.mknod(FileKind::Regular, 0o600, (0, 0))?;
        let wants_trusted = self.layer.dialect.trusted;
        // fuse-overlayfs takes its own markers and never shows them again; unionfs does not list
        // `trusted.*` before Linux 5.3. Markers that are not listed are not read.
        let keeps = |trusted| {
            let writer = Writer { trusted };
            let marker = writer.name(Marker::Opaque).to_bytes();
            let is_it = |name: &[u8]| name == marker;
            let listed = |list: Vec<u8>| list.split(|&b| b == 0).any(is_it);
            writer.set(at, Marker::Opaque, b"n").is_ok() && at.list_xattrs().is_ok_and(listed)
        };
        self.markers.trusted = wants_trusted && keeps(true);
        let xattrs = self.markers.trusted || keeps(false);
        at.unlink()?;
        self.form = match at.mknod(FileKind::CharDevice, 0, (0, 0)) {
            Ok(()) => {
                at.unlink()?;
                WhiteoutForm::CharDevice
            }
            // The file was made above, so these are about the disk and not about the device.
            Err(e @ (Errno::NOSPC | Errno::DQUOT | Errno::IO | Errno::ROFS)) => return Err(e),
            // A file system says in its own way that it has no such devices: fuse-overlayfs takes it
            // for a whiteout, and answers ENOENT.
            Err(_) if xattrs => WhiteoutForm::Xattr,
            Err(_) => {
                let name = [WH_PREFIX, &name].concat();
                let at = At::new(self.staging.as_fd(), &name);
                let made = at.mknod(FileKind::Regular, 0o600, (0, 0));
                made.and_then(|()| at.unlink())
                    .map_err(|_| Errno::OPNOTSUPP)?;
                WhiteoutForm::WhName
            }
        };
        Ok(())
    }

    /// See [`super::Union::leave_lock_files`].
    pub fn leave_lock_files(&self) -> &[String] {
        self.lock_files.leave()
    }

    /// Returns how owners and modes are recorded beside the files.
    pub fn records(&self) -> Records {
        self.layer.dialect.records
    }

    /// Returns the work directory.
    pub fn work(&self) -> BorrowedFd<'_> {
        self.work_base.as_fd()
    }

    /// Returns an unused name in the staging directory.
    fn unique(&self) -> Vec<u8> {
        let n = self.names.fetch_add(1, Ordering::Relaxed);
        [STAGED, format!("{:x}-{n:x}", self.tag).as_bytes()].concat()
    }

    /// Returns the index directory, which is created on first use.
    pub fn index_dir(&self) -> Result<Arc<OwnedFd>> {
        let mut index = self.index.lock();
        if let Some(fd) = self.open_index(&mut index)? {
            return Ok(fd);
        }
        At::new(self.work_base.as_fd(), b"index").mkdir(0o700)?;
        let made = self.open_index(&mut index)?;
        made.ok_or_else(|| Errno::NOENT.into())
    }

    /// Returns the index directory, if there is one.
    pub fn index_dir_opt(&self) -> Result<Option<Arc<OwnedFd>>> {
        Ok(self.open_index(&mut self.index.lock())?)
    }

    /// Whether only the server can change the index, which lies in a directory of the upper's
    /// owner.
    pub fn index_is_ours(&self) -> Result<bool, Errno> {
        let Some(index) = self.open_index(&mut self.index.lock())? else {
            return Ok(false);
        };
        let stat = At::fd(index.as_fd()).stat()?;
        Ok(stat.uid == self.own_ids.uid && stat.perm & 0o022 == 0)
    }

    /// Returns the index directory, which is opened on first use. `None` if there is none.
    fn open_index(&self, index: &mut Option<Arc<OwnedFd>>) -> Result<Option<Arc<OwnedFd>>, Errno> {
        if let Some(fd) = index {
            return Ok(Some(Arc::clone(fd)));
        }
        let at = At::new(self.work_base.as_fd(), b"index");
        match at.hold_dir() {
            Err(Errno::NOENT) => Ok(None),
            opened => Ok(Some(Arc::clone(index.insert(Arc::new(opened?))))),
        }
    }

    /// Opens an unnamed file of mode `perm` for reading and writing, or a staged one where the file
    /// system has no O_TMPFILE.
    pub fn stage_file(&self, perm: u32) -> Result<(StagedFile<'_>, OwnedFd), Errno> {
        if self.tmpfile.load(Ordering::Relaxed) {
            let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
            let perm = Mode::from_raw_mode(perm);
            match with_spare(|| rustix::fs::openat(&self.staging, c".", flags, perm)) {
                Ok(fd) => return Ok((StagedFile::Unnamed, fd)),
                Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL | Errno::NOENT) => {
                    self.tmpfile.store(false, Ordering::Relaxed);
                }
                Err(e) => return Err(e),
            }
        }
        let name = self.unique();
        let at = At::new(self.staging.as_fd(), &name);
        let fd = at.open(OFlags::RDWR | OFlags::CREATE | OFlags::EXCL, perm)?;
        Ok((
            StagedFile::Named(Staged {
                upper: self,
                name,
                armed: true,
            }),
            fd,
        ))
    }

    /// Creates something under an unused name in the staging directory.
    pub fn stage(
        &self,
        make: impl FnOnce(At<'_>) -> Result<(), Errno>,
    ) -> Result<Staged<'_>, Errno> {
        let staged = Staged {
            upper: self,
            name: self.unique(),
            armed: true,
        };
        make(staged.at())?;
        Ok(staged)
    }

    /// Gives a file without a name an unused name in the work directory, which is removed when the
    /// result is dropped.
    pub fn park(&self, make: impl FnOnce(At<'_>) -> Result<(), Errno>) -> Result<Parked, Errno> {
        self.stage(make).map(Staged::park)
    }

    /// Stages a whiteout that is a file of the hidden name.
    pub fn stage_whiteout(&self) -> Result<Staged<'_>, Errno> {
        self.stage(|at| self.make_whiteout_node(at))
    }

    /// Creates a whiteout for `name`, which the upper directory `dir` does not have.
    pub fn whiteout(&self, dir: BorrowedFd<'_>, name: &[u8]) -> Result<WhiteoutKind, Errno> {
        if self.form == WhiteoutForm::WhName {
            make_mark(At::new(dir, &[WH_PREFIX, name].concat()))?;
            return Ok(WhiteoutKind::WhName);
        }
        if self.form == WhiteoutForm::Xattr {
            self.mark_xwhiteouts(dir)?;
        }
        self.make_whiteout_node(At::new(dir, name))?;
        Ok(WhiteoutKind::Node)
    }

    /// Whether empty files in an upper directory may be whiteouts. They may be if the xattr form is
    /// in use, or if an earlier mount that used it marked the directory.
    pub fn may_have_xwhiteouts(&self, dir: &Dir) -> bool {
        self.form == WhiteoutForm::Xattr || dir.xwhiteouts
    }

    /// Marks a directory that contains whiteouts in the xattr form.
    pub fn mark_xwhiteouts(&self, dir: BorrowedFd<'_>) -> Result<(), Errno> {
        let at = At::fd(dir);
        let name = self.markers.name(Marker::Opaque);
        match at.set_xattr(name, b"x", XattrFlags::CREATE) {
            Err(Errno::EXIST) => Ok(()),
            other => other,
        }
    }

    /// Creates a whiteout as a link to a shared inode, as kernel overlayfs does.
    fn make_whiteout_node(&self, to: At<'_>) -> Result<(), Errno> {
        let mut shared = self.whiteout.lock();
        if let Some(name) = &*shared {
            match At::new(self.staging.as_fd(), name).link_to(to) {
                // The inode has too many links, or another process removed it. A new one is
                // created.
                Err(Errno::MLINK | Errno::NOENT) => *shared = None,
                other => return other,
            }
        }
        let name = self.unique();
        let at = At::new(self.staging.as_fd(), &name);
        match self.form {
            WhiteoutForm::CharDevice => at.mknod(FileKind::CharDevice, 0, (0, 0))?,
            WhiteoutForm::Xattr | WhiteoutForm::WhName => {
                at.mknod(FileKind::Regular, 0, (0, 0))?;
                self.markers.set(at, Marker::Whiteout, b"y")?;
            }
        }
        match at.link_to(to) {
            Ok(()) => {
                *shared = Some(name);
                Ok(())
            }
            Err(Errno::EXIST) => {
                *shared = Some(name);
                Err(Errno::EXIST)
            }
            // The file system has no hard links. The shared whiteout itself is moved.
            Err(_) => at.rename_to(to, RenameFlags::NOREPLACE),
        }
    }

    /// Whether the staged file `at` may be removed with its content. It may if it is the directory
    /// `known`, or no directory.
    fn is_removable(&self, at: At<'_>, known: Option<(u64, u64)>) -> Result<bool, Errno> {
        let stat = at.stat()?;
        let same = known.is_some_and(|id| id == stat.id() || !self.layer.keeps_numbers);
        Ok(stat.kind != FileKind::Directory || same)
    }

    /// Removes the directory `known` with the name `at`, which contains nothing but whiteouts: it
    /// is moved to the work directory and removed there.
    ///
    /// # Errors
    /// ESTALE when another directory has the name, which is then left in place; else those of
    /// rename(2).
    pub fn remove_whole(&self, at: At<'_>, known: (u64, u64)) -> Result<(), Errno> {
        let mut away = self.stage(|staged| at.rename_to(staged, RenameFlags::NOREPLACE))?;
        if self.is_removable(away.at(), Some(known))? {
            return Ok(());
        }
        away.armed = false;
        away.at().rename_to(at, RenameFlags::NOREPLACE)?;
        Err(Errno::STALE)
    }

    /// Exchanges two names. A file system without RENAME_EXCHANGE gets three renames instead, by the
    /// work directory.
    ///
    /// # Errors
    /// Those of renameat2(2).
    pub fn exchange(&self, one: At<'_>, other: At<'_>) -> Result<(), Errno> {
        match one.rename_to(other, RenameFlags::EXCHANGE) {
            Err(error) if has_no_exchange(error) => self.exchange_in_steps(one, other),
            done => done,
        }
    }

    /// A crash between the steps leaves `other` without a file.
    fn exchange_in_steps(&self, one: At<'_>, other: At<'_>) -> Result<(), Errno> {
        let away = self.stage(|staged| other.rename_to(staged, RenameFlags::NOREPLACE))?;
        if let Err(error) = one.rename_to(other, RenameFlags::NOREPLACE) {
            away.publish(other, RenameFlags::NOREPLACE)?;
            return Err(error);
        }
        away.publish(one, RenameFlags::NOREPLACE)
    }

    /// Calls fsync(2), unless the mount is volatile.
    pub fn sync(&self, fd: impl AsFd) -> Result<(), Errno> {
        if self.volatile {
            Ok(())
        } else {
            rustix::fs::fsync(fd)
        }
    }
}

impl Drop for Upper {
    fn drop(&mut self) {
        if let Some(name) = self.whiteout.lock().take() {
            // If this fails, the next mount removes the file.
            let _ = At::new(self.staging.as_fd(), &name).unlink();
        }
    }
}

/// Whether a file system says with this error that it cannot exchange these names. Upper and work
/// directory are on one file system: EXDEV is what fuse-overlayfs answers for directories.
fn has_no_exchange(error: Errno) -> bool {
    matches!(error, Errno::INVAL | Errno::NOSYS | Errno::XDEV)
}

/// A file that is being staged.
pub(crate) enum StagedFile<'u> {
    /// It has no name and vanishes with its descriptor.
    Unnamed,
    /// It has a name in the staging directory.
    Named(Staged<'u>),
}

impl StagedFile<'_> {
    /// Gives the file (open as `fd`) its name.
    ///
    /// # Errors
    /// EEXIST when the name is taken; else those of linkat(2).
    pub fn publish(self, fd: &OwnedFd, to: At<'_>) -> Result<(), Errno> {
        match self {
            Self::Unnamed => At::fd(fd.as_fd()).link_to(to),
            Self::Named(staged) => staged.publish(to, RenameFlags::NOREPLACE),
        }
    }

    /// Links the file to a further name; it stays staged.
    pub fn link(&self, fd: &OwnedFd, to: At<'_>) -> Result<(), Errno> {
        match self {
            Self::Unnamed => At::fd(fd.as_fd()).link_to(to),
            Self::Named(staged) => staged.at().link_to(to),
        }
    }
}

/// A file or directory in the staging directory, removed when dropped.
pub(crate) struct Staged<'u> {
    upper: &'u Upper,
    name: Vec<u8>,
    armed: bool,
}

impl Staged<'_> {
    pub fn at(&self) -> At<'_> {
        At::new(self.upper.staging.as_fd(), &self.name).recorded_as(self.upper.records())
    }

    /// Keeps the file, which is not a directory, until the result is dropped.
    pub fn park(mut self) -> Parked {
        self.armed = false;
        Parked::new(&self.upper.staging, std::mem::take(&mut self.name))
    }

    /// Moves it to its place.
    pub fn publish(mut self, to: At<'_>, flags: RenameFlags) -> Result<(), Errno> {
        self.give_place(to, flags)?;
        self.armed = false;
        Ok(())
    }

    /// Exchanges it with what is at `to`, which is then removed: the directory `known`, or anything
    /// that is not a directory.
    ///
    /// # Errors
    /// ESTALE when another directory is there, which is then left in place; else those of
    /// rename(2).
    pub fn replace(mut self, to: At<'_>, known: Option<(u64, u64)>) -> Result<(), Errno> {
        match self.give_place(to, RenameFlags::EXCHANGE) {
            Err(error) if has_no_exchange(error) => {
                self.upper.exchange_in_steps(self.at(), to)?;
            }
            other => other?,
        }
        let removable = self.upper.is_removable(self.at(), known);
        if removable == Ok(true) {
            return Ok(());
        }
        let back = self.upper.exchange(self.at(), to);
        // If the exchange cannot be undone, the staged name belongs to another directory, which
        // must not be removed.
        self.armed = back.is_ok();
        back?;
        Err(removable.err().unwrap_or(Errno::STALE))
    }

    fn give_place(&self, to: At<'_>, flags: RenameFlags) -> Result<(), Errno> {
        match self.at().rename_to(to, flags) {
            Err(Errno::ACCESS) => self.publish_unwritable(to, flags),
            other => other,
        }
    }

    /// Moves a directory that its owner may not write. A plain user may not move such a directory
    /// of their own to another parent (its `..` changes), so it is made writable for the rename.
    fn publish_unwritable(&self, to: At<'_>, flags: RenameFlags) -> Result<(), Errno> {
        let ours = unwritable_dir(self.at())?;
        let theirs = if flags.contains(RenameFlags::EXCHANGE) {
            unwritable_dir(to)?
        } else {
            None
        };
        if ours.is_none() && theirs.is_none() {
            return Err(Errno::ACCESS);
        }
        let chmod = |at: At<'_>, perm: Option<u32>| perm.map_or(Ok(()), |perm| at.chmod(perm));
        let open = |perm: Option<u32>| perm.map(|perm| perm | 0o200);
        chmod(self.at(), open(ours))?;
        chmod(to, open(theirs))?;
        match self.at().rename_to(to, flags) {
            // The exchanged directory is removed next, which needs this permission.
            Ok(()) => chmod(to, ours),
            Err(e) => {
                chmod(to, theirs)?;
                Err(e)
            }
        }
    }
}

impl Drop for Staged<'_> {
    fn drop(&mut self) {
        if self.armed
            && let Err(e) = discard(self.upper.staging.as_fd(), &self.name)
            && e != Errno::NOENT
        {
            tracing::warn!("cannot clean up in the work directory: {e}");
        }
    }
}

/// Creates an empty file whose name is a marker. An existing file of that name is sufficient.
pub(crate) fn make_mark(at: At<'_>) -> Result<(), Errno> {
    match at.mknod(FileKind::Regular, 0o644, (0, 0)) {
        Err(Errno::EXIST) => Ok(()),
        other => other,
    }
}

/// Returns the permissions of a directory that its owner may not write; `None` for anything else.
fn unwritable_dir(at: At<'_>) -> Result<Option<u32>, Errno> {
    let stat = at.stat()?;
    let unwritable = stat.kind == FileKind::Directory && stat.perm & 0o200 == 0;
    Ok(unwritable.then_some(stat.perm))
}

/// Opens the staging directory and empties it. Where others may write to the work directory (it
/// belongs to the upper's owner), they must not be able to replace staged files: the staging
/// directory is owned and accessible by the server alone, whoever created it.
fn open_staging(base: BorrowedFd<'_>, own: Owner) -> Result<OwnedFd, Errno> {
    let at = At::new(base, b"work");
    match at.mkdir(0o700) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(e) => return Err(e),
    }
    let held = at.hold_dir()?;
    let held = At::fd(held.as_fd());
    let stat = held.stat()?;
    if stat.uid != own.uid && own.uid == 0 {
        held.chown(Some(own.uid), Some(own.gid))?;
    }
    // Kernel overlayfs creates it with mode 0, which stops an unprivileged owner.
    let (wanted, others) = (0o700, stat.perm & 0o077);
    if stat.perm & wanted != wanted || own.uid == 0 && (stat.uid != own.uid || others != 0) {
        held.chmod(wanted)?;
    }
    let staging = held.open(OFlags::RDONLY | OFlags::DIRECTORY, 0)?;
    let mut left = Vec::new();
    read_names(&staging, &mut left)?;
    // The work directory's owner may have moved another user's directory here.
    if At::fd(base).stat()?.uid != own.uid {
        left.retain(|name| name.starts_with(STAGED));
    }
    for name in left {
        if let Err(error) = discard(staging.as_fd(), &name) {
            let name = String::from_utf8_lossy(&name);
            tracing::warn!(%error, "left in the work directory: {name:?}");
        }
    }
    Ok(staging)
}

/// Removes a staged file, or a directory with the files directly in it, without following symlinks.
/// The server never stages anything deeper: directories are staged empty, or moved here with no
/// more than whiteouts. Deeper content was put there by others and is not removed.
///
/// # Errors
/// ENOTEMPTY for deeper content, EXDEV for a mountpoint; else those of unlink(2).
fn discard(dir: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    let at = At::new(dir, name);
    match at.unlink() {
        Err(Errno::ISDIR | Errno::PERM) => {}
        other => return other,
    }
    match at.rmdir() {
        Err(Errno::NOTEMPTY | Errno::EXIST) => {}
        other => return other,
    }
    let held = at.hold_dir()?;
    let mut names = Vec::new();
    if let Err(Errno::ACCESS) = read_names(&held, &mut names) {
        At::fd(held.as_fd()).chmod(0o700)?;
        read_names(&held, &mut names)?;
    }
    for name in names {
        let entry = At::new(held.as_fd(), &name);
        match entry.unlink() {
            Err(Errno::ISDIR | Errno::PERM) => entry.rmdir()?,
            other => other?,
        }
    }
    at.rmdir()
}
