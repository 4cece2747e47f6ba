//! Docker's records of the devices of a pool, in JSON.
//!
//! ```text
//! devicemapper/metadata/<cache ID>             device_id, size, transaction_id, initialized, deleted
//! devicemapper/metadata/transaction-metadata   open_transaction_id, device_hash, device_id
//! ```
//! (moby 23, daemon/graphdriver/devmapper/deviceset.go.) A transaction makes or removes one device.
//! Its number is stored in the pool when it is done.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{DIR, bad};
use crate::oci::json;
use crate::store::confined_dir::{ConfinedDir, SMALL};
use crate::store::error::{Error, Result};
use crate::store::layerdb::CacheId;

const AGAIN: &str = "load or pull the image again";
/// The largest device ID: IDs have 24 bits.
const MAX_ID: u32 = (1 << 24) - 1;
/// The size limit of a device, in bytes, as that of ext4.
const MAX_SIZE: u64 = 1 << 60;

/// The record of a device.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub(super) struct DeviceRecord {
    pub(super) device_id: u32,
    /// The size in bytes.
    pub(super) size: u64,
    #[serde(default)]
    pub(super) transaction_id: u64,
    #[serde(default)]
    initialized: bool,
    #[serde(default)]
    deleted: bool,
}

/// The transaction that was begun last.
#[derive(Deserialize)]
struct Transaction {
    open_transaction_id: u64,
}

/// Returns the path of the record of a layer's device, below the root.
pub(super) fn path_of(id: &CacheId) -> PathBuf {
    Path::new(DIR).join("metadata").join(id.as_str())
}

impl DeviceRecord {
    /// Returns the record of a device that is in no store.
    #[cfg(feature = "fuzzing")]
    pub(super) fn of_device(device_id: u32, size: u64) -> Self {
        Self {
            device_id,
            size,
            transaction_id: 0,
            initialized: true,
            deleted: false,
        }
    }

    /// Reads the record of a layer's device.
    pub(super) fn read(root: &ConfinedDir, id: &CacheId) -> Result<Self> {
        let path = path_of(id);
        let full = root.full(&path);
        let Some(bytes) = root.read(&path, SMALL)? else {
            return Err(Error::LayerDirMissing { path: full });
        };
        let record: Self = json::parse(&full, &bytes)?;
        let fault = if record.deleted {
            "the device is marked as deleted".to_owned()
        } else if !record.initialized {
            "the device has no file system yet".to_owned()
        } else if record.device_id > MAX_ID {
            format!("{} is no number of a device", record.device_id)
        } else if record.size > MAX_SIZE {
            format!("a device of {} bytes", record.size)
        } else {
            return Ok(record);
        };
        Err(bad(&full, fault, AGAIN))
    }
}

/// Fails if a transaction was begun after `done`, the last transaction of the pool.
pub(super) fn expect_no_transaction(root: &ConfinedDir, done: u64) -> Result<()> {
    let path = Path::new(DIR).join("metadata/transaction-metadata");
    let Some(bytes) = root.read(&path, SMALL)? else {
        return Ok(());
    };
    let path = root.full(path);
    let transaction: Transaction = json::parse(&path, &bytes)?;
    let open = transaction.open_transaction_id;
    if open <= done {
        return Ok(());
    }
    let fault = format!("transaction {open} is open, the pool has done {done}");
    let remedy =
        "wait for the Docker that uses it, or start that Docker once, which ends or undoes it";
    Err(bad(&path, fault, remedy))
}

/// Fails for a device of a transaction after `done`, the last transaction of the pool.
pub(super) fn expect_done(record: &DeviceRecord, at: &Path, done: u64) -> Result<()> {
    let made = record.transaction_id;
    if made <= done {
        return Ok(());
    }
    let fault = format!("the device is of transaction {made}, the pool has done {done}");
    Err(bad(at, fault, AGAIN))
}
