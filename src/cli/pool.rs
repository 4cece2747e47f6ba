//! The options that say where the pool of a store of the driver devicemapper is, for commands that read
//! what is in layers.

use std::path::PathBuf;
use std::sync::Arc;

use unionfs::store::{Places, PoolFiles};

/// Where a pool is that is not in the store itself.
#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct PoolArgs {
    /// For stores of the driver devicemapper: the data of the thin pool, a file or block device
    #[arg(long, value_name = "FILE", requires = "pool_metadata")]
    pool_data: Option<PathBuf>,
    /// For stores of the driver devicemapper: the metadata of the thin pool
    #[arg(long, value_name = "FILE", requires = "pool_data")]
    pool_metadata: Option<PathBuf>,
}

impl PoolArgs {
    /// Opens the pools of the stores in these places, before the sandbox is entered.
    pub(super) fn open(&self, places: &mut Places) -> anyhow::Result<()> {
        let given = match (&self.pool_data, &self.pool_metadata) {
            (Some(data), Some(metadata)) => Some(Arc::new(PoolFiles::open(data, metadata)?)),
            _ => None,
        };
        Ok(places.open_pools(given)?)
    }
}
