//! An inode of the union: its names, its files in the layers, and the locks that guard them.
//!
//! Lock order, outermost first. A thread that holds a lock never takes one with a smaller number;
//! `lock_order` checks this in debug builds.
//! 1. `Searches::walking` one search by inode number at a time
//! 2. `Inode::busy`      one copy-up of this inode at a time, held during the data copy; a file's
//!    before that of its parent
//! 3. `Dir::ns`          the names of one directory; two directories in order of address
//! 4. `Dir::listing`     the listing of a directory, held while it is built
//! 5. `Inode::data`      the slot of the file's descriptor, held while the file is opened
//! 6. `Stack::topology`  the tree of upper directories
//! 7. inode table shard
//! 8. `Inode::loc`       the names and files of this inode; two inodes in order of address
//! 9. lookup cache shard; no other lock is taken while holding one, nor while holding the slot of a
//!    directory's descriptor
//!
//! File data is never copied or synced with one of the locks 3 to 9 held.

use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock};

use smallvec::SmallVec;

use super::listings::Listing;
use super::lock_order::{Mutex, RwLock, RwLockWriteGuard, rank};
use super::orphans::{Held, Keep, Parked, Permit};
use super::types::{FileKind, Ino};
use crate::layer::at::Stat;
use crate::layer::fds::Slot;
use crate::layer::markers::Protection;
use crate::lowers::{FileId, LowerDirs, LowerFile};
use crate::sys::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};

/// The lower file of an inode, with as much detail as was needed so far.
#[derive(Clone, Debug)]
pub(crate) enum Lower {
    /// The file, with its directory.
    File(Arc<LowerFile>),
    /// The number of a file that has one name and is no metacopy, as long as nothing but the number
    /// was needed; see [`super::stack::Stack::lower_of`].
    Id(FileId),
}

impl Lower {
    /// Whether the lower file has several names.
    pub fn is_link(&self) -> bool {
        matches!(self, Self::File(file) if file.stat.nlink > 1)
    }

    /// Returns the number that the lowers gave the file.
    pub fn id(&self) -> Option<FileId> {
        match self {
            Self::File(file) => file.id,
            Self::Id(id) => Some(*id),
        }
    }
}

/// Link counts of a hard link that came from a lower.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Nlink {
    /// The link count that the union shows.
    pub union: u32,
    /// The link count of the lower file.
    pub lower: u32,
}

/// One name of an inode. The parent is counted in the inode table as long as the link exists.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    pub parent: Arc<Inode>,
    pub name: Arc<[u8]>,
    /// The upper has this name. A hard link that was copied up may have names that only a lower
    /// has.
    pub in_upper: bool,
    /// Whether the lowers show a file under this name, once that is known. It never changes.
    pub in_lower: Option<bool>,
}

/// The upper side of an inode.
#[derive(Clone, Debug)]
pub(crate) struct UpperState {
    /// Device and inode number on the upper file system.
    pub id: (u64, u64),
    /// The file was copied up and has an origin marker.
    pub origin: bool,
    /// The file with the data, as long as the upper file is a metacopy.
    pub metacopy: Option<Arc<LowerFile>>,
}

/// The location of an inode: its names, and its files in the layers.
#[derive(Debug, Default)]
pub(crate) struct Loc {
    /// The known names. A directory has one; the root and an unlinked file have none.
    pub links: Links,
    /// The upper side, once there is one.
    pub upper: Option<Box<UpperState>>,
    /// The lower file, of a file that is not a directory and comes from a lower.
    pub lower: Option<Lower>,
    /// See [`Self::rare`].
    pub rare: Option<Box<Rare>>,
}

/// The names of an inode; a single one needs no allocation.
pub(crate) type Links = SmallVec<[Link; 1]>;

/// State that few inodes have.
#[derive(Debug, Default)]
pub(crate) struct Rare {
    /// The descriptor that keeps an unlinked or unnamed upper file.
    pub orphan: Option<Held>,
    /// The name in the work directory that keeps such a file. It stays when the file gets a name
    /// again.
    pub parked: Option<Parked>,
    /// The last attributes of a removed directory for which no descriptor is kept.
    pub gone: Option<Box<Stat>>,
    /// A writable descriptor, kept by an unprivileged server after the file lost the permission to
    /// be opened again.
    pub pinned: Option<(OwnedFd, Permit)>,
    /// The name in the hard-link index.
    pub index: Option<Box<[u8]>>,
    /// The link counts of an indexed file.
    pub nlink: Option<Nlink>,
}

impl Loc {
    /// Returns the rare state; `None` if the inode has none.
    pub fn rare(&self) -> Option<&Rare> {
        self.rare.as_deref()
    }

    /// Returns the rare state for removing parts of it.
    pub fn rare_opt(&mut self) -> Option<&mut Rare> {
        self.rare.as_deref_mut()
    }

    /// Returns the rare state for adding to it.
    pub fn rare_mut(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }

    /// Returns [`Rare::orphan`].
    pub fn orphan(&self) -> Option<&Held> {
        self.rare()?.orphan.as_ref()
    }

    /// Returns [`Rare::parked`].
    pub fn parked(&self) -> Option<&Parked> {
        self.rare()?.parked.as_ref()
    }

    /// Returns [`Rare::gone`].
    pub fn gone(&self) -> Option<&Stat> {
        self.rare()?.gone.as_deref()
    }

    /// Returns [`Rare::gone`] for changing it.
    pub fn gone_mut(&mut self) -> Option<&mut Stat> {
        self.rare_opt()?.gone.as_deref_mut()
    }

    /// Records what keeps an inode that has no name in the upper any more.
    pub fn set_kept(&mut self, keep: Keep) {
        match keep {
            Keep::Known => {}
            Keep::Held(held) => self.rare_mut().orphan = Some(held),
            Keep::Parked(parked) => self.rare_mut().parked = Some(parked),
            Keep::Gone(stat) => self.rare_mut().gone = Some(stat),
        }
    }

    /// Notes that the upper has a name of the inode again, so that no descriptor is needed to keep
    /// it.
    pub fn is_named_again(&mut self) {
        if let Some(rare) = self.rare_opt() {
            rare.orphan = None;
            if let Some(parked) = &mut rare.parked {
                parked.linkable = false;
            }
        }
    }

    /// Returns [`Rare::index`].
    pub fn index(&self) -> Option<&[u8]> {
        self.rare()?.index.as_deref()
    }

    /// Returns [`Rare::nlink`].
    pub fn nlink(&self) -> Option<Nlink> {
        self.rare()?.nlink
    }

    /// Sets index name and link counts of a hard link.
    pub fn set_index(&mut self, index: Option<Box<[u8]>>, nlink: Option<Nlink>) {
        if index.is_some() || nlink.is_some() || self.rare.is_some() {
            let rare = self.rare_mut();
            (rare.index, rare.nlink) = (index, nlink);
        }
    }

    /// Whether the upper has this name of the inode.
    pub fn has_upper_link(&self, parent: &Inode, name: &[u8]) -> bool {
        let is_it = |l: &Link| l.in_upper && l.parent.ino == parent.ino && *l.name == *name;
        self.links.iter().any(is_it)
    }

    /// Returns the link with this name.
    pub fn link(&self, parent: &Inode, name: &[u8]) -> Option<&Link> {
        let is_it = |l: &&Link| l.parent.ino == parent.ino && *l.name == *name;
        self.links.iter().find(is_it)
    }
}

/// An open file of a layer.
#[derive(Debug)]
pub(crate) struct DataFd {
    pub fd: OwnedFd,
    pub writable: bool,
    /// A second descriptor with O_DIRECT, opened on first use; `None` if that is impossible.
    pub direct: OnceLock<Option<OwnedFd>>,
}

impl DataFd {
    /// Takes a descriptor of an upper file that may be written.
    pub(crate) fn writable(fd: OwnedFd) -> Self {
        Self {
            fd,
            writable: true,
            direct: OnceLock::new(),
        }
    }

    /// Takes a descriptor that is only read.
    pub(crate) fn read_only(fd: OwnedFd) -> Self {
        Self {
            writable: false,
            ..Self::writable(fd)
        }
    }
}

/// A boolean that may be unknown.
#[derive(Debug, Default)]
pub(crate) struct Tristate(AtomicU8);

impl Tristate {
    pub fn get(&self) -> Option<bool> {
        match self.0.load(Ordering::Acquire) {
            1 => Some(false),
            2 => Some(true),
            _ => None,
        }
    }

    pub fn set(&self, value: bool) {
        self.0.store(if value { 2 } else { 1 }, Ordering::Release);
    }

    pub fn forget(&self) {
        self.0.store(0, Ordering::Release);
    }
}

/// The protection of an inode, once known.
#[derive(Debug, Default)]
pub(crate) struct Protected(AtomicU8);

impl Protected {
    pub fn get(&self) -> Option<Protection> {
        let known = self.0.load(Ordering::Acquire).checked_sub(1)?;
        Some(Protection::from_number(known))
    }

    pub fn set(&self, protection: Protection) {
        self.0.store(protection.number() + 1, Ordering::Release);
    }
}

/// The state of a directory that its name lock guards.
#[derive(Debug, Default)]
pub(crate) struct DirNames {
    /// The directory has been removed.
    pub dead: bool,
    /// Incremented whenever names may have changed. A fact about a name that was learnt at another
    /// value is out of date.
    pub version: u64,
}

/// Markers of an upper directory when it was found.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct DirMarks {
    /// See [`Dir::impure`].
    pub impure: bool,
    /// See [`Dir::xwhiteouts`].
    pub xwhiteouts: bool,
    /// See [`Dir::wh_files`].
    pub wh_files: bool,
}

/// The part of an inode that only directories have.
#[derive(Debug)]
pub(crate) struct Dir {
    /// The lower directories, top first; constant.
    pub lowers: LowerDirs,
    pub ns: RwLock<DirNames, { rank::NAMES }>,
    pub listing: Mutex<Option<Listing>, { rank::LISTING }>,
    /// The end of a listing that has been dropped: the offset of its last entry, and the version of
    /// the names at that time. Changed with `listing` locked.
    pub end: [AtomicU64; 2],
    /// The number of names that were looked up one by one. Counting stops at what `readdir` needs.
    pub asked: AtomicU32,
    /// The directory in the upper.
    pub upper_fd: Arc<Slot<OwnedFd>>,
    /// The upper directory may contain copied-up files (marker `impure`).
    pub impure: AtomicBool,
    /// The upper directory was found with whiteouts in the xattr form (marker `opaque=x`).
    pub xwhiteouts: bool,
    /// Names in the upper directory that begin with `.wh.` are files (marker `whnames`).
    pub wh_files: AtomicBool,
    /// The upper directory has a default ACL.
    pub default_acl: Tristate,
    /// The upper directory has `.wh.` entries. It counts only without `wh_files`.
    pub upper_wh: Tristate,
}

/// The constant properties of an inode.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Identity {
    pub ino: Ino,
    pub kind: FileKind,
    /// See [`Inode::generation`].
    pub generation: u32,
    /// See [`Inode::key`].
    pub key: u64,
}

/// An inode of the union.
#[derive(Debug)]
pub(crate) struct Inode {
    pub ino: Ino,
    pub kind: FileKind,
    /// Tells successive files with the same number apart; see `names::generations`.
    pub generation: u32,
    /// The key of this directory in the lookup cache.
    pub key: u64,
    /// Lookups counted for the kernel plus links of children; see `names::inode_table`.
    pub count: AtomicU64,
    pub busy: Mutex<(), { rank::COPY_UP }>,
    data: OnceLock<Arc<Slot<DataFd>>>,
    /// The file has a `security.capability`, which the kernel reads before a first write.
    pub capability: Tristate,
    /// See [`super::protect::protection`].
    pub protection: Protected,
    /// Boxed, because most inodes are not directories.
    pub dir: Option<Box<Dir>>,
    /// The last field: it is dropped after the descriptors above are closed. So
    /// [`super::orphans::Orphans::since_last`] counts a file until the upper has its space back.
    pub loc: RwLock<Loc, { rank::PLACE }>,
}

impl Inode {
    pub fn new(identity: Identity, loc: Loc, dir: Option<Dir>) -> Self {
        let Identity {
            ino,
            kind,
            generation,
            key,
        } = identity;
        Self {
            ino,
            kind,
            generation,
            key,
            count: AtomicU64::new(0),
            loc: RwLock::new(loc),
            busy: Mutex::new(()),
            data: OnceLock::new(),
            capability: Tristate::default(),
            protection: Protected::default(),
            dir: dir.map(Box::new),
        }
    }

    /// Returns the slot for the descriptor of the file's data.
    pub fn data(&self) -> &Arc<Slot<DataFd>> {
        self.data.get_or_init(Arc::default)
    }

    /// As [`Self::data`], if it was ever used.
    pub fn data_opt(&self) -> Option<&Arc<Slot<DataFd>>> {
        self.data.get()
    }

    pub fn in_upper(&self) -> bool {
        self.loc.read().upper.is_some()
    }

    /// Whether this is a name of the inode.
    pub fn has_link(&self, parent: &Inode, name: &[u8]) -> bool {
        self.loc.read().link(parent, name).is_some()
    }

    /// Whether the upper has the inode under this name.
    pub fn has_upper_link(&self, parent: &Inode, name: &[u8]) -> bool {
        self.loc.read().has_upper_link(parent, name)
    }

    /// Whether the inode is a removed directory of which only the attributes are kept.
    pub fn is_gone(&self) -> bool {
        self.dir.is_some() && self.loc.read().gone().is_some()
    }

    /// Whether the inode is in the lowers only, and its file is known to have no xattrs.
    pub fn is_bare_below(&self) -> bool {
        let loc = self.loc.read();
        let is_bare = |lower: &Lower| matches!(lower, Lower::File(file) if file.is_bare);
        loc.upper.is_none() && loc.lower.as_ref().is_some_and(is_bare)
    }

    /// Whether markers of the upper file have an effect, so that the directory with the file must be
    /// impure.
    pub fn has_markers(&self) -> bool {
        let loc = self.loc.read();
        let is_marked = |upper: &UpperState| upper.origin || upper.metacopy.is_some();
        loc.upper.as_deref().is_some_and(is_marked)
    }

    /// Whether the upper has only the metadata of the inode.
    pub fn is_metacopy(&self) -> bool {
        let loc = self.loc.read();
        loc.upper.as_ref().is_some_and(|u| u.metacopy.is_some())
    }

    /// Whether the upper has the inode with all of its data.
    pub fn is_copied_up(&self) -> bool {
        self.loc
            .read()
            .upper
            .as_ref()
            .is_some_and(|u| u.metacopy.is_none())
    }
}

impl Dir {
    pub fn new(lowers: LowerDirs, marks: DirMarks) -> Self {
        Self {
            lowers,
            ns: RwLock::default(),
            listing: Mutex::default(),
            end: Default::default(),
            asked: AtomicU32::new(0),
            upper_fd: Arc::default(),
            impure: AtomicBool::new(marks.impure),
            xwhiteouts: marks.xwhiteouts,
            wh_files: AtomicBool::new(marks.wh_files),
            default_acl: Tristate::default(),
            upper_wh: Tristate::default(),
        }
    }

    /// Locks the names for a change.
    pub fn change_names(&self) -> RwLockWriteGuard<'_, DirNames> {
        let mut names = self.ns.write();
        names.version = names.version.wrapping_add(1);
        names
    }
}

#[cfg(test)]
mod tests {
    use super::super::resolve::Resolved;
    use super::*;

    /// Bounds the memory per looked-up name (docs/PROFILE.md): with a catalog the inode and its
    /// name, else also the lower file and the cached answer.
    #[test]
    fn an_inode_is_small() {
        assert!(size_of::<Inode>() <= 144, "{}", size_of::<Inode>());
        assert!(size_of::<LowerFile>() <= 192, "{}", size_of::<LowerFile>());
        assert!(size_of::<Resolved>() <= 64, "{}", size_of::<Resolved>());
    }
}
