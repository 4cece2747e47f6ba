//! Reading directories: the merged listing is built from the layers on first use, kept up
//! to date by our own operations, and dropped when it has been read to its end (the kernel
//! caches it then).

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

/// Entries handed out between two looks at the listing's lock.
const BATCH: usize = 64;
/// The same where another reader may want another window meanwhile, which is dear.
const WINDOW_BATCH: usize = 512;
/// Names of one directory in memory, at most: some 40 MiB, 150 while they are gathered and sorted.
/// Of longer ones there is a window.
const MOST: usize = 256 << 10;
/// Names of all directories of a mount in memory, about.
const MOST_OF_ALL: usize = 1 << 20;
/// What a listing counts for besides its names.
const EACH: usize = 16;

/// One directory entry, offered to the sink of [`Union::readdir`].
#[derive(Debug)]
pub struct DirItem<'a, 'u> {
    /// Opaque position after this entry: pass it to `readdir` to go on behind it. At most
    /// `i64::MAX`.
    pub offset: u64,
    /// The name, raw bytes.
    pub name: &'a [u8],
    /// Inode number (d_ino).
    pub ino: Ino,
    /// File type (d_type).
    pub kind: FileKind,
    /// With `plus`: the counted lookup; never for `.` and `..`, and not for most of a long
    /// directory. Taken by the sink when accepted.
    pub entry: Option<EntryRef<'u>>,
}

/// Some entries of a listing.
#[derive(Default)]
struct Batch {
    /// With their offsets.
    entries: Vec<(u64, Visible)>,
    /// How many the whole listing has.
    length: usize,
    /// The version of the names for which this is true.
    version: u64,
}

/// Entries of a directory that come with their attributes in any case.
const WITH_ATTRIBUTES: u64 = 1024;
/// Names asked for one by one after which a long directory comes with all attributes.
pub(crate) const ASKED_ENOUGH: u32 = 32;

/// Whether entries behind `offset` are to come with attributes. In a long directory, asking
/// the layers for those of every name costs far more than naming them, and whoever lists it
/// may want nothing else: then only the first do, until somebody has asked for some by name.
/// Offsets are hashes, so they tell about how many entries come before.
fn wants_attributes(inode: &Inode, offset: u64, length: usize) -> bool {
    let before = (u128::from(offset) * length as u128) >> 63;
    let asked = inode
        .dir
        .as_ref()
        .map_or(0, |dir| dir.asked.load(Ordering::Relaxed));
    before < u128::from(WITH_ATTRIBUTES) || asked >= ASKED_ENOUGH
}

/// Directories whose listings stay in memory after they have been read: whoever lists a
/// directory often empties and removes it next.
#[derive(Default)]
pub(crate) struct Recent {
    kept: Mutex<VecDeque<Weak<Inode>>>,
    /// Directories whose listings were built last, whether they are still there or not.
    built: Mutex<Built>,
}

/// Directories with what their listings held, and the sum of that.
#[derive(Default)]
struct Built {
    order: VecDeque<(Weak<Inode>, usize)>,
    sum: usize,
}

impl Recent {
    /// How many, and how long they may be.
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
        let oldest = match kept.len() > Self::DIRECTORIES {
            true => kept.pop_front().and_then(|oldest| oldest.upgrade()),
            false => None,
        };
        drop(kept);
        // One that is being read ends later.
        drop_listing(oldest.as_deref());
        true
    }

    /// Notes that the listing of `inode`, which the caller has locked, was built, and drops those
    /// built long ago where all together hold too much: whoever reads on builds them anew.
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

/// Drops a listing, unless somebody is reading it.
fn drop_listing(inode: Option<&Inode>) {
    let dir = inode.and_then(|inode| inode.dir.as_ref());
    if let Some(mut listing) = dir.and_then(|dir| dir.listing.try_lock()) {
        *listing = None;
    }
}

impl Union {
    /// Offers entries behind `offset` (0: from the start) to `sink` until it answers false
    /// (the entry did not fit and was not taken).
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

    /// The next entries behind `offset`; at the end a long listing is dropped.
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
                // The kernel asks once more to hear that this was all.
                None if offset > FIRST_OFFSET && end == [offset, names.version] => {
                    return Ok(Batch::default());
                }
                other => {
                    // Of another window it is known that there are several.
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

    /// One entry as the sink wants it; `None` when it vanished meanwhile.
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
                // Who asks for it by name hears why; a name left out would be a file lost.
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

    /// Merges the layers' listings, of a long directory those of the names behind `after`; the
    /// caller holds the name lock.
    pub(crate) fn build_listing(&self, inode: &Inode, dir: &Dir, after: u64) -> Result<Listing> {
        let after = if after < FIRST_OFFSET { 0 } else { after };
        let mut gather = Gather::new(&self.listing_order, MOST, after);
        if inode.in_upper() {
            self.list_upper(inode, dir, &mut gather)?;
        }
        self.list_lowers(&dir.lowers, &mut gather)?;
        Ok(gather.into_listing())
    }

    /// All names in the lowers.
    pub(crate) fn all_of_lowers(&self, lowers: &LowerDirs) -> Result<Vec<LayerListing>> {
        let mut gather = Gather::new(&self.listing_order, usize::MAX, 0);
        self.list_lowers(lowers, &mut gather)?;
        Ok(gather.into_layers())
    }

    /// The names in the lowers; one merged listing when the catalog has it.
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
        // Without anything below and without copied-up files, d_ino is the number.
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

    /// Whether a directory shows nothing; the caller holds its name lock.
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

    /// Keeps a listing in memory right after `name` appeared in `parent`'s upper.
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

    /// Keeps a listing in memory right after `name` vanished from `parent`.
    pub(crate) fn listing_remove(parent: &Inode, name: &[u8]) {
        let Some(dir) = &parent.dir else { return };
        if let Some(listing) = &mut *dir.listing.lock() {
            listing.remove(name);
        }
    }

    /// Whether the upper directory has `.wh.` entries (only asked where they are markers).
    pub(crate) fn upper_has_wh(&self, dir: &Dir, fd: &std::os::fd::OwnedFd) -> Result<bool> {
        if let Some(known) = dir.upper_wh.get() {
            return Ok(known);
        }
        let mut any = false;
        match read_dir(fd, |raw| any |= raw.name.starts_with(WH_PREFIX)) {
            Ok(()) => dir.upper_wh.set(any),
            // It may be searched but not listed: then ask name by name.
            Err(Errno::ACCESS) => any = true,
            Err(e) => return Err(e.into()),
        }
        Ok(any)
    }

    /// Whether an upper subdirectory has the file that makes it opaque.
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
            // A broken metacopy is something that must be hidden too.
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
