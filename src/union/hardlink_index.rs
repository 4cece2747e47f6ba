//! The hard-link index: a copied-up file that had several names in its lower layer is linked into
//! `work/index`, under the hex form of its origin (an encoded file handle), so that its other names
//! find the copy. The format is that of kernel overlayfs with `index=on`.

use std::os::fd::AsFd;

use super::error::Result;
use super::inode::Loc;
use super::upper::Upper;
use crate::layer::at::{At, Stat};
use crate::layer::markers::Markers;
use crate::layer::origin::Origin;
use crate::lowers::{LowerFile, Lowers};

/// The copy of a lower file, as found in the index.
pub(crate) struct IndexedCopy {
    pub stat: Stat,
    pub markers: Markers,
    /// The origin. The name in the index is made from it.
    pub origin: Origin,
}

impl Upper {
    /// Whether the index has the file of `stat` under `origin`.
    pub(crate) fn has_index_entry(&self, origin: &Origin, stat: &Stat) -> Result<bool> {
        let Some(index) = self.index_dir_opt()? else {
            return Ok(false);
        };
        let name = origin.index_name();
        let found = At::new(index.as_fd(), &name)
            .recorded_as(self.records())
            .stat_opt()?;
        Ok(found.is_some_and(|s| (s.dev, s.ino) == (stat.dev, stat.ino)))
    }

    /// Whether an origin in `user.*` is trusted for an upper file that has another name than its
    /// lower file: only if the upper's owner has the server's rights, or if the server put the file
    /// into the index.
    pub(crate) fn believes_origin(&self, origin: &Origin, stat: &Stat) -> Result<bool> {
        if self.layer.believes_user {
            return Ok(true);
        }
        Ok(self.index_is_ours()? && self.has_index_entry(origin, stat)?)
    }

    /// Returns the copy of a lower file with several names, if it was copied up.
    pub(crate) fn indexed(
        &self,
        lowers: &dyn Lowers,
        file: &LowerFile,
    ) -> Result<Option<IndexedCopy>> {
        let Some(index) = self.index_dir_opt()? else {
            return Ok(None);
        };
        let Some(origin) = lowers.origin(file)? else {
            return Ok(None);
        };
        let name = origin.index_name();
        let at = At::new(index.as_fd(), &name).recorded_as(self.records());
        let Some(stat) = at.stat_opt()? else {
            return Ok(None);
        };
        let markers = self.layer.markers(at)?;
        let forged =
            markers.from_user.origin && !self.layer.believes_user && !self.index_is_ours()?;
        // A stale or forged entry is another file.
        let is_true = !forged
            && stat.kind == file.stat.kind
            && markers.origin.as_deref() == Some(origin.as_bytes());
        Ok(is_true.then_some(IndexedCopy {
            stat,
            markers,
            origin,
        }))
    }

    /// Removes the index entry, which is in `loc`, of a file without names.
    pub(crate) fn drop_index_entry(&self, loc: &mut Loc) {
        let Some(name) = loc.rare_opt().and_then(|rare| rare.index.take()) else {
            return;
        };
        let removed = self
            .index_dir()
            .and_then(|dir| Ok(At::new(dir.as_fd(), &name).unlink()?));
        if let Err(e) = removed {
            tracing::warn!("cannot remove an index entry: {e}");
        }
    }
}

/// Whether a copy of the file needs an index entry.
pub(crate) fn wants_index(file: &LowerFile) -> bool {
    file.stat.nlink > 1
}
