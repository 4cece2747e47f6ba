//! An inode of the union: where its parts are, and the locks that guard them.
//!
//! Lock order (outer first); a later lock is never held while taking an earlier one:
//! 1. `Inode::busy`      one copy-up of this inode at a time, held during the data copy
//! 2. `Dir::ns`          the names of one directory; two directories in order of address
//! 3. `Union::topology`  where upper directories hang in the tree
//! 4. inode table shard
//! 5. `Inode::loc`       where this inode is
//! 6. `Dir::listing`, lookup-cache shard, descriptor slots: leaves
//!
//! File data is never copied or synced under 2 to 6.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::{Mutex, RwLock, RwLockWriteGuard};
use smallvec::SmallVec;

use super::listing::Listing;
use super::mounted_catalog::LowerDirs;
use super::orphans::{Held, Keep, Parked, Permit};
use super::types::{FileKind, Ino};
use crate::layer::at::Stat;
use crate::layer::fds::Slot;
use crate::layer::lower::LowerDir;
use crate::layer::markers::Protection;

/// A file below the upper.
#[derive(Debug)]
pub(crate) struct LowerFile {
    /// Directory it is in.
    pub dir: Arc<LowerDir>,
    /// Its name there.
    pub name: Arc<[u8]>,
    /// Attributes.
    pub stat: Stat,
    /// Where the data is, when this is a metacopy.
    pub data: Option<Box<Data>>,
    /// The catalog's record of it, when it was found there.
    pub record: Option<u32>,
}

/// The file that has the data of a metacopy.
#[derive(Debug)]
pub(crate) struct Data {
    /// Directory it is in.
    pub dir: Arc<LowerDir>,
    /// Its name there.
    pub name: Arc<[u8]>,
    /// Its inode number: by no attribute of it could be told that it is another one now.
    pub ino: u64,
}

impl LowerFile {
    /// Directory and name of the data.
    pub fn data_place(&self) -> (&Arc<LowerDir>, &[u8]) {
        match &self.data {
            Some(data) => (&data.dir, &data.name),
            None => (&self.dir, &self.name),
        }
    }

    /// Whether `stat` is that of the file with the data, or of one that shows nobody more.
    pub fn has_data_of(&self, stat: &Stat) -> bool {
        match &self.data {
            Some(data) => {
                let same = stat.ino == data.ino || !data.dir.layer.keeps_numbers;
                same && stat.kind == FileKind::Regular
            }
            None => self.stat.is_or_resembles(stat),
        }
    }
}

/// What an inode knows of its file below the upper.
#[derive(Clone, Debug)]
pub(crate) enum Lower {
    /// All of it.
    File(Arc<LowerFile>),
    /// The catalog's record of a file with one name that is no metacopy, of which nobody has
    /// wanted more than the catalog can say; see [`super::Union::lower_of`].
    Record(u32),
}

impl Lower {
    /// Whether the file has other names too.
    pub fn is_link(&self) -> bool {
        matches!(self, Self::File(file) if file.stat.nlink > 1)
    }

    /// The catalog's record of it, when it was found there.
    pub fn record(&self) -> Option<u32> {
        match self {
            Self::File(file) => file.record,
            Self::Record(record) => Some(*record),
        }
    }
}

/// Link counts of a hard link that came from a lower.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Nlink {
    /// In the union.
    pub union: u32,
    /// Of the lower file.
    pub lower: u32,
}

/// One name of an inode. The parent is counted in the table as long as the link exists.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    pub parent: Arc<Inode>,
    pub name: Arc<[u8]>,
    /// Whether the upper has this name (a hard link may be named only by a lower).
    pub in_upper: bool,
    /// Whether the lowers show something under this name, once that is known: it never
    /// changes.
    pub in_lower: Option<bool>,
}

/// The upper side of an inode.
#[derive(Clone, Debug)]
pub(crate) struct UpperState {
    /// Identity on the upper file system.
    pub id: (u64, u64),
    /// It was copied up, and says from where.
    pub origin: bool,
    /// Where the data is as long as the upper file is a metacopy.
    pub metacopy: Option<Arc<LowerFile>>,
}

/// Where an inode is.
#[derive(Debug, Default)]
pub(crate) struct Loc {
    /// Its known names; a directory has one, the root none, an orphan none.
    pub links: Links,
    /// Set once it is in the upper.
    pub upper: Option<Box<UpperState>>,
    /// The file below, for non-directories that come from a lower.
    pub lower: Option<Lower>,
    /// See [`Self::rare`].
    pub rare: Option<Box<Rare>>,
}

/// Names of an inode: mostly one, which needs no memory of its own.
pub(crate) type Links = SmallVec<[Link; 1]>;

/// What few inodes have.
#[derive(Debug, Default)]
pub(crate) struct Rare {
    /// Holds an unlinked or unnamed upper file.
    pub orphan: Option<Held>,
    /// The same without a descriptor; it stays when a name comes back or is found.
    pub parked: Option<Parked>,
    /// What is left of a removed directory that no descriptor holds.
    pub gone: Option<Box<Stat>>,
    /// A writable descriptor kept for an unprivileged server whose file lost the
    /// permission to be opened again.
    pub pinned: Option<(OwnedFd, Permit)>,
    /// Name in the hard-link index.
    pub index: Option<Box<[u8]>>,
    /// Link counts of an indexed file.
    pub nlink: Option<Nlink>,
}

impl Loc {
    /// What few inodes have, if this one has any of it.
    pub fn rare(&self) -> Option<&Rare> {
        self.rare.as_deref()
    }

    /// As [`Self::rare`], to take something away.
    pub fn rare_opt(&mut self) -> Option<&mut Rare> {
        self.rare.as_deref_mut()
    }

    /// As [`Self::rare`], to add something.
    pub fn rare_mut(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }

    /// [`Rare::orphan`].
    pub fn orphan(&self) -> Option<&Held> {
        self.rare()?.orphan.as_ref()
    }

    /// [`Rare::parked`].
    pub fn parked(&self) -> Option<&Parked> {
        self.rare()?.parked.as_ref()
    }

    /// [`Rare::gone`].
    pub fn gone(&self) -> Option<&Stat> {
        self.rare()?.gone.as_deref()
    }

    /// As [`Self::gone`], to change it.
    pub fn gone_mut(&mut self) -> Option<&mut Stat> {
        self.rare_opt()?.gone.as_deref_mut()
    }

    /// Keeps the inode, which has no name in the upper any more.
    pub fn set_kept(&mut self, keep: Keep) {
        match keep {
            Keep::Known => {}
            Keep::Held(held) => self.rare_mut().orphan = Some(held),
            Keep::Parked(parked) => self.rare_mut().parked = Some(parked),
            Keep::Gone(stat) => self.rare_mut().gone = Some(stat),
        }
    }

    /// The upper has a name of it again: no descriptor need hold it.
    pub fn is_named_again(&mut self) {
        if let Some(rare) = self.rare_opt() {
            rare.orphan = None;
            if let Some(parked) = &mut rare.parked {
                parked.linkable = false;
            }
        }
    }

    /// [`Rare::index`].
    pub fn index(&self) -> Option<&[u8]> {
        self.rare()?.index.as_deref()
    }

    /// [`Rare::nlink`].
    pub fn nlink(&self) -> Option<Nlink> {
        self.rare()?.nlink
    }

    /// Sets what a hard link has in the index.
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

    /// The link of this name.
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
    /// The same past the page cache, once somebody wanted it; `None`: impossible.
    pub direct: OnceLock<Option<OwnedFd>>,
}

impl DataFd {
    pub(crate) fn new(fd: OwnedFd, writable: bool) -> Self {
        let direct = OnceLock::new();
        Self {
            fd,
            writable,
            direct,
        }
    }
}

/// Whether something is known, and what.
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

/// What protects an inode, once that is known.
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

/// What guards the names of a directory.
#[derive(Debug, Default)]
pub(crate) struct Names {
    /// The directory has been removed.
    pub dead: bool,
    /// Changes whenever names may have changed: what was learnt about a name under an
    /// earlier value may no longer be true.
    pub version: u64,
}

/// The directory side of an inode.
#[derive(Debug)]
pub(crate) struct Dir {
    /// Its lower directories, top first; never changes.
    pub lowers: LowerDirs,
    pub ns: RwLock<Names>,
    pub listing: Mutex<Option<Listing>>,
    /// The offset after which a listing that is gone had no more, and the version of the
    /// names for which that was so; changed with `listing` locked.
    pub end: [AtomicU64; 2],
    /// Names in it that were asked for one by one; not counted much beyond what `readdir`
    /// wants to know.
    pub asked: AtomicU32,
    /// The directory in the upper.
    pub upper_fd: Arc<Slot<OwnedFd>>,
    /// The upper directory may hold copied-up files (marker `impure`).
    pub impure: AtomicBool,
    /// The upper directory was found with whiteouts in the xattr form (marker `opaque=x`).
    pub xwhiteouts: bool,
    /// The upper directory has a default ACL.
    pub default_acl: Tristate,
    /// The upper directory has `.wh.` entries.
    pub upper_wh: Tristate,
}

/// An inode of the union.
#[derive(Debug)]
pub(crate) struct Inode {
    pub ino: Ino,
    pub kind: FileKind,
    /// Tells reuses of the number apart; see `generation`.
    pub generation: u32,
    /// Key of this directory in the lookup cache.
    pub key: u64,
    /// Lookups counted for the kernel plus links of children; see `inode_table`.
    pub count: AtomicU64,
    pub loc: RwLock<Loc>,
    pub busy: Mutex<()>,
    data: OnceLock<Arc<Slot<DataFd>>>,
    /// It has a `security.capability`, which the kernel asks for before a first write.
    pub capability: Tristate,
    /// See [`super::Union::protection`].
    pub protection: Protected,
    /// Boxed: most inodes are none.
    pub dir: Option<Box<Dir>>,
}

impl Inode {
    pub fn new(
        ino: Ino,
        kind: FileKind,
        (key, generation): (u64, u32),
        loc: Loc,
        dir: Option<Dir>,
    ) -> Self {
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

    /// Where the descriptor for its data goes.
    pub fn data(&self) -> &Arc<Slot<DataFd>> {
        self.data.get_or_init(Arc::default)
    }

    /// As [`Self::data`], if it was ever wanted.
    pub fn data_opt(&self) -> Option<&Arc<Slot<DataFd>>> {
        self.data.get()
    }

    pub fn in_upper(&self) -> bool {
        self.loc.read().upper.is_some()
    }

    /// Whether the upper has it with all of its data.
    pub fn is_copied_up(&self) -> bool {
        self.loc
            .read()
            .upper
            .as_ref()
            .is_some_and(|u| u.metacopy.is_none())
    }
}

impl Dir {
    pub fn new(lowers: LowerDirs, (impure, xwhiteouts): (bool, bool)) -> Self {
        Self {
            lowers,
            ns: RwLock::default(),
            listing: Mutex::default(),
            end: Default::default(),
            asked: AtomicU32::new(0),
            upper_fd: Arc::default(),
            impure: AtomicBool::new(impure),
            xwhiteouts,
            default_acl: Tristate::default(),
            upper_wh: Tristate::default(),
        }
    }

    /// Locks the names for a change.
    pub fn change_names(&self) -> RwLockWriteGuard<'_, Names> {
        let mut names = self.ns.write();
        names.version = names.version.wrapping_add(1);
        names
    }
}

#[cfg(test)]
mod tests {
    use super::super::resolve::Resolved;
    use super::*;

    /// What a name costs that the kernel was told of (docs/PROFILE.md): with a catalog the inode
    /// and its name, else also the file below and the cached answer.
    #[test]
    fn an_inode_is_small() {
        assert!(size_of::<Inode>() <= 144, "{}", size_of::<Inode>());
        assert!(size_of::<LowerFile>() <= 192, "{}", size_of::<LowerFile>());
        assert!(size_of::<Resolved>() <= 64, "{}", size_of::<Resolved>());
    }
}
