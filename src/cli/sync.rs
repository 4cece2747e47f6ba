//! `unionfs sync`: what syncfs(2) on a mount would do if the kernel passed it on to FUSE
//! servers. Called by `cli::main`.

use std::path::{Path, PathBuf};

use anyhow::Context;

use super::stats::live_record;

/// Bring everything written through a mount to the disk
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  unionfs sync /mnt

The kernel does not pass on syncfs(2) (sync -f) of a FUSE mount; this syncs the file system
that the upper directory is on. fsync(2) of a file or directory needs no help. It is done also
where the mount itself never syncs (volatile).")]
pub(super) struct Args {
    /// Where it is mounted
    mountpoint: PathBuf,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let record = live_record(&args.mountpoint)?;
    // What is written through mappings goes to the server first.
    sync(&record.mountpoint)?;
    record.description.upper.as_deref().map_or(Ok(()), sync)
}

fn sync(path: &Path) -> anyhow::Result<()> {
    let dir = std::fs::File::open(path).with_context(|| format!("cannot open {path:?}"))?;
    rustix::fs::syncfs(&dir).with_context(|| format!("cannot sync the file system of {path:?}"))
}
