//! The hard-link index: a copied-up file that had several names in its lower layer is
//! linked into `work/index` under the encoded handle of its origin, so that its other
//! names find it. The format is kernel overlayfs' (`index=on`).

use std::os::fd::AsFd;

use rustix::io::Errno;

use super::Union;
use super::error::Result;
use super::inode::LowerFile;
use crate::layer::at::{At, Stat};
use crate::layer::markers::Markers;
use crate::layer::origin::Origin;

impl Union {
    /// Whether the index has `stat`'s file under `origin`.
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

    /// Whether an origin in `user.*` is believed of an upper file that has another name than the
    /// one it came from: where the upper's owner has our rights, or we put it into the index.
    pub(crate) fn believes_origin(&self, origin: &Origin, stat: &Stat) -> Result<bool> {
        let Some(upper) = &self.upper else {
            return Ok(false);
        };
        if upper.layer.believes_user {
            return Ok(true);
        }
        Ok(upper.index_is_ours()? && self.has_index_entry(origin, stat)?)
    }

    /// The copied-up file of a lower file with several names.
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
        // A stale entry, or one that somebody made up, is not the file.
        let true_entry = !forged
            && stat.kind == file.stat.kind
            && markers.origin.as_deref() == Some(origin.as_bytes());
        Ok(true_entry.then_some((stat, markers, origin)))
    }

    /// The encoded handle of a lower file; `None` where its file system has none.
    pub(crate) fn origin_of(&self, file: &LowerFile) -> Result<Option<Origin>> {
        let fd = file.dir.fd(&self.fds)?;
        match Origin::of(At::new(fd.as_fd(), &file.name), file.dir.layer.uuid) {
            Ok(origin) => Ok(Some(origin)),
            Err(Errno::OPNOTSUPP | Errno::OVERFLOW | Errno::NOSYS | Errno::PERM) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Whether copying the file up must go through the index.
    pub(crate) fn wants_index(file: &LowerFile) -> bool {
        file.stat.nlink > 1
    }
}
