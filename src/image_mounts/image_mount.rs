//! A mount of an image, from its name to the mountpoint.

use std::fs::File;
use std::path::{Path, PathBuf};

use rustix::mount::MountFlags;

use super::error::Result;
use super::image_catalogs::{ImageCatalogs, MountCatalog, label_of_image};
use crate::catalog::{self, CatalogFile};
use crate::fuse::{self, Background, MountConfig, Mounted};
use crate::layer::{StackSpec, UpperSpec};
use crate::oci::Digest;
use crate::store::discovery::Environment;
pub use crate::store::temporary_upper::UPPER_DIALECT;
use crate::store::temporary_upper::{UpperLocation, empty_layer, make_temporary_upper};
use crate::store::{Mountable, Stores};
use crate::union::{self, Union};

/// An image to mount.
///
/// ```no_run
/// use unionfs::image_mounts::ImageMount;
///
/// let mounted = ImageMount::find("myapp:2")?.with_catalog()?.mount("/mnt")?;
/// println!("changes are kept in {:?}", mounted.upper());
/// let background = mounted.spawn()?;
/// println!("{}", std::fs::read_to_string("/mnt/etc/os-release").unwrap_or_default());
/// background.unmount()?;
/// # Ok::<(), unionfs::image_mounts::Error>(())
/// ```
#[derive(Debug)]
#[must_use = "nothing is mounted yet"]
pub struct ImageMount {
    label: String,
    image: Digest,
    stack: StackSpec,
    read_only: bool,
    /// `None`: there are no layers.
    catalog: Option<MountCatalog>,
    /// The root of the user's own store, in which uppers are made.
    own_root: PathBuf,
    /// Files that keep the layers from being removed.
    held: Vec<File>,
}

impl ImageMount {
    /// Finds an image by name or ID in the stores of this machine that the user may read.
    ///
    /// This process reads the stores itself. `unionfs mount` has a confined process that does it.
    ///
    /// # Errors
    /// [`super::Error::Store`].
    pub fn find(name: &str) -> Result<Self> {
        let environment = Environment::current();
        let own_root = environment.own_root()?;
        Self::find_in(Stores::discover(None, &environment)?, name, own_root)
    }

    /// As [`ImageMount::find`], in these stores. `own_root` is the root of the store for catalogs
    /// and uppers; it need not exist.
    ///
    /// # Errors
    /// [`super::Error::Store`].
    pub fn find_in(stores: Stores, name: &str, own_root: PathBuf) -> Result<Self> {
        let catalogs = ImageCatalogs::of(&own_root);
        let found = stores.mountable(name, |chain| catalogs.note(chain))?;
        let catalog = label_of_image(&found).map(|label| catalogs.choose(label));
        let Mountable {
            id, label, lowers, ..
        } = found;
        Ok(Self {
            label,
            image: id,
            stack: StackSpec {
                lowers,
                data_only: Vec::new(),
                upper: None,
            },
            read_only: false,
            catalog,
            own_root,
            held: stores.into_held(),
        })
    }

    /// Makes the mount read-only.
    pub fn read_only(mut self) -> Self {
        self.read_only = true;
        self
    }

    /// Keeps changes in this upper; [`UPPER_DIALECT`] has its markers. Without this call, and unless the
    /// mount is read-only, an upper is made in the user's own store.
    pub fn with_upper(mut self, upper: UpperSpec) -> Self {
        self.stack.upper = Some(upper);
        self
    }

    /// Builds the catalog of the layers, if no usable one exists. A mount without a catalog reads
    /// the directories of the layers.
    ///
    /// # Errors
    /// [`super::Error::Catalog`].
    pub fn with_catalog(self) -> Result<Self> {
        if let Some(chosen) = &self.catalog
            && let Some(label) = &chosen.label
        {
            let usable = catalog::open(chosen.path()).is_ok();
            if !usable || chosen.is_outdated() {
                catalog::build(&self.stack, label, chosen.path(), &mut |_| true)?;
            }
        }
        Ok(self)
    }

    /// Mounts the image, with `nosuid` and `nodev`. Call it before threads are started if the process
    /// is to be a daemon.
    ///
    /// # Errors
    /// [`super::Error::Store`] if no upper can be made; [`super::Error::Union`] for layers that
    /// cannot be stacked; [`super::Error::Mount`]. After an error no mount is left.
    pub fn mount(mut self, mountpoint: impl AsRef<Path>) -> Result<MountedImage> {
        if self.stack.lowers.is_empty() {
            self.stack.lowers.push(empty_layer(&self.own_root)?);
        }
        let made = self.add_upper()?;
        let mounted = self.attach(mountpoint.as_ref());
        if let (Err(_), Some(made)) = (&mounted, &made)
            && let Err(error) = made.remove()
        {
            tracing::warn!(%error, "upper directory left behind");
        }
        let upper = self.stack.upper.as_ref();
        Ok(MountedImage {
            mounted: mounted?,
            upper: upper.map(|upper| upper.layer.path().to_owned()),
            held: self.held,
        })
    }

    /// Makes the upper that is missing.
    fn add_upper(&mut self) -> Result<Option<UpperLocation>> {
        if self.read_only {
            self.stack.upper = None;
        }
        let Some(top) = self.stack.lowers.first() else {
            return Ok(None);
        };
        if self.read_only || self.stack.upper.is_some() {
            return Ok(None);
        }
        let made = make_temporary_upper(&self.own_root, &top.dir)?;
        self.stack.upper = Some(made.spec(UPPER_DIALECT));
        let place = made.place().clone();
        self.held.push(made.into_held());
        Ok(Some(place))
    }

    fn attach(&self, mountpoint: &Path) -> Result<Mounted> {
        let options = union::Options {
            names: (self.catalog.as_ref()).map(|catalog| CatalogFile::source(catalog.path())),
            ..union::Options::default()
        };
        let union = Union::new(&self.stack, options)?;
        let mut config = MountConfig::new(mountpoint);
        config.fsname = self.label.clone().into();
        config.flags = MountFlags::NOSUID | MountFlags::NODEV;
        config.flags.set(MountFlags::RDONLY, self.read_only);
        config.description = fuse::Description {
            image: Some(self.label.clone()),
            image_id: Some(self.image.to_string()),
            ..fuse::Description::of(&self.stack)
        };
        Ok(fuse::mount(union, &config)?)
    }
}

/// A mounted image. Requests wait until it is served. Dropping it without serving unmounts it.
#[must_use = "a mount that is not served is unmounted"]
pub struct MountedImage {
    mounted: Mounted,
    upper: Option<PathBuf>,
    held: Vec<File>,
}

impl std::fmt::Debug for MountedImage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MountedImage")
            .field("mountpoint", &self.mounted.mountpoint())
            .field("upper", &self.upper)
            .finish_non_exhaustive()
    }
}

impl MountedImage {
    /// Returns the directory in which changes are kept; `None` for a read-only mount.
    pub fn upper(&self) -> Option<&Path> {
        self.upper.as_deref()
    }

    /// Serves until the image is unmounted or a signal ends the mount.
    ///
    /// # Errors
    /// [`super::Error::Mount`].
    pub fn serve(self) -> Result<()> {
        // The record of the mount exists by then and keeps the layers.
        Ok(self.mounted.serve_with(|| drop(self.held))?)
    }

    /// Serves on a new thread. Returns when the mount answers.
    ///
    /// # Errors
    /// [`super::Error::Mount`].
    pub fn spawn(self) -> Result<Background> {
        let background = self.mounted.spawn()?;
        drop(self.held);
        Ok(background)
    }
}
