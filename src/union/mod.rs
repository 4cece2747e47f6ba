//! The union core: overlayfs semantics over a stack of layers, without FUSE types.
//!
//! There is one file per family of operations. [`Union`] has the public ones; the transports
//! ([`crate::fuse`]) and the core tests call them. The lock order is in `inode`.

mod acl;
mod attr;
mod backing;
mod catalog_inode;
mod catalog_lookup;
mod copy_data;
mod copy_metadata;
mod copy_up;
mod create;
mod direct_io;
mod error;
mod file;
mod generation;
mod handle_lookup;
mod hardlink_index;
mod inode;
mod inode_numbers;
mod inode_table;
mod link;
mod listing;
mod lock_order;
mod lookup;
mod lookup_cache;
mod lower_lookup;
mod merged_lowers;
mod mounted_catalog;
mod orphans;
mod protect;
mod readdir;
mod remove;
mod rename;
mod rename_upper;
mod resolve;
mod types;
mod upper;
mod xattr;

pub use backing::Backing;
pub use error::{Error, Result};
pub(crate) use inode::LowerFile;
pub(crate) use listing::{Source, Visible};
pub use lookup::EntryRef;
pub(crate) use lower_lookup::LowerLookup;
pub(crate) use mounted_catalog::LowerDirs;
pub use readdir::DirItem;
pub use types::*;

use std::collections::HashSet;
use std::hash::RandomState;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use rustix::io::Errno;

use crate::layer::at::At;
use crate::layer::fds::{FdCache, IsExhausted};
use crate::layer::lower::{FileSystems, Layer, LowerDir};
use crate::layer::origin::{Origin, OriginFile};
use crate::layer::{LayerSpec, StackSpec, UpperSpec, private};
use generation::Generations;
use inode::{Dir, Inode, Loc, UpperState};
use inode_numbers::InodeNumbers;
use inode_table::{InodeTable, Interned};
use lock_order::{RwLock, rank};
use lookup_cache::LookupCache;
use mounted_catalog::MountedCatalog;
use orphans::Budget;
use upper::Upper;

/// Finds the file of an origin on the file system with a device number. Errors as those of
/// [`Origin::find`].
pub type FindOrigin = Box<dyn Fn(u64, &Origin) -> rustix::io::Result<OriginFile> + Send + Sync>;

/// Options of a union, apart from its layers.
#[derive(Clone, Debug)]
pub struct Options {
    /// Skips every fsync (option `volatile`): a crash of the machine may lose or damage the upper.
    /// Default: false.
    pub volatile: bool,
    /// Whether a merged directory may be renamed, which writes `overlay.redirect` (option
    /// `redirect_dir=on|off`). `None` chooses what kernel overlayfs can read back: on with
    /// `trusted.*` markers, off with `user.*` markers. Where it is off, the rename fails with
    /// EXDEV.
    pub redirect_dir: Option<bool>,
    /// The maximum number of names in the lookup cache.
    pub lookup_cache: usize,
    /// The maximum number of cached descriptors; limited to a quarter of RLIMIT_NOFILE.
    pub fd_cache: usize,
    /// Accesses lowers through private read-only mounts, so that their files may be passed to the
    /// kernel ([`Union::backing`]). Needs CAP_SYS_ADMIN. Default: false.
    pub sealed: bool,
    /// Whether reading leaves the access times of upper files unchanged (`noatime`). Files are
    /// passed to the kernel then only where the upper is in a mount without access times
    /// ([`private::upper`]). Default: false.
    pub noatime: bool,
    /// The catalog of the lower layers; used if it is one of exactly these ([`crate::catalog`]).
    pub catalog: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            volatile: false,
            redirect_dir: None,
            lookup_cache: 16384,
            fd_cache: 256,
            sealed: false,
            noatime: false,
            catalog: None,
        }
    }
}

/// The union of a layer stack.
pub struct Union {
    upper: Option<Upper>,
    /// The roots of the lower layers, top first.
    roots: Arc<[Arc<LowerDir>]>,
    data_roots: Vec<Arc<LowerDir>>,
    catalog: Option<Arc<MountedCatalog>>,
    table: InodeTable,
    lookup_cache: LookupCache,
    fds: Arc<FdCache>,
    /// The limit of descriptors for files without a name.
    orphans: Arc<Budget>,
    inode_numbers: InodeNumbers,
    recent: readdir::Recent,
    topology: RwLock<(), { rank::TOPOLOGY }>,
    generations: Generations,
    /// Searches by inode number.
    searches: handle_lookup::Searches,
    /// The longest name that any layer allows, in bytes.
    name_max: usize,
    redirect_dir: bool,
    sealed: bool,
    noatime: bool,
    /// Finds origins, if the server may not do it.
    finder: OnceLock<FindOrigin>,
    /// The upper is accessed through a mount without access times.
    is_quiet: bool,
    /// The hash that orders listings, keyed per mount.
    listing_order: RandomState,
    /// The next lookup cache key for a directory without lowers.
    next_key: AtomicU64,
    copy_ups: AtomicU64,
    /// Walks of the whole tree for an inode number.
    searched: AtomicU64,
    copy_up_bytes: AtomicU64,
}

impl std::fmt::Debug for Union {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Union")
            .field("counters", &self.counters())
            .finish_non_exhaustive()
    }
}

impl IsExhausted for Error {
    fn is_exhausted(&self) -> bool {
        self.errno() == Errno::MFILE.raw_os_error() || self.errno() == Errno::NFILE.raw_os_error()
    }
}

impl Union {
    /// Opens the layers, locks upper and work directory, and empties the latter.
    ///
    /// # Errors
    /// They name the path. ENOENT or ENOTDIR for a missing layer, EBUSY for an upper or work
    /// directory in use, EXDEV when these are on different file systems, EINVAL without a lower
    /// layer.
    pub fn new(stack: &StackSpec, options: Options) -> Result<Self> {
        let volatile = options.volatile;
        Self::build(stack, options, |spec| Upper::open(spec, volatile))
    }

    /// Opens a stack for reading, which may be mounted: takes no lock and changes nothing.
    /// Modifying operations fail with EROFS. Concurrent changes by a mount may or may not be seen.
    ///
    /// # Errors
    /// As [`Self::new`], without EBUSY.
    pub fn observe(stack: &StackSpec) -> Result<Self> {
        Self::observe_with(stack, Options::default())
    }

    /// As [`Self::observe`], with options.
    ///
    /// # Errors
    /// As [`Self::observe`].
    pub fn observe_with(stack: &StackSpec, options: Options) -> Result<Self> {
        Self::build(stack, options, Upper::observe)
    }

    fn build(
        stack: &StackSpec,
        options: Options,
        open_upper: impl Fn(&UpperSpec) -> Result<Upper>,
    ) -> Result<Self> {
        if stack.lowers.is_empty() {
            return Err(Error::from(Errno::INVAL).context("no lower layer in", "the stack"));
        }
        let mut systems = FileSystems::new();
        let roots = open_layers(&stack.lowers, (0, options.sealed), &mut systems)?;
        let data = (roots.len(), options.sealed);
        let data_roots = open_layers(&stack.data_only, data, &mut systems)?;
        let upper = match &stack.upper {
            Some(spec) => Some(open_upper(spec)?),
            None => None,
        };
        let layers = || roots.iter().chain(&data_roots).map(|root| &*root.layer);
        let all = || layers().chain(upper.as_ref().map(|u| &*u.layer));
        let mut asked = HashSet::new();
        let others = all().filter(|layer| asked.insert(layer.stat.dev));
        let name_max = others.map(name_max).max().unwrap_or(255);
        let inode_numbers = InodeNumbers::new(all().map(|layer| layer.stat.dev));
        let redirect_dir = redirect_dir(options.redirect_dir, upper.as_ref())?;
        let catalog = options.catalog.as_deref();
        let catalog = catalog.and_then(|path| open_catalog(path, &roots, &data_roots));
        let union = Self {
            catalog,
            roots: roots.into(),
            data_roots,
            table: InodeTable::default(),
            lookup_cache: LookupCache::new(options.lookup_cache),
            fds: FdCache::shared(options.fd_cache.min(spare_descriptors())),
            orphans: Budget::new(),
            inode_numbers,
            recent: readdir::Recent::default(),
            topology: RwLock::new(()),
            generations: Generations::default(),
            searches: handle_lookup::Searches::default(),
            searched: AtomicU64::new(0),
            name_max,
            redirect_dir,
            sealed: options.sealed,
            noatime: options.noatime,
            finder: OnceLock::new(),
            is_quiet: stack.upper.as_ref().is_some_and(|u| u.layer.dir.is_quiet()),
            listing_order: RandomState::new(),
            // Directories with lowers use inode numbers as keys, which are smaller.
            next_key: AtomicU64::new(1 << 63),
            copy_ups: AtomicU64::new(0),
            copy_up_bytes: AtomicU64::new(0),
            upper,
        };
        union.make_root();
        Ok(union)
    }

    fn make_root(&self) {
        let upper = self.upper.as_ref().map(|upper| {
            Box::new(UpperState {
                id: (upper.layer.stat.dev, upper.layer.stat.ino),
                origin: true,
                metacopy: None,
            })
        });
        let lowers = match &self.upper {
            Some(upper) if upper.root.opaque => LowerDirs::default(),
            _ => {
                let catalogued = self.catalog.as_ref().and_then(|c| c.root(&self.roots));
                catalogued.unwrap_or_else(|| LowerDirs::Layers(Arc::clone(&self.roots)))
            }
        };
        let root = self.upper.as_ref().map(|upper| &upper.root);
        let marks = root.map_or((false, false), |root| (root.impure, root.xwhiteouts));
        let loc = Loc {
            upper,
            ..Loc::default()
        };
        let dir = Dir::new(lowers, marks);
        let root = Inode::new(ROOT_INO, FileKind::Directory, (ROOT_INO, 0), loc, Some(dir));
        if let Some(upper) = &self.upper {
            let marked = upper.root.protection;
            root.protection.set(marked | upper.layer.stat.protection);
        }
        // The kernel never looks the root up; this count is never dropped.
        if let Interned::Conflict = self.table.intern(ROOT_INO, |_| false, || root) {
            unreachable!("the table is new");
        }
    }

    /// Returns the inode with a number.
    ///
    /// # Errors
    /// ESTALE when there is none.
    fn inode(&self, ino: Ino) -> Result<Arc<Inode>> {
        self.table.get(ino).ok_or_else(|| Errno::STALE.into())
    }

    /// Returns the directory with a number.
    ///
    /// # Errors
    /// ENOTDIR for another kind of file, ESTALE when there is none.
    fn directory(&self, ino: Ino) -> Result<Arc<Inode>> {
        let inode = self.inode(ino)?;
        match inode.dir {
            Some(_) => Ok(inode),
            None => Err(Errno::NOTDIR.into()),
        }
    }

    /// Returns the upper, for a change.
    ///
    /// # Errors
    /// EROFS without an upper that may be changed.
    fn writable(&self) -> Result<&Upper> {
        let upper = self.upper.as_ref().filter(|upper| !upper.observed);
        upper.ok_or_else(|| Errno::ROFS.into())
    }

    /// Returns the upper, for reading.
    ///
    /// # Errors
    /// EROFS without one.
    fn readable_upper(&self) -> Result<&Upper> {
        self.upper.as_ref().ok_or_else(|| Errno::ROFS.into())
    }

    /// Returns the counters.
    pub fn counters(&self) -> Counters {
        let (lookup_hits, lookup_negative_hits, lookup_misses) = self.lookup_cache.counters();
        let (fd_hits, fd_misses) = self.fds.counters();
        Counters {
            inodes: self.table.len() as u64,
            cached_names: self.lookup_cache.len() as u64,
            lookup_hits,
            lookup_negative_hits,
            lookup_misses,
            copy_ups: self.copy_ups.load(Ordering::Relaxed),
            searches: self.searched.load(Ordering::Relaxed),
            copy_up_bytes: self.copy_up_bytes.load(Ordering::Relaxed),
            fd_hits,
            fd_misses,
            catalogued: self.is_catalogued(),
        }
    }

    /// Whether names and attributes of the lowers come from a catalog.
    pub fn is_catalogued(&self) -> bool {
        self.catalog
            .as_ref()
            .is_some_and(|catalog| catalog.is_believed())
    }

    /// Whether some layer can carry POSIX ACLs, so that the mount should enable them.
    pub fn has_acl(&self) -> bool {
        let can = |layer: &Layer| {
            let root = At::fd(layer.root.as_fd());
            !matches!(root.xattr_raw(acl::DEFAULT), Err(Errno::OPNOTSUPP))
        };
        self.upper.as_ref().is_some_and(|upper| can(&upper.layer))
            || self.roots.iter().any(|root| can(&root.layer))
    }

    /// Returns the directories that are only read, and those that are changed.
    pub fn places(&self) -> (Vec<BorrowedFd<'_>>, Vec<BorrowedFd<'_>>) {
        let lowers = self.roots.iter().chain(&self.data_roots);
        let mut read: Vec<_> = lowers.map(|root| root.layer.root.as_fd()).collect();
        let mut write = Vec::new();
        if let Some(upper) = &self.upper {
            let places = if upper.observed {
                &mut read
            } else {
                &mut write
            };
            places.extend([upper.layer.root.as_fd(), upper.work()]);
        }
        (read, write)
    }

    /// Has origins found by `finder` from now on: for a server that may open no file handles, which
    /// lead to any file of a file system. Later calls have no effect.
    pub fn find_origins_by(&self, finder: FindOrigin) {
        let _ = self.finder.set(finder);
    }

    /// The file systems of the lowers: device number, and the root of a layer there.
    pub fn file_systems(&self) -> Vec<(u64, BorrowedFd<'_>)> {
        let mut found: Vec<(u64, BorrowedFd<'_>)> = Vec::new();
        for root in self.roots.iter() {
            let layer = &root.layer;
            if found.iter().all(|(dev, _)| *dev != layer.stat.dev) {
                found.push((layer.stat.dev, layer.root.as_fd()));
            }
        }
        found
    }

    /// Whether there is an upper that may be changed.
    pub fn is_writable(&self) -> bool {
        self.writable().is_ok()
    }
}

/// Whether redirects are written: not where they would not be followed.
///
/// # Errors
/// EINVAL when redirects are asked for with `user.*` markers that are not followed.
fn redirect_dir(asked: Option<bool>, upper: Option<&Upper>) -> Result<bool> {
    let Some(upper) = upper else {
        return Ok(false);
    };
    let followed = upper.markers.trusted || upper.layer.believes_user;
    if asked == Some(true) && !followed && !upper.observed {
        let what = "redirect_dir=on cannot be had with user.* attributes as markers, which are \
            not followed where root mounts: take redirect_dir=off for";
        return Err(Error::from(Errno::INVAL).context(what, &upper.layer.path));
    }
    Ok(asked.unwrap_or(upper.markers.trusted) && followed)
}

impl Drop for Union {
    /// Orphans leave the work directory before its lock is released.
    fn drop(&mut self) {
        self.table.clear();
    }
}

/// Opens the catalog in `path`; the union works without it when it cannot be used.
fn open_catalog(
    path: &Path,
    roots: &[Arc<LowerDir>],
    data_roots: &[Arc<LowerDir>],
) -> Option<Arc<MountedCatalog>> {
    match MountedCatalog::open(path, roots, data_roots) {
        Ok(catalog) => Some(catalog),
        Err(e) if e.is_absent() => None,
        Err(e) => {
            tracing::info!("catalog {} is not used: {e}", path.display());
            None
        }
    }
}

/// Opens layers; `first` is the position of the first one in the stack.
fn open_layers(
    specs: &[LayerSpec],
    (first, sealed): (usize, bool),
    systems: &mut FileSystems,
) -> Result<Vec<Arc<LowerDir>>> {
    let open = |(i, spec): (usize, &LayerSpec)| {
        let private = match sealed && !spec.dir.is_sealed() {
            true => Some(sealed_lower(spec)?),
            false => None,
        };
        let layer = Layer::open_among(private.as_ref().unwrap_or(spec), systems);
        let root = layer.and_then(|layer| LowerDir::root(Arc::new(layer), first + i));
        root.map_err(|e| Error::from(e).context("cannot open the lower layer", spec.path()))
    };
    specs.iter().enumerate().map(open).collect()
}

/// A lower whose files may be handed to the kernel, whose reads no code of ours sees.
fn sealed_lower(spec: &LayerSpec) -> Result<LayerSpec> {
    let private = private::lower(spec).and_then(|private| match private.dir.is_sealed() {
        true => Ok(private),
        false => Err(Errno::PERM),
    });
    private.map_err(|e| {
        let what = "io=passthrough needs a private mount of the lower layer";
        Error::from(e).context(what, spec.path())
    })
}

/// Returns how many descriptors may be cached: a quarter of the limit of the process, so that
/// directory reads, staging, unlinked files and io_uring have some too.
fn spare_descriptors() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let limit = limit.current.unwrap_or(u64::MAX) / 4;
    usize::try_from(limit).unwrap_or(usize::MAX)
}

fn name_max(layer: &Layer) -> usize {
    let max = rustix::fs::fstatvfs(&layer.root).map_or(255, |s| s.f_namemax);
    usize::try_from(max).unwrap_or(255)
}
