//! Merged listings of directories. One is built from the layers on first use, updated by the union's
//! own operations, and dropped after it has been read to its end, when the kernel caches it.
//!
//! The listing itself is in its inode, and guarded by a lock there
//! ([`super::inode::Dir::listing`]). This module tracks which listings are in memory, so that their
//! total size stays bounded. Any of them can be built again, by this process or by another one. The
//! offsets of a reader are valid only in the process that returned them, because the order is keyed
//! at random.

mod listing;
mod readers;

use std::collections::VecDeque;
use std::hash::RandomState;
use std::os::fd::AsFd;
use std::sync::{Arc, Weak};

use rustix::io::Errno;

use super::error::Result;
use super::inode::{Dir, Inode};
use super::names::InodeNumbers;
use super::stack::Stack;
use super::types::{FileKind, Ino};
use crate::layer::at::At;
use crate::layer::lower::read_dir;
use crate::layer::markers::WH_PREFIX;
use crate::lowers::{FIRST_OFFSET, FoundIn, Gather, LayerEntry, ListedName, Names, Visible};
use crate::sys::sync::atomic::Ordering;
use crate::sys::sync::parking_lot;
use crate::sys::sync::parking_lot::Mutex;
pub(crate) use listing::Listing;
use readers::Readers;

/// The number of entries returned per lock of the listing.
const BATCH: usize = 64;
/// The same number if another reader may replace the window meanwhile, which is expensive.
const WINDOW_BATCH: usize = 512;
/// The maximum number of names of one directory in memory: about 40 MiB, and 150 MiB while they are
/// collected and sorted. A longer directory is read in windows.
const MOST: usize = 256 << 10;
/// The approximate maximum number of names in memory for all directories of a mount.
const MOST_OF_ALL: usize = 1 << 20;
/// The number of names that each listing counts in addition to its own.
const EACH: usize = 16;

/// A range of entries of a listing.
#[derive(Default)]
pub(crate) struct Batch {
    /// The entries with their offsets.
    pub entries: Vec<(u64, Visible)>,
    /// The number of entries of the whole listing.
    pub length: usize,
    /// The version of the names at which the range is valid.
    pub version: u64,
}

/// The listings in memory.
#[derive(Default)]
pub(crate) struct Listings {
    recent: Recent,
    readers: Readers,
    /// The hash that orders listings, keyed per mount.
    order: RandomState,
}

impl Listings {
    /// Returns the next entries after `offset`; at the end drops a long listing.
    ///
    /// # Errors
    /// Those of the layers' file systems.
    pub fn next(
        &self,
        stack: &Stack,
        numbers: &InodeNumbers,
        inode: &Arc<Inode>,
        mut offset: u64,
    ) -> Result<Batch> {
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
                    let mut listing = self.build(stack, numbers, inode, first)?;
                    if !listing.covers(offset) {
                        listing = self.build(stack, numbers, inode, offset)?;
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

    /// See [`Readers::want_attributes`].
    pub fn readers_want_attributes(&self, inode: &Arc<Inode>) -> bool {
        self.readers.want_attributes(inode)
    }

    /// Whether a directory is empty in the union; the caller holds its name lock.
    ///
    /// # Errors
    /// ENOTDIR; else those of the layers' file systems.
    pub fn is_empty(&self, stack: &Stack, numbers: &InodeNumbers, inode: &Inode) -> Result<bool> {
        let dir = inode.dir.as_ref().ok_or(Errno::NOTDIR)?;
        if let Some(listing) = &*dir.listing.lock()
            && (listing.is_whole() || !listing.is_empty())
        {
            return Ok(listing.is_empty());
        }
        let mut after = 0;
        loop {
            let listing = self.build(stack, numbers, inode, after)?;
            match listing.next_window() {
                Some(next) if listing.is_empty() => after = next,
                _ => return Ok(listing.is_empty()),
            }
        }
    }

    /// Merges the layers' listings (of a long directory, the window after `after`); the caller
    /// holds the name lock.
    fn build(
        &self,
        stack: &Stack,
        numbers: &InodeNumbers,
        inode: &Inode,
        after: u64,
    ) -> Result<Listing> {
        let dir = inode.dir.as_ref().ok_or(Errno::NOTDIR)?;
        let after = if after < FIRST_OFFSET { 0 } else { after };
        let number = |dev, ino| numbers.number_of(dev, ino);
        let mut gather = Gather::new(&self.order, &number, MOST, after);
        if inode.in_upper() {
            list_upper(stack, numbers, inode, dir, &mut gather)?;
        }
        dir.lowers.list(&mut gather)?;
        Ok(Listing::from(gather))
    }
}

/// Collects the names of an upper directory.
fn list_upper(
    stack: &Stack,
    numbers: &InodeNumbers,
    inode: &Inode,
    dir: &Dir,
    gather: &mut Gather<'_>,
) -> Result<()> {
    let upper = stack.readable_upper()?;
    let fd = stack.upper_dir(inode)?;
    // Without lowers and copied-up files, d_ino is the inode number.
    let plain = dir.lowers.is_empty() && !dir.impure.load(Ordering::Acquire);
    let dev = upper.layer.stat.dev;
    let xattr_form = upper.may_have_xwhiteouts(dir);
    let records = upper.records();
    let mut names;
    loop {
        names = Names::default();
        let wh_names = upper.reads_wh_names(dir);
        read_dir(&fd, |mut raw| {
            raw.forget_recorded_kind(records);
            if wh_names && let Some(name) = raw.name.strip_prefix(WH_PREFIX) {
                names.hide(gather, name);
            } else {
                names.add(gather, raw.name, (raw.kind, raw.ino));
            }
        })?;
        // A copy-up may have marked the directory meanwhile.
        if wh_names == upper.reads_wh_names(dir) {
            break;
        }
    }
    let mut listing = names.finish(FoundIn::Upper, |name, (kind, ino)| {
        Ok(LayerEntry {
            name,
            kind,
            ino: plain.then(|| numbers.number_of(dev, ino)),
            id: None,
            whiteout: false,
        })
    })?;
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

/// Adds a name that was just created in the upper of `parent` to a listing in memory.
pub(crate) fn add(parent: &Inode, name: &[u8], kind: FileKind, ino: Ino) {
    let Some(dir) = &parent.dir else { return };
    if let Some(listing) = &mut *dir.listing.lock() {
        let (kind, ino) = (Some(kind), Some(ino));
        listing.insert(Visible {
            name: ListedName::from(name),
            kind,
            ino,
            found_in: FoundIn::Upper,
        });
    }
}

/// Removes a name that was just removed from `parent` from a listing in memory.
pub(crate) fn remove(parent: &Inode, name: &[u8]) {
    let Some(dir) = &parent.dir else { return };
    if let Some(listing) = &mut *dir.listing.lock() {
        listing.remove(name);
    }
}

/// Directories whose listings stay in memory after they have been read, because a directory that
/// was listed is often emptied and removed next.
#[derive(Default)]
struct Recent {
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
        // A listing that is being read is dropped when the reader ends.
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
