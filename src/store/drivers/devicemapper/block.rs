//! The blocks of a pool's metadata: 4096 bytes, each with a checksum and its own number.
//!
//! ```text
//!  0  u32 check sum: CRC-32C of the rest, without the last inversion, XOR a number of the kind of block
//!  4  u32 flags
//!  8  u64 number of this block
//! ```
//! (Linux, drivers/md/persistent-data/dm-block-manager.c; all numbers are little endian.) The
//! checksum and number prove that the block is the wanted one and has not been damaged.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use crc::{CRC_32_ISCSI, Crc};

use super::pool_file::PoolFile;
use super::{CHECK, bad};
use crate::store::error::{Error, Result};

/// Bytes of a block.
pub(super) const BLOCK: usize = 4096;

static CRC32C: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);

/// The kind of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Superblock,
    Node,
}

impl Kind {
    /// Returns the number that is combined with the checksum.
    fn salt(self) -> u32 {
        match self {
            Self::Superblock => 160_774,
            Self::Node => 121_107,
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::Superblock => "superblock",
            Self::Node => "node of a tree",
        }
    }
}

/// A block with the right checksum and number.
#[derive(Debug)]
pub(super) struct Block(Box<[u8; BLOCK]>);

impl Block {
    pub(super) fn u32(&self, at: usize) -> u32 {
        let bytes = self.0.get(at..).and_then(<[u8]>::first_chunk);
        bytes.map_or(0, |bytes| u32::from_le_bytes(*bytes))
    }

    pub(super) fn u64(&self, at: usize) -> u64 {
        let bytes = self.0.get(at..).and_then(<[u8]>::first_chunk);
        bytes.map_or(0, |bytes| u64::from_le_bytes(*bytes))
    }

    pub(super) fn bytes<const N: usize>(&self, at: usize) -> Option<&[u8; N]> {
        self.0.get(at..).and_then(<[u8]>::first_chunk)
    }
}

/// Returns the checksum that a block of that kind should have.
pub(super) fn sum_of(block: &[u8; BLOCK], kind: Kind) -> u32 {
    !CRC32C.checksum(&block[4..]) ^ kind.salt()
}

/// The metadata of a pool.
#[derive(Debug)]
pub(super) struct MetadataBlocks {
    file: File,
    path: PathBuf,
    count: u64,
}

impl MetadataBlocks {
    pub(super) fn of(file: &PoolFile) -> Result<Self> {
        Ok(Self {
            count: file.length()? / BLOCK as u64,
            path: file.path.clone(),
            file: file.reopened()?,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the number of blocks in the file.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// Returns a number in a block without verifying the block.
    pub(super) fn peek(&self, number: u64, at: u64) -> Option<u64> {
        let mut bytes = [0; 8];
        let place = number * BLOCK as u64 + at;
        self.file.read_exact_at(&mut bytes, place).ok()?;
        Some(u64::from_le_bytes(bytes))
    }

    /// Reads and verifies a block.
    pub(super) fn read(&self, number: u64, kind: Kind) -> Result<Block> {
        let what = kind.text();
        if number >= self.count {
            let count = self.count;
            let fault = format!("{what} in block {number}, but it has only {count} blocks");
            return Err(bad(&self.path, fault, CHECK));
        }
        let mut bytes = Box::new([0; BLOCK]);
        let read = self.file.read_exact_at(&mut *bytes, number * BLOCK as u64);
        read.map_err(|error| unreadable(&self.path, &error))?;
        let block = Block(bytes);
        let (noted, sum) = (block.u32(0), sum_of(&block.0, kind));
        if noted != sum {
            let fault = format!("block {number}, a {what}, has a wrong check sum");
            return Err(bad(&self.path, fault, CHECK));
        }
        let own = block.u64(8);
        if own != number {
            let fault = format!("block {number}, a {what}, is block {own} by its own words");
            return Err(bad(&self.path, fault, CHECK));
        }
        Ok(block)
    }
}

/// Returns the error of a file that cannot be read.
pub(super) fn unreadable(path: &Path, error: &std::io::Error) -> Error {
    let errno = rustix::io::Errno::from_io_error(error).unwrap_or(rustix::io::Errno::IO);
    Error::io("read", path, errno)
}
