//! Catalogs of directories that are complete layers of a store: lowers that podman, buildah, Docker or
//! containerd name for a mount program. Their paths say where the records of the store are
//! ([`LayerPaths`]). The process that makes the catalog reads these, and makes none if a layer is not
//! complete. A mount that finds a catalog reads no records: the catalog fits only the same
//! directories, whose files the store does not write as long as they exist.
//!
//! Docker makes a layer for each container and puts it above those of the image. The catalog describes
//! those of the image, so all containers have the same one.
//!
//! The notes of such a catalog are a line for each layer, with its path. If one is gone, the catalog is
//! of no use. Of too many, those are removed that have not been used for the longest time.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{AtFlags, StatxFlags};
use sha2::{Digest as _, Sha256};

use super::image_catalogs::{ImageCatalogs, MountCatalog};
use super::unwritable_lowers::{UNWRITABLE, file_system};
use crate::catalog::{Label, directory, format};
use crate::layer::{LayerSpec, StackSpec};
use crate::store::complete_layers::{LayerPaths, LayerRecords, is_of_one_container};
use crate::sys::mounts::is_idmapped;
use crate::sys::stat::statx;

/// The driver in the label of such a catalog. No store has this name.
pub(super) const DRIVER: &[u8] = b"layers";

impl ImageCatalogs {
    /// Returns the catalog that a mount of directories uses, or makes if there is none and all lowers
    /// are complete layers. `None`: one of them does not look like a layer of a store, or cannot be
    /// told from another directory that takes its place.
    pub fn of_stored(&self, stack: &StackSpec) -> Option<MountCatalog> {
        let stack = &of_the_image(stack);
        let layers = LayerPaths::parse(stack.lowers.iter().map(LayerSpec::path))?;
        if !are_recognizable(&stack.lowers) {
            return None;
        }
        let mut catalog = self.choose_once(label(stack, &layers));
        catalog.layers = Some(StoredLayers {
            paths: layers,
            catalogs: self.clone(),
        });
        // This fails if there is none.
        let _ = directory::touch(catalog.path());
        Some(catalog)
    }
}

/// Returns the lowers without the layer of a container on top of them.
fn of_the_image(stack: &StackSpec) -> Cow<'_, StackSpec> {
    match stack.lowers.split_first() {
        Some((top, others)) if is_of_one_container(top.path()) => Cow::Owned(StackSpec {
            lowers: others.to_vec(),
            data_only: stack.data_only.clone(),
            upper: None,
        }),
        _ => Cow::Borrowed(stack),
    }
}

/// Whether the header of a catalog tells these directories from all others: they have times of birth,
/// and are on file systems of this machine that are written, not replaced ([`UNWRITABLE`]). The
/// owners must be those on the file system: the header says nothing of the mappings of a mount.
fn are_recognizable(layers: &[LayerSpec]) -> bool {
    let flags = AtFlags::EMPTY_PATH | AtFlags::NO_AUTOMOUNT;
    let wanted = StatxFlags::BTIME | StatxFlags::MNT_ID;
    // The layers of a store are on one mount.
    let mut mounts = HashMap::new();
    layers.iter().all(|layer| {
        let dir = layer.dir.as_fd();
        let Ok(stat) = statx(dir, c"", flags, wanted) else {
            return false;
        };
        let has_both = stat.stx_mask & wanted.bits() == wanted.bits();
        has_both
            && *mounts
                .entry(stat.stx_mnt_id)
                .or_insert_with(|| is_usual_mount(dir))
    })
}

fn is_usual_mount(dir: BorrowedFd<'_>) -> bool {
    file_system(dir).is_some_and(|kind| kind != FUSE && !UNWRITABLE.contains(&kind))
        && !is_idmapped(dir)
}

/// The type of FUSE file systems (`f_type` of statfs(2), linux/magic.h).
const FUSE: u64 = 0x6573_5546;

impl MountCatalog {
    /// Returns the layers that the catalog describes.
    pub(super) fn described<'s>(&self, stack: &'s StackSpec) -> Cow<'s, StackSpec> {
        match self.layers {
            Some(_) => of_the_image(stack),
            None => Cow::Borrowed(stack),
        }
    }

    /// Opens the records of the layers of the catalog, which say whether it may be made; `None` if it
    /// may be made anyway.
    ///
    /// # Errors
    /// Those of [`LayerPaths::open`].
    pub(super) fn records(&self, stack: &StackSpec) -> crate::store::Result<Option<LayerRecords>> {
        let dirs = || stack.lowers.iter().map(|layer| layer.dir.as_fd());
        let layers = self.layers.as_ref();
        layers.map(|layers| layers.paths.open(dirs())).transpose()
    }

    /// Removes catalogs of other layers, if there are too many, before this one is made. It is done
    /// before the process confines itself, so one goes also if this one is not made.
    pub(super) fn make_room(&self) {
        if let Some(layers) = &self.layers {
            layers.catalogs.remove_old(DRIVER, |_| true);
        }
    }
}

/// The layers of a catalog that are to be complete.
#[derive(Clone, Debug)]
pub(super) struct StoredLayers {
    paths: LayerPaths,
    /// Where the catalog is.
    catalogs: ImageCatalogs,
}

/// Whether all layers of such a catalog are still there. Those of other roots than the first are not
/// looked for: a process in a sandbox may not see them.
pub(super) fn is_there(label: &Label) -> bool {
    let root = Path::new(OsStr::from_bytes(&label.store));
    let paths = label.notes.split(|byte| *byte == b'\n');
    let mut paths = paths.map(|path| Path::new(OsStr::from_bytes(path)));
    paths.all(|path| !path.starts_with(root) || path.symlink_metadata().is_ok())
}

/// Returns the label of the catalog of these lowers, in this order. A layer that is made again has the
/// same one, so its catalog replaces the old one.
fn label(stack: &StackSpec, layers: &LayerPaths) -> Label {
    let mut identity = Sha256::new();
    let mut paths = Vec::new();
    for (layers, flags) in [(&stack.lowers, 0), (&stack.data_only, format::DATA_ONLY)] {
        for layer in layers {
            let path = layer.path().as_os_str().as_bytes();
            let flags = flags | format::dialect_bits(layer.dialect);
            for number in [path.len() as u64, flags.into()] {
                identity.update(number.to_le_bytes());
            }
            identity.update(path);
            paths.push(path);
        }
    }
    Label {
        chain: identity.finalize().into(),
        store: layers.root().as_os_str().as_bytes().to_vec(),
        driver: DRIVER.to_vec(),
        notes: paths.join(&b'\n'),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::layer::Dialect;

    fn stack(paths: &[PathBuf]) -> StackSpec {
        let open = |path| LayerSpec::open(path, Dialect::ALL).unwrap();
        StackSpec {
            lowers: paths.iter().map(open).collect(),
            data_only: Vec::new(),
            upper: None,
        }
    }

    #[test]
    fn a_label_is_that_of_its_directories_in_their_order() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().canonicalize().unwrap();
        let layer = |id: &str| {
            let path = root.join("overlay").join(id).join("diff");
            std::fs::create_dir_all(&path).unwrap();
            path
        };
        let (a, b) = (layer("a"), layer("b"));
        let catalogs = ImageCatalogs::of(root.join("own"));
        let label = |paths: &[&PathBuf]| {
            let paths: Vec<PathBuf> = paths.iter().map(|path| (*path).clone()).collect();
            let found = catalogs.of_stored(&stack(&paths));
            found.map(|catalog| catalog.label.unwrap())
        };
        let both = label(&[&a, &b]).unwrap();
        assert_eq!(label(&[&a, &b]).as_ref(), Some(&both));
        assert_ne!(label(&[&b, &a]).unwrap().chain, both.chain);
        assert_eq!(both.store, root.as_os_str().as_bytes());
        assert!(label(&[&a, &root]).is_none(), "the root is no layer");
        assert!(is_there(&both));
        std::fs::remove_dir(&a).unwrap();
        assert!(!is_there(&both));
        let elsewhere = Label {
            store: b"/elsewhere".to_vec(),
            ..both
        };
        assert!(is_there(&elsewhere));
    }
}
