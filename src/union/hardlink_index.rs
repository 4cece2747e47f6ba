//! The hard-link index: a copied-up file that had several names in its lower layer is linked into
//! `work/index`, under the hex form of its origin (an encoded file handle), so that its other names
//! find the copy. The format is that of kernel overlayfs with `index=on`.

use std::os::fd::AsFd;

use rustix::io::Errno;

use super::Union;
use super::error::Result;
use super::inode::LowerFile;
use crate::layer::at::{At, Stat};
use crate::layer::markers::Markers;
use crate::layer::origin::Origin;

impl Union {
    /// Whether the index has the file of `stat` under `origin`.
    pub(crate) fn has_index_entry(&self, origin: &Origin, stat: &Stat) -> Result<bool> {
        let Some(upper) = &self.upper else {
            return Ok(false);
        };
        let Some(index) = upper.index_dir_opt()? else {
            return Ok(false);
        };
        let found = At::new(index.as_fd(), &origin.index_name()).stat_opt()?;
        Ok(found.is_some_and(|s| (s.dev, s.ino) == (stat.dev, stat.ino)))
    }

    /// Whether an origin in `user.*` is trusted for an upper file that has another name than its
    /// lower file: only if the upper's owner has the server's rights, or if the server put the file
    /// into the index.
    pub(crate) fn believes_origin(&self, origin: &Origin, stat: &Stat) -> Result<bool> {
        let Some(upper) = &self.upper else {
            return Ok(false);
        };
        if upper.layer.believes_user {
            return Ok(true);
        }
        Ok(upper.index_is_ours()? && self.has_index_entry(origin, stat)?)
    }

    /// Returns the copy of a lower file with several names, if it was copied up.
    pub(crate) fn indexed(&self, file: &LowerFile) -> Result<Option<(Stat, Markers, Origin)>> {
        let Some(upper) = &self.upper else {
            return Ok(None);
        };
        let Some(index) = upper.index_dir_opt()? else {
            return Ok(None);
        };
        let Some(origin) = self.origin_of(file)? else {
            return Ok(None);
        };
        let name = origin.index_name();
        let at = At::new(index.as_fd(), &name);
        let Some(stat) = at.stat_opt()? else {
            return Ok(None);
        };
        let markers = upper.layer.markers(at)?;
        let forged =
            markers.from_user.origin && !upper.layer.believes_user && !upper.index_is_ours()?;
        // A stale or forged entry is not the file.
        let true_entry = !forged
            && stat.kind == file.stat.kind
            && markers.origin.as_deref() == Some(origin.as_bytes());
        Ok(true_entry.then_some((stat, markers, origin)))
    }

    /// Returns the encoded handle of a lower file; `None` where its file system has no handles.
    pub(crate) fn origin_of(&self, file: &LowerFile) -> Result<Option<Origin>> {
        let fd = file.dir.fd(&self.fds)?;
        match Origin::of(At::new(fd.as_fd(), &file.name), file.dir.layer.uuid) {
            Ok(origin) => Ok(Some(origin)),
            Err(Errno::OPNOTSUPP | Errno::OVERFLOW | Errno::NOSYS | Errno::PERM) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Whether a copy of the file needs an index entry.
    pub(crate) fn wants_index(file: &LowerFile) -> bool {
        file.stat.nlink > 1
    }
}
