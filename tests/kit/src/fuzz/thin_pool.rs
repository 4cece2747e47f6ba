//! A thin pool and the ext4 on its device. The input is a list of changes to a valid pool: a byte
//! chooses the part (metadata or data), then each change has four bytes for the position and one
//! for the new byte. Afterwards the checksums of the metadata are corrected.
//!
//! `ext4.img.gz` has an ext4 without journal and check sums, of blocks of 1 KiB: files, hard links, symlinks
//! (one longer than an inode, one to itself), a FIFO, a sparse file, and an indexed directory of 60 names
//! (`mkfs.ext4 -d`, then `e2fsck -D`).

use std::io::Read as _;
use std::sync::LazyLock;

use unionfs::store::fuzzing;

use super::one_line;
use crate::store::thin_pool::{self, ByHand, METADATA_BLOCK, Salt, seal};

static IMAGE: &[u8] = include_bytes!("ext4.img.gz");

static POOL: LazyLock<(ByHand, u64)> = LazyLock::new(|| {
    let mut bytes = Vec::new();
    let mut image = flate2::read::GzDecoder::new(IMAGE);
    image.read_to_end(&mut bytes).unwrap();
    (thin_pool::by_hand(&bytes), bytes.len() as u64)
});

/// The files that are read. Some of them do not exist.
const NAMES: [&[u8]; 10] = [
    b"etc/one",
    b"etc/two",
    b"lib/big",
    b"usr/lib/sparse",
    b"usr/one",
    b"loop/x",
    b"long/one",
    b"many/a-name-that-takes-some-room-37",
    b"fifo",
    b"no/such/file",
];

pub fn run(bytes: &[u8]) {
    let Some((part, changes)) = bytes.split_first() else {
        return;
    };
    let (pool, size) = &*POOL;
    let (mut metadata, mut data) = (pool.metadata.clone(), pool.data.clone());
    let changed = if part % 2 == 0 {
        &mut metadata
    } else {
        &mut data
    };
    for change in changes.chunks_exact(5) {
        let at = u32::from_le_bytes([change[0], change[1], change[2], change[3]]) as usize;
        let length = changed.len();
        changed[at % length] = change[4];
    }
    for (number, block) in metadata.chunks_exact_mut(METADATA_BLOCK).enumerate() {
        seal(
            block,
            if number == 0 {
                Salt::Superblock
            } else {
                Salt::Node
            },
        );
    }
    let refused = fuzzing::thin_pool(&metadata, &data, *size, &NAMES);
    refused.iter().for_each(one_line);
    if changes.len() < 5 {
        // The unchanged pool is read, except two symlinks at the end, a FIFO and files that do not
        // exist.
        assert_eq!(refused.len(), 4, "{refused:?}");
    }
}

/// Returns an input without changes, and words on which the reader's decisions depend.
pub fn seeds() -> Vec<Vec<u8>> {
    let change = |at: u32, value: u8| [&at.to_le_bytes()[..], &[value]].concat();
    let mut seeds = vec![vec![0], vec![1]];
    for at in [4, 32, 56, 64, 320, 328, 336, 340, 360] {
        seeds.push([vec![0], change(at, 3)].concat());
    }
    for node in 1..6 {
        for at in [4, 16, 20, 24, 32] {
            seeds.push([vec![0], change(node * METADATA_BLOCK as u32 + at, 7)].concat());
        }
    }
    // The superblock of the ext4 is in the last block of the data.
    let first = (POOL.0.data.len() - thin_pool::BLOCK) as u32 + 1024;
    for at in [
        0x04, 0x14, 0x18, 0x20, 0x28, 0x38, 0x58, 0x5c, 0x60, 0xfe, 0x150,
    ] {
        seeds.push([vec![1], change(first + at, 0xf0)].concat());
    }
    seeds
}
