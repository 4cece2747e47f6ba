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
use super::catalogued::Lowers;
use super::error::Result;
use super::inode::{Dir, Inode, Link};
use super::listing::{FIRST_OFFSET, LayerEntry, LayerListing, Listing, Source, Visible, merge};
use super::lookup::{EntryRef, Hint};
use super::resolve::Answer;
use super::types::{FileKind, Ino};
use crate::layer::at::At;
use crate::layer::lower::{LowerDir, RawEntry, has_opaque_file, read_dir};
use crate::layer::markers::WH_PREFIX;

/// Entries handed out between two looks at the listing's lock.
const BATCH: usize = 64;

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
    /// It is listed, but what it is cannot be found out.
    pub unreadable: bool,
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
pub(crate) struct Recent(Mutex<VecDeque<Weak<Inode>>>);

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
        let mut kept = self.0.lock();
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
        let dir = oldest.as_ref().and_then(|inode| inode.dir.as_ref());
        if let Some(mut listing) = dir.and_then(|dir| dir.listing.try_lock()) {
            *listing = None;
        }
        true
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
                unreadable: false,
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
    fn listed(&self, inode: &Arc<Inode>, offset: u64) -> Result<Batch> {
        let dir = inode.dir.as_ref().ok_or(Errno::NOTDIR)?;
        let names = dir.ns.read();
        if names.dead {
            return Ok(Batch::default());
        }
        let mut held = dir.listing.lock();
        let end = [&dir.end[0], &dir.end[1]].map(|end| end.load(Ordering::Relaxed));
        let listing = match &mut *held {
            Some(listing) => listing,
            // The kernel asks once more to hear that this was all.
            None if offset > FIRST_OFFSET && end == [offset, names.version] => {
                return Ok(Batch::default());
            }
            none => none.insert(self.build_listing(inode, dir)?),
        };
        let (entries, length) = (listing.after(offset, BATCH), listing.len());
        if entries.is_empty() && !self.recent.keep(inode, length) {
            *held = None;
            dir.end[0].store(offset, Ordering::Relaxed);
            dir.end[1].store(names.version, Ordering::Relaxed);
        }
        Ok(Batch {
            entries,
            length,
            version: names.version,
        })
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
            unreadable: false,
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
                let (Some(kind), ino) = (visible.kind, visible.ino) else {
                    return Ok(None);
                };
                let ino = ino.unwrap_or_else(|| self.inos.alias(parent.ino, name));
                return Ok(Some(DirItem {
                    unreadable: true,
                    ..item(ino, kind, None)
                }));
            }
        };
        Ok(found.map(|entry| {
            let (ino, kind) = (entry.attr().ino, entry.attr().kind);
            item(ino, kind, plus.then_some(entry))
        }))
    }

    /// Merges the layers' listings; the caller holds the name lock.
    pub(crate) fn build_listing(&self, inode: &Inode, dir: &Dir) -> Result<Listing> {
        let mut layers = Vec::with_capacity(dir.lowers.len() + 1);
        if inode.in_upper() {
            layers.push(self.list_upper(inode, dir)?);
        }
        layers.extend(self.list_lowers(&dir.lowers)?);
        Ok(Listing::new(self.listing_order.clone(), merge(layers)))
    }

    /// The names in the lowers; one merged listing when the catalog has it.
    pub(crate) fn list_lowers(&self, lowers: &Lowers) -> Result<Vec<LayerListing>> {
        if let Some(merged) = lowers.merged() {
            match merged.entries(&self.inos) {
                Ok(entries) => {
                    return Ok(vec![LayerListing {
                        source: Source::Lower(0),
                        entries,
                        hides_below: Vec::new(),
                    }]);
                }
                Err(damaged) => self.distrust(merged.catalog(), damaged),
            }
        }
        let list = |(position, lower): (usize, &Arc<LowerDir>)| self.list_lower(lower, position);
        lowers.all()?.iter().enumerate().map(list).collect()
    }

    fn list_upper(&self, inode: &Inode, dir: &Dir) -> Result<LayerListing> {
        let upper = self.readable_upper()?;
        let fd = self.upper_dir(inode)?;
        // Without anything below and without copied-up files, d_ino is the number.
        let plain = dir.lowers.is_empty() && !dir.impure.load(Ordering::Acquire);
        let dev = upper.layer.stat.dev;
        let mut listing = LayerListing {
            source: Source::Upper,
            entries: Vec::new(),
            hides_below: Vec::new(),
        };
        let mut suspects = Vec::new();
        let xattr_form = upper.may_have_xwhiteouts(dir);
        let wh_names = upper.layer.dialect.wh_names;
        read_dir(&fd, |raw| {
            if wh_names && let Some(name) = raw.name.strip_prefix(WH_PREFIX) {
                listing.hides_below.push(name.into());
                return;
            }
            let suspect = match raw.kind {
                Some(FileKind::CharDevice) | None => true,
                Some(FileKind::Regular) => xattr_form && !plain,
                Some(_) => false,
            };
            if suspect {
                suspects.push(listing.entries.len());
            }
            let ino = plain.then(|| self.inos.number_of(dev, raw.ino));
            listing.entries.push(LayerEntry {
                name: raw.name.into(),
                kind: raw.kind,
                ino,
                record: None,
                whiteout: false,
            });
        })?;
        for i in suspects {
            let entry = &mut listing.entries[i];
            let at = At::new(fd.as_fd(), &entry.name);
            let Some(stat) = at.stat_opt()? else { continue };
            let empty_file = xattr_form && stat.kind == FileKind::Regular && stat.size == 0;
            entry.kind = Some(stat.kind);
            entry.whiteout =
                stat.is_chardev_whiteout() || (empty_file && upper.layer.markers(at)?.whiteout);
        }
        Ok(listing)
    }

    fn list_lower(&self, lower: &LowerDir, position: usize) -> Result<LayerListing> {
        let source = Source::Lower(position);
        let mut listing = LayerListing {
            source,
            entries: Vec::new(),
            hides_below: Vec::new(),
        };
        let wh_names = lower.layer.dialect.wh_names;
        let mut raws: Vec<RawEntry> = Vec::new();
        lower.read(&self.fds, |raw| match raw.name.strip_prefix(WH_PREFIX) {
            Some(name) if wh_names => listing.hides_below.push(name.into()),
            _ => raws.push(raw),
        })?;
        for raw in raws {
            let whiteout = lower.is_whiteout(&self.fds, &raw)?;
            let ino = Some(self.inos.number_of(lower.stat.dev, raw.ino));
            listing.entries.push(LayerEntry {
                name: raw.name.into(),
                kind: raw.kind,
                ino,
                record: None,
                whiteout,
            });
        }
        Ok(listing)
    }

    /// Whether a directory shows nothing; the caller holds its name lock.
    pub(crate) fn is_empty_dir(&self, inode: &Inode) -> Result<bool> {
        let dir = inode.dir.as_ref().ok_or(Errno::NOTDIR)?;
        if let Some(listing) = &*dir.listing.lock() {
            return Ok(listing.is_empty());
        }
        Ok(self.build_listing(inode, dir)?.is_empty())
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

    /// What a name resolves to, without counting or caching it.
    pub(crate) fn exists_below(&self, inode: &Inode, name: &[u8]) -> Result<bool> {
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
