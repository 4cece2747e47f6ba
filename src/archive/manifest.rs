//! Which images an archive has: `manifest.json` of `docker save`, else the `index.json` of an OCI
//! layout.
//!
//! Formats: moby, image/tarexport ("manifest.json": Config, RepoTags, Layers as paths); OCI
//! image specification, image-layout.md, image-index.md, manifest.md.

use std::collections::HashMap;
use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::error::{Error, Result};
use super::source::Source;
use crate::oci::platform::Platform;
use crate::oci::text::excerpt;
use crate::oci::{Digest, Reference, image_config, json};
use crate::sys::interrupt;

/// Images of one archive, at most.
const MAX_IMAGES: usize = 10_000;
/// Bytes that are read to know them, at most: enough for all of them, as usual ones are.
const MAX_KNOWN: usize = 256 << 20;
/// Of these a layer takes, and a name besides its text.
const EACH: usize = 256;
/// Indexes within indexes, at most.
const MAX_DEPTH: usize = 4;

/// An image that an archive offers.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Incoming {
    /// Its configuration; the image ID is its SHA-256.
    pub config: Vec<u8>,
    /// The diff IDs of its layers, base first.
    pub diff_ids: Vec<Digest>,
    /// As many layers.
    pub layers: Vec<LayerBlob>,
    /// Names it asks for.
    pub names: Vec<Reference>,
}

/// Where a layer's tar is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LayerBlob {
    /// The entry.
    pub path: String,
    /// What the entry, compressed as it is, must hash to; `None`: nothing says so.
    pub digest: Option<Digest>,
    /// Its length in bytes, where declared.
    pub size: Option<u64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Option<Vec<String>>,
}

#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: Option<u64>,
    annotations: Option<HashMap<String, String>>,
    platform: Option<Platform>,
}

#[derive(Deserialize)]
struct Index {
    manifests: Option<Vec<Descriptor>>,
}

#[derive(Deserialize)]
struct OciManifest {
    config: Descriptor,
    layers: Option<Vec<Descriptor>>,
}

/// Every image of an archive that is for `platform`; `None`: for this machine. No two of
/// them ask for one name.
///
/// # Errors
/// [`Error`]: for what is not an archive, is incomplete, or contradicts itself.
pub fn images(source: &Source, platform: Option<&Platform>) -> Result<Vec<Incoming>> {
    let host = platform.is_none().then(Platform::host);
    let Some(platform) = platform.or(host.as_ref()) else {
        return Ok(Vec::new());
    };
    let mut found = Found::default();
    if let Some(bytes) = source.metadata("manifest.json")? {
        let listed: Vec<DockerImage> = parse(source, "manifest.json", &bytes)?;
        limited(source, "manifest.json", listed.len())?;
        for image in &listed {
            interrupt::check()?;
            found.add(source, docker(source, image)?)?;
        }
        return Ok(found.images);
    }
    let Some(bytes) = source.metadata("index.json")? else {
        return Err(Error::NotAnArchive {
            archive: source.name().to_owned(),
        });
    };
    let index: Index = parse(source, "index.json", &bytes)?;
    let descriptors = index.manifests.unwrap_or_default();
    limited(source, "index.json", descriptors.len())?;
    let here = for_platform(&descriptors, platform);
    if here.is_empty() {
        return Err(no_platform(source, "index.json", platform));
    }
    for descriptor in here {
        interrupt::check()?;
        found.add(source, oci(source, descriptor, platform)?)?;
    }
    Ok(found.images)
}

/// The images so far. One that comes twice counts once, with all names. Of two that ask for one name,
/// one would take it from the other.
#[derive(Default)]
struct Found {
    images: Vec<Incoming>,
    /// Where each image is in the list.
    places: HashMap<Digest, usize>,
    /// Which image asks for a name.
    names: HashMap<String, Digest>,
    /// What was read for all that, in bytes.
    size: usize,
}

impl Found {
    fn add(&mut self, source: &Source, mut image: Incoming) -> Result<()> {
        let id = Digest::of(&image.config);
        // Also of one that is here already: it was read again.
        self.size += image.config.len() + image.layers.len() * EACH;
        let refused = |what| Err(Error::entry(source.name(), "the archive", what));
        let mut new = Vec::new();
        for name in std::mem::take(&mut image.names) {
            let key = name.key();
            match self.names.get(&key) {
                None => {
                    self.size += key.len() + EACH;
                    self.names.insert(key, id);
                    new.push(name);
                }
                Some(other) if *other == id => {}
                Some(other) => {
                    return refused(format!(
                        "two images ask for the name {name}, {other} and {id}: nothing was loaded; \
                         make the archive again with a name for each"
                    ));
                }
            }
        }
        match self.places.get(&id).and_then(|at| self.images.get_mut(*at)) {
            Some(known) => known.names.extend(new),
            None => {
                self.places.insert(id, self.images.len());
                image.names = new;
                self.images.push(image);
            }
        }
        if self.size > MAX_KNOWN {
            refused(format!(
                "what its images say of themselves takes more than {MAX_KNOWN} bytes"
            ))
        } else {
            Ok(())
        }
    }
}

/// How well a platform is served, as far as the index says: where it says nothing, the
/// image may be for any. Attestations are for the platform "unknown".
fn fit(descriptor: &Descriptor, platform: &Platform) -> Option<u32> {
    match &descriptor.platform {
        None => Some(0),
        Some(theirs) => platform.suits(theirs),
    }
}

/// Of the descriptors with the same names those that suit best, in their order.
fn for_platform<'d>(descriptors: &'d [Descriptor], platform: &Platform) -> Vec<&'d Descriptor> {
    let mut best: HashMap<Vec<String>, u32> = HashMap::new();
    let names =
        |d: &Descriptor| -> Vec<String> { oci_names(d).iter().map(Reference::key).collect() };
    for descriptor in descriptors {
        if let Some(fit) = fit(descriptor, platform) {
            let best = best.entry(names(descriptor)).or_default();
            *best = fit.max(*best);
        }
    }
    let suits = |d: &&Descriptor| {
        fit(d, platform)
            .is_some_and(|fit| d.platform.is_none() || best.get(&names(d)) == Some(&fit))
    };
    descriptors.iter().filter(suits).collect()
}

fn no_platform(source: &Source, entry: &str, platform: &Platform) -> Error {
    let what = format!("no image for {platform}");
    Error::entry(source.name(), &excerpt(entry.as_bytes()), what)
}

fn limited(source: &Source, entry: &str, images: usize) -> Result<()> {
    let what = match images {
        0 => "lists no image".to_owned(),
        n if n > MAX_IMAGES => format!("lists more than {MAX_IMAGES} images"),
        _ => return Ok(()),
    };
    Err(Error::entry(source.name(), entry, what))
}

fn parse<T: DeserializeOwned>(source: &Source, entry: &str, bytes: &[u8]) -> Result<T> {
    json::parse(Path::new(entry), bytes)
        .map_err(|error| Error::entry(source.name(), &excerpt(entry.as_bytes()), error.to_string()))
}

fn docker(source: &Source, image: &DockerImage) -> Result<Incoming> {
    let config = source.required(&image.config)?;
    // `<hex>.json`, or `blobs/sha256/<hex>`: the name says what it must be.
    let name = image.config.rsplit('/').next().unwrap_or_default();
    if let Some(expected) = Digest::from_hex(name.strip_suffix(".json").unwrap_or(name)) {
        matches(source, &image.config, &expected, &config)?;
    }
    let blob = |path: &String| LayerBlob {
        digest: path
            .strip_prefix("blobs/sha256/")
            .and_then(Digest::from_hex),
        path: path.clone(),
        size: None,
    };
    let layers = image.layers.iter().flatten().map(blob).collect();
    let tags = image.repo_tags.iter().flatten();
    let names = tags
        .map(|tag| {
            let refused = |what: String| Error::entry(source.name(), "manifest.json", what);
            let name = Reference::parse(tag).map_err(|error| refused(error.to_string()))?;
            // A digest is what a registry promises; an archive could claim any.
            match name.digest() {
                None => Ok(name),
                Some(_) => Err(refused(format!("the name \"{name}\" has a digest"))),
            }
        })
        .collect::<Result<_>>()?;
    incoming(source, &image.config, config, layers, names)
}

fn matches(source: &Source, entry: &str, expected: &Digest, bytes: &[u8]) -> Result<()> {
    let actual = Digest::of(bytes);
    if actual == *expected {
        return Ok(());
    }
    Err(Error::Digest {
        archive: source.name().to_owned(),
        entry: excerpt(entry.as_bytes()),
        expected: *expected,
        actual,
    })
}

/// The configuration tells the layers' digests; there must be as many layers.
fn incoming(
    source: &Source,
    entry: &str,
    config: Vec<u8>,
    layers: Vec<LayerBlob>,
    names: Vec<Reference>,
) -> Result<Incoming> {
    let shown = excerpt(entry.as_bytes());
    let parsed = image_config::parse(Path::new(entry), &config)
        .map_err(|error| Error::entry(source.name(), &shown, error.to_string()))?;
    let (told, given) = (parsed.diff_ids.len(), layers.len());
    if told != given {
        let what = format!("the configuration has {told} layers, the manifest {given}");
        return Err(Error::entry(source.name(), &shown, what));
    }
    Ok(Incoming {
        config,
        diff_ids: parsed.diff_ids,
        layers,
        names,
    })
}

/// A blob of an OCI layout: where it is, what it must be.
fn blob(source: &Source, descriptor: &Descriptor) -> Result<(String, Digest)> {
    let digest = Digest::parse(&descriptor.digest).ok_or_else(|| {
        let shown = excerpt(descriptor.digest.as_bytes());
        Error::entry(source.name(), &shown, "no SHA-256 digest: not supported")
    })?;
    Ok((format!("blobs/sha256/{}", digest.hex()), digest))
}

fn document<T: DeserializeOwned>(source: &Source, descriptor: &Descriptor) -> Result<T> {
    let (path, digest) = blob(source, descriptor)?;
    let bytes = source.required(&path)?;
    matches(source, &path, &digest, &bytes)?;
    parse(source, &path, &bytes)
}

fn oci(source: &Source, descriptor: &Descriptor, platform: &Platform) -> Result<Incoming> {
    let names = oci_names(descriptor);
    let mut found = descriptor.clone();
    let mut depth = 0;
    while found.media_type.contains("index") || found.media_type.contains("manifest.list") {
        depth += 1;
        let index: Index = document(source, &found)?;
        let manifests = index.manifests.unwrap_or_default();
        let suitable = manifests.iter().filter(|d| fit(d, platform).is_some());
        // The first of those that suit best: `max_by_key` gives the last.
        let next = suitable.rev().max_by_key(|d| fit(d, platform));
        let next = next.filter(|_| depth <= MAX_DEPTH).cloned();
        found = next.ok_or_else(|| no_platform(source, &found.digest, platform))?;
    }
    let manifest: OciManifest = document(source, &found)?;
    let (path, digest) = blob(source, &manifest.config)?;
    let config = source.required(&path)?;
    matches(source, &path, &digest, &config)?;
    let layers = manifest.layers.iter().flatten().map(|layer| {
        let (path, digest) = blob(source, layer)?;
        Ok(LayerBlob {
            path,
            digest: Some(digest),
            size: layer.size,
        })
    });
    let layers = layers.collect::<Result<_>>()?;
    incoming(source, &path, config, layers, names)
}

/// The whole name, as containerd and Docker note it, or what `ref.name` has: a whole name
/// with podman, a mere tag with others, which names nothing.
fn oci_names(descriptor: &Descriptor) -> Vec<Reference> {
    let annotations = descriptor.annotations.as_ref();
    let get = |key: &str| annotations.and_then(|a| a.get(key));
    let whole = get("io.containerd.image.name")
        .or_else(|| get("org.opencontainers.image.ref.name").filter(|n| n.contains([':', '/'])));
    whole
        .and_then(|name| Reference::parse(name).ok())
        .filter(|name| name.digest().is_none())
        .into_iter()
        .collect()
}
