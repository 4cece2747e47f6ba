//! Pulls images from registries and pushes images to them (`unionfs pull` and `push`).
//!
//! ```text
//!  name ──client──► manifest (index: platform) ──► configuration, blobs
//!  blob ──download──► unionfs/downloads/<digest>, hashed, resumed, several at once
//!  blobs ──archive::take ───► layers, image, names          (only here the store is locked)
//!  image ──push──► layers rebuilt and compressed, or known there ──upload──► manifest
//! ```
//! `client` speaks HTTP. `endpoint` knows the hosts, `certificates` the trusted certificates,
//! `auth` the challenges and tokens, `credentials` what `docker login` has stored, `retry` which
//! failures allow another attempt. All input is hostile: sizes are bounded, every digest is
//! compared, and no credentials are sent to another host after a redirect. The client is blocking
//! (ureq): a few threads wait for a few blobs.
//!
//! ```no_run
//! use unionfs::oci::Reference;
//! use unionfs::registry::{PullOptions, fetch};
//! use unionfs::store::Writable;
//!
//! let store = Writable::open("/var/lib/unionfs".as_ref())?;
//! let options = PullOptions::default();
//! let fetched = fetch(&store, &Reference::parse("busybox")?, &options, &|_| ())?;
//! // Other processes may use the store while blobs are downloaded. Now it is locked.
//! let pulled = fetched.register(&store.lock()?, &|_| ())?;
//! println!("{}", pulled.id);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod access;
mod auth;
mod certificates;
mod chunked;
mod client;
mod compress;
mod config;
mod copy;
mod credential_helper;
mod credentials;
mod download;
mod endpoint;
mod error;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod login;
mod login_file;
mod manifest;
mod pace;
mod parallel;
mod pull;
mod push;
mod remote;
mod response;
mod retry;
mod route;
mod signature;
mod sources;
mod upload;

pub use access::{Access, TlsVerify};
pub use certificates::CertificateDirs;
pub use compress::LayerCompression;
pub use config::ConfigurationFiles;
pub use copy::{Copied, CopyFrom, CopyImages, CopyTo, copy};
pub use credentials::CredentialFiles;
pub use error::{Error, Result};
pub use login::{LoginPlace, LoginTarget, check_login};
pub use manifest::ManifestFormat;
pub use pace::Patience;
pub use pull::{Fetched, PullOptions, Pulled, fetch};
pub use push::{PushOptions, Pushed, PushedLayer, push};
pub use remote::{
    RemoteImage, RemoteLayer, RemotePlatform, delete, digest, look, raw_manifest, tags,
};
pub use retry::Retry;
pub use route::Purpose;

use crate::oci::Digest;
use crate::progress::Progress;

/// The number of blobs that are transferred at once, as in Docker.
pub const PARALLEL: usize = 3;

/// Shows the progress of blobs, from several threads.
pub type Show<'s> = &'s (dyn Fn(Progress<'_, &Digest>) + Sync);
