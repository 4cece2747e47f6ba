//! Thin pools made of files: the metadata by `thin_restore`, the data block by block, so that devices share
//! blocks as snapshots do and lie anywhere in the data.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Bytes of a data block: 128 sectors, Docker's and the kernel's smallest.
pub const BLOCK: usize = 64 << 10;
/// Bytes of a block of metadata.
pub const METADATA_BLOCK: usize = 4096;

/// Where the blocks of a device are in the data.
pub type Mappings = BTreeMap<u64, u64>;

/// A pool being made, in a directory: `data` and `metadata`.
pub struct ThinPool {
    dir: PathBuf,
    data: File,
    /// Blocks of the data; a prime, so that steps of any length reach all of them.
    blocks: u64,
    used: u64,
    /// Bytes of a block.
    size: usize,
    devices: BTreeMap<u32, Mappings>,
}

impl ThinPool {
    /// An empty one, with room for so many blocks of so many bytes.
    pub fn new(dir: &Path, blocks: u64, size: usize) -> Self {
        std::fs::create_dir_all(dir).unwrap();
        let data = File::create(dir.join("data")).unwrap();
        data.set_len(blocks * size as u64).unwrap();
        Self {
            dir: dir.to_owned(),
            data,
            blocks,
            used: 0,
            size,
            devices: BTreeMap::new(),
        }
    }

    /// Where a new block is put: never beside the one before.
    fn place(&mut self) -> u64 {
        assert!(self.used < self.blocks, "the pool is full");
        self.used += 1;
        self.used * 37 % self.blocks
    }

    /// A device with these bytes: a snapshot of `below`, with which it shares the blocks that are equal.
    /// Blocks of zeros are left out.
    pub fn device(&mut self, id: u32, bytes: &[u8], below: Option<u32>) -> &Mappings {
        let below = below.map_or_else(Mappings::new, |id| self.devices[&id].clone());
        let mut mappings = Mappings::new();
        let zeros = vec![0; self.size];
        for (number, block) in (0..).zip(bytes.chunks(self.size)) {
            let mut whole = zeros.clone();
            whole[..block.len()].copy_from_slice(block);
            let shared = below.get(&number).copied();
            if let Some(shared) = shared.filter(|at| self.read(*at) == whole) {
                mappings.insert(number, shared);
            } else if shared.is_some() || whole != zeros {
                let at = self.place();
                self.data
                    .write_all_at(&whole, at * self.size as u64)
                    .unwrap();
                mappings.insert(number, at);
            }
        }
        self.devices.insert(id, mappings);
        &self.devices[&id]
    }

    fn read(&self, block: u64) -> Vec<u8> {
        let mut bytes = vec![0; self.size];
        let file = File::open(self.dir.join("data")).unwrap();
        file.read_exact_at(&mut bytes, block * self.size as u64)
            .unwrap();
        bytes
    }

    /// Makes the metadata, of a pool that has done so many transactions.
    pub fn finish(&self, transaction: u64) {
        let mut xml = format!(
            "<superblock uuid=\"\" time=\"1\" transaction=\"{transaction}\" flags=\"0\" version=\"2\" \
             data_block_size=\"{}\" nr_data_blocks=\"{}\">\n",
            self.size / 512,
            self.blocks
        );
        for (id, mappings) in &self.devices {
            let count = mappings.len();
            let _ = writeln!(
                xml,
                "<device dev_id=\"{id}\" mapped_blocks=\"{count}\" transaction=\"0\" creation_time=\"0\" \
                 snap_time=\"1\">"
            );
            for (block, at) in mappings {
                let _ = writeln!(
                    xml,
                    "<single_mapping origin_block=\"{block}\" data_block=\"{at}\" time=\"1\"/>"
                );
            }
            xml.push_str("</device>\n");
        }
        xml.push_str("</superblock>\n");
        std::fs::write(self.dir.join("xml"), xml).unwrap();
        let metadata = self.dir.join("metadata");
        File::create(&metadata).unwrap().set_len(8 << 20).unwrap();
        let mut restore = Command::new("thin_restore");
        restore.arg("-i").arg(self.dir.join("xml"));
        let output = restore.arg("-o").arg(&metadata).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        std::fs::remove_file(self.dir.join("xml")).unwrap();
    }
}

/// What a block of metadata is, by what its check sum is combined with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Salt {
    Superblock = 160_774,
    Node = 121_107,
}

/// Puts the right check sum into a block of metadata.
pub fn seal(block: &mut [u8], salt: Salt) {
    let sum = crc32c(&block[4..METADATA_BLOCK]) ^ salt as u32;
    block[..4].copy_from_slice(&sum.to_le_bytes());
}

/// As the kernel has it: without the inversion at the end.
fn crc32c(bytes: &[u8]) -> u32 {
    bytes.iter().fold(u32::MAX, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
            (sum >> 1) ^ (0x82f6_3b78 * (sum & 1))
        })
    })
}
