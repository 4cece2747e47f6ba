//! Image archives: into a store of ours and out of any. Called by the cli's `load`,
//! `import` and `save`.
//!
//! ```text
//!  file, stdin, directory ──source──► named blobs ──manifest──► images: configuration, names,
//!                                                                layers (where, which digest)
//!  layer ──blob──► hashed, decompressed ──tarball::unpack──► a staged layer ──► a layer
//!  image ──save──► tar: layers rebuilt byte for byte, configuration, manifests
//! ```
//! Read are `docker save` archives (old ones, with `<id>/layer.tar`, and OCI-style ones),
//! OCI layouts as directories and tars, and what podman and skopeo write of both kinds.
//! Everything is hostile: names are looked up in an index and never become paths outside,
//! sizes are bounded, every digest that is declared is compared, and images get their names
//! only after all that is in the archive is there.

mod blob;
mod error;
mod import;
mod load;
mod manifest;
mod platform;
mod save;
mod source;

pub use error::ArchiveError;
pub use import::{Import, fill_from_tar, import};
pub(in crate::store) use load::take;
pub use load::{Loaded, Wanted, load};
pub use manifest::{Incoming, LayerBlob, images};
pub use platform::Platform;
pub use save::{Format, Outgoing, save};

pub use source::Source;

/// What a caller may show while layers come in or go out.
#[derive(Clone, Copy, Debug)]
pub enum Progress<'a> {
    /// A layer is begun.
    Layer {
        /// Its diff ID.
        diff_id: &'a crate::store::Digest,
        /// Bytes in the archive or of its files; 0 if unknown.
        bytes: u64,
    },
    /// So many more bytes of it were read or written.
    Bytes(u64),
    /// It is done.
    Done,
    /// The store had it already.
    Exists {
        /// Its diff ID.
        diff_id: &'a crate::store::Digest,
    },
}
