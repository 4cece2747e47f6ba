//! Lookup of plain files that are in the catalog: the inode is made from the record, without
//! reading a layer and without the lookup cache, as a lookup in the catalog costs no more than one
//! in the cache.

use std::sync::Arc;

use rustix::io::Errno;
use smallvec::smallvec;

use super::Union;
use super::error::Result;
use super::inode::{Inode, Link, Loc, Lower};
use super::inode_table::Interned;
use super::lookup::{Found, Hint, Seen};
use super::mounted_catalog::CatalogEntry;
use super::types::FileKind;
use crate::layer::at::Stat;

impl Union {
    /// Looks `name` up in the catalog, for a directory in which the upper is known not to have the
    /// name. `Ok(None)`: the catalog cannot answer, use [`Self::find`]. `Ok(Some(None))`: no such
    /// name.
    pub(super) fn find_record(
        &self,
        parent: &Arc<Inode>,
        name: &[u8],
        hint: Hint<'_>,
    ) -> Result<Option<Option<Found>>> {
        let Some(merged) = parent.dir.as_ref().and_then(|dir| dir.lowers.catalog_dir()) else {
            return Ok(None);
        };
        let listed = match hint {
            Hint::Listed { record, name, .. } => record.map(|record| (record, name)),
            _ => None,
        };
        if listed.is_none() && parent.in_upper() {
            return Ok(None);
        }
        let plain = match listed {
            Some((record, _)) => merged.catalog().plain_at(record),
            None => merged.plain(name),
        };
        let (record, stat) = match plain {
            Ok(CatalogEntry::File(record, stat)) => (record, stat),
            Ok(CatalogEntry::Absent) if name.len() <= self.name_max => return Ok(Some(None)),
            // `find` meets the same damage and abandons the catalog.
            Ok(CatalogEntry::Absent | CatalogEntry::Special) | Err(_) => return Ok(None),
        };
        let name = listed.map_or_else(|| Arc::from(name), |(_, name)| Arc::clone(name));
        let inode = self.intern_record(parent, &name, record, &stat)?;
        Ok(Some(Some((inode, Some(Seen::Record(stat))))))
    }

    /// Returns the inode of a plain file in the catalog, counted. An inode that has this name
    /// already is the right one, even if it has been copied up since.
    fn intern_record(
        &self,
        parent: &Arc<Inode>,
        name: &Arc<[u8]>,
        record: u32,
        stat: &Stat,
    ) -> Result<Arc<Inode>> {
        let make = |ino| {
            let link = Link {
                parent: Arc::clone(parent),
                name: Arc::clone(name),
                in_upper: false,
                in_lower: None,
            };
            let loc = Loc {
                links: smallvec![link],
                lower: Some(Lower::Record(record)),
                ..Loc::default()
            };
            Inode::new(ino, stat.kind, (0, 0), loc, None)
        };
        let is_it = |inode: &Inode| is_linked(inode, parent, name, stat.kind);
        let mut ino = self.inode_numbers.number(stat);
        loop {
            match self.table.intern(ino, is_it, || make(ino)) {
                Interned::Created(inode) | Interned::Existing(inode) => return Ok(inode),
                // The number is taken by another file: see `intern`.
                Interned::Conflict => {
                    let alias = self.inode_numbers.alias(parent.ino, name);
                    if ino == alias {
                        return Err(Errno::STALE.into());
                    }
                    ino = alias;
                }
            }
        }
    }

    /// Returns the inode of a lower file that the kernel has looked up, counted, found by its
    /// number in the catalog. As long as that inode has the name, the layers need not be read.
    pub(super) fn find_linked(&self, parent: &Arc<Inode>, name: &[u8]) -> Option<Arc<Inode>> {
        let merged = parent.dir.as_ref()?.lowers.catalog_dir()?;
        let Ok(CatalogEntry::File(_, stat)) = merged.plain(name) else {
            return None;
        };
        let inode = self.table.count(self.inode_numbers.number(&stat))?;
        if is_linked(&inode, parent, name, stat.kind) {
            return Some(inode);
        }
        self.table.release(inode.ino, 1);
        None
    }
}

/// Whether the inode is a file of this kind and has this name.
fn is_linked(inode: &Inode, parent: &Inode, name: &[u8], kind: FileKind) -> bool {
    inode.kind == kind && inode.dir.is_none() && inode.loc.read().link(parent, name).is_some()
}
