//! A file of a lower layer, and the place of its data.

use std::sync::Arc;

use super::FileId;
use crate::layer::at::Stat;
use crate::layer::lower::LowerDir;
use crate::layer::types::FileKind;

/// A file of a lower layer that is not a directory.
#[derive(Debug)]
pub struct LowerFile {
    /// The directory that contains the file.
    pub dir: Arc<LowerDir>,
    /// The name in that directory.
    pub name: Arc<[u8]>,
    /// The attributes.
    pub stat: Stat,
    /// The file with the data, if this one is a metacopy.
    pub data: Option<Box<DataPlace>>,
    /// The number that the lowers gave the file.
    pub id: Option<FileId>,
    /// Whether the file is known to have no xattrs, on a file system that has xattrs.
    pub is_bare: bool,
}

/// The file that has the data of a metacopy.
#[derive(Debug)]
pub struct DataPlace {
    /// The directory that contains the file.
    pub dir: Arc<LowerDir>,
    /// The name in that directory.
    pub name: Arc<[u8]>,
    /// The inode number, which identifies the file: its other attributes are never shown.
    pub ino: u64,
}

impl LowerFile {
    /// Returns the directory and the name of the file with the data.
    pub fn data_place(&self) -> (&Arc<LowerDir>, &[u8]) {
        match &self.data {
            Some(data) => (&data.dir, &data.name),
            None => (&self.dir, &self.name),
        }
    }

    /// Whether `stat` is that of the file with the data, or of one that is at least as accessible.
    pub fn has_data_of(&self, stat: &Stat) -> bool {
        match &self.data {
            Some(data) => {
                let same = stat.ino == data.ino || !data.dir.layer.keeps_numbers;
                same && stat.kind == FileKind::Regular
            }
            None => self.stat.is_or_resembles(stat),
        }
    }
}
