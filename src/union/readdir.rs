//! Directory reading.
//!
//! The merged listing of a directory is built from the layers on first use, updated by the union's
//! own operations, and dropped after it has been read to its end, when the kernel caches it.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use rustix::io::Errno;

use super::Union;
use super::error::Result;
use super::inode::{Dir, Inode, Link};
use super::listing::{FIRST_OFFSET, Gather, LayerEntry, LayerListing, Listing, Source, Visible};
use super::lookup::{EntryRef, Hint};
use super::mounted_catalog::LowerDirs;
use super::resolve::Answer;
use super::types::{FileKind, Ino};
use crate::layer::at::At;
use crate::layer::lower::{LowerDir, RawEntry, has_opaque_file, read_dir};
use crate::layer::markers::WH_PREFIX;

/// The number of entries returned per lock of the listing.
const BATCH: usize = 64;
/// The same, where another reader may replace the window meanwhile, which is expensive.
const WINDOW_BATCH: usize = 512;
/// The maximum number of names of one directory in memory: about 40 MiB, and 150 MiB while they are
/// collected and sorted. A longer directory is read in windows.
const MOST: usize = 256 << 10;
/// The approximate maximum number of names in memory for all directories of a mount.
const MOST_OF_ALL: usize = 1 << 20;
/// What a listing counts for, in addition to its names.
const EACH: usize = 16;

/// One directory entry, offered to the sink of [`Union::readdir`].
#[derive(Debug)]
pub struct DirItem<'a, 'u> {
    /// An opaque position after this entry; pass it to `readdir` to continue. At most `i64::MAX`.
    pub offset: u64,
    /// The name, raw bytes.
    pub name: &'a [u8],
    /// Inode number (d_ino).
    pub ino: Ino,
    /// File type (d_type).
    pub kind: FileKind,
    /// With `plus`: the counted lookup, which the sink takes when it accepts the entry. Never for
    /// `.` and `..`, and not for most entries of a long directory.
    pub entry: Option<EntryRef<'u>>,
}

/// A run of entries of a listing.
#[derive(Default)]
struct Batch {
    /// The entries with their offsets.
    entries: Vec<(u64, Visible)>,
    /// The number of entries of the whole listing.
    length: usize,
    /// The version of the names for which the run is true.
    version: u64,
}

/// The number of entries of a directory that always come with attributes.
const WITH_ATTRIBUTES: u64 = 1024;
/// After so many names were looked up one by one, all entries of a long directory come with
/// attributes.
pub(crate) const ASKED_ENOUGH: u32 = 32;

/// Whether entries after `offset` should include attributes. In a long directory, reading the
/// attributes of every name costs far more than listing the names, and the reader may need only
/// those. So only the first entries include them, until some names have been looked up one by one.
/// Offsets are hashes, so they tell roughly how many entries come before.
fn wants_attributes(inode: &Inode, offset: u64, length: usize) -> bool {
    let before = (u128::from(offset) * length as u128) >> 63;
    let asked = inode
        .dir
        .as_ref()
        .map_or(0, |dir| dir.asked.load(Ordering::Relaxed));
    before < u128::from(WITH_ATTRIBUTES) || asked >= ASKED_ENOUGH
}

/// Directories whose listings stay in memory after they have been read, because a directory that
/// was listed is often emptied and removed next.
#[derive(Default)]
pub(crate) struct Recent {
    kept: Mutex<VecDeque<Weak<Inode>>>,
    /// The directories whose listings were built last, present or not.
    built: Mutex<Built>,
}

/// Directories, the size of their listings, and the sum of these sizes.
#[derive(Default)]
struct Built {
    order: VecDeque<(Weak<Inode>, usize)>,
    sum: usize,
}

impl Recent {
    /// The number of listings that stay, and the maximum size of each.
    const DIRECTORIES: usize = 32;
    const ENTRIES: usize = 512;

    /// Whether the listing of `inode`, which the caller has locked, may stay.
    fn keep(&self, inode: &Arc<Inode>, entries: usize) -> bool {
        if entries > Self::ENTRIES {
            return false;
        }
        let this = Arc::downgrade(inode);
        let mut kept = self.kept.lock();
        if kept.iter().any(|other| other.ptr_eq(&this)) {
            return true;
        }
        kept.push_back(this);
        let oldest = if kept.len() > Self::DIRECTORIES {
            kept.pop_front().and_then(|oldest| oldest.upgrade())
        } else {
            None
        };
        drop(kept);
        // One that is being read is dropped when the reader ends.
        drop_listing(oldest.as_deref());
        true
    }

    /// Notes that the listing of `inode`, which the caller has locked, was built. Drops the
    /// listings built longest ago while all together are too large; their readers build them again.
    fn built(&self, inode: &Arc<Inode>, entries: usize) {
        let mut built = self.built.lock();
        built.sum += entries + EACH;
        built
            .order
            .push_back((Arc::downgrade(inode), entries + EACH));
        while built.sum > MOST_OF_ALL
            && let Some((oldest, entries)) = built.order.pop_front()
        {
            built.sum = built.sum.saturating_sub(entries);
            parking_lot::MutexGuard::unlocked(&mut built, || {
                drop_listing(oldest.upgrade().as_deref());
            });
        }
    }
}

/// Drops a listing, unless it is in use.
fn drop_listing(inode: Option<&Inode>) {
    let dir = inode.and_then(|inode| inode.dir.as_ref());
    if let Some(mut listing) = dir.and_then(|dir| dir.listing.try_lock()) {
        *listing = None;
    }
}

impl Union {
    /// Passes entries after `offset` (0: from the start) to `sink` until it returns false, which
    /// means that the entry did not fit and was not taken.
    ///
    /// # Errors
    /// ENOTDIR, ESTALE; else those of the layers' file systems.
    pub fn readdir<'u>(
        &'u self,
        ino: Ino,
        offset: u64,
        plus: bool,
        sink: &mut dyn FnMut(DirItem<'_, 'u>) -> bool,
    ) -> Result<()> {
        let inode = self.directory(ino)?;
        let mut offset = offset;
        while offset < FIRST_OFFSET - 1 {
            offset += 1;
            let (name, ino): (&[u8], _) = match offset {
                1 => (b".", inode.ino),
                _ => (b"..", parent_of(&inode)),
            };
            let kind = FileKind::Directory;
            if !sink(DirItem {
                offset,
                name,
                ino,
                kind,
                entry: None,
            }) {
                return Ok(());
            }
        }
        loop {
            let Batch {
                entries,
                length,
                version,
            } = self.listed(&inode, offset)?;
            let Some((last, _)) = entries.last() else {
                return Ok(());
            };
            let next = *last;
            let plus = plus && wants_attributes(&inode, offset, length);
            for (at, visible) in entries {
                let Some(item) = self.item(&inode, at, (&visible, version), plus)? else {
                    continue;
                };
                if !sink(item) {
                    return Ok(());
                }
            }
            offset = next;
        }
    }

    /// Returns the next entries after `offset`; at the end drops a long listing.
    fn listed(&self, inode: &Arc<Inode>, mut offset: u64) -> Result<Batch> {
        let dir = inode.dir.as_ref().ok_or(Errno::NOTDIR)?;
        let names = dir.ns.read();
        if names.dead {
            return Ok(Batch::default());
        }
        let mut held = dir.listing.lock();
        let end = [&dir.end[0], &dir.end[1]].map(|end| end.load(Ordering::Relaxed));
        loop {
            let listing = match &mut *held {
                Some(listing) if listing.covers(offset) => listing,
                // The kernel's last call, which confirms the end.
                None if offset > FIRST_OFFSET && end == [offset, names.version] => {
                    return Ok(Batch::default());
                }
                other => {
                    // The directory is known to need several windows.
                    let first = if other.is_none() { 0 } else { offset };
                    *other = None;
                    let mut listing = self.build_listing(inode, dir, first)?;
                    if !listing.covers(offset) {
                        listing = self.build_listing(inode, dir, offset)?;
                    }
                    self.recent.built(inode, listing.held());
                    other.insert(listing)
                }
            };
            let whole = listing.is_whole();
            let batch = if whole { BATCH } else { WINDOW_BATCH };
            let (entries, length) = (listing.after(offset, batch), listing.length());
            if entries.is_empty()
                && let Some(next) = listing.next_window()
            {
                offset = offset.max(next);
                continue;
            }
            if entries.is_empty() && !(whole && self.recent.keep(inode, length)) {
                *held = None;
                dir.end[0].store(offset, Ordering::Relaxed);
                dir.end[1].store(names.version, Ordering::Relaxed);
            }
            return Ok(Batch {
                entries,
                length,
                version: names.version,
            });
        }
    }

    /// Returns an entry as the sink takes it; `None` when it vanished meanwhile.
    fn item<'a>(
        &self,
        parent: &Arc<Inode>,
        offset: u64,
        (visible, version): (&'a Visible, u64),
        plus: bool,
    ) -> Result<Option<DirItem<'a, '_>>> {
        let name = &*visible.name;
        let item = |ino, kind, entry| DirItem {
            offset,
            name,
            ino,
            kind,
            entry,
        };
        if !plus && let (Some(ino), Some(kind)) = (visible.ino, visible.kind) {
            return Ok(Some(item(ino, kind, None)));
        }
        let (lowers, record) = match visible.source {
            Source::Upper => (None, None),
            Source::Lower(position) => (Some(position), None),
            Source::Record(record) => (Some(0), Some(record)),
        };
        let hint = lowers.map_or(Hint::Nothing, |skip| Hint::Listed {
            skip,
            version,
            record,
            name: &visible.name,
        });
        // One unreadable entry must not hide the others.
        let found = match self.lookup_in(parent, name, hint) {
            Ok(found) => found,
            Err(e) => {
                tracing::debug!("listing {}: {e}", String::from_utf8_lossy(name));
                // A lookup of the name reports the error; leaving the name out would make a file
                // invisible.
                let (Some(kind), ino) = (visible.kind, visible.ino) else {
                    return Err(e);
                };
                let ino = ino.unwrap_or_else(|| self.inode_numbers.alias(parent.ino, name));
                return Ok(Some(item(ino, kind, None)));
            }
        };
        Ok(found.map(|entry| {
            let (ino, kind) = (entry.attr().ino, entry.attr().kind);
            item(ino, kind, plus.then_some(entry))
        }))
    }

    /// Merges the layers' listings (of a long directory, the window after `after`); the caller
    /// holds the name lock.
    pub(crate) fn build_listing(&self, inode: &Inode, dir: &Dir, after: u64) -> Result<Listing> {
        let after = if after < FIRST_OFFSET { 0 } else { after };
        let mut gather = Gather::new(&self.listing_order, MOST, after);
        if inode.in_upper() {
            self.list_upper(inode, dir, &mut gather)?;
        }
        self.list_lowers(&dir.lowers, &mut gather)?;
        Ok(gather.into_listing())
    }

    /// Returns all names in the lowers.
    pub(crate) fn all_of_lowers(&self, lowers: &LowerDirs) -> Result<Vec<LayerListing>> {
        let mut gather = Gather::new(&self.listing_order, usize::MAX, 0);
        self.list_lowers(lowers, &mut gather)?;
        Ok(gather.into_layers())
    }

    /// Collects the names in the lowers: one merged listing when the catalog has it.
    fn list_lowers(&self, lowers: &LowerDirs, gather: &mut Gather<'_>) -> Result<()> {
        if let Some(merged) = lowers.catalog_dir() {
            let mut listing = LayerListing {
                source: Source::Lower(0),
                entries: Vec::new(),
                hides_below: Vec::new(),
            };
            let LayerListing {
                entries,
                hides_below,
                ..
            } = &mut listing;
            let gathered = merged.entries(&self.inode_numbers, |entry| {
                if gather.wants(&entry.name) {
                    entries.push(entry);
                    gather.bound(entries, |entry| &entry.name, hides_below);
                }
            });
            match gathered {
                Ok(()) => {
                    gather.layer(listing);
                    return Ok(());
                }
                Err(damaged) => self.distrust(merged.catalog(), damaged),
            }
        }
        for (position, lower) in lowers.all()?.iter().enumerate() {
            self.list_lower(lower, position, gather)?;
        }
        Ok(())
    }

    fn list_upper(&self, inode: &Inode, dir: &Dir, gather: &mut Gather<'_>) -> Result<()> {
        let upper = self.readable_upper()?;
        let fd = self.upper_dir(inode)?;
        // Without lowers and copied-up files, d_ino is the inode number.
        let plain = dir.lowers.is_empty() && !dir.impure.load(Ordering::Acquire);
        let dev = upper.layer.stat.dev;
        let (mut entries, mut hides_below) = (Vec::new(), Vec::new());
        let xattr_form = upper.may_have_xwhiteouts(dir);
        let wh_names = upper.layer.dialect.wh_names;
        read_dir(&fd, |raw| {
            if wh_names && let Some(name) = raw.name.strip_prefix(WH_PREFIX) {
                if gather.wants(name) {
                    hides_below.push(name.into());
                }
            } else if gather.wants(&raw.name) {
                let ino = plain.then(|| self.inode_numbers.number_of(dev, raw.ino));
                entries.push(LayerEntry {
                    name: raw.name.into(),
                    kind: raw.kind,
                    ino,
                    record: None,
                    whiteout: false,
                });
            }
            gather.bound(&mut entries, |entry| &entry.name, &mut hides_below);
        })?;
        let mut listing = LayerListing {
            source: Source::Upper,
            entries,
            hides_below,
        };
        let suspects = listing.entries.iter_mut().filter(|entry| match entry.kind {
            Some(FileKind::CharDevice) | None => true,
            Some(FileKind::Regular) => xattr_form && !plain,
            Some(_) => false,
        });
        for entry in suspects {
            let at = At::new(fd.as_fd(), &entry.name);
            let Some(stat) = at.stat_opt()? else { continue };
            let empty_file = xattr_form && stat.kind == FileKind::Regular && stat.size == 0;
            entry.kind = Some(stat.kind);
            entry.whiteout =
                stat.is_chardev_whiteout() || (empty_file && upper.layer.markers(at)?.whiteout);
        }
        gather.layer(listing);
        Ok(())
    }

    fn list_lower(&self, lower: &LowerDir, position: usize, gather: &mut Gather<'_>) -> Result<()> {
        let source = Source::Lower(position);
        let wh_names = lower.layer.dialect.wh_names;
        let (mut raws, mut hides_below): (Vec<RawEntry>, _) = (Vec::new(), Vec::new());
        lower.read(&self.fds, |raw| {
            if wh_names && let Some(name) = raw.name.strip_prefix(WH_PREFIX) {
                if gather.wants(name) {
                    hides_below.push(name.into());
                }
            } else if gather.wants(&raw.name) {
                raws.push(raw);
            }
            gather.bound(&mut raws, |raw| &raw.name, &mut hides_below);
        })?;
        let mut listing = LayerListing {
            source,
            entries: Vec::with_capacity(raws.len()),
            hides_below,
        };
        for raw in raws {
            let whiteout = lower.is_whiteout(&self.fds, &raw)?;
            let ino = Some(self.inode_numbers.number_of(lower.stat.dev, raw.ino));
            listing.entries.push(LayerEntry {
                name: raw.name.into(),
                kind: raw.kind,
                ino,
                record: None,
                whiteout,
            });
        }
        gather.layer(listing);
        Ok(())
    }

    /// Whether a directory is empty in the union; the caller holds its name lock.
    pub(crate) fn is_empty_dir(&self, inode: &Inode) -> Result<bool> {
        let dir = inode.dir.as_ref().ok_or(Errno::NOTDIR)?;
        if let Some(listing) = &*dir.listing.lock()
            && (listing.is_whole() || !listing.is_empty())
        {
            return Ok(listing.is_empty());
        }
        let mut after = 0;
        loop {
            let listing = self.build_listing(inode, dir, after)?;
            match listing.next_window() {
                Some(next) if listing.is_empty() => after = next,
                _ => return Ok(listing.is_empty()),
            }
        }
    }

    /// Adds a name that was just created in the upper of `parent` to a listing in memory.
    pub(crate) fn listing_add(parent: &Inode, name: &[u8], kind: FileKind, ino: Ino) {
        let Some(dir) = &parent.dir else { return };
        if let Some(listing) = &mut *dir.listing.lock() {
            let (kind, ino) = (Some(kind), Some(ino));
            let source = Source::Upper;
            listing.insert(Visible {
                name: Arc::from(name),
                kind,
                ino,
                source,
            });
        }
    }

    /// Removes a name that was just removed from `parent` from a listing in memory.
    pub(crate) fn listing_remove(parent: &Inode, name: &[u8]) {
        let Some(dir) = &parent.dir else { return };
        if let Some(listing) = &mut *dir.listing.lock() {
            listing.remove(name);
        }
    }

    /// Whether the upper directory has `.wh.` entries; called only where these are markers.
    pub(crate) fn upper_has_wh(&self, dir: &Dir, fd: &std::os::fd::OwnedFd) -> Result<bool> {
        if let Some(known) = dir.upper_wh.get() {
            return Ok(known);
        }
        let mut any = false;
        match read_dir(fd, |raw| any |= raw.name.starts_with(WH_PREFIX)) {
            Ok(()) => dir.upper_wh.set(any),
            // It can be searched but not listed: whiteouts are looked up name by name.
            Err(Errno::ACCESS) => any = true,
            Err(e) => return Err(e.into()),
        }
        Ok(any)
    }

    /// Whether an upper subdirectory contains the file that makes it opaque.
    pub(crate) fn upper_wh_opaque(&self, fd: &std::os::fd::OwnedFd, name: &[u8]) -> Result<bool> {
        if !self.readable_upper()?.layer.dialect.wh_names {
            return Ok(false);
        }
        let sub = At::new(fd.as_fd(), name).open_dir_path()?;
        Ok(has_opaque_file(sub)?)
    }

    /// Whether the lowers show a file under `name`; nothing is counted or cached.
    pub(crate) fn exists_in_lower(&self, inode: &Inode, name: &[u8]) -> Result<bool> {
        let dir = inode.dir.as_ref().ok_or(Errno::NOTDIR)?;
        if dir.lowers.is_empty() {
            return Ok(false);
        }
        match self.resolve(inode, name, Some(0)) {
            Ok(Answer::Found(_)) => Ok(true),
            Ok(Answer::Absent(_)) => Ok(false),
            // A broken metacopy must be hidden too.
            Err(e) if e.errno() == Errno::IO.raw_os_error() => Ok(true),
            Err(e) => Err(e),
        }
    }
}

fn parent_of(inode: &Inode) -> Ino {
    let loc = inode.loc.read();
    let link: Option<&Link> = loc.links.first();
    link.map_or(inode.ino, |link| link.parent.ino)
}
