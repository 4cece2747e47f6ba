//! Mounts of images by name: the image in a store, its catalog, an upper for changes, and the
//! mount.
//!
//! [`ImageMount`] does all of it, as `unionfs mount IMAGE` does. The parts can be used alone:
//! [`ImageCatalogs`] knows the catalog of a mount, and [`BackgroundBuild`] builds one beside a
//! mount.
//!
//! ```no_run
//! use unionfs::image_mounts::ImageMount;
//!
//! ImageMount::find("myapp:2")?.mount("/mnt")?.serve()?;
//! # Ok::<(), unionfs::image_mounts::Error>(())
//! ```

mod background_build;
mod error;
mod image_catalogs;
mod image_mount;
mod stored_lowers;
mod unwritable_lowers;

pub use background_build::BackgroundBuild;
pub use error::{Error, Result};
pub use image_catalogs::{ImageCatalogs, MountCatalog, label_below_container, label_of_image};
pub use image_mount::{ImageMount, MountedImage, UPPER_DIALECT};
pub use unwritable_lowers::PresentMounts;
