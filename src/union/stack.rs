//! The opened layers of a union: the upper, the lowers, and descriptors in both. This module knows
//! in which layers an inode's files are ([`super::inode::Loc`]) and opens them; it has no names,
//! numbers or counts.
//!
//! | file | access to |
//! |---|---|
//! | `upper_side` | the upper file or directory of an inode |
//! | `lower_side` | the lower file or directory, and the one whose metadata is shown |
//! | `data` | the data of a file, through a cache of descriptors |
//!
//! No state here must pass to a process that takes over: all descriptors can be opened again,
//! except those that keep files without names ([`super::orphans`]), which belong to their inodes.

mod data;
mod lower_side;
mod upper_side;

pub(crate) use data::Access;

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, OnceLock};

use rustix::io::Errno;

use super::error::{Error, Result};
use super::lock_order::{RwLock, RwLockWriteGuard, rank};
use super::owners::Owners;
use super::upper::Upper;
use super::{FindOrigin, Options};
use crate::layer::fds::FdCache;
use crate::layer::lower::Layer;
use crate::layer::{Records, StackSpec, UpperSpec};
use crate::lowers::{Layers, LowerDirs, Lowers, Seal};

/// The opened layers of a union.
pub(crate) struct Stack {
    upper: Option<Upper>,
    lowers: Arc<dyn Lowers>,
    fds: Arc<FdCache>,
    /// Guards the positions of upper directories in the tree: held while a directory moves or is
    /// removed.
    topology: RwLock<(), { rank::TOPOLOGY }>,
    /// The longest name that any layer allows, in bytes.
    name_max: usize,
    sealed: bool,
    noatime: bool,
    /// Whether the upper is accessed through a mount without access times.
    is_quiet: bool,
    owners: Owners,
    has_records: bool,
    has_foreign_layer: bool,
    /// Finds origins, if the server itself may not.
    finder: OnceLock<FindOrigin>,
}

impl Stack {
    /// Opens the layers.
    ///
    /// # Errors
    /// As [`super::Union::new`].
    pub fn open(
        spec: &StackSpec,
        options: &Options,
        open_upper: impl Fn(&UpperSpec) -> Result<Upper>,
    ) -> Result<Self> {
        if spec.lowers.is_empty() {
            return Err(Error::from(Errno::INVAL).context("no lower layer in", "the stack"));
        }
        let fds = FdCache::shared(options.fd_cache.min(spare_descriptors()));
        let seal = if options.sealed {
            Seal::Always
        } else {
            Seal::Never
        };
        // A sandbox has the lowers in such mounts anyway.
        let mut lowers = spec.lowers.iter().chain(&spec.data_only);
        let sealed = options.sealed || lowers.all(|lower| lower.dir.is_sealed());
        let layers = Layers::open(spec, seal, Arc::clone(&fds))?;
        let upper = match &spec.upper {
            Some(spec) => Some(open_upper(spec)?),
            None => None,
        };
        let has_foreign_layer = layers.all_layers().any(|layer| layer.is_foreign)
            || upper.as_ref().is_some_and(|upper| upper.layer.is_foreign);
        let is_recorded = |layer: &Layer| layer.dialect.records != Records::Ignored;
        let has_records = layers.all_layers().any(is_recorded)
            || upper
                .as_ref()
                .is_some_and(|upper| is_recorded(&upper.layer));
        // A catalog has the real owners.
        let known = options.names.as_ref().filter(|_| !has_records);
        let known = known.and_then(|source| source.open(&layers));
        let mut stack = Self {
            upper,
            lowers: known.unwrap_or_else(|| Arc::new(layers)),
            fds,
            topology: RwLock::new(()),
            name_max: 255,
            sealed,
            noatime: options.noatime,
            is_quiet: spec.upper.as_ref().is_some_and(|u| u.layer.dir.is_quiet()),
            owners: options.owners.clone(),
            has_records,
            has_foreign_layer,
            finder: OnceLock::new(),
        };
        stack.name_max = stack.longest_name();
        if !has_records {
            stack.owners.unrecorded = None;
        }
        Ok(stack)
    }

    fn longest_name(&self) -> usize {
        let lowers = self.lowers.name_max();
        match &self.upper {
            Some(upper) if !self.lowers.devices().contains(&upper.layer.stat.dev) => {
                lowers.max(upper.layer.name_max())
            }
            _ => lowers,
        }
    }

    /// Returns the device numbers of all layers: the lowers from the top, data-only layers, the
    /// upper.
    pub fn devices(&self) -> Vec<u64> {
        let mut devices = self.lowers.devices();
        devices.extend(self.upper.as_ref().map(|upper| upper.layer.stat.dev));
        devices
    }

    /// Whether owners of some layer are recorded beside its files.
    pub fn has_records(&self) -> bool {
        self.has_records
    }

    /// Returns the owners that the union shows and writes.
    pub fn owners(&self) -> &Owners {
        &self.owners
    }

    /// Returns the merged lowers.
    pub fn lowers(&self) -> &dyn Lowers {
        &*self.lowers
    }

    /// Returns the upper, whether it may be changed or not.
    pub fn upper(&self) -> Option<&Upper> {
        self.upper.as_ref()
    }

    /// Returns the upper, for a change.
    ///
    /// # Errors
    /// EROFS without an upper that may be changed.
    pub fn writable(&self) -> Result<&Upper> {
        let upper = self.upper.as_ref().filter(|upper| !upper.observed);
        upper.ok_or_else(|| Errno::ROFS.into())
    }

    /// Whether there is an upper that may be changed.
    pub fn is_writable(&self) -> bool {
        self.writable().is_ok()
    }

    /// Returns the upper, for reading.
    ///
    /// # Errors
    /// EROFS without an upper.
    pub fn readable_upper(&self) -> Result<&Upper> {
        self.upper.as_ref().ok_or_else(|| Errno::ROFS.into())
    }

    /// Returns the root directory, merged from the lowers that the upper does not hide.
    pub fn lower_root(&self) -> LowerDirs {
        match &self.upper {
            Some(upper) if upper.root.opaque => LowerDirs::default(),
            _ => self.lowers.root(),
        }
    }

    /// Returns the longest name that any layer allows, in bytes.
    pub fn name_max(&self) -> usize {
        self.name_max
    }

    /// Whether a layer belongs to a user with fewer rights.
    pub fn has_foreign_layer(&self) -> bool {
        self.has_foreign_layer
    }

    /// Whether files of the lowers may be passed to the kernel: they are in private mounts, of a
    /// sandbox or because of [`Options::sealed`].
    pub fn is_sealed(&self) -> bool {
        self.sealed
    }

    /// Whether another reader of upper files would change their access times, which must not change
    /// ([`Options::noatime`]).
    pub fn guards_access_times(&self) -> bool {
        self.noatime && !self.is_quiet
    }

    /// Locks the tree of upper directories, to move or remove one of them.
    pub fn lock_tree(&self) -> RwLockWriteGuard<'_, ()> {
        self.topology.write()
    }

    /// Makes the stack find origins by `finder` from now on. Later calls have no effect.
    pub fn find_origins_by(&self, finder: FindOrigin) {
        let _ = self.finder.set(finder);
    }

    /// Returns the function that finds origins for the server; `None` if the server finds them
    /// itself.
    pub fn origin_finder(&self) -> Option<&FindOrigin> {
        self.finder.get()
    }

    /// Returns hits and misses of the cache of descriptors.
    pub fn fd_counters(&self) -> (u64, u64) {
        self.fds.counters()
    }

    /// Whether some layer can carry POSIX ACLs.
    pub fn has_acl(&self) -> bool {
        // A change of an ACL would not change the recorded mode.
        if self.has_records {
            return false;
        }
        let upper = self.upper.as_ref();
        upper.is_some_and(|upper| upper.layer.has_acl()) || self.lowers.has_acl()
    }

    /// Returns the directories that are only read, and those that are changed.
    pub fn places(&self) -> (Vec<BorrowedFd<'_>>, Vec<BorrowedFd<'_>>) {
        let mut read = self.lowers.places();
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

    /// Returns the file systems of the lowers: device number, and the root of a layer there.
    pub fn file_systems(&self) -> Vec<(u64, BorrowedFd<'_>)> {
        self.lowers.file_systems()
    }
}

/// Returns how many descriptors may be cached: a quarter of the limit of the process. The rest is
/// for directory reads, staging, unlinked files and io_uring.
fn spare_descriptors() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let limit = limit.current.unwrap_or(u64::MAX) / 4;
    usize::try_from(limit).unwrap_or(usize::MAX)
}
