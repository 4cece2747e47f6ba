//! Catalog files: which files are accepted, and whether a catalog describes the given layers.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use super::build;
use super::format::{self, LayerRecord};
use super::view::{Damaged, Refusal, View};
use crate::layer::at::{At, Stat};
use crate::layer::held_name::HeldName;
use crate::layer::{self, StackSpec};
use crate::lowers::Layers;
use crate::sys::map::ReadOnly;
use crate::sys::walk::{self, Trust};

/// The reason why a catalog is not used.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// It does not exist or cannot be opened.
    #[error("cannot open it: {0}")]
    Open(Errno),
    /// Another user can change where its path leads.
    #[error("cannot open it: {0}")]
    Foreign(std::io::Error),
    /// Another user could have written it.
    #[error("it is not a file of this user that only this user may write")]
    NotOurs,
    /// It is damaged, or not a catalog.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// A number in it refers to nothing.
    #[error(transparent)]
    Damaged(#[from] Damaged),
    /// It describes other layers, or they were replaced.
    #[error("layer {0} is not the one it was made from")]
    OtherLayers(usize),
}

impl Unusable {
    /// Whether there is no catalog at all.
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::Open(Errno::NOENT))
    }
}

/// Opens and maps a catalog. It must be a regular file that belongs to the user of this process or
/// to root, and that no other user may write. Symlinks are not followed.
///
/// # Errors
/// [`Unusable`] with the reason.
pub fn open(path: &Path) -> Result<View<ReadOnly>, Unusable> {
    open_held(path).map(|(view, _)| view)
}

/// As [`open`]. Returns also the name of the file, by which it can be removed later.
pub(super) fn open_held(path: &Path) -> Result<(View<ReadOnly>, HeldName), Unusable> {
    let (dir, name) = walk::open_parent(path, Trust::of_root()).map_err(|source| {
        match source.raw_os_error() {
            Some(_) => open_error(&source),
            None => Unusable::Foreign(source),
        }
    })?;
    let (view, file) = open_file(&dir, &name)?;
    let held = HeldName::new(dir, name, &file).map_err(|e| open_error(&e))?;
    Ok((view, held))
}

/// As [`open`], for a name in a directory.
pub(super) fn open_at(dir: &OwnedFd, name: &OsStr) -> Result<View<ReadOnly>, Unusable> {
    open_file(dir, name).map(|(view, _)| view)
}

fn open_file(dir: &OwnedFd, name: &OsStr) -> Result<(View<ReadOnly>, File), Unusable> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(dir, name, flags, Mode::empty()).map_err(Unusable::Open)?;
    let file = File::from(fd);
    let meta = file.metadata().map_err(|e| open_error(&e))?;
    let user = rustix::process::geteuid().as_raw();
    let trusted = meta.uid() == user || meta.uid() == 0;
    if !meta.is_file() || !trusted || meta.mode() & 0o022 != 0 {
        return Err(Unusable::NotOurs);
    }
    let len = usize::try_from(meta.len()).map_err(|_| Unusable::Open(Errno::FBIG))?;
    if len == 0 {
        return Err(Refusal::NoCatalog.into());
    }
    let map = ReadOnly::new(&file, len).map_err(Unusable::Open)?;
    Ok((View::parse(map)?, file))
}

fn open_error(error: &std::io::Error) -> Unusable {
    Unusable::Open(Errno::from_io_error(error).unwrap_or(Errno::IO))
}

/// Checks that a catalog describes exactly these layers in their present state.
///
/// # Errors
/// [`Unusable`] with the difference.
pub fn check_layers<B: AsRef<[u8]>>(view: &View<B>, layers: &Layers) -> Result<(), Unusable> {
    match check_some_layers(view, layers)? {
        0 => Ok(()),
        _ => Err(Unusable::OtherLayers(0)),
    }
}

/// Whether the catalog in `path` describes the lowers of a stack.
pub fn describes(path: &Path, stack: &StackSpec) -> bool {
    let fits = |layers: Arc<Layers>| check_layers(&open(path).ok()?, &layers).ok();
    build::open_layers(stack).ok().and_then(fits).is_some()
}

/// As [`check_layers`], for a catalog that may also describe all layers but the topmost one. Returns the
/// number of layers that it does not describe: 0 or 1.
pub(super) fn check_some_layers<B: AsRef<[u8]>>(
    view: &View<B>,
    layers: &Layers,
) -> Result<usize, Unusable> {
    // The layers have been opened just now.
    let layers = describe(layers, |layer| layer.stat);
    let described = usize::try_from(view.layer_count()).map_err(|_| Damaged)?;
    let above = match layers.len().checked_sub(described) {
        Some(above @ (0 | 1)) if described > 0 => above,
        _ => return Err(Unusable::OtherLayers(layers.len())),
    };
    for (position, layer) in layers.iter().enumerate().skip(above) {
        let index = u32::try_from(position - above).map_err(|_| Damaged)?;
        if view.layer(index)? != *layer {
            return Err(Unusable::OtherLayers(position));
        }
    }
    Ok(above)
}

/// Returns the identity of each layer.
pub(super) fn describe(
    layers: &Layers,
    stat: impl Fn(&layer::lower::Layer) -> Stat,
) -> Vec<LayerRecord> {
    let ids = id_maps();
    let plain = layers.roots().iter().map(|root| (root, 0));
    let data = layers
        .data_roots()
        .iter()
        .map(|root| (root, format::DATA_ONLY));
    plain
        .chain(data)
        .map(|(root, flags)| identity(&root.layer, &stat(&root.layer), flags, ids))
        .collect()
}

/// Reads the attributes of a layer's root again: the layer may have been opened long ago.
pub(super) fn now(layer: &layer::lower::Layer) -> Stat {
    let stat = At::fd(std::os::fd::AsFd::as_fd(&layer.root)).stat();
    stat.unwrap_or(layer.stat)
}

/// Distinguishes user namespaces in which the same files have other owners, such as that of `podman
/// unshare` (user_namespaces(7), "User and group ID mappings").
pub(super) fn id_maps() -> u32 {
    // The mappings of a process do not change.
    static MAPS: OnceLock<u32> = OnceLock::new();
    *MAPS.get_or_init(read_id_maps)
}

fn read_id_maps() -> u32 {
    let mut hash = Sha256::new();
    for map in ["/proc/self/uid_map", "/proc/self/gid_map"] {
        // If the mappings cannot be read, that counts as one more mapping.
        let map = std::fs::read_to_string(map).unwrap_or_default();
        for number in map.split_whitespace() {
            hash.update(number);
            hash.update([0]);
        }
        hash.update([1]);
    }
    let [a, b, c, d, ..]: [u8; 32] = hash.finalize().into();
    u32::from_le_bytes([a, b, c, d])
}

/// Returns the record that identifies a layer. Device numbers may change when a machine starts
/// again, and paths when a disk is mounted elsewhere. The compared fields do not. A directory that
/// was created again, copied or changed has another change time.
fn identity(layer: &layer::lower::Layer, stat: &Stat, flags: u32, ids: u32) -> LayerRecord {
    let born = stat.btime.unwrap_or_default();
    LayerRecord {
        uuid: layer.uuid.unwrap_or_default(),
        ino: stat.ino.into(),
        ctime: stat.ctime.sec.into(),
        btime: born.sec.into(),
        ctime_nsec: stat.ctime.nsec.into(),
        btime_nsec: born.nsec.into(),
        flags: (flags | format::dialect_bits(layer.dialect) | format::trust_bits(layer)).into(),
        ids: ids.into(),
    }
}
