//! Checks before anything is mounted or written. Refused are layers that are missing or lie inside
//! each other, work directories on another file system than the upper, too many lowers, and
//! mountpoints in use. Each message names the path and the remedy.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};
use rustix::io::Errno;

use super::options::MAX_LOWERS;
use unionfs::fuse;
use unionfs::layer::{OpenDir, StackSpec};
use unionfs::sys::stat::statx;
use unionfs::sys::walk::Trust;

/// The identity of a directory, whatever path leads to it: device and inode number.
type Identity = (u32, u32, u64);

/// A directory of the stack: its identity and those of its ancestors.
struct CheckedDir<'a> {
    role: &'static str,
    dir: &'a OpenDir,
    /// The identities from the directory itself up to the root.
    line: Vec<Identity>,
}

/// The question that is asked of a directory of the stack.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Asked {
    /// Whether another directory is inside of it.
    WhatIsInside,
    /// Also whether it is inside of another directory.
    WhereItIs,
}

impl<'a> CheckedDir<'a> {
    fn new(
        role: &'static str,
        dir: &'a OpenDir,
        known: &mut Known,
        asked: Asked,
    ) -> anyhow::Result<Self> {
        let line = match asked {
            Asked::WhatIsInside => reached(dir.as_fd(), "").map(|(_, identity)| vec![identity]),
            Asked::WhereItIs => known.line(dir),
        };
        let line = line.with_context(|| format!("cannot look at {role} {}", shown(dir)))?;
        Ok(Self { role, dir, line })
    }

    /// Whether this directory is `other` or is below it.
    fn is_within(&self, other: &CheckedDir<'_>) -> bool {
        other
            .line
            .first()
            .is_some_and(|identity| self.line.contains(identity))
    }
}

fn shown(dir: &OpenDir) -> std::path::Display<'_> {
    dir.path().display()
}

/// A directory as it is reached. Two mounts of one directory have different ancestors.
type Reached = (u64, Identity);

/// The ancestor of each known directory. Hundreds of layers have most of them in common. `None`:
/// the directory is the root, or it may not be searched, so no other layer is above it.
#[derive(Default)]
struct Known(HashMap<Reached, Option<Reached>>);

impl Known {
    /// Returns the identities of a directory and of its ancestors, found by `..`. Names that change
    /// meanwhile do not matter.
    fn line(&mut self, dir: &OpenDir) -> rustix::io::Result<Vec<Identity>> {
        let mut here = reached(dir.as_fd(), "")?;
        let mut line = vec![here.1];
        let mut up = String::new();
        loop {
            up.push_str("../");
            if up.len() > PATH_MAX {
                return Err(Errno::NAMETOOLONG);
            }
            let above = self.0.entry(here).or_insert_with(|| {
                let above = reached(dir.as_fd(), &up).ok();
                above.filter(|above| *above != here)
            });
            let Some(above) = *above else {
                return Ok(line);
            };
            line.push(above.1);
            here = above;
        }
    }
}

/// The length of the longest path that the kernel takes, in bytes.
const PATH_MAX: usize = 4096;

/// Opens the directory at `path` from `dir`. An empty path is `dir` itself.
fn reached(dir: BorrowedFd<'_>, path: &str) -> rustix::io::Result<Reached> {
    let what = StatxFlags::INO | StatxFlags::MNT_ID;
    let st = statx(dir, path, AtFlags::EMPTY_PATH, what)?;
    let identity = (st.stx_dev_major, st.stx_dev_minor, st.stx_ino);
    Ok((st.stx_mnt_id, identity))
}

/// Opens a directory of the stack, once. `role` is the user's word for it, for the message.
pub(super) fn open_dir(role: &str, path: &Path) -> anyhow::Result<OpenDir> {
    open_dir_trusting(role, path, Trust::of_root())
}

/// As [`open_dir`], with the users whose symlinks are followed.
pub(super) fn open_dir_trusting(role: &str, path: &Path, trust: Trust) -> anyhow::Result<OpenDir> {
    let shown = path.display();
    match OpenDir::open_trusting(path, trust) {
        Ok(dir) => Ok(dir),
        Err(e) if e.is(Errno::NOENT) => {
            bail!("{role} {shown} does not exist: create it or correct the path")
        }
        Err(e) if e.is(Errno::NOTDIR) => {
            bail!("{role} {shown} is not a directory: name a directory")
        }
        Err(e) => Err(e.source).with_context(|| format!("cannot use {role} {shown}")),
    }
}

/// Refuses more lower layers than are allowed.
pub(super) fn lower_count(count: usize) -> anyhow::Result<()> {
    if count > MAX_LOWERS {
        bail!("{count} lower layers are too many: unionfs takes up to {MAX_LOWERS}, merge some");
    }
    Ok(())
}

/// Refuses stacks that cannot work or would destroy a layer. All paths are resolved.
pub(super) fn stack(stack: &StackSpec, target: &Target) -> anyhow::Result<()> {
    let count = stack.lowers.len() + stack.data_only.len();
    lower_count(count)?;
    let mut layers = Vec::with_capacity(count + 2);
    let mut known = Known::default();
    // Nothing is above a lower that would matter, where nothing is written.
    let asked = match stack.upper {
        Some(_) => Asked::WhereItIs,
        None => Asked::WhatIsInside,
    };
    for lower in stack.lowers.iter().chain(&stack.data_only) {
        layers.push(CheckedDir::new(
            "lower layer",
            &lower.dir,
            &mut known,
            asked,
        )?);
    }
    let lowers = layers.len();
    if let Some(upper) = &stack.upper {
        layers.push(CheckedDir::new(
            "upper directory",
            &upper.layer.dir,
            &mut known,
            Asked::WhereItIs,
        )?);
        layers.push(CheckedDir::new(
            "work directory",
            &upper.work,
            &mut known,
            Asked::WhereItIs,
        )?);
    }
    writable_side(&layers[..lowers], &layers[lowers..])?;
    if target.place.connection().is_some() {
        // It is mounted already, by the caller.
        return Ok(());
    }
    let mountpoint = open_dir("mountpoint", &target.path)?;
    let asked = Asked::WhereItIs;
    let target = CheckedDir::new("mountpoint", &mountpoint, &mut known, asked)?;
    for layer in &layers {
        if target.is_within(layer) {
            bail!(
                "mountpoint {} is or lies inside {} {}: mounting over a layer would hide it, \
                 mount somewhere else",
                shown(target.dir),
                layer.role,
                shown(layer.dir)
            );
        }
    }
    Ok(())
}

fn writable_side(lowers: &[CheckedDir<'_>], writable: &[CheckedDir<'_>]) -> anyhow::Result<()> {
    let [upper, work] = writable else {
        return Ok(());
    };
    let overlap = |a: &CheckedDir<'_>, b: &CheckedDir<'_>| {
        anyhow::anyhow!(
            "{} {} is or lies inside {} {}: use separate directories",
            a.role,
            shown(a.dir),
            b.role,
            shown(b.dir)
        )
    };
    let pairs = writable
        .iter()
        .flat_map(|side| lowers.iter().map(move |lower| (side, lower)))
        .chain([(upper, work)]);
    for (a, b) in pairs {
        if a.is_within(b) {
            return Err(overlap(a, b));
        }
        if b.is_within(a) {
            return Err(overlap(b, a));
        }
    }
    if mount_of(upper.dir)? != mount_of(work.dir)? {
        bail!(
            "upper directory {} and work directory {} are on different file systems: \
             put the work directory beside the upper",
            shown(upper.dir),
            shown(work.dir)
        );
    }
    Ok(())
}

/// Renames work only within one mount of one file system, so both are compared.
fn mount_of(dir: &OpenDir) -> anyhow::Result<(u32, u32, u64)> {
    let (mount, (major, minor, _)) =
        reached(dir.as_fd(), "").with_context(|| format!("cannot look at {}", shown(dir)))?;
    Ok((major, minor, mount))
}

/// A mountpoint that was checked.
#[derive(Debug)]
pub(super) struct Target {
    /// The path, absolute and without symlinks.
    pub(super) path: PathBuf,
    pub(super) place: Place,
}

/// What a mountpoint is.
#[derive(Clone, Debug)]
pub(super) enum Place {
    /// The directory itself, whatever the path leads to later.
    Directory(fuse::DirectoryId),
    /// The connection of a mount that the caller has made.
    Connection(Arc<OwnedFd>),
}

impl Place {
    pub(super) fn connection(&self) -> Option<&OwnedFd> {
        match self {
            Self::Directory(_) => None,
            Self::Connection(connection) => Some(connection),
        }
    }
}

/// As [`target`]; `/dev/fd/N` may also be an open /dev/fuse of the caller, who has mounted it.
pub(super) fn target_or_connection(path: &Path, rules: Rules) -> anyhow::Result<Target> {
    Ok(match fuse::caller_mount(path)? {
        Some(connection) => Target {
            path: path.to_owned(),
            place: Place::Connection(Arc::new(connection)),
        },
        None => target(path, rules)?,
    })
}

/// Returns the mountpoint that `path` leads to, without touching a file system that is mounted
/// there. Checks that this process may mount on it.
pub(super) fn target(path: &Path, rules: Rules) -> anyhow::Result<Target> {
    let place = mountpoint(path, rules)?;
    fuse::preflight(place.path())?;
    Ok(Target {
        place: Place::Directory(place.id()?),
        path: place.path().to_owned(),
    })
}

/// The allowed states of a mountpoint; see [`target`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    /// Whether it may have entries, which the mount hides.
    pub(super) nonempty: bool,
    /// Whether a live unionfs may be mounted there, which the mount covers.
    pub(super) stacked: bool,
}

/// Opens and checks a mountpoint. A dead unionfs that is mounted there is removed first: its server
/// was killed, so it is of no use.
fn mountpoint(path: &Path, rules: Rules) -> anyhow::Result<fuse::Mountpoint> {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let shown = absolute.display();
    let (place, mounted) = match fuse::unmount::without_dead(path) {
        Ok(found) => found,
        Err(fuse::Error::Mountpoint { source, .. }) => match source.raw_os_error() {
            Some(libc::ENOENT) if !Path::new("/proc/thread-self").exists() => {
                bail!(
                    "/proc is not mounted, and unionfs finds its mounts and descriptors there: \
                     mount it (mount -t proc proc /proc)"
                )
            }
            Some(libc::ENOENT) => {
                bail!("mountpoint {shown} does not exist: create it (mkdir {shown})")
            }
            Some(libc::ENOTDIR) => {
                bail!("mountpoint {shown} is not a directory: name an empty directory")
            }
            _ => return Err(source).with_context(|| format!("cannot use mountpoint {shown}")),
        },
        Err(error) => return Err(error.into()),
    };
    if !rules.stacked && mounted.is_some_and(|mount| mount.is_unionfs()) {
        bail!(
            "a unionfs mount exists on {shown} already: unmount it first (unionfs umount {shown})"
        );
    }
    if !rules.nonempty && has_entries(&place) {
        bail!(
            "mountpoint {shown} is not empty: use an empty directory, or -o nonempty to hide \
             its content"
        );
    }
    Ok(place)
}

/// If this cannot be found out, the directory counts as empty.
fn has_entries(place: &fuse::Mountpoint) -> bool {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(place, c".", flags, Mode::empty())
        .and_then(rustix::fs::Dir::new)
        .is_ok_and(|entries| {
            let name = |entry: rustix::fs::DirEntry| entry.file_name().to_bytes().to_vec();
            let mut names = entries.filter_map(|entry| entry.ok().map(name));
            names.any(|name| name != b"." && name != b"..")
        })
}

/// Whether a name may be in a table of mounts: commas separate options for mount(8) and the kernel.
pub(super) fn is_plain_source(name: &OsStr) -> bool {
    !name.is_empty()
        && !name
            .as_bytes()
            .iter()
            .any(|b| matches!(b, b',' | b'\n' | 0))
}
