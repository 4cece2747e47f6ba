//! The directories of layers that a directory of the union merges: two unions with the same layers
//! show the same content in it.

use std::sync::Arc;

use super::Union;
use super::error::Result;
use super::types::Ino;
use crate::layer::lower::LowerDir;

/// A directory of a lower layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LowerPart {
    /// The position of its layer from the bottom, which is 1.
    pub height: usize,
    /// The device number.
    pub dev: u64,
    /// The inode number.
    pub ino: u64,
}

impl Union {
    /// Returns the roots of the lower layers, top first.
    ///
    /// # Errors
    /// EIO for a damaged catalog.
    pub fn lower_roots(&self) -> Result<Vec<LowerPart>> {
        let root = self.stack.lowers().root();
        Ok(parts(root.all()?, root.len()))
    }

    /// Returns the directories of lower layers that are merged in a directory, top first; `None` if
    /// the upper has a part of it.
    ///
    /// # Errors
    /// ENOTDIR, ESTALE; EIO for a damaged catalog.
    pub fn lower_parts(&self, ino: Ino) -> Result<Option<Vec<LowerPart>>> {
        let inode = self.names.directory(ino)?;
        let Some(dir) = inode.dir.as_ref().filter(|_| !inode.in_upper()) else {
            return Ok(None);
        };
        let layers = self.stack.lowers().root().len();
        Ok(Some(parts(dir.lowers.all()?, layers)))
    }
}

fn parts(dirs: &[Arc<LowerDir>], layers: usize) -> Vec<LowerPart> {
    let part = |dir: &Arc<LowerDir>| LowerPart {
        height: layers.saturating_sub(dir.index),
        dev: dir.stat.dev,
        ino: dir.stat.ino,
    };
    dirs.iter().map(part).collect()
}
