//! Lower layers: opened roots, their directories, and the meaning of a name in one layer. Lower
//! layers do not change, so everything that was read from them stays true.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use rustix::fs::{Mode, OFlags, RawDir};
use rustix::io::Errno;

use super::at::{At, Stat};
use super::fds::{FdCache, Slot, with_spare};
use super::file_system::{FileSystem, FileSystems};
use super::markers::{Markers, WH_OPAQUE, WH_PREFIX};
use super::recorded::Form;
use super::trust::{believes_user_markers, is_foreign};
use super::types::FileKind;
use super::{Dialect, LayerSpec, Records};

/// An opened layer.
#[derive(Debug)]
pub struct Layer {
    /// The root directory, opened for reading.
    pub root: Arc<OwnedFd>,
    /// The path, for messages.
    pub path: PathBuf,
    /// The markers that are read.
    pub dialect: Dialect,
    /// The UUID of the file system, if it is known.
    pub uuid: Option<[u8; 16]>,
    /// See [`FileSystem::keeps_numbers`].
    pub keeps_numbers: bool,
    /// Attributes of the root.
    pub stat: Stat,
    /// Whether redirects and metacopies in `user.*` are followed in it.
    pub believes_user: bool,
    /// Whether the layer belongs to a user with fewer rights, who may at least rename its files.
    pub is_foreign: bool,
}

impl Layer {
    /// Returns the markers of a file in the layer that have an effect.
    ///
    /// # Errors
    /// Those of listxattr(2) and getxattr(2).
    pub fn markers(&self, at: At<'_>) -> Result<Markers, Errno> {
        let markers = Markers::read(at, self.dialect)?;
        Ok(if self.believes_user {
            markers
        } else {
            markers.without_users()
        })
    }

    /// As [`Self::markers`], with the attributes of the same file. `stat` was read before. If the
    /// markers lead to another file, both are read again from a held descriptor, so that the file
    /// cannot be exchanged between the two reads: the attributes decide who may see the content.
    ///
    /// # Errors
    /// As [`Self::markers`]; ENOENT if the name no longer exists.
    pub fn described(&self, at: At<'_>, stat: Stat) -> Result<(Stat, Markers), Errno> {
        let markers = self.markers(at)?;
        if !markers.leads_elsewhere() || at.name.is_empty() {
            return Ok((stat, markers));
        }
        let held = at.open(OFlags::PATH, 0)?;
        let held = At::fd(held.as_fd()).recorded_like(at);
        let again = held.stat()?;
        if again.kind == stat.kind {
            Ok((again, self.markers(held)?))
        } else {
            Err(Errno::STALE)
        }
    }

    /// Opens a layer.
    ///
    /// # Errors
    /// ENOENT or ENOTDIR if it is not a directory, else those of open(2) and statx(2).
    pub fn open(spec: &LayerSpec) -> Result<Self, Errno> {
        Self::open_among(spec, &mut FileSystems::new())
    }

    /// As [`Self::open`], for one of many: each file system is asked for its UUID once.
    ///
    /// # Errors
    /// Those of [`Self::open`].
    pub fn open_among(spec: &LayerSpec, known: &mut FileSystems) -> Result<Self, Errno> {
        Self::rooted(spec, spec.dir.readable()?, known)
    }

    /// As [`Self::open`], with a descriptor of its own, so that a lock on it is not that of `spec`.
    ///
    /// # Errors
    /// Those of [`Self::open`].
    pub fn open_apart(spec: &LayerSpec) -> Result<Self, Errno> {
        Self::rooted(spec, Arc::new(spec.dir.reopen()?), &mut FileSystems::new())
    }

    fn rooted(
        spec: &LayerSpec,
        root: Arc<OwnedFd>,
        known: &mut FileSystems,
    ) -> Result<Self, Errno> {
        let at = At::fd(root.as_fd());
        let real = at.stat()?;
        let mut dialect = spec.dialect;
        if dialect.records != Records::Ignored {
            dialect.records = match (dialect.records, Form::of_layer(at)?) {
                (_, Some(form)) => Records::Kept(form),
                (Records::Learnt, None) => Records::Ignored,
                (given, None) => given,
            };
        }
        let stat = match dialect.records {
            Records::Kept(form) => at.with_record(form, real)?,
            _ => real,
        };
        let system = known.entry(stat.dev);
        let system = *system.or_insert_with(|| FileSystem::of(&root));
        Ok(Self {
            root,
            path: spec.path().to_owned(),
            dialect,
            uuid: system.uuid,
            keeps_numbers: system.keeps_numbers,
            believes_user: believes_user_markers(real.uid),
            is_foreign: is_foreign(real.uid),
            stat,
        })
    }
}

/// A directory of a lower layer.
#[derive(Debug)]
pub struct LowerDir {
    /// The layer that contains it.
    pub layer: Arc<Layer>,
    /// The position of the layer in the stack, 0 on top.
    pub index: usize,
    parent: Option<Arc<LowerDir>>,
    name: Box<[u8]>,
    /// The attributes.
    pub stat: Stat,
    xwhiteouts: bool,
    wh_files: bool,
    has_wh: OnceLock<bool>,
    slot: Arc<Slot<OwnedFd>>,
}

/// The meaning of a name in one lower directory.
#[derive(Debug)]
pub enum Single {
    /// The directory does not have the name.
    Absent,
    /// The name is deleted here. Layers below do not show it.
    Whiteout,
    /// A file that is not a directory.
    File {
        /// The attributes.
        stat: Stat,
        /// The markers, of which metacopy and redirect have an effect.
        markers: Markers,
    },
    /// A directory.
    Dir {
        /// The directory.
        dir: Arc<LowerDir>,
        /// Whether it hides everything below it.
        opaque: bool,
        /// The name or path of the directory in the layers below.
        redirect: Option<Vec<u8>>,
    },
}

/// An entry of a directory of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawEntry<'a> {
    /// The name.
    pub name: &'a [u8],
    /// The type; `None` if the file system does not tell it.
    pub kind: Option<FileKind>,
    /// The inode number.
    pub ino: u64,
}

/// The properties of a directory of a lower.
#[derive(Clone, Copy, Debug)]
pub struct KnownDir {
    /// Its attributes.
    pub stat: Stat,
    /// Whether it may contain whiteouts in the xattr form.
    pub xwhiteouts: bool,
    /// Whether names in it that begin with `.wh.` are files, in every dialect.
    pub wh_files: bool,
}

impl RawEntry<'_> {
    /// Forgets the type where the file may stand for a file of another type.
    pub fn forget_recorded_kind(&mut self, records: Records) {
        if records != Records::Ignored && self.kind == Some(FileKind::Regular) {
            self.kind = None;
        }
    }
}

impl LowerDir {
    /// Returns the root of a layer.
    ///
    /// # Errors
    /// Those of statx(2) and getxattr(2).
    pub fn root(layer: Arc<Layer>, index: usize) -> Result<Arc<Self>, Errno> {
        let markers = layer.markers(At::fd(layer.root.as_fd()))?;
        Ok(Arc::new(Self {
            stat: layer.stat,
            layer,
            index,
            parent: None,
            name: Box::default(),
            xwhiteouts: markers.xwhiteouts,
            wh_files: markers.wh_files,
            has_wh: OnceLock::new(),
            slot: Arc::default(),
        }))
    }

    /// Returns a directory in `parent` whose properties are all known.
    pub fn known(parent: &Arc<Self>, name: &[u8], known: KnownDir) -> Arc<Self> {
        let KnownDir {
            stat,
            xwhiteouts,
            wh_files,
        } = known;
        Arc::new(Self {
            layer: Arc::clone(&parent.layer),
            index: parent.index,
            parent: Some(Arc::clone(parent)),
            name: name.into(),
            stat,
            xwhiteouts,
            wh_files,
            has_wh: OnceLock::new(),
            slot: Arc::default(),
        })
    }

    /// Returns the directory that contains it, and its name there; `None` for the root of a layer.
    pub fn place(&self) -> Option<(&Arc<Self>, &[u8])> {
        self.parent.as_ref().map(|parent| (parent, &*self.name))
    }

    /// Whether it may contain whiteouts in the xattr form.
    pub fn has_xwhiteouts(&self) -> bool {
        self.xwhiteouts
    }

    /// Whether names in it that begin with `.wh.` are files, in every dialect.
    pub fn has_wh_files(&self) -> bool {
        self.wh_files
    }

    /// Whether names in it that begin with `.wh.` are whiteouts.
    pub fn takes_wh_names(&self) -> bool {
        self.layer.dialect.wh_names && !self.wh_files
    }

    /// Returns a descriptor (`O_PATH`) for calls relative to the directory.
    ///
    /// # Errors
    /// Those of open(2); ESTALE if another directory has the name by now.
    pub fn fd(&self, fds: &FdCache) -> Result<Arc<OwnedFd>, Errno> {
        if let Some(fd) = fds.cached(&self.slot) {
            return Ok(fd);
        }
        // The loop goes up to the nearest ancestor with a descriptor. It does not recurse, because
        // paths have no depth limit.
        let mut missing = vec![self];
        let mut fd: Option<Arc<OwnedFd>> = None;
        let mut next = self.parent.as_deref();
        while let Some(dir) = next {
            fd = fds.cached(&dir.slot);
            if fd.is_some() {
                break;
            }
            missing.push(dir);
            next = dir.parent.as_deref();
        }
        for dir in missing.iter().rev() {
            let open = || match (&fd, &dir.parent) {
                (Some(parent), Some(_)) => dir.open_in(parent),
                _ => At::fd(dir.layer.root.as_fd()).open_dir_path(),
            };
            fd = Some(fds.get(&dir.slot, |_| true, open)?);
        }
        fd.ok_or(Errno::IO)
    }

    /// Opens the directory by its name in `parent`. ESTALE if another directory has the name by now
    /// that other users may look into.
    fn open_in(&self, parent: &OwnedFd) -> Result<OwnedFd, Errno> {
        let fd = At::new(parent.as_fd(), &self.name).open_dir_path()?;
        if self.stat.is_or_resembles(&self.at(&fd).stat()?) {
            Ok(fd)
        } else {
            Err(Errno::STALE)
        }
    }

    /// Returns an opened file of this layer.
    pub fn at<'a>(&self, fd: &'a OwnedFd) -> At<'a> {
        At::fd(fd.as_fd()).recorded_as(self.layer.dialect.records)
    }

    /// Looks `name` up in this directory.
    ///
    /// # Errors
    /// Those of statx(2), getxattr(2) and [`Self::fd`]. An absent name is not an error.
    pub fn lookup(self: &Arc<Self>, fds: &FdCache, name: &[u8]) -> Result<Single, Errno> {
        if self.takes_wh_names() && name.starts_with(WH_PREFIX) {
            return Ok(Single::Absent);
        }
        let fd = self.fd(fds)?;
        let hidden_below = self.has_wh_entries(fds)? && self.has_wh_for(&fd, name)?;
        let at = At::new(fd.as_fd(), name).recorded_as(self.layer.dialect.records);
        let absent = if hidden_below {
            Single::Whiteout
        } else {
            Single::Absent
        };
        let Some(stat) = at.stat_opt()? else {
            return Ok(absent);
        };
        if stat.is_chardev_whiteout() {
            return Ok(Single::Whiteout);
        }
        match stat.kind {
            FileKind::Directory => self.found_dir(fds, at, stat, hidden_below),
            // Only regular files carry metacopy, and only empty ones are whiteouts.
            FileKind::Regular => {
                let (stat, markers) = self.layer.described(at, stat)?;
                if self.xwhiteouts && stat.size == 0 && markers.whiteout {
                    Ok(Single::Whiteout)
                } else {
                    Ok(Single::File { stat, markers })
                }
            }
            _ => Ok(Single::File {
                stat,
                markers: Markers::default(),
            }),
        }
    }

    fn found_dir(
        self: &Arc<Self>,
        fds: &FdCache,
        at: At<'_>,
        stat: Stat,
        hidden_below: bool,
    ) -> Result<Single, Errno> {
        let (stat, markers) = self.layer.described(at, stat)?;
        let dir = Arc::new(Self {
            layer: Arc::clone(&self.layer),
            index: self.index,
            parent: Some(Arc::clone(self)),
            name: at.name.into(),
            stat,
            xwhiteouts: markers.xwhiteouts,
            wh_files: markers.wh_files,
            has_wh: OnceLock::new(),
            slot: Arc::default(),
        });
        let opaque = hidden_below || markers.opaque || dir.has_wh_opaque(fds)?;
        Ok(Single::Dir {
            dir,
            opaque,
            redirect: markers.redirect,
        })
    }

    /// Whether the directory has any `.wh.` entry. It is read once, in layers that may have such
    /// entries.
    fn has_wh_entries(&self, fds: &FdCache) -> Result<bool, Errno> {
        if !self.takes_wh_names() {
            return Ok(false);
        }
        if let Some(known) = self.has_wh.get() {
            return Ok(*known);
        }
        match self.read(fds, |_| {}) {
            // The directory may be searched but not listed. Each name is looked up.
            Err(Errno::ACCESS) => Ok(*self.has_wh.get_or_init(|| true)),
            read => read.map(|()| self.has_wh.get() == Some(&true)),
        }
    }

    fn has_wh_for(&self, fd: &OwnedFd, name: &[u8]) -> Result<bool, Errno> {
        let wh = [WH_PREFIX, name].concat();
        Ok(At::new(fd.as_fd(), &wh).stat_opt()?.is_some())
    }

    fn has_wh_opaque(&self, fds: &FdCache) -> Result<bool, Errno> {
        // This alone does not justify reading the directory: a lookup in it does that.
        if !self.takes_wh_names() || self.has_wh.get() == Some(&false) {
            return Ok(false);
        }
        has_opaque_file(&*self.fd(fds)?)
    }

    /// Whether a listed entry that looks like an empty file or a character device is a whiteout.
    ///
    /// # Errors
    /// Those of statx(2), getxattr(2) and [`Self::fd`].
    pub fn is_whiteout(
        &self,
        fds: &FdCache,
        name: &[u8],
        kind: Option<FileKind>,
    ) -> Result<bool, Errno> {
        let suspect = match kind {
            Some(FileKind::CharDevice) | None => true,
            Some(FileKind::Regular) => self.xwhiteouts,
            Some(_) => false,
        };
        if !suspect {
            return Ok(false);
        }
        let fd = self.fd(fds)?;
        let at = At::new(fd.as_fd(), name);
        let Some(stat) = at.stat_opt()? else {
            return Ok(false);
        };
        if self.xwhiteouts && stat.kind == FileKind::Regular && stat.size == 0 {
            return Ok(self.layer.markers(at)?.whiteout);
        }
        Ok(stat.is_chardev_whiteout())
    }

    /// Calls `each` for every entry except `.` and `..`, in the order of the file system.
    ///
    /// # Errors
    /// Those of open(2), getdents64(2) and [`Self::fd`].
    pub fn read(&self, fds: &FdCache, mut each: impl FnMut(RawEntry<'_>)) -> Result<(), Errno> {
        self.read_while(fds, |entry| {
            each(entry);
            true
        })
    }

    /// As [`Self::read`], until `each` returns false.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_while(
        &self,
        fds: &FdCache,
        mut each: impl FnMut(RawEntry<'_>) -> bool,
    ) -> Result<(), Errno> {
        let mut has_wh = false;
        let records = self.layer.dialect.records;
        let read = read_dir_while(&*self.fd(fds)?, |mut entry| {
            entry.forget_recorded_kind(records);
            has_wh |= entry.name.starts_with(WH_PREFIX);
            each(entry)
        })?;
        if read == Read::All {
            self.has_wh.get_or_init(|| has_wh);
        }
        Ok(())
    }
}

impl Drop for LowerDir {
    /// This does not recurse: directories of a hostile layer may nest deeper than a thread's stack.
    fn drop(&mut self) {
        let mut next = self.parent.take();
        while let Some(parent) = next {
            next = Arc::into_inner(parent).and_then(|mut dir| dir.parent.take());
        }
    }
}

/// Whether a directory has the file that makes it opaque. A directory that a plain user may not
/// search shows no entries anyway.
///
/// # Errors
/// Those of statx(2), except ENOENT and EACCES.
pub fn has_opaque_file(dir: impl AsFd) -> Result<bool, Errno> {
    match At::new(dir.as_fd(), WH_OPAQUE).stat_opt() {
        Err(Errno::ACCESS) => Ok(false),
        found => Ok(found?.is_some()),
    }
}

/// Adds the names in a directory to `names`.
///
/// # Errors
/// As [`read_dir`]; the names before the error are added.
pub fn read_names(dir: &OwnedFd, names: &mut Vec<Box<[u8]>>) -> Result<(), Errno> {
    read_dir(dir, |entry| names.push(entry.name.into()))
}

/// Reads a whole directory, given any descriptor of it. Its access time stays the same where that
/// is allowed (EPERM: it belongs to another user).
///
/// # Errors
/// Those of open(2) and getdents64(2).
pub fn read_dir(dir: &OwnedFd, mut each: impl FnMut(RawEntry<'_>)) -> Result<(), Errno> {
    let all = read_dir_while(dir, |entry| {
        each(entry);
        true
    });
    all.map(drop)
}

/// How much of a directory was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Read {
    All,
    Part,
}

/// As [`read_dir`], until `each` returns false.
fn read_dir_while(
    dir: &OwnedFd,
    mut each: impl FnMut(RawEntry<'_>) -> bool,
) -> Result<Read, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open = |flags| with_spare(|| rustix::fs::openat(dir, c".", flags, Mode::empty()));
    let fd = match open(flags | OFlags::NOATIME) {
        Err(Errno::PERM) => open(flags)?,
        other => other?,
    };
    let mut buffer = Vec::with_capacity(32768);
    let mut entries = RawDir::new(fd, buffer.spare_capacity_mut());
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            let kind = FileKind::from_mode(entry.file_type().as_raw_mode());
            let ino = entry.ino();
            if !each(RawEntry { name, kind, ino }) {
                return Ok(Read::Part);
            }
        }
    }
    Ok(Read::All)
}
