//! The place of a layer's files: a directory, or a file system on a device that only this program
//! reads.

use std::path::{Path, PathBuf};

use serde::{Serialize, Serializer};

use super::error::{Error, Result};
use super::image::lossy;
use crate::layer::LayerSpec;

/// The place of a layer's files. Displays as a path.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum LayerPlace {
    /// A directory, which can be a layer of a union.
    Dir(LayerSpec),
    /// The file system of a thin device; the path is the device's record. Such a layer is copied
    /// into our own store before it is mounted.
    Device(PathBuf),
}

impl LayerPlace {
    /// Returns the directory or the record.
    pub fn path(&self) -> &Path {
        match self {
            Self::Dir(spec) => spec.path(),
            Self::Device(record) => record,
        }
    }

    /// Returns the directory; `None` for a device.
    pub fn dir(&self) -> Option<&LayerSpec> {
        match self {
            Self::Dir(spec) => Some(spec),
            Self::Device(_) => None,
        }
    }

    /// Returns the directory of a container's layer.
    ///
    /// # Errors
    /// [`Error::OnDevice`] for a device.
    pub(crate) fn into_dir(self) -> Result<LayerSpec> {
        match self {
            Self::Dir(spec) => Ok(spec),
            Self::Device(path) => Err(Error::OnDevice { path }),
        }
    }
}

impl Serialize for LayerPlace {
    fn serialize<S: Serializer>(&self, s: S) -> std::result::Result<S::Ok, S::Error> {
        lossy(self.path(), s)
    }
}
