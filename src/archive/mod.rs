//! Image archives: read into our own store, written from any store (`unionfs load`, `import`,
//! `save`).
//!
//! ```text
//!  file, stdin, directory ──source──► named blobs ──contents──► images: configuration, names,
//!                                                                layers (where, which digest)
//!                                                               artifacts, which are left out
//!  layer ──blob──► hashed, decompressed ──layer_tar::unpack──► a staged layer ──► a layer
//!  image ──save──► tar: layers rebuilt byte for byte, configuration, manifests
//! ```
//! The formats that are read: `docker save` archives (old ones, with `<id>/layer.tar`, and
//! OCI-style ones), OCI layouts as directories and tars, `dir:` directories, and what podman and
//! skopeo write of these kinds.
//!
//! All input is hostile: names are looked up in an index and never become paths outside, sizes are
//! bounded, every declared digest is compared, and images get their names only after all parts of
//! the archive are stored.
//!
//! Moves an image from one store to another through a file:
//!
//! ```
//! use unionfs::archive::{self, Format, Import, Outgoing, Source, Wanted};
//! use unionfs::layer_tar::Limits;
//! use unionfs::oci::Reference;
//! use unionfs::oci::derived_config::Derivation;
//! use unionfs::store::Writable;
//!
//! let dir = tempfile::tempdir()?;
//! let (first, second) = (dir.path().join("first"), dir.path().join("second"));
//! let name = Reference::parse("empty:1")?;
//!
//! // An image of a tar that contains only the end marker.
//! let store = Writable::open(&first)?;
//! let derivation = Derivation::default();
//! let mut import = Import::new("example", &derivation);
//! import.name = Some(&name);
//! let tar: &[u8] = &[0; 1024];
//! let id = archive::import(&store.lock()?, &import, |layer| {
//!     archive::fill_from_tar(layer, tar, &import, |_| ())
//! })?;
//!
//! let file = dir.path().join("image.tar");
//! let image = Outgoing::new(store.store(), store.store().image(&id)?, vec![name]);
//! archive::save(&[image], Format::Docker, std::fs::File::create(&file)?, &|_| ())?;
//!
//! let store = Writable::open(&second)?;
//! let source = Source::open(&file, &store.staging(), Limits::default().bytes)?;
//! let loaded = archive::load(&store.lock()?, &source, &[], &Wanted::default(), &|_| ())?;
//! assert_eq!(loaded[0].id, id);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub(crate) mod artifact;
mod blob;
mod contents;
mod docker_archive;
mod entries;
mod error;
mod import;
mod keep;
mod layer_stream;
mod layout;
mod load;
mod save;
mod source;

pub use artifact::Artifact;
pub use contents::{Contents, Incoming, LayerBlob, Wanted, contents, find, images};
pub use error::{Error, Result};
pub use import::{Import, fill_from_tar, import};
pub use load::{Loaded, load, load_contents, take};
pub use save::{Format, Outgoing, Repacked, repack, save};
pub use source::Source;
