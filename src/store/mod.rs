//! Images on disk: from a name to a stack of layer directories. Called by the cli.
//!
//! ```text
//!  text ──reference──► Query ──repositories──► image ID ──imagedb──► diff IDs
//!                                                                       │ chain
//!  StackSpec ◄──drivers (diff/, link, lower, l/)◄── cache IDs ◄──layerdb─┘
//! ```
//! Stores are Docker's data roots or laid out like one, or podman's (`containers_storage`
//! in place of `repositories`, `imagedb` and `layerdb`), and are only read; the one
//! thing written is an [`ephemeral`] upper, below our own root. Everything read is
//! hostile: `beneath` opens every file without following symlinks and bounds its
//! size, digests and cache IDs are types that cannot hold anything else, and chains
//! are computed, not believed.
//!
//! Start at [`Stores::discover`].

pub(crate) mod beneath;
pub mod chain;
mod containers;
mod containers_storage;
pub mod digest;
pub(crate) mod drivers;
pub mod ephemeral;
pub mod error;
mod image;
mod imagedb;
mod json;
mod layerdb;
mod listing;
pub mod reference;
mod repositories;
pub mod roots;
mod single;
mod stores;

pub use containers::Container;
pub use digest::Digest;
pub use error::{Error, Result};
pub use image::{HistoryRow, Image, Layer};
pub use imagedb::{Config, Step};
pub use layerdb::CacheId;
pub use listing::{LayerNode, LayerTree, Listing};
pub use reference::{Query, Reference};
pub use repositories::Name;
pub use single::Store;
pub use stores::Stores;
