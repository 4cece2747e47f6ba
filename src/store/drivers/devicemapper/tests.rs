//! Tests with pools made by `thin_restore`, and with pools made here that have right checksums and
//! wrong content. Tests of whole stores are in `tests/cli/devicemapper.rs`.

use std::path::Path;
use std::sync::LazyLock;

use proptest::prelude::*;
use testkit::need;
use testkit::need::has_tools;
use testkit::store::thin_pool::{
    self, BLOCK, ByHand, METADATA_BLOCK, Mappings, Salt, ThinPool, seal,
};

use super::pool::Pool;
use super::pool_file::PoolFile;
use super::record::DeviceRecord;
use super::thin_device::ThinDevice;
use super::{PoolFiles, ext4_tree::Ext4Tree};
use crate::oci::json;
use crate::store::error::{Error, Result};

fn at() -> &'static Path {
    Path::new("/metadata/record")
}

fn record(id: u32, size: u64) -> DeviceRecord {
    let text = format!("{{\"device_id\": {id}, \"size\": {size}, \"initialized\": true}}");
    json::parse(at(), text.as_bytes()).unwrap()
}

fn in_memory(metadata: &[u8], data: &[u8], holder: Option<&str>) -> PoolFiles {
    PoolFiles {
        metadata: PoolFile::in_memory("/metadata", metadata).unwrap(),
        data: PoolFile::in_memory("/data", data).unwrap(),
        holder: holder.map(str::to_owned),
    }
}

fn device(files: &PoolFiles, id: u32, size: u64) -> Result<ThinDevice> {
    Pool::open(files)?.device(&record(id, size), at())
}

fn whole(device: &mut ThinDevice) -> Result<Vec<u8>> {
    let mut bytes = vec![1; device.size() as usize];
    device.read_at(0, &mut bytes)?;
    Ok(bytes)
}

/// Returns bytes that differ everywhere, with blocks of zeros among them.
fn content(blocks: usize) -> Vec<u8> {
    let block = |number: usize| -> Vec<u8> {
        let word = (number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let filled = number % 3 != 1;
        let words = (0..BLOCK as u64 / 8).map(|at| if filled { word ^ at } else { 0 });
        words.flat_map(u64::to_le_bytes).collect()
    };
    (0..blocks).flat_map(block).collect()
}

#[test]
fn trees_of_three_levels_lead_to_every_block() {
    need!(has_tools(&["thin_restore"]));
    let temp = tempfile::tempdir().unwrap();
    let mut pool = ThinPool::new(temp.path(), 65_537, BLOCK);
    // Every third block of a device is not mapped; two devices share some of the others.
    let first: Mappings = (0..40_000)
        .filter(|block| block % 3 != 1)
        .map(|block| (block, block * 7919 % 65_537))
        .collect();
    let second: Mappings = first
        .iter()
        .map(|(block, place)| (*block, if block % 2 == 0 { *place } else { place ^ 1 }))
        .collect();
    for (id, mappings) in [(7, &first), (1 << 20, &second)] {
        pool.map(id, mappings.clone());
    }
    pool.finish(3);
    let files = PoolFiles::open(&temp.path().join("data"), &temp.path().join("metadata"));
    let files = files.unwrap();
    assert_eq!(Pool::open(&files).unwrap().transaction(), 3);
    for (id, mappings) in [(7, &first), (1 << 20, &second)] {
        let mut device = device(&files, id, 40_100 * BLOCK as u64).unwrap();
        for block in (0..40_100).chain([u64::MAX, 1 << 32]) {
            let found = device.mapped(block).unwrap();
            assert_eq!(found, mappings.get(&block).copied(), "{id}: {block}");
        }
    }
    for id in [0, 1, 6, 8, (1 << 20) + 1] {
        let error = device(&files, id, 1).unwrap_err().to_string();
        assert!(error.contains("is not in the pool"), "{error}");
    }
}

#[test]
fn a_device_reads_as_what_was_written_from_everywhere() {
    need!(has_tools(&["thin_restore"]));
    let temp = tempfile::tempdir().unwrap();
    for size in [BLOCK, 3 * BLOCK] {
        let mut pool = ThinPool::new(temp.path(), 101, size);
        let bytes = content(20);
        pool.device(1, &bytes, None);
        pool.finish(1);
        let files = PoolFiles::open(&temp.path().join("data"), &temp.path().join("metadata"));
        let mut device = device(&files.unwrap(), 1, bytes.len() as u64).unwrap();
        assert!(whole(&mut device).unwrap() == bytes, "{size}");
        for start in [0, 1, BLOCK - 1, BLOCK, 5 * BLOCK - 3, 19 * BLOCK] {
            for length in [0, 1, 7, 4096, BLOCK + 1] {
                let end = (start + length).min(bytes.len());
                let mut read = vec![1; end - start];
                device.read_at(start as u64, &mut read).unwrap();
                assert!(read == bytes[start..end], "{start} {length}");
            }
        }
        let past = device.read_at(bytes.len() as u64 - 1, &mut [0; 2]);
        assert!(past.unwrap_err().to_string().contains("goes on after"));
        assert!(device.read_at(u64::MAX, &mut [0; 2]).is_err());
    }
}

#[test]
fn a_pool_in_use_is_read_by_its_snapshot_only() {
    let bytes = content(9);
    let size = bytes.len() as u64;
    let ByHand { mut metadata, data } = thin_pool::by_hand(&bytes);
    let files = in_memory(&metadata, &data, Some("docker-pool"));
    let error = Pool::open(&files).unwrap_err().to_string();
    for words in ["in use by docker-pool", "reserve_metadata_snap"] {
        assert!(error.contains(words), "{error}");
    }
    // Made as the kernel makes it: a copy of the superblock without the space maps, in another
    // block.
    let at = metadata.len() / METADATA_BLOCK;
    let mut copy = metadata[..METADATA_BLOCK].to_vec();
    copy[8..16].copy_from_slice(&(at as u64).to_le_bytes());
    copy[64..320].fill(0);
    seal(&mut copy, Salt::Superblock);
    metadata.extend(copy);
    metadata[56..64].copy_from_slice(&(at as u64).to_le_bytes());
    // Later changes of the pool must not matter.
    metadata[320..336].fill(0xff);
    seal(&mut metadata, Salt::Superblock);
    let files = in_memory(&metadata, &data, Some("docker-pool"));
    assert!(whole(&mut device(&files, 1, size).unwrap()).unwrap() == bytes);
    assert!(device(&in_memory(&metadata, &data, None), 1, size).is_err());
    metadata[at * METADATA_BLOCK + 100] ^= 1;
    let files = in_memory(&metadata, &data, Some("docker-pool"));
    let error = Pool::open(&files).unwrap_err().to_string();
    assert!(error.contains("wrong check sum"), "{error}");
}

/// The root of the device's tree; its leaves follow.
const ROOT: usize = 3 * METADATA_BLOCK;

#[test]
fn nodes_that_lead_to_themselves_end() {
    let bytes = content(9);
    let ByHand { mut metadata, data } = thin_pool::by_hand(&bytes);
    let value = ROOT + 32 + 8 * thin_pool::room(8);
    metadata[value..value + 8].copy_from_slice(&3_u64.to_le_bytes());
    seal(&mut metadata[ROOT..], Salt::Node);
    let mut device = device(&in_memory(&metadata, &data, None), 1, bytes.len() as u64).unwrap();
    let error = whole(&mut device).unwrap_err().to_string();
    assert!(error.contains("too many levels"), "{error}");
}

#[test]
fn data_that_is_not_there_is_named() {
    let bytes = content(9);
    let size = bytes.len() as u64;
    let ByHand { metadata, data } = thin_pool::by_hand(&bytes);
    let cut = in_memory(&metadata, &data[..data.len() - 1], None);
    let error = whole(&mut device(&cut, 1, size).unwrap()).unwrap_err();
    assert!(matches!(&error, Error::Pool { .. }), "{error:?}");
    let error = error.to_string();
    for words in ["/data", "cut off", "restore the whole file"] {
        assert!(error.contains(words), "{error}");
    }
    let mut fewer = metadata;
    fewer[64..72].copy_from_slice(&2_u64.to_le_bytes());
    seal(&mut fewer, Salt::Superblock);
    let error = whole(&mut device(&in_memory(&fewer, &data, None), 1, size).unwrap());
    let error = error.unwrap_err().to_string();
    assert!(error.contains("has only 2 blocks"), "{error}");
}

static SMALL: LazyLock<(ByHand, u64)> = LazyLock::new(|| {
    let bytes = content(9);
    (thin_pool::by_hand(&bytes), bytes.len() as u64)
});

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Any content with right checksums gives a result or an error in bounded time, and never a
    /// panic.
    #[test]
    fn changed_metadata_never_panics(
        changes in proptest::collection::vec((0_usize..6, 4_usize..METADATA_BLOCK, any::<u8>()), 1..8),
        header in proptest::collection::vec((1_usize..6, 4_usize..40, any::<u8>()), 0..3),
    ) {
        let (pool, size) = &*SMALL;
        let mut metadata = pool.metadata.clone();
        for (block, at, value) in changes.into_iter().chain(header) {
            let start = block * METADATA_BLOCK;
            metadata[start + at] = value;
            let salt = if block == 0 { Salt::Superblock } else { Salt::Node };
            seal(&mut metadata[start..start + METADATA_BLOCK], salt);
        }
        for holder in [None, Some("x")] {
            let opened = device(&in_memory(&metadata, &pool.data, holder), 1, *size);
            if let Ok(mut device) = opened {
                let _ = whole(&mut device);
                let _ = Ext4Tree::open(device);
            }
        }
    }
}
