//! The driver devicemapper: each layer is a thin device with a file system, in one pool. Docker
//! wrote such stores until version 24. Used through [`super::Driver`].
//!
//! ```text
//! devicemapper/metadata/<cache ID>                    which device a layer is (JSON)
//! devicemapper/metadata/transaction-metadata          the transaction that was begun last
//! devicemapper/devicemapper/{data,metadata}           the pool, where it is made of files (loop-lvm)
//!
//!  cache ID ──record──► device ID ──pool, btree──► data blocks ──thin_device──► ext4 ──ext4_tree──► files
//! ```
//! No support of the kernel is needed: this code reads the metadata of the pool ([`superblock`],
//! [`btree`]) and verifies all checksums. The devices are not directories, so they cannot be layers
//! of a union: a layer's tar is made from its tar-split and the files on its device, and unpacked
//! into our own store.
//!
//! All input is hostile: memory and levels of trees are bounded, and the result is compared with
//! the layer's diff ID.

mod block;
mod btree;
mod ext4_tree;
mod in_use;
mod pool;
mod pool_file;
mod record;
mod superblock;
#[cfg(test)]
mod tests;
mod thin_device;

pub use pool_file::PoolFiles;

use std::path::Path;
use std::sync::{Arc, OnceLock};

use super::{Below, Driver, LayerDir, PLAIN};
use crate::layer::{Dialect, OpenDir};
use crate::layer_tar::layer_files::LayerFiles;
use crate::store::confined_dir::ConfinedDir;
use crate::store::error::{Error, Result};
use crate::store::layer_place::LayerPlace;
use crate::store::layerdb::CacheId;
use ext4_tree::Ext4Tree;
use pool::Pool;
use record::DeviceRecord;

/// The driver's name.
pub(crate) const NAME: &str = "devicemapper";
/// The driver's directory, below the root.
const DIR: &str = NAME;

const CHECK: &str = "check the pool (thin_check), repair a copy of its metadata (thin_repair), and give \
                     that with --pool-metadata";

fn bad(path: &Path, fault: String, remedy: &'static str) -> Error {
    Error::Pool {
        path: path.to_owned(),
        fault,
        remedy,
    }
}

/// The driver of one store.
#[derive(Debug, Default)]
pub(super) struct DeviceMapper {
    /// The pool's files; `None` if they are in the store.
    files: Option<Arc<PoolFiles>>,
    /// The pool; opened when it is first needed.
    pool: OnceLock<Arc<Pool>>,
}

impl DeviceMapper {
    pub(super) fn new(files: Option<Arc<PoolFiles>>) -> Self {
        Self {
            files,
            pool: OnceLock::new(),
        }
    }

    fn pool(&self, root: &ConfinedDir) -> Result<&Pool> {
        if let Some(pool) = self.pool.get() {
            return Ok(pool);
        }
        let pool = match &self.files {
            Some(files) => Pool::open(files)?,
            None => Pool::open(&PoolFiles::of_store(root)?)?,
        };
        record::expect_no_transaction(root, pool.transaction())?;
        Ok(self.pool.get_or_init(|| Arc::new(pool)))
    }
}

impl Driver for DeviceMapper {
    fn name(&self) -> &'static str {
        NAME
    }

    fn dialect(&self) -> Dialect {
        PLAIN
    }

    fn layer(&self, root: &ConfinedDir, id: &CacheId, _: Option<&LayerDir>) -> Result<LayerDir> {
        DeviceRecord::read(root, id)?;
        Ok(LayerDir {
            place: LayerPlace::Device(root.full(record::path_of(id))),
            chain: String::new(),
            below: Below::Nothing,
        })
    }

    fn work(&self, _: &ConfinedDir, _: &CacheId) -> Result<Option<OpenDir>> {
        Ok(None)
    }

    fn device_files(&self, root: &ConfinedDir, id: &CacheId) -> Result<Box<dyn LayerFiles>> {
        let record = DeviceRecord::read(root, id)?;
        let at = root.full(record::path_of(id));
        let pool = self.pool(root)?;
        record::expect_done(&record, &at, pool.transaction())?;
        Ok(Box::new(Ext4Tree::open(pool.device(&record, &at)?)?))
    }
}

/// Reads files of these names from device 1, of `size` bytes, of a pool in memory. Returns the
/// errors.
#[cfg(feature = "fuzzing")]
pub(crate) fn read_all(
    metadata: &[u8],
    data: &[u8],
    size: u64,
    names: &[&[u8]],
) -> Result<Vec<Error>> {
    use std::io::Read as _;

    let files = PoolFiles {
        metadata: pool_file::PoolFile::in_memory("/metadata", metadata)?,
        data: pool_file::PoolFile::in_memory("/data", data)?,
        holder: None,
    };
    let at = Path::new("/record");
    let record = DeviceRecord::of_device(1, size);
    let mut tree = Ext4Tree::open(Pool::open(&files)?.device(&record, at)?)?;
    let mut refused = Vec::new();
    for name in names {
        let read = tree.open(name).and_then(|file| {
            let mut content = Vec::new();
            // No file of the corpus is longer. Files that claim to be are read in part.
            let read = file.content.take(1 << 20).read_to_end(&mut content);
            read.map_err(|error| error.to_string())
        });
        refused.extend(read.err().map(|fault| bad(at, fault, "")));
    }
    Ok(refused)
}
