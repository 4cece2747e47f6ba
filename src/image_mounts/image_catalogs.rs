//! The catalogs of images: the one that a mount uses, the layers that it describes, and those that
//! are not needed any more. They are in the user's own store (`catalog::directory`), one for each
//! chain of layers of each store. [`super::unwritable_lowers`] and [`super::stored_lowers`] add those
//! of directories.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::error::{Error, Result};
use super::stored_lowers::{self, StoredLayers};
use super::unwritable_lowers::{self, PresentMounts};
use crate::catalog::{self, Label, directory};
use crate::oci::Digest;
use crate::store::writable::{DRIVER, Garbage, GarbageKind};
use crate::store::{Chain, Container, Mountable};

/// The number of catalogs of directories that are kept, of each kind.
const KEPT: usize = 64;

/// Returns the label of the catalog of an image; `None` if it has no layers.
pub fn label_of_image<L>(image: &Mountable<L>) -> Option<Label> {
    Some(Label {
        notes: image.note.clone().unwrap_or_default(),
        ..label_of_chain(image.chain.as_ref()?)
    })
}

fn label_of_chain(chain: &Chain) -> Label {
    Label {
        chain: chain.id.bytes(),
        store: chain.root.as_os_str().as_bytes().to_vec(),
        driver: chain.driver.into(),
        notes: Vec::new(),
    }
}

/// Returns the label of the catalog for the layers below a read-write layer of the store in `root`.
/// `None`: another layer is between them.
pub fn label_below_container(root: &Path, container: &Container) -> Option<Label> {
    let chain = container.parent.filter(|_| container.init.is_none())?;
    let (store, driver) = match &container.source {
        Some(source) => (source.root.as_path(), source.driver.as_str()),
        None => (root, DRIVER),
    };
    Some(Label {
        chain: chain.bytes(),
        store: store.as_os_str().as_bytes().to_vec(),
        driver: driver.into(),
        notes: Vec::new(),
    })
}

/// The catalog of a mount.
#[derive(Clone, Debug)]
pub struct MountCatalog {
    pub(super) path: PathBuf,
    /// The label of the layers. `None`: the catalog is used, but not built.
    pub(super) label: Option<Label>,
    /// The layers that must be complete when it is built; `None`: they cannot change.
    pub(super) layers: Option<StoredLayers>,
    renew: bool,
}

impl MountCatalog {
    /// Returns the catalog in a file. It is used if it fits the layers, and never built.
    ///
    /// # Errors
    /// [`Error::Path`] if the working directory does not exist any more.
    pub fn file(path: &Path) -> Result<Self> {
        let absolute = std::path::absolute(path).map_err(|source| Error::Path {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            path: absolute,
            label: None,
            layers: None,
            renew: false,
        })
    }

    /// Returns the path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the catalog is to be built although the mount can use it: it has no note of the
    /// places of the layers, or an old one.
    pub fn is_outdated(&self) -> bool {
        self.renew
    }
}

/// The catalogs in a store of unionfs.
///
/// ```
/// use unionfs::image_mounts::{ImageCatalogs, PresentMounts};
///
/// let own = tempfile::tempdir()?;
/// let catalogs = ImageCatalogs::of(own.path());
/// assert_eq!(catalogs.disk_usage(), 0);
/// assert!(catalogs.garbage(&PresentMounts::now())?.is_empty());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct ImageCatalogs {
    own_root: PathBuf,
}

impl ImageCatalogs {
    /// Returns the catalogs in the store with this root. The store need not exist.
    pub fn of(own_root: impl Into<PathBuf>) -> Self {
        Self {
            own_root: own_root.into(),
        }
    }

    /// Returns the catalog that a mount of these layers uses, or builds if there is none.
    pub fn choose(&self, label: Label) -> MountCatalog {
        MountCatalog {
            renew: !label.notes.is_empty(),
            ..self.choose_once(label)
        }
    }

    /// As [`ImageCatalogs::choose`], for layers whose notes stay as they are.
    pub(super) fn choose_once(&self, label: Label) -> MountCatalog {
        MountCatalog {
            path: directory::path(&self.own_root, &label),
            renew: false,
            label: Some(label),
            layers: None,
        }
    }

    /// Returns the note in the catalog of a chain about the places of its layers; see
    /// [`crate::store::Stores::mountable`].
    pub fn note(&self, chain: &Chain) -> Option<Vec<u8>> {
        let path = directory::path(&self.own_root, &label_of_chain(chain));
        let view = catalog::open(&path).ok()?;
        view.notes().ok().map(<[u8]>::to_vec)
    }

    /// Returns the roots of the stores that have catalogs here.
    ///
    /// # Errors
    /// [`Error::Catalogs`].
    pub fn stores(&self) -> Result<Vec<PathBuf>> {
        let labels = self.list()?.into_iter().filter_map(|kept| kept.label);
        let labels = labels.filter(|label| label.driver != unwritable_lowers::DRIVER);
        let mut roots: Vec<PathBuf> = labels
            .map(|label| PathBuf::from(OsString::from_vec(label.store)))
            .collect();
        roots.sort();
        roots.dedup();
        Ok(roots)
    }

    /// Returns the catalogs that are not needed: those of removed layers and of mounts that are gone,
    /// and damaged ones.
    ///
    /// # Errors
    /// [`Error::Catalogs`].
    pub fn garbage(&self, present: &PresentMounts) -> Result<Vec<Garbage>> {
        let is_garbage = |kept: &directory::Kept| {
            let label = kept.label.as_ref();
            !label.is_some_and(|label| is_needed(label, present))
        };
        let unneeded = self.list()?.into_iter().filter(is_garbage);
        let garbage = unneeded.map(|kept| Garbage {
            kind: GarbageKind::Catalog,
            path: kept.path,
            bytes: kept.bytes,
            image: None,
            names: Vec::new(),
            layer: None,
        });
        Ok(garbage.collect())
    }

    /// Removes the catalogs of chains that were removed from the store in `root`, a store of
    /// unionfs. A catalog that cannot be removed becomes garbage.
    pub fn remove_of_chains(&self, root: &Path, chains: &[Digest]) {
        for chain in chains {
            let label = Label {
                chain: chain.bytes(),
                store: root.as_os_str().as_bytes().to_vec(),
                driver: DRIVER.into(),
                notes: Vec::new(),
            };
            let path = directory::path(&self.own_root, &label);
            remove(&path);
        }
    }

    /// Removes the catalogs of directories with this driver in their labels that are not needed, and
    /// of too many those that were made or used first. What cannot be removed becomes garbage.
    pub(super) fn remove_old(&self, driver: &[u8], is_needed: impl Fn(&Label) -> bool) {
        let kept = self.list().unwrap_or_default();
        let of_driver = kept.into_iter().filter(|kept| {
            let label = kept.label.as_ref();
            label.is_some_and(|label| label.driver == driver)
        });
        let (mut needed, mut old): (Vec<_>, Vec<_>) =
            of_driver.partition(|kept| kept.label.as_ref().is_some_and(&is_needed));
        needed.sort_by_cached_key(|kept| std::cmp::Reverse(used(&kept.path)));
        old.extend(needed.drain(needed.len().min(KEPT - 1)..));
        old.iter().for_each(|kept| remove(&kept.path));
    }

    /// Returns the disk space of all catalogs in bytes; 0 if they cannot be listed.
    pub fn disk_usage(&self) -> u64 {
        let kept = directory::list(&self.own_root).ok();
        kept.into_iter().flatten().map(|kept| kept.bytes).sum()
    }

    /// Returns all files in the directory of catalogs.
    ///
    /// # Errors
    /// [`Error::Catalogs`].
    pub fn list(&self) -> Result<Vec<directory::Kept>> {
        directory::list(&self.own_root).map_err(|source| Error::Catalogs {
            path: directory::dir(&self.own_root),
            source,
        })
    }
}

fn remove(catalog: &Path) {
    if let Err(error) = directory::remove(catalog) {
        tracing::debug!(%error, path = %catalog.display(), "a catalog stays");
    }
}

/// Returns the time at which a catalog was made, or last used.
fn used(path: &Path) -> Option<SystemTime> {
    path.symlink_metadata()
        .and_then(|meta| meta.modified())
        .ok()
}

/// Whether the layers of a catalog still exist. A store with Docker's layout has a record of it.
/// The catalogs of other stores are kept as long as the store exists.
fn is_needed(label: &Label, present: &PresentMounts) -> bool {
    if label.driver == unwritable_lowers::DRIVER {
        return present.have_all_of(label);
    }
    if label.driver == stored_lowers::DRIVER {
        return stored_lowers::is_there(label);
    }
    let store = PathBuf::from(OsString::from_vec(label.store.clone()));
    let driver = OsString::from_vec(label.driver.clone());
    let layers = store.join("image").join(driver).join("layerdb/sha256");
    if layers.is_dir() {
        layers
            .join(Digest::from_bytes(label.chain).hex())
            .symlink_metadata()
            .is_ok()
    } else {
        store.is_dir()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::{Dialect, LayerSpec, StackSpec};

    #[test]
    fn the_newest_are_kept_of_those_that_are_needed() {
        let own = tempfile::tempdir().unwrap();
        let catalogs = ImageCatalogs::of(own.path());
        let empty = own.path().join("unionfs");
        std::fs::create_dir(&empty).unwrap();
        let stack = StackSpec {
            lowers: vec![LayerSpec::open(empty, Dialect::ALL).unwrap()],
            data_only: Vec::new(),
            upper: None,
        };
        let build = |number: u8, driver: &[u8], notes: &[u8]| {
            let label = Label {
                chain: [number; 32],
                store: Vec::new(),
                driver: driver.to_vec(),
                notes: notes.to_vec(),
            };
            let path = directory::path(own.path(), &label);
            catalog::build(&stack, &label, &path, &mut |_| true).unwrap();
            path
        };
        let gone = build(100, b"one", b"gone");
        let other = build(100, b"other", b"gone");
        let all: Vec<_> = (0..70)
            .map(|number| build(number, b"one", b"there"))
            .collect();
        catalogs.remove_old(b"one", |label| label.notes == b"there");
        assert!(!gone.exists());
        assert!(other.exists());
        let left = all.iter().filter(|path| path.exists()).count();
        assert_eq!(left, KEPT - 1, "one more is about to be made");
        assert!(all.last().unwrap().exists());
    }
}
