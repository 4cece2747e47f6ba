//! Lower layers: opened roots, directories in them, and what one layer says about a name. Lower
//! layers are immutable, so everything learnt about them stays true.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use rustix::fs::{Mode, OFlags, RawDir};
use rustix::io::Errno;

use super::at::{At, Stat};
use super::fds::{FdCache, Slot, with_spare};
use super::file_system::{FileSystem, FileSystems};
use super::markers::{Markers, WH_OPAQUE, WH_PREFIX};
use super::trust::{believes_user_markers, is_foreign};
use super::types::FileKind;
use super::{Dialect, LayerSpec};

/// An opened layer.
#[derive(Debug)]
pub struct Layer {
    /// Its root directory, opened for reading.
    pub root: Arc<OwnedFd>,
    /// Where it is, for messages.
    pub path: PathBuf,
    /// How its markers are read.
    pub dialect: Dialect,
    /// UUID of its file system, if that can be told.
    pub uuid: Option<[u8; 16]>,
    /// See [`FileSystem::keeps_numbers`].
    pub keeps_numbers: bool,
    /// Attributes of the root.
    pub stat: Stat,
    /// Whether redirects and metacopies in `user.*` are followed in it.
    pub believes_user: bool,
    /// It belongs to somebody who has not our rights, and may at least rename what is in it.
    pub is_foreign: bool,
}

impl Layer {
    /// The markers of a file in it that are to be obeyed.
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

    /// As [`Self::markers`], with the attributes of the same file. `stat` was seen before; where
    /// the markers lead elsewhere, both are read again of what is held, so that nobody can
    /// exchange the file between the two: the attributes decide who sees what is there.
    ///
    /// # Errors
    /// As [`Self::markers`]; ENOENT when the name is gone.
    pub fn described(&self, at: At<'_>, stat: Stat) -> Result<(Stat, Markers), Errno> {
        let markers = self.markers(at)?;
        if !markers.leads_elsewhere() || at.name.is_empty() {
            return Ok((stat, markers));
        }
        let held = at.open(OFlags::PATH, 0)?;
        let held = At::fd(held.as_fd());
        let again = held.stat()?;
        if again.kind == stat.kind {
            Ok((again, self.markers(held)?))
        } else {
            Err(Errno::STALE)
        }
    }

    /// Opens a layer; ENOENT or ENOTDIR when it is not a directory.
    ///
    /// # Errors
    /// ENOENT or ENOTDIR if it is not a directory, else those of open(2) and statx(2).
    pub fn open(spec: &LayerSpec) -> Result<Self, Errno> {
        Self::open_among(spec, &mut FileSystems::new())
    }

    /// As [`Self::open`], one of many: a file system is asked for its UUID once.
    ///
    /// # Errors
    /// Those of [`Self::open`].
    pub fn open_among(spec: &LayerSpec, known: &mut FileSystems) -> Result<Self, Errno> {
        Self::rooted(spec, spec.dir.readable()?, known)
    }

    /// As [`Self::open`], with a descriptor that nobody shares, so that a lock on it is not
    /// that of whoever has `spec`.
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
        let stat = At::fd(root.as_fd()).stat()?;
        let system = known.entry(stat.dev);
        let system = *system.or_insert_with(|| FileSystem::of(&root));
        Ok(Self {
            root,
            path: spec.path().to_owned(),
            dialect: spec.dialect,
            uuid: system.uuid,
            keeps_numbers: system.keeps_numbers,
            believes_user: believes_user_markers(stat.uid),
            is_foreign: is_foreign(stat.uid),
            stat,
        })
    }
}

/// A directory of a lower layer.
#[derive(Debug)]
pub struct LowerDir {
    /// The layer it is in.
    pub layer: Arc<Layer>,
    /// Position of the layer in the stack, 0 on top.
    pub index: usize,
    parent: Option<Arc<LowerDir>>,
    name: Box<[u8]>,
    /// Attributes.
    pub stat: Stat,
    xwhiteouts: bool,
    has_wh: OnceLock<bool>,
    slot: Arc<Slot<OwnedFd>>,
}

/// What one lower directory says about a name.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "one at a time, on the stack; a box would be an allocation for each lookup"
)]
pub enum Single {
    /// Nothing.
    Absent,
    /// The name is deleted here: nothing below shows.
    Whiteout,
    /// A file that is not a directory.
    File {
        /// Attributes.
        stat: Stat,
        /// Markers (metacopy and redirect matter).
        markers: Markers,
    },
    /// A directory.
    Dir {
        /// The directory.
        dir: Arc<LowerDir>,
        /// It hides everything below it.
        opaque: bool,
        /// Where layers below have it.
        redirect: Option<Vec<u8>>,
    },
}

/// A raw entry of a layer directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawEntry {
    /// Name.
    pub name: Box<[u8]>,
    /// Type; `None` where the file system does not tell.
    pub kind: Option<FileKind>,
    /// Inode number.
    pub ino: u64,
}

impl LowerDir {
    /// The root of a layer.
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
            has_wh: OnceLock::new(),
            slot: Arc::default(),
        }))
    }

    /// A directory in `parent` about which everything is known already.
    pub fn known(parent: &Arc<Self>, name: &[u8], stat: Stat, xwhiteouts: bool) -> Arc<Self> {
        Arc::new(Self {
            layer: Arc::clone(&parent.layer),
            index: parent.index,
            parent: Some(Arc::clone(parent)),
            name: name.into(),
            stat,
            xwhiteouts,
            has_wh: OnceLock::new(),
            slot: Arc::default(),
        })
    }

    /// The directory it is in, and its name there; `None` for the root of a layer.
    pub fn place(&self) -> Option<(&Arc<Self>, &[u8])> {
        self.parent.as_ref().map(|parent| (parent, &*self.name))
    }

    /// Whether it may hold whiteouts in the xattr form.
    pub fn has_xwhiteouts(&self) -> bool {
        self.xwhiteouts
    }

    /// A descriptor (`O_PATH`) for calls relative to the directory.
    ///
    /// # Errors
    /// Those of open(2); ESTALE if the directory is not the same any more.
    pub fn fd(&self, fds: &FdCache) -> Result<Arc<OwnedFd>, Errno> {
        if let Some(fd) = fds.cached(&self.slot) {
            return Ok(fd);
        }
        // Walk up to the nearest ancestor with a descriptor without recursing: paths have
        // no depth limit.
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

    /// Opens it by its name in `parent`; ESTALE when something else has the name by now that
    /// others than those may look into who were told that they may.
    fn open_in(&self, parent: &OwnedFd) -> Result<OwnedFd, Errno> {
        let fd = At::new(parent.as_fd(), &self.name).open_dir_path()?;
        if self.stat.is_or_resembles(&At::fd(fd.as_fd()).stat()?) {
            Ok(fd)
        } else {
            Err(Errno::STALE)
        }
    }

    /// What this directory says about `name`.
    ///
    /// # Errors
    /// Those of statx(2), getxattr(2) and [`Self::fd`]; a name that is absent is not an error.
    pub fn lookup(self: &Arc<Self>, fds: &FdCache, name: &[u8]) -> Result<Single, Errno> {
        if self.layer.dialect.wh_names && name.starts_with(WH_PREFIX) {
            return Ok(Single::Absent);
        }
        let fd = self.fd(fds)?;
        let hidden_below = self.has_wh_entries(fds)? && self.has_wh_for(&fd, name)?;
        let at = At::new(fd.as_fd(), name);
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

    /// Whether the directory has any `.wh.` entry; scanned once, for layers that may.
    fn has_wh_entries(&self, fds: &FdCache) -> Result<bool, Errno> {
        if !self.layer.dialect.wh_names {
            return Ok(false);
        }
        if let Some(known) = self.has_wh.get() {
            return Ok(*known);
        }
        match self.read(fds, |_| {}) {
            // A directory that may be searched but not listed: then ask name by name.
            Err(Errno::ACCESS) => Ok(*self.has_wh.get_or_init(|| true)),
            read => read.map(|()| self.has_wh.get() == Some(&true)),
        }
    }

    fn has_wh_for(&self, fd: &OwnedFd, name: &[u8]) -> Result<bool, Errno> {
        let wh = [WH_PREFIX, name].concat();
        Ok(At::new(fd.as_fd(), &wh).stat_opt()?.is_some())
    }

    fn has_wh_opaque(&self, fds: &FdCache) -> Result<bool, Errno> {
        // Not worth reading the directory for: that is done by whoever looks into it.
        if !self.layer.dialect.wh_names || self.has_wh.get() == Some(&false) {
            return Ok(false);
        }
        has_opaque_file(&*self.fd(fds)?)
    }

    /// Whether a listed entry that looks like an empty file or a character device is in
    /// truth a whiteout.
    ///
    /// # Errors
    /// Those of statx(2), getxattr(2) and [`Self::fd`].
    pub fn is_whiteout(&self, fds: &FdCache, entry: &RawEntry) -> Result<bool, Errno> {
        let suspect = match entry.kind {
            Some(FileKind::CharDevice) | None => true,
            Some(FileKind::Regular) => self.xwhiteouts,
            Some(_) => false,
        };
        if !suspect {
            return Ok(false);
        }
        let fd = self.fd(fds)?;
        let at = At::new(fd.as_fd(), &entry.name);
        let Some(stat) = at.stat_opt()? else {
            return Ok(false);
        };
        if self.xwhiteouts && stat.kind == FileKind::Regular && stat.size == 0 {
            return Ok(self.layer.markers(at)?.whiteout);
        }
        Ok(stat.is_chardev_whiteout())
    }

    /// Calls `each` for every entry but `.` and `..`, in the order of the file system.
    ///
    /// # Errors
    /// Those of open(2), getdents64(2) and [`Self::fd`].
    pub fn read(&self, fds: &FdCache, mut each: impl FnMut(RawEntry)) -> Result<(), Errno> {
        let mut has_wh = false;
        read_dir(&*self.fd(fds)?, |entry| {
            has_wh |= entry.name.starts_with(WH_PREFIX);
            each(entry);
        })?;
        self.has_wh.get_or_init(|| has_wh);
        Ok(())
    }
}

impl Drop for LowerDir {
    /// Without recursion: a hostile layer may nest deeper than a thread's stack.
    fn drop(&mut self) {
        let mut next = self.parent.take();
        while let Some(parent) = next {
            next = Arc::into_inner(parent).and_then(|mut dir| dir.parent.take());
        }
    }
}

/// Whether a directory has the file that makes it opaque. One that a plain user may not
/// search shows nothing of what is in it.
///
/// # Errors
/// Those of statx(2), but for ENOENT and EACCES.
pub fn has_opaque_file(dir: impl AsFd) -> Result<bool, Errno> {
    match At::new(dir.as_fd(), WH_OPAQUE).stat_opt() {
        Err(Errno::ACCESS) => Ok(false),
        found => Ok(found?.is_some()),
    }
}

/// Reads a whole directory, given any descriptor for it, leaving its access time alone
/// where that is allowed (EPERM: it is another user's).
///
/// # Errors
/// Those of open(2) and getdents64(2).
pub fn read_dir(dir: &OwnedFd, mut each: impl FnMut(RawEntry)) -> Result<(), Errno> {
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
            each(RawEntry {
                name: name.into(),
                kind,
                ino: entry.ino(),
            });
        }
    }
    Ok(())
}
