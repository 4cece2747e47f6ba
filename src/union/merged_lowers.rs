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

/// The merged view of the lowers alone, for whoever writes it down or compares it.
impl Union {
    /// Roots of the layers, and of the data-only ones.
    pub(crate) fn lower_roots(&self) -> (&Arc<[Arc<LowerDir>]>, &[Arc<LowerDir>]) {
        (&self.roots, &self.data_roots)
    }

    /// The root directory's lowers.
    pub(crate) fn root_lowers(&self) -> Result<LowerDirs> {
        let root = self.directory(ROOT_INO)?;
        let dir = root.dir.as_ref().ok_or(Errno::NOTDIR)?;
        Ok(dir.lowers.clone())
    }

    /// The names in a directory of the lowers.
    pub(crate) fn merged_names(&self, lowers: &LowerDirs) -> Result<Vec<Visible>> {
        Ok(merge(self.all_of_lowers(lowers)?))
    }

    /// What the lowers say about one of these names, which the first `skip` do not have.
    pub(crate) fn merged_name(
        &self,
        lowers: &LowerDirs,
        skip: usize,
        name: &[u8],
    ) -> Result<LowerLookup> {
        self.lookup_lowers(lowers, skip, name, None)
    }

    /// A descriptor for a directory of a layer.
    pub(crate) fn lower_fd(&self, dir: &LowerDir) -> std::result::Result<Arc<OwnedFd>, Errno> {
        dir.fd(&self.fds)
    }

    /// The number that a file with this inode number in the union has in its layer.
    pub(crate) fn layer_ino(&self, ino: Ino) -> u64 {
        self.inode_numbers.own(ino)
    }
}
