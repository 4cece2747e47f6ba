//! Directory reading: entries of the merged listing, with inode numbers or with counted lookups.

use std::sync::Arc;

use super::Union;
use super::error::Result;
use super::inode::{Dir, Inode, Link};
use super::listings::Batch;
use super::lookup::{EntryRef, Hint};
use super::types::{FileKind, Ino};
use crate::lowers::{FIRST_OFFSET, FoundIn, Visible};
use crate::sys::sync::atomic::Ordering;

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
    /// With [`Union::readdirplus`]: the counted lookup, which the sink takes when it accepts the entry. Never for
    /// `.` and `..`, and not for most entries of a long directory.
    pub entry: Option<EntryRef<'u>>,
}

/// The information that a reader wants for each entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Entries {
    /// Name, number and type.
    Names,
    /// Attributes too. Each entry is counted as a lookup.
    LookedUp,
}

/// The number of entries of a directory that always come with attributes.
const WITH_ATTRIBUTES: u64 = 1024;
/// After this number of names were looked up one by one, all entries of a long directory have
/// attributes, and those of the next ones too.
pub(crate) const ASKED_ENOUGH: u32 = 32;

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
        sink: &mut dyn FnMut(DirItem<'_, 'u>) -> bool,
    ) -> Result<()> {
        self.list(ino, offset, Entries::Names, sink)
    }

    /// As [`Self::readdir`], with a counted lookup of each entry, except for most of a long
    /// directory.
    ///
    /// # Errors
    /// As [`Self::readdir`].
    pub fn readdirplus<'u>(
        &'u self,
        ino: Ino,
        offset: u64,
        sink: &mut dyn FnMut(DirItem<'_, 'u>) -> bool,
    ) -> Result<()> {
        self.list(ino, offset, Entries::LookedUp, sink)
    }

    fn list<'u>(
        &'u self,
        ino: Ino,
        mut offset: u64,
        wanted: Entries,
        sink: &mut dyn FnMut(DirItem<'_, 'u>) -> bool,
    ) -> Result<()> {
        let inode = self.names.directory(ino)?;
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
            } = self
                .listings
                .next(&self.stack, self.names.numbers(), &inode, offset)?;
            let Some((last, _)) = entries.last() else {
                return Ok(());
            };
            let next = *last;
            let wanted = if self.wants_attributes(&inode, offset, length) {
                wanted
            } else {
                Entries::Names
            };
            for (at, visible) in entries {
                let Some(item) = self.item(&inode, at, &visible, version, wanted)? else {
                    continue;
                };
                if !sink(item) {
                    return Ok(());
                }
            }
            offset = next;
        }
    }

    /// Whether entries after `offset` should include attributes. In a long directory, reading the
    /// attributes of every name costs far more than listing the names, and the reader may need only
    /// those. So only the first entries include them, until some names have been looked up one by
    /// one, in this directory or in the long one that was read before it. Offsets are hashes, so
    /// they tell roughly how many entries come before.
    fn wants_attributes(&self, inode: &Arc<Inode>, offset: u64, length: usize) -> bool {
        let before = (u128::from(offset) * length as u128) >> 63;
        let asked = |dir: &Dir| dir.asked.load(Ordering::Relaxed) >= ASKED_ENOUGH;
        before < u128::from(WITH_ATTRIBUTES)
            || inode.dir.as_ref().is_some_and(|dir| asked(dir))
            || self.listings.readers_want_attributes(inode)
    }

    /// Returns an entry as the sink takes it; `None` when it vanished meanwhile.
    fn item<'a>(
        &self,
        parent: &Arc<Inode>,
        offset: u64,
        visible: &'a Visible,
        version: u64,
        wanted: Entries,
    ) -> Result<Option<DirItem<'a, '_>>> {
        let name = &*visible.name;
        let item = |ino, kind, entry| DirItem {
            offset,
            name,
            ino,
            kind,
            entry,
        };
        if wanted == Entries::Names
            && let (Some(ino), Some(kind)) = (visible.ino, visible.kind)
        {
            return Ok(Some(item(ino, kind, None)));
        }
        let (lowers, id) = match visible.found_in {
            FoundIn::Upper => (None, None),
            FoundIn::Lower(position) => (Some(position), None),
            FoundIn::Known(id) => (Some(0), Some(id)),
        };
        let hint = lowers.map_or(Hint::Nothing, |skip| Hint::Listed { skip, version, id });
        // One unreadable entry must not hide the others.
        let found = match self.lookups().lookup_in(parent, name, hint) {
            Ok(found) => found,
            Err(e) => {
                tracing::debug!("listing {}: {e}", String::from_utf8_lossy(name));
                // A lookup of the name reports the error; leaving the name out would make a file
                // invisible.
                let (Some(kind), ino) = (visible.kind, visible.ino) else {
                    return Err(e);
                };
                let ino = ino.unwrap_or_else(|| self.names.numbers().alias(parent.ino, name));
                return Ok(Some(item(ino, kind, None)));
            }
        };
        Ok(found.map(|entry| {
            let (ino, kind) = (entry.attr().ino, entry.attr().kind);
            let entry = (wanted == Entries::LookedUp).then_some(entry);
            item(ino, kind, entry)
        }))
    }
}

fn parent_of(inode: &Inode) -> Ino {
    let loc = inode.loc.read();
    let link: Option<&Link> = loc.links.first();
    link.map_or(inode.ino, |link| link.parent.ino)
}
