//! Copies images between registries, OCI layouts and directories of skopeo's kind `dir:`, byte by byte:
//! manifests, indexes and blobs keep their digests. Nothing is unpacked. Only on the way into a layout
//! do manifests of Docker become those of OCI (`convert`).
//!
//! ```text
//!  from ──► the object of the name: an index (all its images, or one) or a manifest
//!       ──► blobs that the destination lacks ──► a file without a name, hashed ──► to
//!       ──► manifests, the innermost first; the name last
//! ```
//! All input is hostile: each digest is compared before the destination gets the bytes.

mod convert;
mod from;
mod media_type;
mod to;

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};

use self::from::From;
use self::to::To;
use super::Show;
use super::access::Access;
use super::error::{Error, Result};
use super::manifest::{self, Blob, Document};
use super::parallel::each;
use super::pull::RawManifest;
use super::signature;
use crate::archive::Source;
use crate::oci::document::{self, Parts};
use crate::oci::{self, Digest, Platform, Reference};
use crate::progress::Progress;
use crate::store::writable::Staging;
use crate::sys::interrupt;

/// Where a copy comes from.
#[non_exhaustive]
pub enum CopyFrom<'s> {
    /// A registry, or its mirrors.
    Registry(&'s Reference, &'s Access),
    /// An OCI layout, as a directory or tar: the image with this tag, or the only one.
    Layout(&'s Source, Option<&'s str>),
    /// A directory of skopeo's kind `dir:`.
    Dir(&'s Source),
}

/// Where a copy goes.
#[non_exhaustive]
pub enum CopyTo<'d> {
    /// A registry.
    Registry(&'d Reference, &'d Access),
    /// A directory that becomes an OCI layout, or is one; the tag.
    Layout(&'d OwnedFd, Option<&'d str>),
    /// A tar of an OCI layout; the tag.
    LayoutArchive(Box<dyn io::Write + Send + 'd>, Option<&'d str>),
    /// A directory of skopeo's kind `dir:`.
    Dir(&'d OwnedFd),
}

/// Which images of an index are copied.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub enum CopyImages {
    /// The one for this machine.
    #[default]
    Host,
    /// The one for a platform.
    Of(Platform),
    /// All, with the index.
    All,
}

/// What was copied.
#[derive(Clone, Debug, serde::Serialize)]
#[non_exhaustive]
pub struct Copied {
    /// The digest of the manifest or index that has the name at the destination.
    pub digest: Digest,
    /// The number of manifests.
    pub images: usize,
    /// The number of blobs that the destination did not have.
    pub new_blobs: usize,
}

/// Copies an image. `staging` has as many files without a name as blobs are copied at once.
///
/// # Errors
/// [`Error`] with the image and the digest.
pub fn copy(
    from: CopyFrom<'_>,
    to: CopyTo<'_>,
    images: &CopyImages,
    staging: (&Staging, usize),
    show: Show<'_>,
) -> Result<Copied> {
    let (staging, parallel) = staging;
    let (name, rules) = match &from {
        CopyFrom::Registry(name, access) => (Some((*name).clone()), access.rules(name)?),
        _ => (None, Vec::new()),
    };
    let same = same_registry(&from, &to);
    let from = From::open(from, show)?;
    let top = from.top()?;
    let chosen = match images {
        CopyImages::All => top.clone(),
        CopyImages::Host => choose(&from, &top, &Platform::host())?,
        CopyImages::Of(platform) => choose(&from, &top, platform)?,
    };
    if let (Some(name), From::Registry { sources, .. }) = (&name, &from) {
        signature::require(&rules, sources, name, &[chosen.digest, top.digest])?;
    }
    let tree = tree(&from, chosen)?;
    let to = To::open(to, same, show)?;
    let tree = if to.is_layout() {
        convert::converted(tree).inspect_err(|_| to.undo())?
    } else {
        tree
    };
    let copied = copy_tree(&from, &to, &tree, (staging, parallel), show);
    copied.inspect_err(|_| to.undo())
}

/// Copies the blobs, then the manifests, the innermost first.
fn copy_tree(
    from: &From<'_>,
    to: &To<'_>,
    tree: &[(RawManifest, Parts)],
    staging: (&Staging, usize),
    show: Show<'_>,
) -> Result<Copied> {
    let (staging, parallel) = staging;
    let copying = Copying {
        from,
        to,
        staging,
        show,
    };
    let mut once = HashSet::new();
    let mut blobs: Vec<Blob> = tree
        .iter()
        .flat_map(|(_, parts)| parts.blobs.iter().map(Blob::of))
        .collect();
    blobs.retain(|blob| once.insert(blob.digest));
    // A tar is written one entry after the other.
    let parallel = if to.is_stream() { 1 } else { parallel };
    let new = each(&blobs, parallel, |blob, stop| copying.blob(blob, stop))?;
    let Some((last, others)) = tree.split_last() else {
        return Err(Error::malformed(from.name(), "has no manifest"));
    };
    for (raw, _) in others {
        to.manifest(raw)?;
    }
    to.name(&last.0)?;
    Ok(Copied {
        digest: last.0.digest,
        images: tree
            .iter()
            .filter(|(_, parts)| parts.manifests.is_empty())
            .count(),
        new_blobs: new.iter().filter(|new| **new).count(),
    })
}

/// Returns the repository from which the registry of the destination can take blobs itself.
fn same_registry(from: &CopyFrom<'_>, to: &CopyTo<'_>) -> Option<String> {
    match (from, to) {
        (CopyFrom::Registry(from, _), CopyTo::Registry(to, _)) if from.domain() == to.domain() => {
            Some(from.path().to_owned())
        }
        _ => None,
    }
}

/// Returns the manifest for a platform.
fn choose(from: &From<'_>, top: &RawManifest, platform: &Platform) -> Result<RawManifest> {
    let mut found = top.clone();
    for _ in 0..=manifest::MAX_DEPTH {
        // What is no index is copied whatever it is, also a chart or a signature.
        let parts = document::parts(&found.bytes)
            .map_err(|error| Error::malformed(from.name(), error.to_string()))?;
        if parts.manifests.is_empty() {
            return Ok(found);
        }
        match manifest::parse(&from.name(), &found.media, &found.bytes, platform)? {
            Document::Image(_) => return Ok(found),
            Document::Index(next) => found = from.manifest(&next)?,
        }
    }
    Err(Error::malformed(
        from.name(),
        "too many indexes within indexes",
    ))
}

/// Returns a manifest with all that it refers to, the innermost first.
fn tree(from: &From<'_>, top: RawManifest) -> Result<Vec<(RawManifest, Parts)>> {
    let get = |wanted: &document::Descriptor| {
        interrupt::check().map_err(Error::from)?;
        from.manifest(&wanted.digest).map(Some)
    };
    let fault = |error: oci::Error| Error::malformed(from.name(), error.to_string());
    document::tree(top, get, fault)
}

struct Copying<'c, 'f, 't> {
    from: &'c From<'f>,
    to: &'c To<'t>,
    staging: &'c Staging,
    show: Show<'c>,
}

impl Copying<'_, '_, '_> {
    /// Copies a blob; returns whether the destination did not have it.
    fn blob(&self, blob: &Blob, stop: &AtomicBool) -> Result<bool> {
        let item = &blob.digest;
        if self.to.has(blob)? {
            (self.show)(Progress::Exists { item });
            return Ok(false);
        }
        (self.show)(Progress::Begin {
            item,
            size: blob.size,
            have: 0,
        });
        let file = self.staging.file()?;
        let mut staged = Staged {
            file: &file,
            hash: Sha256::new(),
            length: 0,
            limit: blob.size,
            stop,
            refused: false,
        };
        self.from.blob(blob, &mut staged)?;
        let (length, actual) = (staged.length, Digest::from_hash(staged.hash));
        let what = format!("{}, blob {item}", self.from.name());
        if length != blob.size {
            let why = format!(
                "it has {length} bytes, not {} as its manifest says",
                blob.size
            );
            return Err(Error::malformed(what, why));
        }
        if actual != blob.digest {
            return Err(Error::Digest {
                what,
                expected: blob.digest,
                actual,
            });
        }
        self.to.put(blob, &file, &|count| {
            (self.show)(Progress::Advance { item, count });
        })?;
        self.staging.done_with(file);
        (self.show)(Progress::Done { item });
        Ok(true)
    }
}

/// A blob on its way: a file without a name, and the hash of its bytes.
struct Staged<'f> {
    file: &'f File,
    hash: Sha256,
    length: u64,
    limit: u64,
    stop: &'f AtomicBool,
    /// Whether the file cannot take the bytes: another attempt would fail too.
    refused: bool,
}

impl Staged<'_> {
    /// Begins again.
    fn restart(&mut self) -> io::Result<()> {
        use std::io::Seek as _;
        self.hash = Sha256::new();
        self.length = 0;
        self.file.set_len(0)?;
        (&mut &*self.file).rewind()
    }
}

impl io::Write for Staged<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        interrupt::check()?;
        self.refused = true;
        if self.stop.load(Ordering::Relaxed) {
            return Err(io::Error::other("another blob has failed"));
        }
        if self.length.saturating_add(buf.len() as u64) > self.limit {
            return Err(io::Error::other("it is longer than its manifest says"));
        }
        let written = io::Write::write(&mut &*self.file, buf)?;
        self.refused = false;
        self.hash.update(&buf[..written]);
        self.length += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A tar that is written by one thread at a time.
type Stream<'d> = Mutex<Option<tar::Builder<Box<dyn io::Write + Send + 'd>>>>;
