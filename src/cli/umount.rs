//! `unionfs umount` unmounts and waits until the daemon has written everything and has ended. It
//! does not ask a daemon that hangs, and does not wait for it.

use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::{candidates, error, warn};
use unionfs::fuse::unmount::Health;
use unionfs::fuse::{self, Mount, MountRecord, MountState, Mountpoint, runtime};
use unionfs::oci::Reference;
use unionfs::store::UnnamedLayer;

/// Unmount file systems
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  unionfs umount /mnt
  unionfs umount --all
  unionfs umount --force /mnt    for a daemon that hangs
  unionfs umount myapp:2         the mount of this image

Instead of the directory, the image, the name of the read-write layer (mount --name), or the ID of
the changes (unionfs ps -a) may be given, if one mount has it. A directory wins.

The command returns when the daemon has finished writing and has ended. With --lazy it returns at
once: the mount disappears from the tree, and ends when its last user does. With --force the mount
ends at once: programs that use it get ENOTCONN, and data that the daemon had not written yet is
lost. Neither option waits for the daemon.

Each mount is unmounted independently of the others; stderr has a line for each that is still there, such as
one that is in use. --all takes those that unionfs ps lists: mounts of this user in this mount namespace. If
there are none, it does nothing.

Exit codes: 0 all are unmounted, 1 one or more are not, 2 wrong usage, 3 one or more do not answer (within
5 seconds, or $UNIONFS_TIMEOUT) and are still there.")]
pub(super) struct Args {
    /// The directories that they are mounted on; or images, or names or IDs of layers
    #[arg(
        value_name = "MOUNTPOINT",
        required_unless_present = "all",
        conflicts_with = "all",
        add = candidates::mountpoints()
    )]
    mountpoints: Vec<PathBuf>,
    /// Unmount all mounts of this user that unionfs has made
    #[arg(long, short = 'a')]
    all: bool,
    /// Detach the mount even while it is in use, and do not wait
    #[arg(long, short = 'l')]
    lazy: bool,
    /// Abort the connection to the daemon, then detach the mount: for a daemon that hangs
    #[arg(long, short = 'f', conflicts_with = "lazy")]
    force: bool,
}

/// The maximum time in which the daemon ends, in seconds.
const PATIENCE: i64 = 30;

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    if args.all {
        return all(args);
    }
    let outcomes = args.mountpoints.iter().map(|text| one(text, args));
    first(outcomes.filter_map(Result::err).collect())
}

/// Shows all failures but one, and returns that: the first that decides about the exit code.
fn first(mut failures: Vec<anyhow::Error>) -> anyhow::Result<()> {
    let silent = failures
        .iter()
        .position(|e| error::exit_code(e) == error::SILENT);
    if failures.is_empty() {
        return Ok(());
    }
    let shown = failures.remove(silent.unwrap_or(0));
    for failure in &failures {
        warn(error::line(failure));
    }
    Err(shown)
}

/// Unmounts all recorded mounts. One on a directory of another is in the way of that one: what is in use
/// is tried again as long as others go.
fn all(args: &Args) -> anyhow::Result<()> {
    let mut failures = Vec::new();
    let mut left: Vec<MountRecord> = runtime::list();
    left.reverse();
    loop {
        let before = left.len();
        let mut busy = Vec::new();
        left.retain(|record| match recorded(record, args) {
            Ok(()) => false,
            // It would only be waited for again.
            Err(failure) if error::exit_code(&failure) == error::SILENT => {
                failures.push(failure);
                false
            }
            Err(failure) => {
                busy.push(failure);
                true
            }
        });
        if left.is_empty() || left.len() == before {
            failures.extend(busy);
            return first(failures);
        }
    }
}

/// Unmounts a recorded mount, unless it is not in this mount namespace, or gone by now.
fn recorded(record: &MountRecord, args: &Args) -> anyhow::Result<()> {
    match record.open_mount() {
        Ok(None) => Ok(()),
        Ok(Some(mount)) => unmount(mount, args),
        Err(_) if record.state().is_none() => Ok(()),
        Err(failure) => Err(failure.into()),
    }
}

/// Unmounts what a user has named.
fn one(text: &Path, args: &Args) -> anyhow::Result<()> {
    let mount = match Mountpoint::open(text) {
        // Only what is not there can be a name. Nothing asks the server of a mount that is there.
        Err(fuse::Error::Mountpoint { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            match named(text)? {
                Some(path) => find(&path, Mountpoint::open(&path)),
                None => Err(source).with_context(|| no_mountpoint(text)),
            }
        }
        place => find(text, place),
    }?;
    unmount(mount, args)
}

fn unmount(mount: Mount, args: &Args) -> anyhow::Result<()> {
    let path = mount.path().to_owned();
    end(mount, args)?;
    // If mount has made it.
    if let Err(error) = runtime::remove_mountpoint(&path) {
        tracing::debug!(%error, "the mountpoint stays");
    }
    Ok(())
}

/// Returns the mountpoint of the only mount with this image or layer. `None`: the text is a path.
fn named(text: &Path) -> anyhow::Result<Option<PathBuf>> {
    let Some(name) = text.to_str() else {
        return Ok(None);
    };
    let has_name = |record: &MountRecord| {
        let description = &record.description;
        let image = description.image.as_deref();
        let id = description.upper.as_deref().and_then(UnnamedLayer::id_of);
        description.name.as_deref() == Some(name)
            || image == Some(name)
            || image.is_some_and(|image| is_same_image(image, name))
            || name.len() >= 4 && id.is_some_and(|id| id.starts_with(name))
    };
    let mut found: Vec<MountRecord> = runtime::list();
    found.retain(|record| has_name(record) && record.state() != Some(MountState::Detached));
    let shown = |record: &MountRecord| record.mountpoint.display().to_string();
    match found.as_slice() {
        [] => Ok(None),
        [record] => Ok(Some(record.mountpoint.clone())),
        several => bail!(
            "several mounts have {name:?}: name one of {}",
            several.iter().map(shown).collect::<Vec<_>>().join(", ")
        ),
    }
}

/// Whether two texts are names of one image: with and without the registry and the tag.
fn is_same_image(one: &str, other: &str) -> bool {
    match (Reference::parse(one), Reference::parse(other)) {
        (Ok(one), Ok(other)) => one == other,
        _ => false,
    }
}

/// Ends the mount.
fn end(mount: Mount, args: &Args) -> anyhow::Result<()> {
    if args.force {
        mount.abort()?;
        return Ok(mount.detach()?);
    }
    if args.lazy {
        return Ok(mount.detach()?);
    }
    let path = mount.path().to_owned();
    let daemon = runtime::of_mount(mount.entry()).and_then(Daemon::of);
    match mount.health()? {
        Health::Answers => mount.unmount()?,
        Health::Dead => mount.detach()?,
        Health::Silent => return Err(fuse::Error::Silent { path }.into()),
    }
    daemon.map_or(Ok(()), |daemon| daemon.wait(&path))
}

fn no_mountpoint(path: &Path) -> String {
    format!(
        "cannot find mountpoint {0}, and no mount has the name {0} (unionfs ps lists mounts)",
        path.display()
    )
}

/// Returns the unionfs that is mounted on a directory.
fn find(mountpoint: &Path, opened: fuse::Result<Mountpoint>) -> anyhow::Result<Mount> {
    let shown = mountpoint.display();
    let place = match opened {
        Err(fuse::Error::Mountpoint { source, .. }) => {
            return Err(source).with_context(|| no_mountpoint(mountpoint));
        }
        other => other?,
    };
    match place.mount()? {
        Ok(mount) if mount.entry().is_unionfs() => Ok(mount),
        Ok(mount) => bail!(
            "the mount on {shown} is not a unionfs mount but {}: use umount(8)",
            mount.entry().fs_type.display()
        ),
        Err(_) => bail!("nothing is mounted on {shown}: unionfs ps lists what is"),
    }
}

/// The server of a mount. Its descriptor prevents confusion with a later process of the same
/// number.
struct Daemon {
    pidfd: std::os::fd::OwnedFd,
}

impl Daemon {
    fn of(record: MountRecord) -> Option<Self> {
        let pid = Pid::from_raw(i32::try_from(record.pid).ok()?)?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        // The check comes after the open: if the server still runs now, the descriptor is its own.
        record.is_running().then_some(Self { pidfd })
    }

    /// A mount that other mount namespaces have copied is served after it is gone from ours, as
    /// long as they keep it. Nothing waits for that.
    fn wait(&self, path: &Path) -> anyhow::Result<()> {
        let limit = Timespec {
            tv_sec: PATIENCE,
            tv_nsec: 0,
        };
        loop {
            match poll(&mut [PollFd::new(&self.pidfd, PollFlags::IN)], Some(&limit)) {
                Ok(0) => {
                    warn(format_args!(
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
