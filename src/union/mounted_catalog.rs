//! A catalog as a mount uses it: lower directories and files come from its records, without a
//! system call, as the same `LowerDir` and `LowerFile` values that a lookup in the layers gives.
//!
//! What the catalog cannot answer is looked up in the layers. Once an error is found in the
//! catalog, everything is.

use std::ffi::CStr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use rustix::io::Errno;

use super::acl;
use super::inode::{Data, LowerFile};
use super::inode_numbers::InodeNumbers;
use super::listing::LayerEntry;
use super::lower_lookup::LowerLookup;
use super::types::FileKind;
use crate::catalog::format::{self, Record};
use crate::catalog::view::{Damaged, DirRef, Identity, View};
use crate::layer::Dialect;
use crate::layer::at::Stat;
use crate::layer::lower::LowerDir;
use crate::sys::map::ReadOnly;

type Result<T> = std::result::Result<T, Damaged>;

/// The lower directories that are merged in a directory, top first.
#[derive(Clone, Debug)]
pub(crate) enum LowerDirs {
    /// They were found in the layers.
    Layers(Arc<[Arc<LowerDir>]>),
    /// They were found in the catalog.
    Catalog(Arc<CatalogDir>),
}

/// A merged directory of the catalog.
#[derive(Debug)]
pub(crate) struct CatalogDir {
    catalog: Arc<MountedCatalog>,
    dir: DirRef,
    record: u32,
    top: Arc<LowerDir>,
    /// All lower directories, made on first use.
    all: OnceLock<Arc<[Arc<LowerDir>]>>,
}

impl Default for LowerDirs {
    fn default() -> Self {
        Self::Layers(Arc::default())
    }
}

impl From<Vec<Arc<LowerDir>>> for LowerDirs {
    fn from(dirs: Vec<Arc<LowerDir>>) -> Self {
        Self::Layers(dirs.into())
    }
}

impl LowerDirs {
    /// Returns the number of layers that have the directory.
    pub fn len(&self) -> usize {
        match self {
            Self::Layers(dirs) => dirs.len(),
            Self::Catalog(merged) => merged.dir.part_count(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the topmost directory, whose attributes the union shows.
    pub fn top(&self) -> Option<&Arc<LowerDir>> {
        match self {
            Self::Layers(dirs) => dirs.first(),
            Self::Catalog(merged) => Some(&merged.top),
        }
    }

    /// Returns all directories.
    ///
    /// # Errors
    /// EIO when the catalog is damaged.
    pub fn all(&self) -> std::result::Result<&[Arc<LowerDir>], Errno> {
        let merged = match self {
            Self::Layers(dirs) => return Ok(dirs),
            Self::Catalog(merged) => merged,
        };
        if let Some(all) = merged.all.get() {
            return Ok(all);
        }
        let parts = 0..merged.dir.part_count();
        let catalog = &merged.catalog;
        let part = |n| catalog.lower_dir(catalog.view.part(&merged.dir, n)?);
        let all: Result<Vec<_>> = parts.map(part).collect();
        let all = all.map_err(|damaged| {
            catalog.give_up(damaged);
            Errno::IO
        })?;
        Ok(merged.all.get_or_init(|| all.into()))
    }

    /// Returns the catalog's directory, unless the catalog has been abandoned.
    pub fn catalog_dir(&self) -> Option<&Arc<CatalogDir>> {
        match self {
            Self::Catalog(merged) if merged.catalog.is_believed() => Some(merged),
            _ => None,
        }
    }
}

/// A namespace of xattrs whose absence a catalog records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Space {
    User,
    Trusted,
    Capability,
    Acl,
    DefaultAcl,
}

impl Space {
    fn of(name: &CStr) -> Option<Self> {
        if name == acl::ACCESS {
            return Some(Self::Acl);
        }
        if name == acl::DEFAULT {
            return Some(Self::DefaultAcl);
        }
        match name.to_bytes() {
            b"security.capability" => Some(Self::Capability),
            bytes if bytes.starts_with(b"user.") => Some(Self::User),
            bytes if bytes.starts_with(b"trusted.") => Some(Self::Trusted),
            _ => None,
        }
    }

    fn flag(self) -> u16 {
        match self {
            Self::User => format::USER,
            Self::Trusted => format::TRUSTED,
            Self::Capability => format::CAPABILITY,
            Self::Acl => format::ACL,
            Self::DefaultAcl => format::DEFAULT_ACL,
        }
    }
}

/// What the catalog has under a name.
pub(crate) enum CatalogEntry {
    /// There is no such name.
    Absent,
    /// A file with one name that has its own data: record and attributes.
    File(u32, Stat),
    /// Anything else.
    Special,
}

/// The catalog of a mount's lowers.
pub(crate) struct MountedCatalog {
    view: View<ReadOnly>,
    path: PathBuf,
    /// The roots of the layers, data-only layers last.
    roots: Vec<Arc<LowerDir>>,
    /// Directories of layers in use, by record.
    open: DashMap<u32, Weak<LowerDir>>,
    /// The size of `open` at which unused entries are removed.
    tidy_at: AtomicUsize,
    /// The error that a file system (by device) gives for an absent xattr.
    absent: DashMap<(u64, FileKind, Space), Errno>,
    given_up: AtomicBool,
}

impl std::fmt::Debug for MountedCatalog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MountedCatalog")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

/// Unused entries are not removed below this size.
const TIDY_MIN: usize = 4096;

impl MountedCatalog {
    /// Opens the catalog in `path`.
    ///
    /// # Errors
    /// [`crate::catalog::Unusable`] when there is none, or it is not one of exactly these layers.
    pub fn open(
        path: &Path,
        roots: &[Arc<LowerDir>],
        data_roots: &[Arc<LowerDir>],
    ) -> std::result::Result<Arc<Self>, crate::catalog::Unusable> {
        let view = crate::catalog::open(path)?;
        crate::catalog::check_layers(&view, roots, data_roots)?;
        Ok(Arc::new(Self {
            view,
            path: path.to_owned(),
            roots: roots.iter().chain(data_roots).cloned().collect(),
            open: DashMap::with_shard_amount(64),
            tidy_at: AtomicUsize::new(TIDY_MIN),
            absent: DashMap::with_shard_amount(16),
            given_up: AtomicBool::new(false),
        }))
    }

    /// Returns the root directory of the lowers, if the catalog has it.
    pub fn root(self: &Arc<Self>, roots: &Arc<[Arc<LowerDir>]>) -> Option<LowerDirs> {
        let dir = self.view.root().ok().filter(|dir| !dir.is_unlisted())?;
        (dir.part_count() == roots.len()).then(|| {
            LowerDirs::Catalog(Arc::new(CatalogDir {
                catalog: Arc::clone(self),
                dir,
                record: 0,
                top: Arc::clone(&roots[0]),
                all: OnceLock::from(Arc::clone(roots)),
            }))
        })
    }

    /// Whether no error has been found in the catalog.
    pub fn is_believed(&self) -> bool {
        !self.given_up.load(Ordering::Acquire)
    }

    /// Abandons the catalog: its answers are used no more, and the file is removed so that the next
    /// mount does not use it either. Returns whether this call was the first.
    pub fn give_up(&self, why: impl std::fmt::Display) -> bool {
        if self.given_up.swap(true, Ordering::AcqRel) {
            return false;
        }
        let path = self.path.display();
        tracing::warn!("catalog {path} is not used any more: {why}");
        // The directory may be read-only; then the next mount finds the error itself.
        let _ = std::fs::remove_file(&self.path);
        true
    }

    /// Returns the directory of a layer that a record describes.
    fn lower_dir(&self, index: u32) -> Result<Arc<LowerDir>> {
        let mut missing = Vec::new();
        let mut at = index;
        let mut found = loop {
            let known = self.open.get(&at).and_then(|dir| dir.upgrade());
            if let Some(dir) = known {
                break dir;
            }
            let record = self.view.record(at)?;
            let Some(parent) = self.view.parent(at, &record)? else {
                let (layer, _) = self.view.place(&record)?;
                let root = self.roots.get(layer as usize);
                break Arc::clone(root.ok_or(Damaged)?);
            };
            missing.push((at, record));
            at = parent;
        };
        for (at, record) in missing.into_iter().rev() {
            found = self.enter(at, &record, &found)?;
        }
        Ok(found)
    }

    fn enter(&self, at: u32, record: &Record, parent: &Arc<LowerDir>) -> Result<Arc<LowerDir>> {
        let (layer, kind) = self.view.place(record)?;
        if layer as usize != parent.index || kind != Some(FileKind::Directory) {
            return Err(Damaged);
        }
        let stat = self.view.stat(record, parent.layer.stat.dev)?;
        let xwhiteouts = record.flags.get() & format::XWHITEOUTS != 0;
        let name = self.view.name(record)?;
        let dir = match self.open.entry(at) {
            Entry::Occupied(mut entry) => match entry.get().upgrade() {
                Some(dir) => return Ok(dir),
                None => {
                    let dir = LowerDir::known(parent, name, stat, xwhiteouts);
                    entry.insert(Arc::downgrade(&dir));
                    dir
                }
            },
            Entry::Vacant(entry) => {
                let dir = LowerDir::known(parent, name, stat, xwhiteouts);
                entry.insert(Arc::downgrade(&dir));
                dir
            }
        };
        self.tidy();
        Ok(dir)
    }

    /// Removes unused directories from `open` when there are many.
    fn tidy(&self) {
        if self.open.len() >= self.tidy_at.load(Ordering::Relaxed) {
            self.open.retain(|_, dir| dir.strong_count() > 0);
            let next = (2 * self.open.len()).max(TIDY_MIN);
            self.tidy_at.store(next, Ordering::Relaxed);
        }
    }

    /// Returns the file that a record describes.
    pub fn file(&self, index: u32) -> Result<LowerFile> {
        let view = &self.view;
        let record = view.record(index)?;
        let parent = view.parent(index, &record)?.ok_or(Damaged)?;
        let dir = self.lower_dir(parent)?;
        let stat = view.stat(&record, dir.layer.stat.dev)?;
        if stat.kind == FileKind::Directory {
            return Err(Damaged);
        }
        let data = if record.flags.get() & format::METACOPY != 0 {
            let (dir, name, identity) = view.data(&record)?;
            Some(Box::new(Data {
                dir: self.lower_dir(dir)?,
                name: name.into(),
                ino: identity.ino,
            }))
        } else {
            None
        };
        Ok(LowerFile {
            dir,
            name: view.name(&record)?.into(),
            stat,
            data,
            record: Some(index),
        })
    }

    /// Returns the attributes in a record.
    pub fn stat(&self, index: u32) -> Result<Stat> {
        let record = self.view.record(index)?;
        self.stat_in(&record)
    }

    fn stat_in(&self, record: &Record) -> Result<Stat> {
        let (layer, _) = self.view.place(record)?;
        let root = self.roots.get(layer as usize).ok_or(Damaged)?;
        self.view.stat(record, root.layer.stat.dev)
    }

    /// As [`CatalogDir::plain`], by record.
    pub fn plain_at(&self, index: u32) -> Result<CatalogEntry> {
        self.plain(index, &self.view.record(index)?)
    }

    fn plain(&self, index: u32, record: &Record) -> Result<CatalogEntry> {
        let special = format::LIVE | format::MERGED | format::METACOPY;
        if record.flags.get() & special != 0 || record.nlink.get() != 1 {
            return Ok(CatalogEntry::Special);
        }
        let stat = self.stat_in(record)?;
        match stat.kind {
            FileKind::Directory => Err(Damaged),
            _ => Ok(CatalogEntry::File(index, stat)),
        }
    }

    /// Returns what the data of a file must still be when the file is opened.
    pub fn identity(&self, record: u32) -> Result<Identity> {
        let record = self.view.record(record)?;
        if record.flags.get() & format::METACOPY != 0 {
            return Ok(self.view.data(&record)?.2);
        }
        Ok(Identity::from(&self.view.stat(&record, 0)?))
    }

    /// Returns the flags of a record.
    pub fn flags(&self, record: u32) -> Result<u16> {
        Ok(self.view.record(record)?.flags.get())
    }

    /// Returns the target of a symlink.
    pub fn target(&self, record: u32) -> Result<Vec<u8>> {
        let record = self.view.record(record)?;
        Ok(self.view.target(&record)?.to_vec())
    }

    /// Returns the dialect of the layer that a record belongs to.
    pub fn dialect(&self, record: u32) -> Result<Dialect> {
        let (layer, _) = self.view.place(&self.view.record(record)?)?;
        let root = self.roots.get(layer as usize).ok_or(Damaged)?;
        Ok(root.layer.dialect)
    }

    /// Whether the file of a record is known to have no xattrs.
    pub fn is_bare(&self, record: u32) -> bool {
        let record = self.view.record(record);
        self.is_believed() && record.is_ok_and(|r| r.flags.get() & format::XATTRS == 0)
    }

    /// Returns the error for an absent xattr of the file of a record, or `None` when the file may
    /// have the xattr. `ask` asks the layer, once for each file system and kind of file.
    pub fn absent_xattr(
        &self,
        record: u32,
        name: &CStr,
        ask: impl FnOnce() -> std::result::Result<(), Errno>,
    ) -> Option<Errno> {
        let space = Space::of(name)?;
        let record = self.view.record(record).ok()?;
        if !self.is_believed() || record.flags.get() & space.flag() != 0 {
            return None;
        }
        let stat = self.view.stat(&record, 0).ok()?;
        // The kernel refuses user.* xattrs of a file that the caller cannot read, present or not.
        if space == Space::User && stat.perm & 0o444 != 0o444 {
            return None;
        }
        let (layer, _) = self.view.place(&record).ok()?;
        let dev = self.roots.get(layer as usize)?.stat.dev;
        let key = (dev, stat.kind, space);
        if let Some(known) = self.absent.get(&key) {
            return Some(*known);
        }
        match ask() {
            Err(errno @ (Errno::NODATA | Errno::OPNOTSUPP)) => {
                self.absent.insert(key, errno);
                Some(errno)
            }
            _ => None,
        }
    }
}

impl CatalogDir {
    /// Returns the catalog.
    pub fn catalog(&self) -> &Arc<MountedCatalog> {
        &self.catalog
    }

    /// Returns the topmost directory in the layers.
    pub fn top(&self) -> &Arc<LowerDir> {
        &self.top
    }

    /// Returns the record.
    pub fn record(&self) -> u32 {
        self.record
    }

    /// Looks a name up. `None`: the layers must be read.
    pub fn lookup(&self, name: &[u8]) -> Result<Option<LowerLookup>> {
        let catalog = &self.catalog;
        let view = &catalog.view;
        let Some((index, record)) = view.find(&self.dir, name)? else {
            return Ok(Some(LowerLookup::Absent));
        };
        let flags = record.flags.get();
        if flags & format::LIVE != 0 {
            return Ok(None);
        }
        if flags & format::MERGED != 0 {
            let dir = view.dir(&self.dir, &record)?;
            if dir.is_unlisted() {
                return Ok(None);
            }
            if dir.part_count() == 0 {
                return Err(Damaged);
            }
            return Ok(Some(LowerLookup::Dirs(LowerDirs::Catalog(Arc::new(
                Self {
                    catalog: Arc::clone(catalog),
                    dir,
                    record: index,
                    top: catalog.lower_dir(index)?,
                    all: OnceLock::new(),
                },
            )))));
        }
        Ok(Some(LowerLookup::File(catalog.file(index)?)))
    }

    /// Looks a name up, and returns record and attributes if these say everything about the file.
    pub fn plain(&self, name: &[u8]) -> Result<CatalogEntry> {
        match self.catalog.view.find(&self.dir, name)? {
            Some((index, record)) => self.catalog.plain(index, &record),
            None => Ok(CatalogEntry::Absent),
        }
    }

    /// Calls `each` with every entry of the directory; the lowers are merged already.
    pub fn entries(
        &self,
        inode_numbers: &InodeNumbers,
        mut each: impl FnMut(LayerEntry),
    ) -> Result<()> {
        let view = &self.catalog.view;
        let entry = |index| {
            let record = view.record(index)?;
            let (layer, kind) = view.place(&record)?;
            let root = self.catalog.roots.get(layer as usize).ok_or(Damaged)?;
            Ok(LayerEntry {
                name: view.name(&record)?.into(),
                kind,
                ino: Some(inode_numbers.number_of(root.stat.dev, record.ino.get())),
                record: Some(index),
                whiteout: false,
            })
        };
        for index in self.dir.entries() {
            each(entry(index)?);
        }
        Ok(())
    }
}
