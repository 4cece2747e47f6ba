//! Pushes an image of any store to a registry.
//!
//! If the registry is known to have a layer, the manifest has the digest of that blob, so that a
//! pull and a push keep it. Other layers are rebuilt from their files and compressed (`compress`),
//! always to the same bytes. Each rebuilt layer is checked against its diff ID.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufWriter};

use serde::Serialize;
use sha2::{Digest as _, Sha256};
use ureq::http::{Method, header};

use super::Show;
use super::access::Access;
use super::client::{Client, Payload};
use super::compress::{Compressor, Finished, LayerCompression};
use super::error::{Error, Result};
use super::manifest::{self, Blob, Manifest, ManifestFormat};
use super::parallel::each;
use super::pull::{digest_name, note};
use super::retry::Failure;
use super::upload::{Content, mount, send, size_there};
use crate::layer_tar;
use crate::layer_tar::zstd_chunked::Annotations;
use crate::oci::{Digest, Reference};
use crate::progress::Progress;
use crate::store::writable::{Exclusive, KnownBlob, Staging, seen};
use crate::store::{Image, ImageLayer, Store};

/// The limit of known blobs of a layer that are looked for before the layer is rebuilt.
const MAX_ASKED: usize = 5;
/// The limit of repositories from which blobs may be mounted: each makes the token request longer.
const MAX_SOURCES: usize = 8;

/// The options of a push.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PushOptions {
    /// The access to the registry.
    pub access: Access,
    /// The manifest's media type.
    pub kind: ManifestFormat,
    /// The compression of layers that the registry does not have; all but gzip only with
    /// [`ManifestFormat::Oci`].
    pub compression: LayerCompression,
    /// The number of layers that are pushed at once.
    pub parallel: usize,
    /// A directory for compressed layers, in files without a name.
    pub staging: Staging,
}

impl PushOptions {
    /// Returns the options for a manifest of version 2, schema 2, pushed as this user.
    #[must_use]
    pub fn new(staging: Staging) -> Self {
        Self {
            access: Access::default(),
            kind: ManifestFormat::Docker,
            compression: LayerCompression::default(),
            parallel: super::PARALLEL,
            staging,
        }
    }
}

/// An image that was pushed.
#[derive(Clone, Debug, Serialize)]
pub struct Pushed {
    /// The name.
    pub name: String,
    /// The manifest's digest.
    pub digest: Digest,
    /// The image's ID.
    pub id: Digest,
    /// The layers, base first.
    pub layers: Vec<PushedLayer>,
    #[serde(skip)]
    reference: Reference,
    #[serde(skip)]
    compression: LayerCompression,
}

/// A layer in the registry.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct PushedLayer {
    /// The digest of its tar.
    pub diff_id: Digest,
    /// The digest of the compressed blob.
    pub digest: Digest,
    /// The blob's bytes.
    pub size: u64,
    /// Whether the blob was sent, because the registry did not have it.
    pub sent: bool,
    /// The repository of the registry from which it was mounted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mounted: Option<String>,
    #[serde(skip)]
    annotations: Annotations,
}

/// Pushes an image to the registry of `name`. The tag then means the image.
///
/// # Errors
/// [`Error`]; [`layer_tar::Error::Damaged`] if a layer differs from its diff ID.
pub fn push(
    store: &Store,
    image: &Image,
    name: &Reference,
    options: &PushOptions,
    show: Show<'_>,
) -> Result<Pushed> {
    let mut different: Vec<&ImageLayer> = Vec::new();
    for layer in &image.layers {
        if !different.iter().any(|known| known.diff_id == layer.diff_id) {
            different.push(layer);
        }
    }
    if !options.kind.allows(options.compression) {
        let why = "manifests of Docker's version 2, schema 2 have no layers in zstd";
        return Err(Error::malformed(name.to_string(), why));
    }
    let sources = sources(store, &different, name);
    let client = Client::open(name, "pull,push", &sources, &options.access, show)?;
    let pushing = Pushing {
        client: &client,
        store,
        name,
        options,
        show,
    };
    let done = each(&different, options.parallel, |layer, _| {
        pushing.layer(layer)
    })?;
    let all = image.layers.iter();
    let layers: Vec<PushedLayer> = all
        .filter_map(|layer| done.iter().find(|done| done.diff_id == layer.diff_id))
        .cloned()
        .collect();
    let (_, config) = store.config_bytes(&image.id)?;
    if size_there(&client, &image.id)?.is_none() {
        send(&client, &image.id, Content::Bytes(&config), &|_| ())?;
    }
    let manifest = Manifest {
        config: Blob {
            media_type: options.kind.config().to_owned(),
            size: config.len() as u64,
            digest: image.id,
            annotations: Annotations::new(),
        },
        layers: layers
            .iter()
            .map(|layer| Blob {
                media_type: options.kind.layer(options.compression).to_owned(),
                size: layer.size,
                digest: layer.digest,
                annotations: layer.annotations.clone(),
            })
            .collect(),
    };
    let digest = pushing.manifest(&manifest)?;
    Ok(Pushed {
        name: name.to_string(),
        digest,
        id: image.id,
        layers,
        reference: name.clone(),
        compression: options.compression,
    })
}

struct Pushing<'p> {
    client: &'p Client<'p>,
    store: &'p Store,
    name: &'p Reference,
    options: &'p PushOptions,
    show: Show<'p>,
}

impl Pushing<'_> {
    fn layer(&self, layer: &ImageLayer) -> Result<PushedLayer> {
        let diff_id = layer.diff_id;
        if let Some(known) = self.known(&diff_id)? {
            (self.show)(Progress::Exists { item: &diff_id });
            return Ok(known);
        }
        let Compressed {
            file,
            digest,
            size,
            annotations,
        } = self.compress(layer)?;
        let sent = size_there(self.client, &digest)?.is_none();
        if sent {
            let item = &digest;
            (self.show)(Progress::Begin {
                item,
                size,
                have: 0,
            });
            send(self.client, item, Content::File(&file, size), &|count| {
                (self.show)(Progress::Advance { item, count });
            })?;
            (self.show)(Progress::Done { item });
        } else {
            (self.show)(Progress::Exists { item: &diff_id });
        }
        self.options.staging.done_with(file);
        Ok(PushedLayer {
            diff_id,
            digest,
            size,
            sent,
            mounted: None,
            annotations,
        })
    }

    /// Returns the known blob of a layer, if it still is in this repository, or in another one of
    /// the registry, from which it is then mounted.
    fn known(&self, diff_id: &Digest) -> Result<Option<PushedLayer>> {
        let found = |digest: &Digest, size, mounted| PushedLayer {
            diff_id: *diff_id,
            digest: *digest,
            size,
            sent: false,
            mounted,
            annotations: Annotations::new(),
        };
        // All noted blobs are compressed with gzip.
        if !self.options.compression.is_gzip() {
            return Ok(None);
        }
        let notes = seen(self.store, diff_id);
        let (here, elsewhere): (Vec<_>, Vec<_>) = notes
            .iter()
            .rev()
            .filter_map(|note| Some((&note.digest, repository_of(note, self.name)?)))
            .partition(|(_, repository)| *repository == self.name.path());
        for (digest, _) in here.iter().take(MAX_ASKED) {
            if let Some(size) = size_there(self.client, digest)? {
                return Ok(Some(found(digest, size, None)));
            }
        }
        for (digest, from) in elsewhere.iter().take(MAX_ASKED) {
            if mount(self.client, digest, from)?
                && let Some(size) = size_there(self.client, digest)?
            {
                return Ok(Some(found(digest, size, Some((*from).to_owned()))));
            }
        }
        Ok(None)
    }

    /// Compresses a layer's tar.
    fn compress(&self, layer: &ImageLayer) -> Result<Compressed> {
        let staging = &self.options.staging;
        let failed = |error: &io::Error| staging.failed(error);
        let file = staging.file()?;
        let hashed = Hashed {
            out: BufWriter::with_capacity(256 << 10, file),
            hash: Sha256::new(),
            length: 0,
        };
        let scratch = || staging.file().map_err(io::Error::other);
        let blob = Compressor::new(self.options.compression, hashed, scratch);
        let mut blob = blob.map_err(|error| failed(&error))?;
        let actual = self.store.write_layer_tar(layer, &mut blob)?;
        if actual != layer.diff_id {
            return Err(layer_tar::Error::Damaged {
                path: layer.place.path().display().to_string(),
                what: format!("its files make a tar of {actual}, not {}", layer.diff_id),
            }
            .into());
        }
        let finished = blob.finish().map_err(|error| failed(&error))?;
        let Finished {
            out,
            annotations,
            scratch,
        } = finished;
        scratch.into_iter().for_each(|file| staging.done_with(file));
        let file = out.out.into_inner();
        Ok(Compressed {
            file: file.map_err(|e| failed(e.error()))?,
            digest: Digest::from_hash(out.hash),
            size: out.length,
            annotations,
        })
    }

    /// Publishes the manifest; returns its digest.
    fn manifest(&self, manifest: &Manifest) -> Result<Digest> {
        let kind = self.options.kind;
        let bytes = manifest::write(kind, manifest)?;
        let digest = Digest::of(&bytes);
        let tag = self.name.tag().unwrap_or("latest");
        let path = self.client.path(&format!("manifests/{tag}"));
        let what = self.client.name().to_owned();
        let mut request = self.client.request(Method::PUT, &path, what)?;
        let media = kind.manifest().to_owned();
        request.headers.push((header::CONTENT_TYPE, media));
        request.body = Payload::Bytes(&bytes);
        let response = self.client.ask(&request.what, || {
            self.client.exchange(&request).map_err(contradiction)
        })?;
        let told = response.headers().get("docker-content-digest");
        let told = told.and_then(|value| Digest::parse(value.to_str().ok()?));
        match told {
            Some(actual) if actual != digest => Err(Error::Digest {
                what: self.client.name().to_owned(),
                expected: digest,
                actual,
            }),
            _ => Ok(digest),
        }
    }
}

impl Pushed {
    /// Records the image's name and blobs in the registry in the image's own store, as Docker does.
    ///
    /// # Errors
    /// [`Error::Store`] if the names of the store cannot be read or written.
    pub fn note(&self, store: &Exclusive<'_>) -> Result<()> {
        let is_gzip = self.compression.is_gzip();
        for layer in self.layers.iter().filter(|_| is_gzip) {
            note(store, &layer.diff_id, &layer.digest, &self.reference);
        }
        let repository = self.reference.familiar_name();
        let names = store.names(&self.id)?;
        // The image gets a name with this digest only if it has a name of this repository.
        if names.iter().any(|name| name.repository == repository) {
            store.tag(&digest_name(&self.reference, &self.digest)?, &self.id)?;
        }
        Ok(())
    }
}

/// Makes contradictory responses transient. A registry that has just said that it has every blob of
/// the manifest may report one of them as unknown, or its digest as invalid, while another client
/// pushes the same blob: the registry of the distribution project truncates the file that links a
/// repository to a blob before it writes it (distribution/distribution#4489). This state does not
/// last.
pub(super) fn contradiction(failure: Failure) -> Failure {
    const CODES: [&str; 3] = ["DIGEST_INVALID", "MANIFEST_BLOB_UNKNOWN", "BLOB_UNKNOWN"];
    let is_one = |error: &Error| match error {
        Error::Status { status, code, .. } => *status == 400 && CODES.contains(&code.as_str()),
        _ => false,
    };
    match failure {
        Failure::Final(error) if is_one(&error) => Failure::Transient(error),
        other => other,
    }
}

/// Returns the repository of a note, if the registry of `name` has it. Notes are only as reliable
/// as their store.
fn repository_of<'n>(note: &'n KnownBlob, name: &Reference) -> Option<&'n str> {
    let reference = Reference::parse(&note.source_repository).ok()?;
    let path = note.source_repository.strip_prefix(name.domain())?;
    let path = path.strip_prefix('/')?;
    (reference.domain() == name.domain() && reference.path() == path).then_some(path)
}

/// Returns the repositories of the registry that are known to have layers of the image: the token
/// must allow reading them, so that blobs can be mounted.
fn sources(store: &Store, layers: &[&ImageLayer], name: &Reference) -> Vec<String> {
    let mut sources = BTreeSet::new();
    for layer in layers {
        let notes = seen(store, &layer.diff_id);
        let known = notes.iter().rev().take(MAX_ASKED);
        let known = known.filter_map(|note| repository_of(note, name));
        sources.extend(known.filter(|path| *path != name.path()).map(str::to_owned));
    }
    sources.into_iter().take(MAX_SOURCES).collect()
}

/// A compressed layer.
struct Compressed {
    file: File,
    digest: Digest,
    size: u64,
    annotations: Annotations,
}

/// Hashes and counts the bytes written.
struct Hashed {
    out: BufWriter<File>,
    hash: Sha256,
    length: u64,
}

impl io::Write for Hashed {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let written = self.out.write(buf)?;
        self.hash.update(&buf[..written]);
        self.length += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
