//! Images on disk: from a name to a stack of layer directories.
//!
//! ```text
//!  text ──reference──► Query ──repositories──► image ID ──imagedb──► diff IDs
//!                                                                       │ chain
//!  StackSpec ◄──drivers (diff/, link, lower, l/)◄── cache IDs ◄──layerdb─┘
//! ```
//! A store is Docker's data root or has its layout, is podman's (`containers_storage` in place of
//! `repositories`, `imagedb` and `layerdb`) or is containerd's (`containerd`). This code only reads
//! such stores. It writes only below our own root: [`writable`] changes the store there,
//! [`temporary_upper`] makes uppers of plain mounts. All that is read is hostile: `confined_dir`
//! opens every file without following symlinks and bounds its size, the types of digests and cache
//! IDs hold nothing else, and chain IDs are computed, not taken from the store.
//!
//! Start at [`Stores::discover`].
//!
//! ```
//! use unionfs::store::discovery::Environment;
//! use unionfs::store::{Error, Stores, Writable};
//!
//! let dir = tempfile::tempdir()?;
//! // A store of our own, without images yet: [`crate::archive`] and [`crate::registry`] add some.
//! let own = Writable::open(&dir.path().join("store"))?;
//! let stores = Stores::discover(Some(own.root()), &Environment::default())?;
//! assert_eq!(stores.all().len(), 1);
//! assert!(matches!(stores.find("busybox"), Err(Error::UnknownImage { .. })));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod committed_layers;
pub mod complete_layers;
pub(crate) mod confined_dir;
mod containerd;
mod containers;
mod containers_storage;
pub mod discovery;
pub(crate) mod drivers;
pub mod error;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub(crate) mod image;
pub mod image_name;
pub(crate) mod image_store;
pub(crate) mod imagedb;
mod kept;
mod layer_copy;
mod layer_place;
mod layer_tar_source;
mod layerdb;
mod listing;
mod location_note;
mod named_layer;
mod near_names;
mod places;
mod pulled_content;
mod random;
mod records;
mod repositories;
mod storage_conf;
mod store_set;
pub mod temporary_upper;
mod unnamed_layer;
pub mod verify;
pub mod writable;

pub use containers::Container;
pub use drivers::devicemapper::PoolFiles;
pub use error::{Error, Result};
pub use image::{HistoryRow, Image, ImageLayer};
pub use image_name::ImageName;
pub use image_store::Store;
pub use kept::KeptPlatform;
pub use layer_copy::{copy_layers, unpack_image};
pub use layer_place::LayerPlace;
pub use layerdb::CacheId;
pub use listing::{LayerNode, LayerTree, Listing};
pub use location_note::{Chain, LayerLocation, Mountable};
pub use named_layer::{NamedLayer, SourceStore};
pub use places::{Places, Roots};
pub use pulled_content::PulledContent;
pub use repositories::Name;
pub use store_set::Stores;
pub use unnamed_layer::{UnnamedLayer, UnnamedOrigin};
pub use writable::Writable;
