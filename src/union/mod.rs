//! The union core: overlayfs semantics over a stack of layers, without FUSE types.
//!
//! [`Union`] has the public operations, one file per family; the transports ([`crate::fuse`]) and
//! the core tests call them. It consists of parts whose state is private to them. A part uses the
//! parts above it in this table, and its arguments:
//!
//! | part | knows |
//! |---|---|
//! | `upper::Upper` | the upper layer, its work directory, staging, whiteouts, the hard-link index |
//! | `stack::Stack` | the layers, and descriptors of the files of an inode |
//! | `names::Names` | inodes, their numbers and generations, and cached answers for names |
//! | `resolve::Resolver` | what the layers have under a name, merged; changes nothing |
//! | `lookup::Lookup` | from a name to a counted inode |
//! | `listings::Listings` | merged listings of directories |
//! | `orphans::Orphans` | what keeps files that have lost their last name |
//! | `copy_up::CopyUp` | copies inodes to the upper |
//! | `handle_lookup::Searches` | searches of the whole tree by inode number |
//!
//! `Resolver`, `Lookup` and `CopyUp` borrow the other parts, and have no state of their own.
//!
//! A process that takes over from this one would need the state in two places: `names` (numbers to
//! files, generations, lookup counts) and the `rare` state of inodes (`inode::Rare`: descriptors
//! and names of files that have no name any more). All other state can be read from the layers
//! again.
//!
//! The lock order is in `inode`.
//!
//! ```
//! use unionfs::layer::{Dialect, LayerSpec, StackSpec};
//! use unionfs::union::{Options, ROOT_INO, Union};
//!
//! let dir = tempfile::tempdir()?;
//! let layer = |name: &str, content: &str| {
//!     let path = dir.path().join(name);
//!     std::fs::create_dir(&path).and_then(|()| std::fs::write(path.join("motd"), content))?;
//!     LayerSpec::open(path, Dialect::ALL).map_err(std::io::Error::other)
//! };
//! let stack = StackSpec {
//!     lowers: vec![layer("top", "new")?, layer("bottom", "of old")?],
//!     data_only: Vec::new(),
//!     upper: None,
//! };
//! let union = Union::new(&stack, Options::default())?;
//! let size = union.lookup(ROOT_INO, b"motd")?.map(|entry| entry.attr().size);
//! assert_eq!(size, Some(3));
//! assert!(union.lookup(ROOT_INO, b"missing")?.is_none());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod acl;
mod attr;
mod backing;
mod copy_data;
mod copy_metadata;
mod copy_up;
mod create;
mod direct_io;
mod error;
mod file;
mod handle_lookup;
mod hardlink_index;
mod inode;
mod interrupted;
mod link;
mod listings;
mod lock_order;
mod lookup;
mod lower_parts;
mod names;
mod orphans;
mod owners;
mod plain_lookup;
mod protect;
mod readdir;
mod redirect;
mod remove;
mod rename;
mod rename_upper;
mod resolve;
mod stack;
mod types;
mod upper;
pub(crate) mod upper_lock;
mod wh_files;
mod xattr;

pub use backing::Backing;
pub use error::{Error, Result};
pub use lookup::EntryRef;
pub use lower_parts::LowerPart;
pub use owners::{IdMap, IdMapError, IdRange, LowerIds, Outside, Owners};
pub use readdir::DirItem;
pub use types::*;

pub use crate::lowers::FindOrigin;

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;

use crate::layer::fds::IsExhausted;
use crate::layer::held_name::HeldName;
use crate::layer::{Records, StackSpec, UpperSpec};
use crate::lowers;
use copy_up::{CopyUp, CopyUpCounters};
use handle_lookup::Searches;
use inode::{Dir, DirMarks, Identity, Inode, Loc, UpperState};
use listings::Listings;
use lookup::Lookup;
use names::Names;
use orphans::Orphans;
use stack::Stack;
use upper::Upper;

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
    /// Whether a change of metadata leaves the data of a file in the lowers (option `metacopy=on`):
    /// copy-up then writes `overlay.metacopy`, as kernel overlayfs does. Needs `trusted.*` markers and
    /// redirects. Default: false, because a reader of the upper that does not follow the marker sees a
    /// file of zeros.
    pub metacopy: bool,
    /// The maximum number of names in the lookup cache.
    pub lookup_cache: usize,
    /// The maximum number of cached descriptors; limited to a quarter of RLIMIT_NOFILE.
    pub fd_cache: usize,
    /// Accesses lowers through private read-only mounts, so that their files may be passed to the
    /// kernel ([`Union::backing`]). Needs CAP_SYS_ADMIN. Default: false.
    pub sealed: bool,
    /// Whether reading leaves the access times of upper files unchanged (`noatime`). Files are
    /// passed to the kernel then only where the upper is in a mount without access times
    /// (`layer::private::upper`). Default: false.
    pub noatime: bool,
    /// The source of names and attributes of the lowers, such as a [`crate::catalog::CatalogFile`].
    /// Default: the layers' directories.
    pub names: Option<Arc<dyn lowers::Source>>,
    /// A directory of this user that no other user may change, for lock files of the upper and the
    /// work directory. Then other users who may list these two cannot prevent them from being mounted.
    /// [`crate::fuse::runtime::lock_directory`] gives one. Default: none.
    pub locks: Option<Arc<OwnedFd>>,
    /// The owners that are shown and written. Default: those of the layers.
    pub owners: Owners,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            volatile: false,
            redirect_dir: None,
            metacopy: false,
            lookup_cache: 16384,
            fd_cache: 256,
            sealed: false,
            noatime: false,
            names: None,
            locks: None,
            owners: Owners::default(),
        }
    }
}

/// The union of a layer stack.
pub struct Union {
    stack: Stack,
    names: Names,
    listings: Listings,
    orphans: Orphans,
    copy_ups: CopyUpCounters,
    searches: Searches,
    redirect_dir: bool,
    /// See [`Options::metacopy`].
    metacopies: bool,
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
        Self::build(stack, &options, |spec| Upper::open(spec, &options))
    }

    /// Opens a stack for reading, which may be mounted: takes no lock and changes nothing.
    /// Modifying operations fail with EROFS. Concurrent changes by a mount may or may not be seen.
    ///
    /// # Errors
    /// As [`Self::new`], without EBUSY.
    pub fn observe(stack: &StackSpec) -> Result<Self> {
        Self::observe_with(stack, Options::default())
    }

    /// As [`Self::observe`], with options. Owners that are recorded beside the files are shown
    /// ([`StackSpec::with_recorded_owners`]).
    ///
    /// # Errors
    /// As [`Self::observe`].
    pub fn observe_with(stack: &StackSpec, options: Options) -> Result<Self> {
        let stack = stack.clone().with_recorded_owners();
        Self::build(&stack, &options, Upper::observe)
    }

    fn build(
        spec: &StackSpec,
        options: &Options,
        open_upper: impl Fn(&UpperSpec) -> Result<Upper>,
    ) -> Result<Self> {
        let stack = Stack::open(spec, options, open_upper)?;
        let redirect_dir = redirect_dir(options.redirect_dir, stack.upper())?;
        let metacopies = metacopies(options.metacopy, redirect_dir, stack.upper())?;
        let names = Names::new(stack.devices(), options.lookup_cache);
        let lowers = stack.lowers();
        lowers.when_wrong(Box::new(names.clear_answers()));
        names.add_root(root(&stack));
        Ok(Self {
            stack,
            names,
            listings: Listings::default(),
            orphans: Orphans::new(),
            copy_ups: CopyUpCounters::default(),
            searches: Searches::default(),
            redirect_dir,
            metacopies,
        })
    }

    fn lookups(&self) -> Lookup<'_> {
        Lookup::new(&self.stack, &self.names)
    }

    fn copying(&self) -> CopyUp<'_> {
        CopyUp {
            stack: &self.stack,
            names: &self.names,
            orphans: &self.orphans,
            counters: &self.copy_ups,
            metacopies: self.metacopies,
        }
    }

    /// Whether a directory is empty in the union; the caller holds its name lock.
    fn is_empty_dir(&self, inode: &Inode) -> Result<bool> {
        self.listings
            .is_empty(&self.stack, self.names.numbers(), inode)
    }

    /// Returns the counters.
    pub fn counters(&self) -> Counters {
        let lookups = self.names.cache_counters();
        let (fd_hits, fd_misses) = self.stack.fd_counters();
        Counters {
            inodes: self.names.inodes() as u64,
            cached_names: self.names.answers_held() as u64,
            lookup_hits: lookups.hits,
            lookup_negative_hits: lookups.negative_hits,
            lookup_misses: lookups.misses,
            copy_ups: self.copy_ups.inodes(),
            searches: self.searches.walks(),
            copy_up_bytes: self.copy_ups.bytes(),
            fd_hits,
            fd_misses,
            catalogued: self.is_catalogued(),
        }
    }

    /// Whether names and attributes of the lowers come from a catalog.
    pub fn is_catalogued(&self) -> bool {
        self.stack.lowers().is_indexed()
    }

    /// Whether owners of some layer are recorded beside its files.
    pub fn has_records(&self) -> bool {
        self.stack.has_records()
    }

    /// Whether some layer can carry POSIX ACLs, so that the mount should enable them.
    pub fn has_acl(&self) -> bool {
        self.stack.has_acl()
    }

    /// Returns the directories that are only read, and those that are changed.
    pub fn places(&self) -> (Vec<BorrowedFd<'_>>, Vec<BorrowedFd<'_>>) {
        self.stack.places()
    }

    /// Returns the names of the files in [`Options::locks`] that are locked as long as this union
    /// lives. The caller then removes them after dropping the union; otherwise the drop removes
    /// them.
    pub fn leave_lock_files(&self) -> &[String] {
        self.stack.upper().map_or(&[], Upper::leave_lock_files)
    }

    /// Makes the union find origins by `finder` from now on: for a server that may not open file
    /// handles, since these lead to any file of a file system. Later calls have no effect.
    pub fn find_origins_by(&self, finder: FindOrigin) {
        self.stack.find_origins_by(finder);
    }

    /// Takes the name of the catalog's file, if the union has one, to remove it when the catalog turns
    /// out to be wrong.
    pub fn take_catalog(&self) -> Option<HeldName> {
        self.stack.lowers().take_file_of_names()
    }

    /// Calls `call` when the catalog turns out to be wrong.
    pub fn when_catalog_is_wrong(&self, call: impl Fn() + Send + Sync + 'static) {
        self.stack.lowers().when_wrong(Box::new(call));
    }

    /// Returns the file systems of the lowers: device number, and the root of a layer there.
    pub fn file_systems(&self) -> Vec<(u64, BorrowedFd<'_>)> {
        self.stack.file_systems()
    }

    /// Returns the time since a file last lost its last name while in use. `None` if no such file
    /// is kept. The upper regains the space of such files once the kernel has forgotten them.
    pub fn since_last_removal(&self) -> Option<Duration> {
        self.orphans.since_last()
    }

    /// Whether there is an upper that may be changed.
    pub fn is_writable(&self) -> bool {
        self.stack.is_writable()
    }
}

/// Creates the root directory of a union.
fn root(stack: &Stack) -> Inode {
    let identity = Identity {
        ino: ROOT_INO,
        kind: FileKind::Directory,
        generation: 0,
        key: ROOT_INO,
    };
    let Some(upper) = stack.upper() else {
        let dir = Dir::new(stack.lower_root(), DirMarks::default());
        return Inode::new(identity, Loc::default(), Some(dir));
    };
    let marks = DirMarks {
        impure: upper.root.impure,
        xwhiteouts: upper.root.xwhiteouts,
        wh_files: upper.root.wh_files,
    };
    let loc = Loc {
        upper: Some(Box::new(UpperState {
            id: (upper.layer.stat.dev, upper.layer.stat.ino),
            origin: true,
            metacopy: None,
        })),
        ..Loc::default()
    };
    let root = Inode::new(identity, loc, Some(Dir::new(stack.lower_root(), marks)));
    let marked = upper.root.protection;
    root.protection.set(marked | upper.layer.stat.protection);
    root
}

/// Whether redirects are written. They are not written if they would not be followed.
///
/// # Errors
/// EINVAL if redirects are requested with `user.*` markers that are not followed.
fn redirect_dir(asked: Option<bool>, upper: Option<&Upper>) -> Result<bool> {
    let Some(upper) = upper else {
        return Ok(false);
    };
    let followed = upper.markers.trusted || upper.layer.believes_user;
    if asked == Some(true) && !followed && !upper.observed {
        let what = "redirect_dir=on is not possible with user.* attributes as markers, which are \
            not followed where root mounts: use redirect_dir=off for";
        return Err(Error::from(Errno::INVAL).context(what, &upper.layer.path));
    }
    Ok(asked.unwrap_or(upper.markers.trusted) && followed)
}

/// Whether metacopies are written. Without an upper there are none.
///
/// # Errors
/// EINVAL if they are requested where a later mount would not find their data.
fn metacopies(asked: bool, redirects: bool, upper: Option<&Upper>) -> Result<bool> {
    let Some(upper) = upper.filter(|upper| asked && !upper.observed) else {
        return Ok(false);
    };
    let what = if !upper.markers.trusted || !upper.privileged {
        "metacopy=on needs trusted.* attributes as markers, which this mount cannot write (they \
         need CAP_SYS_ADMIN, a file system that has them, and no userxattr): use metacopy=off for"
    } else if upper.records() != Records::Ignored {
        "metacopy=on does not go with owners that are recorded beside the files \
         (xattr_permissions): use metacopy=off for"
    } else if !redirects {
        "metacopy=on needs redirects, which lead to the data of files that were renamed: use \
         redirect_dir=on or metacopy=off for"
    } else {
        return Ok(true);
    };
    Err(Error::from(Errno::INVAL).context(what, &upper.layer.path))
}

impl Drop for Union {
    /// Orphans leave the work directory before its lock is released.
    fn drop(&mut self) {
        self.names.clear();
    }
}
