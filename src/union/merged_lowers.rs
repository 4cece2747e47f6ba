//! The merged lowers without the upper: what `crate::catalog` walks to write a catalog, and to
//! compare a catalog with the layers. Nothing here is used by a mount.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::io::Errno;

use super::error::Result;
use super::listing::{Visible, merge};
use super::types::{Ino, ROOT_INO};
use super::{LowerDirs, LowerLookup, Union};
use crate::layer::lower::LowerDir;

/// The merged lowers, without the upper.
impl Union {
    /// Returns the roots of the layers, and of the data-only layers.
    pub(crate) fn lower_roots(&self) -> (&Arc<[Arc<LowerDir>]>, &[Arc<LowerDir>]) {
        (&self.roots, &self.data_roots)
    }

    /// Returns the lower directories of the root.
    pub(crate) fn root_lowers(&self) -> Result<LowerDirs> {
        let root = self.directory(ROOT_INO)?;
        let dir = root.dir.as_ref().ok_or(Errno::NOTDIR)?;
        Ok(dir.lowers.clone())
    }

    /// Returns the names in a directory of the lowers.
    pub(crate) fn merged_names(&self, lowers: &LowerDirs) -> Result<Vec<Visible>> {
        Ok(merge(self.all_of_lowers(lowers)?))
    }

    /// Looks one of these names up; the first `skip` lowers are known not to have it.
    pub(crate) fn merged_name(
        &self,
        lowers: &LowerDirs,
        skip: usize,
        name: &[u8],
    ) -> Result<LowerLookup> {
        self.lookup_lowers(lowers, skip, name, None)
    }

    /// Returns a descriptor of a directory of a layer.
    pub(crate) fn lower_fd(&self, dir: &LowerDir) -> std::result::Result<Arc<OwnedFd>, Errno> {
        dir.fd(&self.fds)
    }

    /// Returns the inode number in its layer of a file with this number in the union.
    pub(crate) fn layer_ino(&self, ino: Ino) -> u64 {
        self.inode_numbers.own(ino)
    }
}
