//! Pulls an image of a registry into our own store: first everything is downloaded without a lock
//! of the store, then the image is stored under the lock.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::atomic::AtomicBool;

use serde::Serialize;
use ureq::http::{Method, header};

use super::Show;
use super::access::Access;
use super::client::Client;
use super::download::{Fetch, is_worth_keeping};
use super::error::{Error, Result};
use super::manifest::{self, Blob, Document, Manifest};
use super::parallel::each;
use super::response::read_all;
use super::signature;
use super::sources::{Needs, Sources};
use crate::archive::{Incoming, LayerBlob, Source, take};
use crate::layer_tar::Limits;
use crate::oci::chain_id::chain_ids;
use crate::oci::document::{self, Parts};
use crate::oci::image_config;
use crate::oci::{self, Digest, Platform, Reference};
use crate::progress::Progress;
use crate::store::writable::{Download, Exclusive, Kept, StagedKept};
use crate::store::{self, Writable};
use crate::sys::free_space::FreeSpace;
use crate::sys::interrupt;

/// The options of a pull.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PullOptions {
    /// The access to the registry.
    pub access: Access,
    /// The platform in an index; `None` for this machine, and for a single image of any platform.
    pub platform: Option<Platform>,
    /// The name that the image gets in the store, instead of its own.
    pub name: Option<Reference>,
    /// The number of blobs that are downloaded at once.
    pub parallel: usize,
    /// The limits of each layer.
    pub limits: Limits,
    /// Whether layers that the store has are checked, and downloaded again if they are damaged.
    pub repair: bool,
    /// Whether the object of the name is kept whole: an index with its images for all platforms. The
    /// image for `platform` gets the name.
    pub whole: bool,
}

impl Default for PullOptions {
    /// Pulls the image for this machine, as this user.
    fn default() -> Self {
        Self {
            access: Access::default(),
            platform: None,
            name: None,
            parallel: super::PARALLEL,
            limits: Limits::default(),
            repair: false,
            whole: false,
        }
    }
}

/// An image that was pulled.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Pulled {
    /// The ID.
    pub id: Digest,
    /// The digest that the name has in the registry: that of a manifest or index.
    pub digest: Digest,
    /// The names that the image got.
    pub names: Vec<String>,
    /// The chain IDs of layers that the store did not have.
    pub new_layers: Vec<Digest>,
    /// The chain IDs of damaged layers that got new files.
    pub repaired_layers: Vec<Digest>,
    /// The number of device nodes that are kept as empty files, for example without root.
    pub kept_devices: u64,
    /// The bytes of the compressed layers that were needed.
    pub needed: u64,
    /// The object that is kept whole, if that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kept: Option<Kept>,
}

/// An image whose blobs are in our store's downloads.
#[must_use = "only `register` makes it an image"]
pub struct Fetched<'o> {
    sources: Sources<'o>,
    options: &'o PullOptions,
    name: Reference,
    digest: Digest,
    manifest: Manifest,
    config: Vec<u8>,
    diff_ids: Vec<Digest>,
    /// The object of the name, if it is kept whole.
    whole: Option<Whole>,
    held: BTreeMap<Digest, Download>,
    /// The chain IDs of layers that the store has and that are damaged.
    damaged: Vec<Digest>,
    show: Show<'o>,
}

/// Downloads the blobs that the store does not have. Only the downloads of the store change; the
/// next call continues with what an interruption leaves of them.
///
/// # Errors
/// [`Error`] with the image, blob and digest.
pub fn fetch<'o>(
    store: &Writable,
    name: &Reference,
    options: &'o PullOptions,
    show: Show<'o>,
) -> Result<Fetched<'o>> {
    let sources = Sources::of(name, &options.access, show)?;
    let rules = options.access.rules(name)?;
    let Resolved { top, own, manifest } = resolve(&sources, name, options)?;
    let digest = top.digest;
    let chosen = own != digest;
    let signed = [digest, own];
    // A signature of one image is none of the others of its index.
    let signed = if options.whole {
        &signed[..1]
    } else {
        &signed[..]
    };
    signature::require(&rules, &sources, name, signed)?;
    let whole = options.whole.then(|| Whole::of(&sources, name, top));
    let whole = whole.transpose()?;
    let config = config(&sources, store, &manifest.config)?;
    let what = sources.name();
    let parsed = image_config::parse(Path::new("its configuration"), &config)
        .map_err(|error| Error::malformed(what.as_str(), error.without_remedy()))?;
    let (told, given) = (parsed.diff_ids.len(), manifest.layers.len());
    if told != given {
        let why = format!("its configuration has {told} layers, its manifest {given}");
        return Err(Error::malformed(what, why));
    }
    // An index's platform takes precedence over those of its images.
    if let Some(wanted) = options.platform.as_ref().filter(|_| !chosen) {
        let declared = Platform {
            os: parsed.os.unwrap_or_else(|| "linux".to_owned()),
            architecture: parsed.architecture.unwrap_or_default(),
            // Configurations seldom have a variant.
            variant: wanted.variant.clone(),
        };
        if wanted.suits(&declared).is_none() {
            return Err(Error::NoPlatform {
                what,
                wanted: wanted.to_string(),
                offered: format!("only {}/{}", declared.os, declared.architecture),
            });
        }
    }
    let mut fetched = Fetched {
        sources,
        options,
        name: name.clone(),
        digest,
        manifest,
        config,
        diff_ids: parsed.diff_ids,
        whole,
        held: BTreeMap::new(),
        damaged: Vec::new(),
        show,
    };
    if options.repair {
        fetched.damaged = store.damaged_layers(&fetched.diff_ids, &mut HashSet::new())?;
    }
    let present = store.present(&fetched.diff_ids);
    let chain = chain_ids(&fetched.diff_ids);
    for (blob, chain) in fetched.manifest.layers.iter().zip(&chain).take(present) {
        if !fetched.damaged.contains(chain) {
            show(Progress::Exists { item: &blob.digest });
        }
    }
    fetched.layers(store)?;
    Ok(fetched)
}

/// What a name means.
struct Resolved {
    /// The name's own object: a manifest or an index.
    top: RawManifest,
    /// The digest of the manifest.
    own: Digest,
    /// The manifest for the platform.
    manifest: Manifest,
}

fn resolve(sources: &Sources<'_>, name: &Reference, options: &PullOptions) -> Result<Resolved> {
    let platform = options.platform.clone().unwrap_or_else(Platform::host);
    let what = sources.name();
    let mut expected = expected_digest(name)?;
    let mut first = None;
    for _ in 0..=manifest::MAX_DEPTH {
        let found = manifest_from(sources, name, expected)?;
        let own = found.digest;
        let document = manifest::parse(&what, &found.media, &found.bytes, &platform)?;
        let top = first.get_or_insert(found);
        match document {
            Document::Image(manifest) => {
                let top = top.clone();
                return Ok(Resolved { top, own, manifest });
            }
            Document::Index(next) => expected = Some(next),
        }
    }
    Err(Error::malformed(what, "too many indexes within indexes"))
}

/// The object of a name, with all that it refers to.
struct Whole {
    object: Digest,
    /// The documents with what they refer to, the innermost first.
    documents: Vec<(RawManifest, Parts)>,
    /// The blobs, each once.
    blobs: Vec<Blob>,
}

impl Whole {
    /// Gets all documents.
    fn of(sources: &Sources<'_>, name: &Reference, top: RawManifest) -> Result<Self> {
        let object = top.digest;
        let get = |wanted: &document::Descriptor| {
            interrupt::check().map_err(Error::from)?;
            manifest_from(sources, name, Some(wanted.digest)).map(Some)
        };
        let fault = |error: oci::Error| Error::malformed(sources.name(), error.to_string());
        let documents = document::tree(top, get, fault)?;
        let mut once = HashSet::new();
        let all = documents.iter().flat_map(|(_, parts)| &parts.blobs);
        let blobs = all.filter(|blob| once.insert(blob.digest)).map(Blob::of);
        Ok(Self {
            object,
            blobs: blobs.collect(),
            documents,
        })
    }

    /// Puts everything beside its place in the store. `held` are the downloads.
    fn stage<'e>(
        &self,
        store: &'e Exclusive<'e>,
        held: &BTreeMap<Digest, Download>,
    ) -> Result<(StagedKept<'e>, Kept)> {
        let staged = store.stage_kept(&self.object)?;
        for blob in &self.blobs {
            match held.get(&blob.digest) {
                Some(download) => staged.downloaded(&blob.digest, download)?,
                None if staged.reuse(&blob.digest, blob.size)? => {}
                None => {
                    let why = "it was removed from the store meanwhile: try again";
                    return Err(Error::malformed(format!("blob {}", blob.digest), why));
                }
            }
        }
        let mut images = 0;
        for (raw, parts) in &self.documents {
            images += usize::from(parts.manifests.is_empty());
            // A blob of an odd manifest may be a document too.
            if !staged.has(&raw.digest)? {
                staged.document(&raw.digest, &raw.bytes)?;
            }
        }
        Ok((staged, Kept::new(self.object, images, 0)))
    }
}

/// Returns the digest in a name, if it has one.
pub(super) fn expected_digest(name: &Reference) -> Result<Option<Digest>> {
    let Some(text) = name.digest() else {
        return Ok(None);
    };
    let why = "a digest that is not SHA-256 cannot be compared";
    let digest = Digest::parse(text);
    Ok(Some(
        digest.ok_or_else(|| Error::malformed(name.to_string(), why))?,
    ))
}

/// A manifest or index, as a registry sends it.
#[derive(Clone, Debug)]
pub(super) struct RawManifest {
    pub(super) digest: Digest,
    /// The media type of the response.
    pub(super) media: String,
    pub(super) bytes: Vec<u8>,
}

impl document::Document for RawManifest {
    fn digest(&self) -> Digest {
        self.digest
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// Gets the manifest with a digest, or the one that the name means.
pub(super) fn manifest_from(
    sources: &Sources<'_>,
    name: &Reference,
    expected: Option<Digest>,
) -> Result<RawManifest> {
    let needs = match expected {
        Some(_) => Needs::Digest,
        None => Needs::Tag,
    };
    sources.first(needs, |client| get_manifest(client, name, expected))
}

/// As [`manifest_from`], from one place.
pub(super) fn get_manifest(
    client: &Client<'_>,
    name: &Reference,
    expected: Option<Digest>,
) -> Result<RawManifest> {
    let wanted = match &expected {
        Some(digest) => digest.to_string(),
        None => name.tag().unwrap_or("latest").to_owned(),
    };
    let what = match &expected {
        Some(digest) => format!("{}, manifest {digest}", client.name()),
        None => client.name().to_owned(),
    };
    request_manifest(client, &wanted, what, expected)
}

/// Returns the bytes of the manifest of another tag in the repository.
pub(super) fn get_manifest_by_tag(client: &Client<'_>, tag: &str) -> Result<Vec<u8>> {
    let what = format!("{}, tag {tag}", client.name());
    Ok(request_manifest(client, tag, what, None)?.bytes)
}

fn request_manifest(
    client: &Client<'_>,
    wanted: &str,
    what: String,
    expected: Option<Digest>,
) -> Result<RawManifest> {
    let path = client.path(&format!("manifests/{wanted}"));
    let mut request = client.request(Method::GET, &path, what.clone())?;
    request.headers.push((header::ACCEPT, manifest::accepted()));
    let (promised, media, bytes) = client.ask(&what, || {
        let mut response = client.exchange(&request)?;
        let text = |name: &str| {
            let value = response.headers().get(name).and_then(|v| v.to_str().ok());
            value.unwrap_or_default().to_owned()
        };
        let promised = Digest::parse(&text("docker-content-digest"));
        let media = text("content-type");
        let bytes = read_all(
            &mut response,
            manifest::MAX_MANIFEST,
            &what,
            client.patience,
        )?;
        Ok((promised, media, bytes))
    })?;
    let actual = Digest::of(&bytes);
    match expected.or(promised) {
        Some(expected) if expected != actual => Err(Error::Digest {
            what,
            expected,
            actual,
        }),
        _ => Ok(RawManifest {
            digest: actual,
            media,
            bytes,
        }),
    }
}

/// Returns the configuration, from the store if it has the image.
fn config(sources: &Sources<'_>, store: &Writable, blob: &Blob) -> Result<Vec<u8>> {
    match store.store().config_bytes(&blob.digest) {
        Ok((_, bytes)) => Ok(bytes),
        Err(_) => config_from(sources, blob),
    }
}

/// Downloads a configuration.
pub(super) fn config_from(sources: &Sources<'_>, blob: &Blob) -> Result<Vec<u8>> {
    if blob.size > manifest::MAX_CONFIG {
        let why = format!("{} bytes are too many for a configuration", blob.size);
        let what = format!("{}, blob {}", sources.name(), blob.digest);
        return Err(Error::malformed(what, why));
    }
    sources.first(Needs::Digest, |client| {
        get_blob(client, &blob.digest, blob.size)
    })
}

/// Downloads a small blob of at most `limit` bytes.
pub(super) fn get_blob(client: &Client<'_>, digest: &Digest, limit: u64) -> Result<Vec<u8>> {
    let what = client.blob_name(digest);
    let path = client.path(&format!("blobs/{digest}"));
    let request = client.request(Method::GET, &path, what.clone())?;
    let bytes = client.ask(&what, || {
        let mut response = client.exchange(&request)?;
        read_all(&mut response, limit, &what, client.patience)
    })?;
    let actual = Digest::of(&bytes);
    if actual == *digest {
        Ok(bytes)
    } else {
        Err(Error::Digest {
            what,
            expected: *digest,
            actual,
        })
    }
}

impl Fetched<'_> {
    /// Downloads the blobs of layers that the store does not have, unless they are downloaded
    /// already. Without the lock the store may change at any time: `register` checks again.
    fn layers(&mut self, store: &Writable) -> Result<()> {
        let present = store.present(&self.diff_ids);
        let mut once: HashSet<Digest> = self.held.keys().copied().collect();
        let chain = chain_ids(&self.diff_ids);
        let layers = self.manifest.layers.iter().zip(&chain).enumerate();
        let missing =
            layers.filter(|(at, (_, chain))| *at >= present || self.damaged.contains(chain));
        let missing = missing.map(|(_, (blob, _))| blob);
        let mut missing: Vec<&Blob> = missing.filter(|blob| once.insert(blob.digest)).collect();
        for blob in self.whole.iter().flat_map(|whole| &whole.blobs) {
            if !once.contains(&blob.digest) && !store.has_kept_blob(&blob.digest, blob.size)? {
                once.insert(blob.digest);
                missing.push(blob);
            }
        }
        let limit = self.options.limits.bytes;
        if let Some(blob) = missing.iter().find(|blob| blob.size > limit) {
            let what = format!("{}, blob {}", self.sources.name(), blob.digest);
            let why = format!("{} bytes, of which {limit} are allowed", blob.size);
            return Err(Error::malformed(what, why));
        }
        self.room(store, &missing)?;
        if !missing.is_empty() {
            (self.show)(Progress::Total {
                items: missing.len(),
                size: missing
                    .iter()
                    .fold(0, |sum, blob| blob.size.saturating_add(sum)),
            });
        }
        for blob in &missing {
            (self.show)(Progress::Waiting {
                item: &blob.digest,
                size: blob.size,
            });
        }
        let this = &*self;
        let held = each(&missing, self.options.parallel, |blob, stop| {
            this.blob(store, blob, stop)
        })?;
        let held = missing.iter().zip(held);
        let held: Vec<_> = held
            .filter_map(|(blob, download)| Some((blob.digest, download?)))
            .collect();
        self.held.extend(held);
        Ok(())
    }

    /// Fails before the download if the blobs do not fit.
    fn room(&self, store: &Writable, missing: &[&Blob]) -> Result<()> {
        let dir = store.downloads()?;
        let action = "ask for the free space of";
        let room =
            FreeSpace::of(&dir).map_err(|errno| store::Error::io(action, dir.path(), errno))?;
        let left = |blob: &&Blob| blob.size.saturating_sub(store.downloaded_of(&blob.digest));
        let needed = missing.iter().map(left).fold(0, u64::saturating_add);
        if needed <= room.bytes {
            Ok(())
        } else {
            Err(Error::NoRoom {
                what: self.sources.name(),
                needed,
                free: room.bytes,
                store: store.root().to_owned(),
            })
        }
    }

    fn blob(&self, store: &Writable, blob: &Blob, stop: &AtomicBool) -> Result<Option<Download>> {
        let fetch = Fetch {
            sources: &self.sources,
            blob,
            show: self.show,
            stop,
        };
        fetch.run(store)
    }

    /// Returns the chain IDs of layers that the store has and that are damaged, for
    /// [`Exclusive::distrust`]. Empty without [`PullOptions::repair`].
    pub fn damaged(&self) -> &[Digest] {
        &self.damaged
    }

    /// Returns the diff ID of each layer with the digest of its blob. [`fetch`] reports its progress by
    /// blob, [`Self::register`] by diff ID.
    pub fn blobs(&self) -> Vec<(Digest, Digest)> {
        let blobs = self.manifest.layers.iter().map(|blob| blob.digest);
        self.diff_ids.iter().copied().zip(blobs).collect()
    }

    /// Stores the image, completely or not at all. The downloads are removed.
    ///
    /// # Errors
    /// [`Error::Archive`] if the image cannot be stored: its configuration or a layer differs from
    /// the manifest, or the store cannot be written to; those of [`fetch`] if a layer is downloaded
    /// again.
    pub fn register(mut self, store: &Exclusive<'_>, progress: Show<'_>) -> Result<Pulled> {
        let outcome = self.take(store, progress);
        let keep = outcome.as_ref().err().is_some_and(is_worth_keeping);
        for (_, download) in std::mem::take(&mut self.held) {
            if !keep && let Err(error) = download.remove() {
                tracing::warn!(%error, "a download stays");
            }
        }
        outcome
    }

    fn take(&mut self, store: &Exclusive<'_>, progress: Show<'_>) -> Result<Pulled> {
        let writable = store.writable();
        // A layer may have been removed since; from now on none is, because the store is locked.
        self.layers(writable)?;
        let blobs = self.manifest.layers.iter();
        let incoming = Incoming {
            references: Vec::new(),
            object: Some(self.digest),
            config: self.config.clone(),
            diff_ids: self.diff_ids.clone(),
            layers: blobs
                .clone()
                .map(|blob| LayerBlob {
                    path: blob.digest.hex(),
                    digest: Some(blob.digest),
                    size: Some(blob.size),
                })
                .collect(),
            names: self.names()?,
        };
        let whole = self.whole.as_ref();
        let whole = whole.map(|whole| whole.stage(store, &self.held));
        let source = Source::of_dir(&writable.downloads()?, &self.sources.name())?;
        let limits = &self.options.limits;
        let whole = whole.transpose()?;
        let loaded = take(store, &source, &incoming, whole, limits, progress)?;
        for (diff_id, blob) in self.diff_ids.iter().zip(blobs.clone()) {
            if blob.is_gzip() {
                note(store, diff_id, &blob.digest, &self.name);
            }
        }
        let needed = blobs.filter(|blob| self.held.contains_key(&blob.digest));
        Ok(Pulled {
            id: loaded.id,
            digest: self.digest,
            names: loaded.names,
            new_layers: loaded.new_layers,
            repaired_layers: loaded.repaired_layers,
            kept_devices: loaded.kept_devices,
            needed: needed.map(|blob| blob.size).sum(),
            kept: loaded.kept,
        })
    }

    /// Returns the names, as in Docker: the tag, if the user gave no digest, and the name with
    /// today's digest.
    fn names(&self) -> Result<Vec<Reference>> {
        if let Some(name) = &self.options.name {
            return Ok(vec![name.clone()]);
        }
        let by_digest = digest_name(&self.name, &self.digest)?;
        Ok(match self.name.digest() {
            Some(_) => vec![by_digest],
            None => vec![self.name.clone(), by_digest],
        })
    }
}

/// Returns `name@digest`.
pub(super) fn digest_name(name: &Reference, digest: &Digest) -> Result<Reference> {
    let text = format!("{}/{}@{digest}", name.domain(), name.path());
    Ok(Reference::parse(&text)?)
}

/// Writes a note for a later `push` that a layer is that blob in the registry. A failure does no
/// harm.
pub(super) fn note(store: &Exclusive<'_>, diff_id: &Digest, blob: &Digest, name: &Reference) {
    let repository = format!("{}/{}", name.domain(), name.path());
    if let Err(error) = store.note_blob(diff_id, blob, &repository) {
        tracing::warn!(%error, "cannot note which blob a layer is");
    }
}
