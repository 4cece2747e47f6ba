//! Images on disk: from a name to a stack of layer directories. Called by the cli.
//!
//! ```text
//!  text ──reference──► Query ──repositories──► image ID ──imagedb──► diff IDs
//!                                                                       │ chain
//!  StackSpec ◄──drivers (diff/, link, lower, l/)◄── cache IDs ◄──layerdb─┘
//! ```
//! Stores are Docker's data roots or laid out like one, or podman's (`containers_storage`
//! in place of `repositories`, `imagedb` and `layerdb`), and are only read. What is written
//! goes to our own root: [`writable`] changes the store there, [`ephemeral`] makes uppers
//! of plain mounts. [`archive`] and [`registry`] are where images come from and go to. Everything read is
//! hostile: `beneath` opens every file without following symlinks and bounds its
//! size, digests and cache IDs are types that cannot hold anything else, and chains
//! are computed, not believed.
//!
//! Start at [`Stores::discover`].

pub mod archive;
pub(crate) mod beneath;
pub mod chain;
mod containers;
mod containers_storage;
mod copied;
pub mod derive;
pub mod digest;
pub(crate) mod drivers;
pub mod ephemeral;
pub mod error;
#[doc(hidden)]
pub mod fuzzing;
mod image;
mod imagedb;
mod instructions;
pub mod interrupt;
mod json;
mod known;
mod layerdb;
mod listing;
mod named;
mod random;
pub mod reference;
pub mod registry;
mod repositories;
mod room;
pub mod roots;
mod single;
mod stores;
pub mod tarball;
pub mod verify;
pub mod writable;

pub use containers::Container;
pub use copied::copy_layers;
pub use digest::Digest;
pub use error::{Error, Result};
pub use image::{HistoryRow, Image, Layer};
pub use imagedb::{Config, Step};
pub use known::{Chain, Mountable};
pub use layerdb::CacheId;
pub use listing::{LayerNode, LayerTree, Listing};
pub use named::{Named, Source};
pub use reference::{Query, Reference};
pub use repositories::Name;
pub use single::Store;
pub use stores::Stores;
pub use writable::Writable;
