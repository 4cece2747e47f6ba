//! Creates thin pools in files: the metadata by `thin_restore`, the data block by block. Devices
//! share blocks as snapshots do, and their blocks are scattered over the data.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The size of a data block in bytes: 128 sectors, the minimum of Docker and the kernel.
pub const BLOCK: usize = 64 << 10;
/// The size of a block of metadata in bytes.
pub const METADATA_BLOCK: usize = 4096;

/// The positions of a device's blocks in the data.
pub type Mappings = BTreeMap<u64, u64>;

/// A pool under construction, in a directory: `data` and `metadata`.
pub struct ThinPool {
    dir: PathBuf,
    data: File,
    /// The number of data blocks: a prime, so that steps of any length reach all of them.
    blocks: u64,
    used: u64,
    /// The size of a block in bytes.
    size: usize,
    devices: BTreeMap<u32, Mappings>,
}

impl ThinPool {
    /// Creates an empty pool with `blocks` blocks of `size` bytes.
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

    /// Returns the position of a new block, which is never next to the previous one.
    fn place(&mut self) -> u64 {
        assert!(self.used < self.blocks, "the pool is full");
        self.used += 1;
        self.used * 37 % self.blocks
    }

    /// Adds a device with these bytes: a snapshot of `below`, with which it shares the blocks that
    /// are equal. Blocks of zeros are left out.
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

    /// Adds a device with these blocks, whatever they contain.
    pub fn map(&mut self, id: u32, mappings: Mappings) {
        self.devices.insert(id, mappings);
    }

    /// Writes the metadata of a pool that has committed `transaction` transactions.
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

/// The type of a block of metadata, as the value that is combined with its checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Salt {
    Superblock = 160_774,
    Node = 121_107,
}

/// Writes the correct checksum into a block of metadata.
pub fn seal(block: &mut [u8], salt: Salt) {
    let sum = crc32c(&block[4..METADATA_BLOCK]) ^ salt as u32;
    block[..4].copy_from_slice(&sum.to_le_bytes());
}

/// Returns the CRC-32C as the kernel computes it: without the inversion at the end.
fn crc32c(bytes: &[u8]) -> u32 {
    bytes.iter().fold(u32::MAX, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
            (sum >> 1) ^ (0x82f6_3b78 * (sum & 1))
        })
    })
}

/// Returns the number of entries that fit in a node, as the kernel computes it.
pub fn room(value_size: usize) -> usize {
    let room = (METADATA_BLOCK - 32) / (8 + value_size);
    room - room % 3
}

/// A pool in memory.
pub struct ByHand {
    pub metadata: Vec<u8>,
    pub data: Vec<u8>,
}

/// Returns a pool with one device, of ID 1, with these bytes. Its metadata are six blocks: the
/// superblock, the devices, their details, and the tree of the device, which is an inner node with
/// two leaves. No tool is needed. There are no space maps, which only writers use.
pub fn by_hand(bytes: &[u8]) -> ByHand {
    let blocks: Vec<&[u8]> = bytes.chunks(BLOCK).collect();
    let count = blocks.len() as u64;
    let mut data = vec![0; blocks.len() * BLOCK];
    let mut mapped = Vec::new();
    for (number, block) in (0..).zip(&blocks) {
        if block.iter().any(|byte| *byte != 0) {
            let at = count - 1 - number;
            let start = at as usize * BLOCK;
            data[start..start + block.len()].copy_from_slice(block);
            mapped.push((number, (at << 24 | 1).to_le_bytes().to_vec()));
        }
    }
    let (low, high) = mapped.split_at(mapped.len() / 2);
    let lead_to = |block: u64| block.to_le_bytes().to_vec();
    let first = |entries: &[(u64, Vec<u8>)]| entries.first().map_or(0, |(key, _)| *key);
    let mut superblock = vec![0; METADATA_BLOCK];
    let mut put = |at: usize, bytes: &[u8]| superblock[at..at + bytes.len()].copy_from_slice(bytes);
    put(32, &27_022_010_u64.to_le_bytes());
    put(40, &2_u32.to_le_bytes());
    put(64, &count.to_le_bytes());
    put(320, &1_u64.to_le_bytes());
    put(328, &2_u64.to_le_bytes());
    put(336, &((BLOCK / 512) as u32).to_le_bytes());
    put(340, &((METADATA_BLOCK / 512) as u32).to_le_bytes());
    put(344, &6_u64.to_le_bytes());
    seal(&mut superblock, Salt::Superblock);
    let nodes = [
        node(1, 2, 8, &[(1, lead_to(3))]),
        node(2, 2, 24, &[(1, vec![0; 24])]),
        node(
            3,
            1,
            8,
            &[(first(low), lead_to(4)), (first(high), lead_to(5))],
        ),
        node(4, 2, 8, low),
        node(5, 2, 8, high),
    ];
    ByHand {
        metadata: [vec![superblock], nodes.into()].concat().concat(),
        data,
    }
}

/// Returns a node of a tree for the block with this number.
fn node(number: u64, flags: u32, value_size: usize, entries: &[(u64, Vec<u8>)]) -> Vec<u8> {
    let room = room(value_size);
    assert!(entries.len() <= room);
    let mut node = vec![0; METADATA_BLOCK];
    let mut put = |at: usize, bytes: &[u8]| node[at..at + bytes.len()].copy_from_slice(bytes);
    put(4, &flags.to_le_bytes());
    put(8, &number.to_le_bytes());
    for (at, field) in [(16, entries.len()), (20, room), (24, value_size)] {
        put(at, &(field as u32).to_le_bytes());
    }
    for (at, (key, value)) in entries.iter().enumerate() {
        put(32 + 8 * at, &key.to_le_bytes());
        put(32 + 8 * room + value_size * at, value);
    }
    seal(&mut node, Salt::Node);
    node
}
