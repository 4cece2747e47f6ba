//! A thin pool, read in user space: its superblock, and the devices in its trees.
//!
//! ```text
//!  superblock ──► mappings: device ID ──► tree of the device: block ──► data block, time
//!             └─► details:  device ID ──► blocks that are mapped, transaction, times
//! ```
//! While a device of the kernel uses a pool, the pool changes, and some of its state is in the
//! kernel's memory only: of such a pool only the metadata snapshot is read.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::block::{MetadataBlocks, unreadable};
use super::btree::Trees;
use super::pool_file::{PoolFile, PoolFiles};
use super::record::DeviceRecord;
use super::superblock::Superblock;
use super::thin_device::ThinDevice;
use super::{CHECK, bad};
use crate::store::error::Result;

const STOP: &str = "stop the Docker that uses it, or have the kernel keep a snapshot of the metadata \
                    (dmsetup message POOL 0 reserve_metadata_snap)";

/// An opened pool.
#[derive(Debug)]
pub(super) struct Pool {
    metadata: Arc<MetadataBlocks>,
    data: Arc<DataBlocks>,
    superblock: Superblock,
}

impl Pool {
    /// Opens a pool.
    pub(super) fn open(files: &PoolFiles) -> Result<Self> {
        let metadata = MetadataBlocks::of(&files.metadata)?;
        let path = metadata.path();
        let first = Superblock::read(&metadata, 0)?;
        if first.needs_check {
            let fault = "the kernel has marked the pool as one that needs a check".to_owned();
            return Err(bad(path, fault, CHECK));
        }
        let superblock = match (&files.holder, first.snapshot) {
            (None, _) => first.clone(),
            (Some(_), Some(block)) => {
                let snapshot = Superblock::read(&metadata, block)?;
                if snapshot.block_size != first.block_size {
                    let fault = "its snapshot has data blocks of another size".to_owned();
                    return Err(bad(path, fault, CHECK));
                }
                snapshot
            }
            (Some(holder), None) => {
                let fault = format!("the pool is in use by {holder}");
                return Err(bad(path, fault, STOP));
            }
        };
        let data = DataBlocks::of(&files.data, first.block_size, first.data_blocks)?;
        Ok(Self {
            metadata: Arc::new(metadata),
            data: Arc::new(data),
            superblock,
        })
    }

    /// Returns the transaction number that the owner of the pool has stored in it.
    pub(super) fn transaction(&self) -> u64 {
        self.superblock.transaction
    }

    /// Opens a device. `record` is Docker's record of it, `at` the record's path.
    pub(super) fn device(&self, record: &DeviceRecord, at: &Path) -> Result<ThinDevice> {
        let mut trees = Trees::of(Arc::clone(&self.metadata));
        let id = u64::from(record.device_id);
        let details: Option<[u8; 24]> = trees.find(self.superblock.details, id)?;
        let root: Option<[u8; 8]> = trees.find(self.superblock.mappings, id)?;
        let (Some(_), Some(root)) = (details, root) else {
            let fault = format!("device {id} is not in the pool {:?}", self.metadata.path());
            return Err(bad(at, fault, "load or pull the image again"));
        };
        let data = Arc::clone(&self.data);
        let root = u64::from_le_bytes(root);
        Ok(ThinDevice::new(trees, root, data, record.size, at))
    }
}

/// The data of a pool.
#[derive(Debug)]
pub(super) struct DataBlocks {
    file: File,
    path: PathBuf,
    /// The bytes of the file.
    length: u64,
    /// The bytes of a block.
    pub(super) block_size: u64,
    count: u64,
}

impl DataBlocks {
    fn of(file: &PoolFile, block_size: u64, count: u64) -> Result<Self> {
        Ok(Self {
            length: file.length()?,
            path: file.path.clone(),
            file: file.reopened()?,
            block_size,
            count,
        })
    }

    /// Reads from a block. `offset` and the length of `bytes` must be within the block.
    pub(super) fn read(&self, block: u64, offset: u64, bytes: &mut [u8]) -> Result<()> {
        if block >= self.count {
            let count = self.count;
            let fault = format!("block {block} of the data is used, which has only {count} blocks");
            return Err(bad(&self.path, fault, CHECK));
        }
        let start = block
            .checked_mul(self.block_size)
            .and_then(|start| start.checked_add(offset));
        let end = start.and_then(|start| start.checked_add(bytes.len() as u64));
        let Some(start) = start.filter(|_| end.is_some_and(|end| end <= self.length)) else {
            let length = self.length;
            let fault =
                format!("it is cut off: it ends after {length} bytes, before block {block}");
            return Err(bad(&self.path, fault, "restore the whole file"));
        };
        let read = self.file.read_exact_at(bytes, start);
        read.map_err(|error| unreadable(&self.path, &error))
    }
}
