//! `unionfs umount`: unmounts and waits until the daemon has written everything and is
//! gone. Called by `cli::main`.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::fuse::{self, MountRecord, mountinfo, runtime};

/// Unmount
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  unionfs umount /mnt

Returns once the daemon has finished writing and is gone. With --lazy it returns at
once: the mount disappears from the tree, and ends when its last user does.")]
pub(super) struct Args {
    /// Where it is mounted
    mountpoint: PathBuf,
    /// Detach it even while it is in use, and do not wait
    #[arg(long, short = 'l')]
    lazy: bool,
}

/// How long the daemon may take to end, in seconds.
const PATIENCE: i64 = 30;

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let shown = args.mountpoint.display();
    let path = mountinfo::absolute(&args.mountpoint)
        .with_context(|| format!("cannot find mountpoint {shown}"))?;
    match mountinfo::find(&path) {
        Some(mount) if mount.is_unionfs() => {}
        Some(mount) => bail!(
            "what is mounted on {shown} is no unionfs but {}: use umount(8)",
            mount.fs_type.display()
        ),
        None => bail!("nothing is mounted on {shown}: unionfs ps lists what is"),
    }
    let daemon = runtime::find(&path)?.and_then(Daemon::of);
    let dead = fuse::is_dead_mount(&path);
    fuse::unmount(&path, args.lazy || dead)?;
    match daemon {
        Some(daemon) if !args.lazy => daemon.wait(&path),
        _ => Ok(()),
    }
}

/// The server of a mount, held so that a later process with its id is not taken for it.
struct Daemon {
    pidfd: std::os::fd::OwnedFd,
}

impl Daemon {
    fn of(record: MountRecord) -> Option<Self> {
        let pid = Pid::from_raw(i32::try_from(record.pid).ok()?)?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        // Checked behind the open: if it still runs now, the descriptor is its.
        record.is_running().then_some(Self { pidfd })
    }

    /// A mount that other mount namespaces have copies of is served on after it is gone
    /// from ours, for as long as they like: that is not waited for.
    fn wait(&self, path: &Path) -> anyhow::Result<()> {
        let limit = Timespec {
            tv_sec: PATIENCE,
            tv_nsec: 0,
        };
        loop {
            match poll(&mut [PollFd::new(&self.pidfd, PollFlags::IN)], Some(&limit)) {
                Ok(0) => {
                    super::warn(format_args!(
                        "{} is unmounted, but its daemon still runs: the mount is in use in \
                         another mount namespace",
                        path.display()
                    ));
                    return Ok(());
                }
                Ok(_) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => {
                    return Err(e).with_context(|| {
                        format!("cannot wait for the daemon of {}", path.display())
                    });
                }
            }
        }
    }
}
