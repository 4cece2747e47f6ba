//! Where the files of a layer are: a directory, or a file system that only we read.

use std::path::{Path, PathBuf};

use serde::{Serialize, Serializer};

use super::error::{Error, Result};
use super::image::lossy;
use crate::layer::LayerSpec;

/// Where the files of a layer are. Shown as a path.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum LayerPlace {
    /// In a directory, which a union can have as a layer.
    Dir(LayerSpec),
    /// In the file system of a thin device; this is the record of it. Such a layer is taken into our own
    /// store before it is mounted.
    Device(PathBuf),
}

impl LayerPlace {
    /// The directory or the record.
    pub fn path(&self) -> &Path {
        match self {
            Self::Dir(spec) => spec.path(),
            Self::Device(record) => record,
        }
    }

    /// The directory; `None` for a device.
    pub fn dir(&self) -> Option<&LayerSpec> {
        match self {
            Self::Dir(spec) => Some(spec),
            Self::Device(_) => None,
        }
    }

    /// The directory of a container's layer.
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
