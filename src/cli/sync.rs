//! `unionfs sync` does what syncfs(2) on a mount would do if the kernel passed it on to FUSE
//! servers.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use anyhow::Context;
use rustix::fs::{Mode, OFlags};

use super::candidates;
use super::stats::live_record;
use unionfs::fuse::unmount::Health;
use unionfs::fuse::{self, Mountpoint};
use unionfs::sys::walk::{self, Trust};

/// Write all changes made through a mount to the disk
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  unionfs sync /mnt
  unionfs ps -q | xargs -r -n 1 unionfs sync

Linux does not pass syncfs(2) (sync -f) of a FUSE mount to its daemon. This command syncs the file
system of the upper directory. fsync(2) of a file or directory works without it. The command also
syncs mounts with the option volatile. Exit code 3: the mount does not answer (within 5 seconds, or
$UNIONFS_TIMEOUT).")]
pub(super) struct Args {
    /// The directory that it is mounted on
    #[arg(add = candidates::mountpoints())]
    mountpoint: PathBuf,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let record = live_record(&args.mountpoint)?;
    // Data that was written through mappings goes to the server first.
    if let Ok(mount) = Mountpoint::open(&args.mountpoint)?.mount()?
        && mount.entry().is_unionfs()
    {
        sync_mount(mount)?;
    }
    match record.description.upper.as_deref() {
        Some(upper) => {
            let failed = || format!("cannot open {upper:?}");
            // The path is that of the mount record and has no symlinks.
            let dir = walk::open_directory(upper, Trust::of_root()).with_context(failed)?;
            sync(&dir, upper)
        }
        None => Ok(()),
    }
}

/// Flushes data that was written through a mount to its server.
///
/// # Errors
/// [`fuse::Error::Silent`] if the server does not answer; those of openat(2) and syncfs(2).
pub(super) fn sync_mount(mount: fuse::Mount) -> anyhow::Result<()> {
    let path = mount.path().to_owned();
    if mount.health()? == Health::Silent {
        return Err(fuse::Error::Silent { path }.into());
    }
    sync(mount.into_place(), &path)
}

/// Syncs the file system of `dir`. `path` is its name for messages.
fn sync(dir: impl AsFd, path: &Path) -> anyhow::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open = rustix::fs::openat(dir, c".", flags, Mode::empty())
        .with_context(|| format!("cannot open {path:?}"))?;
    rustix::fs::syncfs(&open).with_context(|| format!("cannot sync the file system of {path:?}"))
}
