//! `unionfs sync`: what syncfs(2) on a mount would do if the kernel passed it on to FUSE
//! servers. Called by `cli::main`.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use anyhow::Context;
use rustix::fs::{Mode, OFlags};

use super::stats::live_record;
use crate::fuse::unmount::Health;
use crate::fuse::{self, Mountpoint};

/// Bring everything written through a mount to the disk
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  unionfs sync /mnt

The kernel does not pass on syncfs(2) (sync -f) of a FUSE mount; this syncs the file system
that the upper directory is on. fsync(2) of a file or directory needs no help. It is done also
where the mount itself never syncs (volatile). Exit code 3: the mount does not answer (within 5
seconds, or $UNIONFS_TIMEOUT).")]
pub(super) struct Args {
    /// Where it is mounted
    mountpoint: PathBuf,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let record = live_record(&args.mountpoint)?;
    // What is written through mappings goes to the server first.
    if let Ok(mount) = Mountpoint::open(&args.mountpoint)?.mount()?
        && mount.entry().is_unionfs()
    {
        let path = mount.path().to_owned();
        if mount.health()? == Health::Silent {
            return Err(fuse::Error::Silent { path }.into());
        }
        sync(mount.into_place(), Path::new("."), &path)?;
    }
    match record.description.upper.as_deref() {
        Some(upper) => sync(rustix::fs::CWD, upper, upper),
        None => Ok(()),
    }
}

/// Syncs the file system that `name` in `dir` is on; `path` is what it is called.
fn sync(dir: impl AsFd, name: &Path, path: &Path) -> anyhow::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open = rustix::fs::openat(dir, name, flags, Mode::empty())
        .with_context(|| format!("cannot open {path:?}"))?;
    rustix::fs::syncfs(&open).with_context(|| format!("cannot sync the file system of {path:?}"))
}
