//! A catalog as a mount uses it: lower directories and files come from its records, without a
//! system call, as the same [`LowerFile`] and `LowerDir` values that a lookup in the layers
//! returns.
//!
//! Names for which the catalog has no answer are looked up in the layers. Once an error is found in
//! the catalog, all names are.
//!
//! A file that differs from its record fails with ESTALE, and the catalog is abandoned, unless it has
//! only got or lost a hard link. Attributes that the kernel has cached from it stay wrong until the
//! kernel looks the name up again.

use std::ffi::CStr;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, Weak};

use parking_lot::Mutex;
use rustix::io::Errno;

use super::format::{self, Record};
use super::view::{Damaged, DirRef, Identity, View};
use super::{build, file};
use crate::layer::at::{At, Stat};
use crate::layer::held_name::HeldName;
use crate::layer::lower::{KnownDir, LowerDir};
use crate::layer::markers::Escape;
use crate::layer::types::{FileKind, Time};
use crate::lowers::{
    Above, DataPlace, FileId, FoundIn, Gather, LayerEntry, Layers, LowerDirs, LowerFile,
    LowerLookup, Lowers, MergedDir, Names, Plain, Source,
};
use crate::sys::map::ReadOnly;
use crate::sys::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use crate::sys::sync::dashmap::DashMap;
use crate::sys::sync::dashmap::mapref::entry::Entry;

type Result<T> = std::result::Result<T, Damaged>;

/// A catalog file for the lowers of a mount. It is used if it describes exactly these layers, or all but
/// the topmost one, whose names are then read when the mount begins ([`Above`]).
#[derive(Clone, Debug)]
pub struct CatalogFile(pub PathBuf);

impl CatalogFile {
    /// Returns the catalog in `path` in the form of the option [`crate::union::Options::names`].
    pub fn source(path: impl Into<PathBuf>) -> Arc<dyn Source> {
        Arc::new(Self(path.into()))
    }
}

impl Source for CatalogFile {
    fn open(&self, layers: &Arc<Layers>) -> Option<Arc<dyn Lowers>> {
        let path = self.0.display();
        let mounted = match Mounted::open_some(&self.0, layers) {
            Ok(mounted) => mounted,
            Err(e) if e.is_absent() => return None,
            Err(e) => {
                tracing::info!("catalog {path} is not used: {e}");
                return None;
            }
        };
        if mounted.0.above == 0 {
            return Some(Arc::new(mounted));
        }
        match Above::open(layers, Arc::new(mounted)) {
            Ok(above) => Some(Arc::new(above)),
            Err(e) => {
                tracing::info!("catalog {path} is not used below the topmost layer: {e}");
                None
            }
        }
    }
}

/// The catalog of a mount's lowers.
#[derive(Clone, Debug)]
pub struct Mounted(Arc<MountedCatalog>);

/// A merged directory of the catalog.
struct CatalogDir {
    catalog: Arc<MountedCatalog>,
    dir: DirRef,
    record: u32,
    top: Arc<LowerDir>,
    /// All lower directories, created on first use.
    all: OnceLock<Vec<Arc<LowerDir>>>,
}

impl std::fmt::Debug for CatalogDir {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CatalogDir")
            .field("dir", &self.dir.index())
            .finish_non_exhaustive()
    }
}

/// The state of [`Mounted`].
struct MountedCatalog {
    view: View<ReadOnly>,
    path: PathBuf,
    /// The name of the file, until somebody else has it to remove it.
    held: Mutex<Option<HeldName>>,
    /// The change times of files that have got or lost a link, by record.
    linked: DashMap<u32, Time>,
    /// All layers of the mount.
    layers: Arc<Layers>,
    /// The number of layers above those that the catalog describes.
    above: usize,
    /// Directories of layers in use, by record.
    open: DashMap<u32, Weak<LowerDir>>,
    /// The size of `open` at which unused entries are removed.
    tidy_at: AtomicUsize,
    /// The error that a file system (by device) returns for an absent xattr, by file kind and the
    /// flag of the xattr.
    absent: DashMap<(u64, FileKind, u16), Errno>,
    given_up: AtomicBool,
    /// See [`Lowers::when_wrong`].
    when_wrong: Mutex<Vec<Box<dyn Fn() + Send + Sync>>>,
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

impl Mounted {
    /// Opens the catalog in `path`.
    ///
    /// # Errors
    /// [`super::Unusable`] if there is none, or it does not describe exactly these layers.
    pub fn open(path: &Path, layers: &Arc<Layers>) -> std::result::Result<Self, super::Unusable> {
        let (view, held) = file::open_held(path)?;
        super::check_layers(&view, layers)?;
        Ok(Self::of(path, (view, held), layers, 0))
    }

    /// As [`Mounted::open`], for a catalog that may also describe all layers but the topmost one.
    fn open_some(path: &Path, layers: &Arc<Layers>) -> std::result::Result<Self, super::Unusable> {
        let (view, held) = file::open_held(path)?;
        let above = file::check_some_layers(&view, layers)?;
        Ok(Self::of(path, (view, held), layers, above))
    }

    fn of(
        path: &Path,
        (view, held): (View<ReadOnly>, HeldName),
        layers: &Arc<Layers>,
        above: usize,
    ) -> Self {
        Self(Arc::new(MountedCatalog {
            view,
            path: path.to_owned(),
            held: Mutex::new(Some(held)),
            linked: DashMap::with_shard_amount(4),
            layers: Arc::clone(layers),
            above,
            open: DashMap::with_shard_amount(64),
            tidy_at: AtomicUsize::new(TIDY_MIN),
            absent: DashMap::with_shard_amount(16),
            given_up: AtomicBool::new(false),
            when_wrong: Mutex::default(),
        }))
    }

    /// Whether the catalog's record of a file matches this data and these xattrs.
    pub(super) fn record_is(&self, id: FileId, data: &Stat, xattrs: u16) -> bool {
        let said = self.0.identity(id.0);
        let flags = self.0.flags(id.0);
        said == Ok(Identity::from(data))
            && flags.is_ok_and(|flags| flags & super::XATTR_FLAGS == xattrs)
    }
}

impl MountedCatalog {
    /// Whether no error has been found in the catalog.
    fn is_believed(&self) -> bool {
        !self.given_up.load(Ordering::Acquire)
    }

    /// Abandons the catalog: its answers are not used any more, and the file is removed so that the
    /// next mount does not use it either.
    fn give_up(&self, why: impl std::fmt::Display) {
        if self.given_up.swap(true, Ordering::AcqRel) {
            return;
        }
        let path = self.path.display();
        tracing::warn!("catalog {path} is not used any more: {why}");
        if let Some(held) = &*self.held.lock()
            && let Err(error) = held.remove()
        {
            tracing::warn!(%error, "catalog {path} stays");
        }
        for call in &*self.when_wrong.lock() {
            call();
        }
    }

    /// Abandons the catalog as [`Self::give_up`], because a file differs from its record. Returns
    /// ESTALE.
    fn is_stale(&self, dir: &LowerDir, name: &[u8]) -> Errno {
        let (layer, name) = (dir.layer.path.display(), String::from_utf8_lossy(name));
        self.give_up(format_args!("{name:?} in layer {layer} has been changed"));
        Errno::STALE
    }

    /// Returns the result, or EIO if the catalog is damaged. In that case the catalog is abandoned.
    fn or_eio<T>(&self, result: Result<T>) -> std::result::Result<T, Errno> {
        result.map_err(|damaged| {
            self.give_up(damaged);
            Errno::IO
        })
    }

    /// Compares a file, whose attributes are `found`, with its record.
    fn check_data(
        &self,
        id: FileId,
        file: &LowerFile,
        at: At<'_>,
        found: &Stat,
    ) -> std::result::Result<(), Errno> {
        match self.identity(id.0) {
            Ok(said) if said == Identity::from(found) => Ok(()),
            Ok(_) if self.has_another_link(id, at, found) => Ok(()),
            _ => {
                let (dir, name) = file.data_place();
                Err(self.is_stale(dir, name))
            }
        }
    }

    /// Whether a file differs from its record only in the number of its links, and in the time at which
    /// that changed. Stores share equal files of their layers as hard links. It must have no ACL and
    /// no capability, since these could have changed too. If it changes once more, it differs.
    fn has_another_link(&self, id: FileId, at: At<'_>, found: &Stat) -> bool {
        let record = self.view.record(id.0);
        let Ok((record, said)) = record.and_then(|record| Ok((record, self.stat_in(&record)?)))
        else {
            return false;
        };
        let linked = Stat {
            nlink: found.nlink,
            ctime: found.ctime,
            atime: found.atime,
            ..said
        };
        // A label (security.selinux) decides nothing here.
        let kinds = super::XATTR_FLAGS & !format::XATTRS;
        let special = format::METACOPY | kinds;
        record.flags.get() & special == 0
            && said.btime.is_some()
            && said.nlink != found.nlink
            && linked == *found
            && build::xattr_flags(at) & kinds == 0
            && *self.linked.entry(id.0).or_insert(found.ctime) == found.ctime
    }

    /// Returns the root of the layer that a record belongs to.
    fn layer_of(&self, record: &Record) -> Result<&Arc<LowerDir>> {
        let (layer, _) = self.view.place(record)?;
        self.layers.get(self.position(layer)?).ok_or(Damaged)
    }

    /// Returns the position in the stack of a layer of the catalog.
    fn position(&self, layer: u32) -> Result<usize> {
        self.above.checked_add(layer as usize).ok_or(Damaged)
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
                break Arc::clone(self.layer_of(&record)?);
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
        if self.position(layer)? != parent.index || kind != Some(FileKind::Directory) {
            return Err(Damaged);
        }
        let stat = self.view.stat(record, parent.layer.stat.dev)?;
        let known = KnownDir {
            stat,
            xwhiteouts: record.flags.get() & format::XWHITEOUTS != 0,
            wh_files: record.flags.get() & format::WH_FILES != 0,
        };
        let name = self.view.name(record)?;
        let dir = match self.open.entry(at) {
            Entry::Occupied(mut entry) => match entry.get().upgrade() {
                Some(dir) => return Ok(dir),
                None => {
                    let dir = LowerDir::known(parent, name, known);
                    entry.insert(Arc::downgrade(&dir));
                    dir
                }
            },
            Entry::Vacant(entry) => {
                let dir = LowerDir::known(parent, name, known);
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
    fn file(&self, index: u32) -> Result<LowerFile> {
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
            Some(Box::new(DataPlace {
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
            id: Some(FileId(index)),
            // The number says it: `has_no_xattrs`.
            is_bare: false,
        })
    }

    fn stat_in(&self, record: &Record) -> Result<Stat> {
        self.view
            .stat(record, self.layer_of(record)?.layer.stat.dev)
    }

    /// Returns the properties in a record if they are everything about the file.
    fn plain_in(&self, index: u32, record: &Record) -> Result<Plain> {
        let special = format::LIVE | format::MERGED | format::METACOPY;
        if record.flags.get() & special != 0 || record.nlink.get() != 1 {
            return Ok(Plain::Unknown);
        }
        let stat = self.stat_in(record)?;
        match stat.kind {
            FileKind::Directory => Err(Damaged),
            _ => Ok(Plain::File(FileId(index), stat)),
        }
    }

    /// Returns the identity that the data of a file must still have when the file is opened.
    fn identity(&self, record: u32) -> Result<Identity> {
        let record = self.view.record(record)?;
        if record.flags.get() & format::METACOPY != 0 {
            return Ok(self.view.data(&record)?.2);
        }
        Ok(Identity::from(&self.view.stat(&record, 0)?))
    }

    /// Returns the flags of a record.
    fn flags(&self, record: u32) -> Result<u16> {
        Ok(self.view.record(record)?.flags.get())
    }
}

impl Lowers for Mounted {
    fn layers(&self) -> &Arc<Layers> {
        &self.0.layers
    }

    fn root(&self) -> LowerDirs {
        let (catalog, layers) = (&self.0, &self.0.layers);
        let roots = layers.roots().get(catalog.above..).unwrap_or_default();
        let dir = catalog.view.root().ok().filter(|dir| !dir.is_unlisted());
        let dir = dir.filter(|dir| dir.part_count() == roots.len());
        let (Some(dir), Some(top)) = (dir, roots.first()) else {
            return layers.merged(roots.iter().cloned());
        };
        LowerDirs::from(Arc::new(CatalogDir {
            catalog: Arc::clone(catalog),
            dir,
            record: 0,
            top: Arc::clone(top),
            all: OnceLock::from(roots.to_vec()),
        }))
    }

    fn is_indexed(&self) -> bool {
        self.0.is_believed()
    }

    fn take_file_of_names(&self) -> Option<HeldName> {
        self.0.held.lock().take()
    }

    fn when_wrong(&self, call: Box<dyn Fn() + Send + Sync>) {
        self.0.when_wrong.lock().push(call);
    }

    fn plain(&self, id: FileId) -> Plain {
        let record = self.0.view.record(id.0);
        let plain = record.and_then(|record| self.0.plain_in(id.0, &record));
        // A lookup meets the same damage and abandons the catalog.
        plain.unwrap_or(Plain::Unknown)
    }

    fn file(&self, id: FileId) -> std::result::Result<LowerFile, Errno> {
        self.0.or_eio(self.0.file(id.0))
    }

    fn stat(&self, id: FileId) -> std::result::Result<Stat, Errno> {
        let record = self.0.view.record(id.0);
        let stat = record.and_then(|record| self.0.stat_in(&record));
        stat.map_err(|Damaged| Errno::IO)
    }

    fn target(&self, id: FileId) -> Option<Vec<u8>> {
        let record = self.0.view.record(id.0).ok()?;
        let target = self.0.view.target(&record).ok()?;
        self.0.is_believed().then(|| target.to_vec())
    }

    fn has_no_xattrs(&self, id: FileId) -> bool {
        let record = self.0.view.record(id.0);
        self.0.is_believed() && record.is_ok_and(|r| r.flags.get() & format::XATTRS == 0)
    }

    fn absent_xattr(
        &self,
        id: FileId,
        name: &[u8],
        ask: &mut dyn FnMut(&CStr) -> std::result::Result<(), Errno>,
    ) -> Option<Errno> {
        let catalog = &self.0;
        let record = catalog.view.record(id.0).ok()?;
        let layer = &catalog.layer_of(&record).ok()?.layer;
        let stored = Escape(layer.dialect).stored(name).ok()?;
        let flag = format::xattr_flag(stored.to_bytes());
        if flag == 0 || !catalog.is_believed() || record.flags.get() & flag != 0 {
            return None;
        }
        let stat = catalog.view.stat(&record, 0).ok()?;
        // The kernel refuses user.* xattrs of a file that the caller cannot read, present or not.
        if flag == format::USER && stat.perm & 0o444 != 0o444 {
            return None;
        }
        let key = (layer.stat.dev, stat.kind, flag);
        if let Some(known) = catalog.absent.get(&key) {
            return Some(*known);
        }
        // The layer is read once for each file system and kind of file.
        match ask(&stored) {
            Err(errno @ (Errno::NODATA | Errno::OPNOTSUPP)) => {
                catalog.absent.insert(key, errno);
                Some(errno)
            }
            _ => None,
        }
    }

    fn open(&self, file: &LowerFile) -> std::result::Result<std::os::fd::OwnedFd, Errno> {
        let fd = self.0.layers.open_data(file)?;
        if let Some(id) = file.id {
            let at = At::opened(fd.as_fd());
            self.0.check_data(id, file, at, &at.stat()?)?;
        }
        Ok(fd)
    }

    fn check(&self, file: &LowerFile) -> std::result::Result<(), Errno> {
        let Some(id) = file.id else {
            return Ok(());
        };
        let (dir, name) = file.data_place();
        let fd = self.0.layers.fd(dir)?;
        let at = At::new(fd.as_fd(), name);
        self.0.check_data(id, file, at, &at.stat()?)
    }
}

impl CatalogDir {
    /// Looks a name up. `None` if the layers must be read.
    fn known(&self, name: &[u8]) -> Result<Option<LowerLookup>> {
        let catalog = &self.catalog;
        let view = &catalog.view;
        let Some((index, record)) = view.find(&self.dir, name)? else {
            return Ok(Some(LowerLookup::Absent));
        };
        let flags = record.flags.get();
        if flags & format::LIVE != 0 {
            return Ok(None);
        }
        if flags & format::MERGED == 0 {
            return Ok(Some(LowerLookup::File(catalog.file(index)?)));
        }
        let dir = view.dir(&self.dir, &record)?;
        if dir.is_unlisted() {
            return Ok(None);
        }
        if dir.part_count() == 0 {
            return Err(Damaged);
        }
        let merged = Self {
            catalog: Arc::clone(catalog),
            dir,
            record: index,
            top: catalog.lower_dir(index)?,
            all: OnceLock::new(),
        };
        Ok(Some(LowerLookup::Dirs(Arc::new(merged).into())))
    }

    /// Returns the directories that the catalog names.
    fn parts_of_layers(&self) -> Result<Vec<Arc<LowerDir>>> {
        let catalog = &self.catalog;
        let part = |n| catalog.lower_dir(catalog.view.part(&self.dir, n)?);
        (0..self.dir.part_count()).map(part).collect()
    }

    /// Calls `each` with every name, and its number, type and inode number in the union. The lowers
    /// are merged already.
    fn entries(
        &self,
        number: impl Fn(u64, u64) -> u64,
        mut each: impl FnMut(&[u8], Listed),
    ) -> Result<()> {
        let view = &self.catalog.view;
        for index in self.dir.entries() {
            let record = view.record(index)?;
            let (_, kind) = view.place(&record)?;
            let root = self.catalog.layer_of(&record)?;
            let ino = number(root.stat.dev, record.ino.get());
            each(view.name(&record)?, (FileId(index), kind, ino));
        }
        Ok(())
    }
}

/// The number of a name in the catalog, its type, and its inode number in the union.
type Listed = (FileId, Option<FileKind>, u64);

impl MergedDir for CatalogDir {
    fn parts(&self) -> usize {
        self.dir.part_count()
    }

    fn top(&self) -> &Arc<LowerDir> {
        &self.top
    }

    fn all(&self) -> std::result::Result<&[Arc<LowerDir>], Errno> {
        if let Some(all) = self.all.get() {
            return Ok(all);
        }
        let all = self.catalog.or_eio(self.parts_of_layers())?;
        Ok(self.all.get_or_init(|| all))
    }

    fn id(&self) -> Option<FileId> {
        let is_believed = self.catalog.is_believed();
        is_believed.then_some(FileId(self.record))
    }

    fn lookup(
        &self,
        name: &[u8],
        redirect: Option<&[u8]>,
        skip: usize,
    ) -> std::result::Result<LowerLookup, Errno> {
        // An absolute redirect is resolved in the layers' own directories, not in the merged ones.
        if self.catalog.is_believed() && redirect.is_none_or(|to| !to.starts_with(b"/")) {
            match self.known(redirect.unwrap_or(name)) {
                Ok(Some(found)) => return Ok(found),
                Ok(None) => {}
                Err(damaged) => self.catalog.give_up(damaged),
            }
        }
        let dirs = self.all()?.get(skip..).unwrap_or_default();
        self.catalog.layers.lookup(dirs, name, redirect)
    }

    fn plain(&self, name: &[u8]) -> Plain {
        if !self.catalog.is_believed() {
            return Plain::Unknown;
        }
        match self.catalog.view.find(&self.dir, name) {
            Ok(Some((index, record))) => {
                let plain = self.catalog.plain_in(index, &record);
                plain.unwrap_or(Plain::Unknown)
            }
            Ok(None) => Plain::Absent,
            // A lookup meets the same damage and abandons the catalog.
            Err(Damaged) => Plain::Unknown,
        }
    }

    fn list(&self, gather: &mut Gather<'_>) -> std::result::Result<(), Errno> {
        if !self.catalog.is_believed() {
            return self.catalog.layers.list(self.all()?, gather);
        }
        let mut names = Names::default();
        let gathered = self.entries(gather.numbers(), |name, known| {
            names.add(gather, name, known);
        });
        match gathered {
            Ok(()) => {
                let entry = |name, (id, kind, ino)| {
                    Ok(LayerEntry {
                        name,
                        kind,
                        ino: Some(ino),
                        id: Some(id),
                        whiteout: false,
                    })
                };
                gather.layer(names.finish(FoundIn::Lower(0), entry)?);
                Ok(())
            }
            Err(damaged) => {
                self.catalog.give_up(damaged);
                self.catalog.layers.list(self.all()?, gather)
            }
        }
    }

    fn check(&self) -> std::result::Result<(), Errno> {
        let top = &self.top;
        let found = At::fd(self.catalog.layers.fd(top)?.as_fd()).stat()?;
        if Identity::from(&found) == Identity::from(&top.stat) {
            return Ok(());
        }
        let name = top.place().map_or(&b"/"[..], |(_, name)| name);
        Err(self.catalog.is_stale(top, name))
    }
}
