//! A device of a pool, read by position. Blocks that are not mapped read as zeros.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::bad;
use super::btree::Trees;
use super::pool::DataBlocks;
use crate::store::error::Result;
use crate::sys::interrupt;

/// A thin device.
#[derive(Debug)]
pub(super) struct ThinDevice {
    trees: Trees,
    /// The root of the tree of its blocks.
    root: u64,
    data: Arc<DataBlocks>,
    /// The size in bytes.
    size: u64,
    /// The path of Docker's record of the device, for messages.
    record: PathBuf,
    /// The block that was looked up last, and its data block.
    last: Option<(u64, Option<u64>)>,
}

impl ThinDevice {
    pub(super) fn new(
        trees: Trees,
        root: u64,
        data: Arc<DataBlocks>,
        size: u64,
        record: &Path,
    ) -> Self {
        Self {
            trees,
            root,
            data,
            size,
            record: record.to_owned(),
            last: None,
        }
    }

    /// Returns the size in bytes.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    pub(super) fn record(&self) -> &Path {
        &self.record
    }

    /// Fills `bytes` from the position `start` on.
    pub(super) fn read_at(&mut self, start: u64, bytes: &mut [u8]) -> Result<()> {
        let end = start.checked_add(bytes.len() as u64);
        if end.is_none_or(|end| end > self.size) {
            let size = self.size;
            let fault = format!("its file system goes on after the {size} bytes of the device");
            return Err(bad(&self.record, fault, "load or pull the image again"));
        }
        interrupt::check()?;
        let block_size = self.data.block_size;
        let (mut at, mut rest) = (start, bytes);
        while !rest.is_empty() {
            let (block, offset) = (at / block_size, at % block_size);
            let piece = (block_size - offset).min(rest.len() as u64);
            let (now, later) = rest.split_at_mut(piece as usize);
            match self.mapped(block)? {
                Some(found) => self.data.read(found, offset, now)?,
                None => now.fill(0),
            }
            (at, rest) = (at + piece, later);
        }
        Ok(())
    }

    /// Returns the data block of a block; `None` if it was never written.
    pub(super) fn mapped(&mut self, block: u64) -> Result<Option<u64>> {
        if let Some((known, found)) = self.last
            && known == block
        {
            return Ok(found);
        }
        let value: Option<[u8; 8]> = self.trees.find(self.root, block)?;
        // The lower 24 bits are the time of the mapping.
        let found = value.map(|value| u64::from_le_bytes(value) >> 24);
        self.last = Some((block, found));
        Ok(found)
    }
}

impl ext4_view::Ext4Read for ThinDevice {
    fn read(
        &mut self,
        start: u64,
        bytes: &mut [u8],
    ) -> std::result::Result<(), Box<dyn std::error::Error + Send + Sync>> {
        Ok(self.read_at(start, bytes)?)
    }
}
