//! The superblock: the roots of a pool's trees, and the state of the pool.
//!
//! ```text
//!   4  u32 flags; 1: needs a check     320  u64 root of the mappings
//!  32  u64 magic                       328  u64 root of the details of devices
//!  40  u32 version                     336  u32 sectors of a data block
//!  48  u64 transaction                 340  u32 sectors of a metadata block
//!  56  u64 block of the snapshot       344  u64 blocks of metadata
//!  64  space map of the data: u64 number of data blocks first
//!                                      360  u32 features that a reader must know
//! ```
//! (Linux, drivers/md/dm-thin-metadata.c, `thin_disk_superblock`.) The snapshot of the metadata is
//! a copy of the superblock in another block. Its trees do not change while the pool is in use.

use super::block::{BLOCK, Block, Kind, MetadataBlocks};
use super::{CHECK, bad};
use crate::store::error::Result;

const MAGIC: u64 = 27_022_010;
const VERSIONS: std::ops::RangeInclusive<u32> = 1..=2;
const NEEDS_CHECK: u32 = 1;
const SECTOR: u64 = 512;
/// The unit of the size of a data block, in sectors: the kernel accepts 64 KiB to 1 GiB, in steps
/// of 64 KiB.
const STEP: u32 = 128;
const LARGEST: u32 = 1 << 21;

/// A superblock that was checked.
#[derive(Clone, Debug)]
pub(super) struct Superblock {
    /// The block of the metadata snapshot, if there is one.
    pub(super) snapshot: Option<u64>,
    /// The transaction number that the owner of the pool has stored.
    pub(super) transaction: u64,
    pub(super) needs_check: bool,
    pub(super) mappings: u64,
    pub(super) details: u64,
    /// The bytes of a data block.
    pub(super) block_size: u64,
    /// The number of data blocks of the pool; 0 in the snapshot.
    pub(super) data_blocks: u64,
}

impl Superblock {
    /// Reads the superblock in that block.
    pub(super) fn read(blocks: &MetadataBlocks, number: u64) -> Result<Self> {
        let path = blocks.path();
        let block = match blocks.read(number, Kind::Superblock) {
            Err(_) if number == 0 && is_foreign(blocks) => {
                let fault = "it is not the metadata of a thin pool".to_owned();
                let remedy =
                    "give the files or devices of the pool with --pool-data and --pool-metadata";
                return Err(bad(path, fault, remedy));
            }
            read => read?,
        };
        Self::parse(&block).map_err(|fault| bad(path, fault, CHECK))
    }

    fn parse(block: &Block) -> std::result::Result<Self, String> {
        if block.u64(32) != MAGIC {
            return Err("the superblock has not the magic number of a thin pool".to_owned());
        }
        let version = block.u32(40);
        if !VERSIONS.contains(&version) {
            return Err(format!("version {version} of the metadata is not known"));
        }
        let features = block.u32(360);
        if features != 0 {
            return Err(format!(
                "features of the metadata are not known ({features:#x})"
            ));
        }
        let sectors = block.u32(336);
        if sectors == 0 || !sectors.is_multiple_of(STEP) || sectors > LARGEST {
            return Err(format!("data blocks of {sectors} sectors"));
        }
        let metadata_sectors = block.u32(340);
        if u64::from(metadata_sectors) * SECTOR != BLOCK as u64 {
            return Err(format!("metadata blocks of {metadata_sectors} sectors"));
        }
        Ok(Self {
            snapshot: Some(block.u64(56)).filter(|block| *block != 0),
            transaction: block.u64(48),
            needs_check: block.u32(4) & NEEDS_CHECK != 0,
            mappings: block.u64(320),
            details: block.u64(328),
            block_size: u64::from(sectors) * SECTOR,
            data_blocks: block.u64(64),
        })
    }
}

/// Whether the first block is not one of a pool.
fn is_foreign(blocks: &MetadataBlocks) -> bool {
    blocks.count() == 0 || blocks.peek(0, 32) != Some(MAGIC)
}
