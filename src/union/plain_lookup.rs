//! Lookup of plain files whose numbers the lowers know: the inode is created from the number,
//! without reading a layer and without the lookup cache, because such a lookup costs no more than
//! one in the cache.

use std::sync::Arc;

use super::error::Result;
use super::inode::Inode;
use super::lookup::{Found, Hint, Lookup, Seen};
use crate::lowers::{MergedDir, Plain};

/// The answer of [`Lookup::find_plain`].
pub(super) enum PlainLookup {
    /// There is no such name.
    Absent,
    /// A plain file of the lowers.
    Found(Found),
    /// This must be looked up by [`Lookup::find`].
    Unknown,
}

impl Lookup<'_> {
    /// Looks `name` up among the plain files of the lowers, for a directory in which the upper is
    /// known not to have the name.
    pub(super) fn find_plain(
        self,
        parent: &Arc<Inode>,
        name: &[u8],
        hint: Hint,
    ) -> Result<PlainLookup> {
        let Some(merged) = indexed(parent) else {
            return Ok(PlainLookup::Unknown);
        };
        let listed = match hint {
            Hint::Listed { id, .. } => id,
            _ => None,
        };
        if listed.is_none() && parent.in_upper() {
            return Ok(PlainLookup::Unknown);
        }
        let plain = match listed {
            Some(id) => self.stack.lowers().plain(id),
            None => merged.plain(name),
        };
        let (id, stat) = match plain {
            Plain::File(id, stat) => (id, stat),
            Plain::Absent if name.len() <= self.stack.name_max() => return Ok(PlainLookup::Absent),
            Plain::Absent | Plain::Unknown => return Ok(PlainLookup::Unknown),
        };
        let name = Arc::from(name);
        let inode = self.names.intern_plain(parent, &name, id, &stat);
        Ok(PlainLookup::Found((inode, Some(Seen::Lower(stat)))))
    }

    /// Returns the inode of a plain file that the kernel has looked up, counted. As long as that
    /// inode has the name, the layers need not be read.
    pub(super) fn find_linked(self, parent: &Arc<Inode>, name: &[u8]) -> Option<Arc<Inode>> {
        let Plain::File(_, stat) = indexed(parent)?.plain(name) else {
            return None;
        };
        self.names.find_plain(parent, name, &stat)
    }
}

/// Returns the lower side of a directory if the lowers know the numbers of its names.
fn indexed(inode: &Inode) -> Option<&dyn MergedDir> {
    let merged = inode.dir.as_ref()?.lowers.merged()?;
    merged.id().map(|_| merged)
}
