//! What is refused before anything is mounted or written: layers that are missing or
//! lie inside each other, work directories elsewhere than the upper, too many lowers,
//! mountpoints in use. Called by `mount`, `compat` and `launch`. Each message names the
//! path and the remedy.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rustix::fs::{AtFlags, CWD, FileType, StatxFlags};
use rustix::io::Errno;

use super::options::MAX_LOWERS;
use crate::fuse;
use crate::layer::StackSpec;

/// What tells directories apart, whatever path leads to them: device and inode number.
type Identity = (u32, u32, u64);

/// A directory of the stack, opened by nobody: its identity and those above it.
struct Place<'a> {
    role: &'static str,
    path: &'a Path,
    /// From the directory itself up to the root.
    line: Vec<Identity>,
}

impl<'a> Place<'a> {
    fn new(role: &'static str, path: &'a Path, known: &mut Known) -> anyhow::Result<Self> {
        Ok(Self {
            role,
            path,
            line: known
                .line(path)
                .with_context(|| format!("cannot open {role} {}", path.display()))?,
        })
    }

    /// Whether this directory is `other` or lies somewhere below it.
    fn is_within(&self, other: &Place<'_>) -> bool {
        other
            .line
            .first()
            .is_some_and(|identity| self.line.contains(identity))
    }
}

/// Directories above others that were looked at; hundreds of layers have most in common.
/// `None`: we may not search there, so nothing of ours lies above.
#[derive(Default)]
struct Known(HashMap<PathBuf, Option<Identity>>);

impl Known {
    /// The identities of a directory and of those above it. The path is resolved, so those
    /// above are its beginnings, whatever is mounted where.
    fn line(&mut self, path: &Path) -> rustix::io::Result<Vec<Identity>> {
        let mut line = vec![identity(path)?];
        for above in path.ancestors().skip(1) {
            let known = match self.0.get(above) {
                Some(known) => *known,
                None => {
                    let found = identity(above).ok();
                    self.0.insert(above.to_owned(), found);
                    found
                }
            };
            match known {
                Some(identity) => line.push(identity),
                None => break,
            }
        }
        Ok(line)
    }
}

fn identity(dir: &Path) -> rustix::io::Result<Identity> {
    let st = rustix::fs::statx(
        CWD,
        dir,
        AtFlags::empty(),
        StatxFlags::INO | StatxFlags::TYPE,
    )?;
    match FileType::from_raw_mode(st.stx_mode.into()) {
        FileType::Directory => Ok((st.stx_dev_major, st.stx_dev_minor, st.stx_ino)),
        _ => Err(Errno::NOTDIR),
    }
}

/// Resolves a directory of the stack to an absolute path without symlinks.
/// `option` is how the user names it, for the message.
pub(super) fn resolve_dir(role: &str, path: &Path) -> anyhow::Result<PathBuf> {
    let shown = path.display();
    let resolved = match path.canonicalize() {
        Ok(resolved) => resolved,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            bail!("{role} {shown} does not exist: create it or correct the path")
        }
        Err(e) => return Err(e).with_context(|| format!("cannot use {role} {shown}")),
    };
    match resolved.metadata() {
        Ok(meta) if meta.is_dir() => Ok(resolved),
        Ok(_) => bail!("{role} {shown} is not a directory: name a directory"),
        Err(e) => Err(e).with_context(|| format!("cannot use {role} {shown}")),
    }
}

/// Refuses more lower layers than there may be.
pub(super) fn lower_count(count: usize) -> anyhow::Result<()> {
    if count > MAX_LOWERS {
        bail!("{count} lower layers are too many: unionfs takes up to {MAX_LOWERS}, merge some");
    }
    Ok(())
}

/// Refuses stacks that cannot work, or would destroy a layer. All paths are resolved.
pub(super) fn stack(stack: &StackSpec, mountpoint: &Path) -> anyhow::Result<()> {
    let count = stack.lowers.len() + stack.data_only.len();
    lower_count(count)?;
    let mut layers = Vec::with_capacity(count + 2);
    let mut known = Known::default();
    for lower in stack.lowers.iter().chain(&stack.data_only) {
        layers.push(Place::new("lower layer", &lower.path, &mut known)?);
    }
    let lowers = layers.len();
    if let Some(upper) = &stack.upper {
        layers.push(Place::new(
            "upper directory",
            &upper.layer.path,
            &mut known,
        )?);
        layers.push(Place::new("work directory", &upper.work, &mut known)?);
    }
    writable_side(&layers[..lowers], &layers[lowers..])?;
    let target = Place::new("mountpoint", mountpoint, &mut known)?;
    for layer in &layers {
        if target.is_within(layer) {
            bail!(
                "mountpoint {} is or lies inside {} {}: mounting over a layer would hide it, \
                 mount somewhere else",
                target.path.display(),
                layer.role,
                layer.path.display()
            );
        }
    }
    Ok(())
}

fn writable_side(lowers: &[Place<'_>], writable: &[Place<'_>]) -> anyhow::Result<()> {
    let [upper, work] = writable else {
        return Ok(());
    };
    let overlap = |a: &Place<'_>, b: &Place<'_>| {
        anyhow::anyhow!(
            "{} {} is or lies inside {} {}: use separate directories",
            a.role,
            a.path.display(),
            b.role,
            b.path.display()
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
    if mount_of(upper.path)? != mount_of(work.path)? {
        bail!(
            "upper directory {} and work directory {} are on different file systems: \
             put the work directory beside the upper",
            upper.path.display(),
            work.path.display()
        );
    }
    Ok(())
}

/// Renames work only within one mount of one file system, so both are compared.
fn mount_of(path: &Path) -> anyhow::Result<(u32, u32, u64)> {
    let st = rustix::fs::statx(
        CWD,
        path,
        AtFlags::empty(),
        StatxFlags::BASIC_STATS | StatxFlags::MNT_ID,
    )
    .with_context(|| format!("cannot look at {}", path.display()))?;
    Ok((st.stx_dev_major, st.stx_dev_minor, st.stx_mnt_id))
}

/// The absolute path of a mountpoint, found without touching what is mounted there, after
/// making sure that this process could mount on it.
pub(super) fn target(path: &Path, rules: Rules) -> anyhow::Result<PathBuf> {
    let path = fuse::mountinfo::absolute(path)
        .with_context(|| format!("cannot use mountpoint {}", path.display()))?;
    mountpoint(&path, rules)?;
    fuse::preflight(&path)?;
    Ok(path)
}

/// What a mountpoint may be; see [`target`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    /// Whether it may have entries, which the mount hides.
    pub(super) nonempty: bool,
    /// Whether a live unionfs may be there already, which the mount covers.
    pub(super) stacked: bool,
}

/// Checks a resolved mountpoint. A dead unionfs found there is taken away first:
/// its server was killed, nothing can be done with it.
fn mountpoint(path: &Path, rules: Rules) -> anyhow::Result<()> {
    let shown = path.display();
    fuse::detach_dead(path)?;
    let meta = match path.metadata() {
        Ok(meta) => meta,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            bail!("mountpoint {shown} does not exist: create it (mkdir {shown})")
        }
        Err(e) => return Err(e).with_context(|| format!("cannot use mountpoint {shown}")),
    };
    if !meta.is_dir() {
        bail!("mountpoint {shown} is not a directory: name an empty directory");
    }
    if !rules.stacked
        && fuse::mountinfo::may_be_mounted(path)
        && fuse::mountinfo::find(path).is_some_and(|mount| mount.is_unionfs())
    {
        bail!("a unionfs is mounted on {shown} already: unmount it first (unionfs umount {shown})");
    }
    if !rules.nonempty
        && let Ok(mut entries) = path.read_dir()
        && entries.next().is_some()
    {
        bail!(
            "mountpoint {shown} is not empty: use an empty directory, or -o nonempty to hide \
             its content"
        );
    }
    Ok(())
}

/// Whether a name may stand in a table of mounts: mount(8) and the kernel separate by commas.
pub(super) fn is_plain_source(name: &OsStr) -> bool {
    !name.is_empty()
        && !name
            .as_bytes()
            .iter()
            .any(|b| matches!(b, b',' | b'\n' | 0))
}
