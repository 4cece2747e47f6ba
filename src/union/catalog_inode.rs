//! Inodes whose lower side is a record of the catalog: the record becomes a `LowerFile` when one is
//! needed, and what the catalog says about a file is checked against the layer before the file's
//! data is used.
//!
//! A file that differs from its record gives ESTALE, and the catalog is abandoned
//! ([`Union::distrust`]): attributes that the kernel has cached from it are wrong until it looks
//! the name up again.

use std::os::fd::AsFd as _;
use std::sync::Arc;

use rustix::io::Errno;

use super::Union;
use super::error::{Error, Result};
use super::inode::{Inode, Lower, LowerFile};
use super::mounted_catalog::{LowerDirs, MountedCatalog};
use crate::catalog::XATTR_FLAGS;
use crate::catalog::view::Identity;
use crate::layer::at::{At, Stat};
use crate::layer::lower::LowerDir;
use crate::layer::markers::Escape;

impl Union {
    /// Returns the error that getxattr gives for an xattr that the catalog knows to be absent.
    /// `None`: the file must be asked.
    pub(crate) fn known_absent(&self, inode: &Inode, name: &[u8]) -> Option<Errno> {
        let (catalog, record) = self.catalog_record(inode)?;
        let dialect = catalog.dialect(record).ok()?;
        let stored = Escape(dialect).stored(name).ok()?;
        catalog.absent_xattr(record, &stored, || {
            let asked = self.with_top(inode, |at, _| Ok(at.xattr_raw(&stored).map(drop)));
            asked.unwrap_or(Err(Errno::IO))
        })
    }

    /// Returns the lower file of an inode. A `LowerFile` for a catalog record is made on first use
    /// and then kept, with the directories on its path.
    ///
    /// # Errors
    /// EIO when the catalog is damaged.
    pub(crate) fn lower_of(&self, inode: &Inode) -> Result<Option<Arc<LowerFile>>> {
        let record = match &inode.loc.read().lower {
            None => return Ok(None),
            Some(Lower::File(file)) => return Ok(Some(Arc::clone(file))),
            Some(Lower::Record(record)) => *record,
        };
        let catalog = self.catalog.as_ref().ok_or(Errno::IO)?;
        let file = catalog.file(record).map_err(|damaged| {
            self.distrust(catalog, damaged);
            Errno::IO
        })?;
        let mut loc = inode.loc.write();
        if let Some(Lower::File(other)) = &loc.lower {
            return Ok(Some(Arc::clone(other)));
        }
        let file = Arc::new(file);
        loc.lower = Some(Lower::File(Arc::clone(&file)));
        Ok(Some(file))
    }

    /// Returns the attributes in a record.
    ///
    /// # Errors
    /// EIO when the catalog is damaged.
    pub(crate) fn record_stat(&self, record: u32) -> Result<Stat> {
        let catalog = self.catalog.as_ref().ok_or(Errno::IO)?;
        Ok(catalog.stat(record).map_err(|_| Errno::IO)?)
    }

    /// Returns the record of an inode that is in the lowers only.
    pub(crate) fn catalog_record(&self, inode: &Inode) -> Option<(&Arc<MountedCatalog>, u32)> {
        let catalog = self.catalog.as_ref().filter(|c| c.is_believed())?;
        let loc = inode.loc.read();
        if loc.upper.is_some() {
            return None;
        }
        match (&inode.dir, &loc.lower) {
            (Some(dir), _) => Some((catalog, dir.lowers.catalog_dir()?.record())),
            (None, Some(lower)) => Some((catalog, lower.record()?)),
            (None, None) => None,
        }
    }

    /// Stops using the catalog because it contains an error: from now on the layers are read.
    pub(crate) fn distrust(&self, catalog: &MountedCatalog, why: impl std::fmt::Display) {
        if catalog.give_up(why) {
            self.lookup_cache.clear();
        }
    }

    /// Compares an open lower file with what the catalog says about it.
    ///
    /// # Errors
    /// ESTALE when they differ: what the kernel was told about the file is wrong.
    pub(crate) fn check_identity(&self, file: &LowerFile, opened: At<'_>) -> Result<()> {
        let (Some(record), Some(catalog)) = (file.record, &self.catalog) else {
            return Ok(());
        };
        let found = Identity::from(&opened.stat()?);
        match catalog.identity(record) {
            Ok(said) if said == found => Ok(()),
            _ => {
                let (dir, name) = file.data_place();
                Err(self.stale(catalog, dir, name))
            }
        }
    }

    fn stale(&self, catalog: &MountedCatalog, dir: &LowerDir, name: &[u8]) -> Error {
        let (layer, name) = (dir.layer.path.display(), String::from_utf8_lossy(name));
        let why = format_args!("{name:?} in layer {layer} has been changed");
        self.distrust(catalog, why);
        Errno::STALE.into()
    }

    /// Compares a lower file or directory that is about to be copied up with what the catalog says.
    ///
    /// # Errors
    /// As [`Self::check_identity`].
    pub(crate) fn check_lower(&self, inode: &Inode) -> Result<()> {
        let Some(dir) = &inode.dir else {
            let Some(file) = self.lower_of(inode)?.filter(|file| file.record.is_some()) else {
                return Ok(());
            };
            let (dir, name) = file.data_place();
            return self.check_identity(&file, At::new(dir.fd(&self.fds)?.as_fd(), name));
        };
        let LowerDirs::Catalog(merged) = &dir.lowers else {
            return Ok(());
        };
        let top = merged.top();
        let found = At::fd(top.fd(&self.fds)?.as_fd()).stat()?;
        if Identity::from(&found) == Identity::from(&top.stat) {
            return Ok(());
        }
        let name = top.place().map_or(&b"/"[..], |(_, name)| name);
        Err(self.stale(merged.catalog(), top, name))
    }

    /// Whether the catalog's record of a file matches this data and these xattrs.
    pub(crate) fn record_is(&self, record: u32, data: &Stat, xattrs: u16) -> bool {
        self.catalog.as_ref().is_some_and(|catalog| {
            let said = catalog.identity(record);
            let flags = catalog.flags(record);
            said == Ok(Identity::from(data))
                && flags.is_ok_and(|flags| flags & XATTR_FLAGS == xattrs)
        })
    }
}
