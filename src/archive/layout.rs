//! The images of an OCI layout (`index.json`, `blobs/sha256/`), and of a directory that skopeo's
//! `dir:` or `podman save --format docker-dir` has written (`manifest.json` is the manifest itself;
//! the blobs are beside it, named by their digests).
//!
//! Formats: OCI image specification, image-layout.md, image-index.md, manifest.md;
//! containers/image, directory transport 1.1.

use std::collections::HashMap;

use serde::Deserialize;

use super::artifact::{self, Artifact, MediaTypes};
use super::contents::{Found, Incoming, LayerBlob, MAX_KNOWN};
use super::entries::{incoming, limited, matches, parse};
use super::error::{Error, Result};
use super::source::Source;
use crate::oci::platform::Platform;
use crate::oci::text::excerpt;
use crate::oci::{Digest, Reference};
use crate::sys::interrupt;

/// The limit of nested indexes.
const MAX_DEPTH: usize = 4;

const CONTAINERD_NAME: &str = "io.containerd.image.name";
const REF_NAME: &str = "org.opencontainers.image.ref.name";

#[derive(Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: Option<u64>,
    annotations: Option<HashMap<String, String>>,
    platform: Option<Platform>,
    artifact_type: Option<String>,
}

/// A manifest or an index.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    media_type: Option<String>,
    artifact_type: Option<String>,
    manifests: Option<Vec<Descriptor>>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
}

/// The object of a descriptor.
enum Meant {
    Image(Incoming),
    /// An artifact; its kind.
    Other(String),
    /// An index without an image for the platform; its entry.
    NotHere(String),
}

/// Finds the wanted content of a layout with that `index.json`.
pub(super) fn read(
    source: &Source,
    bytes: &[u8],
    platform: &Platform,
    found: &mut Found<'_>,
) -> Result<()> {
    let index: Document = parse(source, "index.json", bytes)?;
    let descriptors = index.manifests.unwrap_or_default();
    limited(source, "index.json", descriptors.len())?;
    let numbered = descriptors.iter().enumerate();
    let wanted = numbered.filter(|(number, d)| found.wants(*number, &called(d)));
    let wanted: Vec<&Descriptor> = wanted.map(|(_, descriptor)| descriptor).collect();
    let here = for_platform(&wanted, platform);
    if here.is_empty() && !wanted.is_empty() {
        return Err(no_platform(source, "index.json", platform));
    }
    let mut layout = Layout {
        source,
        platform,
        blobs: "blobs/sha256/",
        manifests: "",
        read: 0,
    };
    for descriptor in here {
        let called = called(descriptor);
        let meant = match &descriptor.artifact_type {
            Some(media) if !is_index(&descriptor.media_type) => {
                // An image may also have an artifact type; only its manifest decides.
                let told = || Meant::Other(artifact::kind(media));
                if layout.is_there(descriptor)? {
                    layout.descriptor(descriptor, 0)?
                } else {
                    told()
                }
            }
            _ => layout.descriptor(descriptor, 0)?,
        };
        match meant {
            Meant::Image(mut image) => {
                image.names = names(descriptor);
                image.references = called.iter().map(|&text| text.to_owned()).collect();
                image.object = Digest::parse(&descriptor.digest);
                if image.names.is_empty() {
                    image.names = called.iter().filter_map(|tag| found.of_tag(tag)).collect();
                }
                found.add(image)?;
            }
            Meant::Other(kind) => found.artifact(Artifact {
                digest: Digest::parse(&descriptor.digest),
                reference: called.first().map(|&text| text.to_owned()),
                kind,
            })?,
            Meant::NotHere(entry) => return Err(no_platform(source, &entry, platform)),
        }
    }
    Ok(())
}

/// Finds the image of a directory with that `manifest.json`.
pub(super) fn directory(
    source: &Source,
    bytes: &[u8],
    platform: &Platform,
    found: &mut Found<'_>,
) -> Result<()> {
    if !found.wants(0, &[]) {
        return Ok(());
    }
    let mut layout = Layout {
        source,
        platform,
        blobs: "",
        manifests: ".manifest.json",
        read: 0,
    };
    let document = parse(source, "manifest.json", bytes)?;
    let descriptor = Descriptor::default();
    match layout.document(&descriptor, document, 0)? {
        Meant::Image(mut image) => {
            image.object = Some(Digest::of(bytes));
            found.add(image)
        }
        Meant::Other(kind) => found.artifact(Artifact {
            digest: None,
            reference: None,
            kind,
        }),
        Meant::NotHere(_) => Err(no_platform(source, "manifest.json", platform)),
    }
}

fn is_index(media: &str) -> bool {
    media.contains("index") || media.contains("manifest.list")
}

/// Returns how well a descriptor's platform suits. Without a platform in the index the image may be
/// for any. Attestations are for the platform "unknown".
fn fit(descriptor: &Descriptor, platform: &Platform) -> Option<u32> {
    match &descriptor.platform {
        None => Some(0),
        Some(theirs) => platform.suits(theirs),
    }
}

/// Returns the descriptors that suit best among those with the same names, in their order.
fn for_platform<'d>(descriptors: &[&'d Descriptor], platform: &Platform) -> Vec<&'d Descriptor> {
    let mut best: HashMap<Vec<&str>, u32> = HashMap::new();
    for descriptor in descriptors {
        if let Some(fit) = fit(descriptor, platform) {
            let best = best.entry(called(descriptor)).or_default();
            *best = fit.max(*best);
        }
    }
    let suits = |d: &&&Descriptor| {
        fit(d, platform)
            .is_some_and(|fit| d.platform.is_none() || best.get(&called(d)) == Some(&fit))
    };
    descriptors.iter().filter(suits).copied().collect()
}

fn no_platform(source: &Source, entry: &str, platform: &Platform) -> Error {
    let what = format!("no image for {platform}");
    Error::entry(source.name(), &excerpt(entry.as_bytes()), what)
}

struct Layout<'l> {
    source: &'l Source,
    platform: &'l Platform,
    /// The part of a blob's path before the hex digits.
    blobs: &'static str,
    /// The part of a manifest's path after the hex digits.
    manifests: &'static str,
    /// The bytes of manifests and indexes read so far.
    read: usize,
}

impl Layout<'_> {
    /// Returns a blob's entry and its digest.
    fn blob(&self, descriptor: &Descriptor) -> Result<(String, Digest)> {
        let digest = Digest::parse(&descriptor.digest).ok_or_else(|| {
            let shown = excerpt(descriptor.digest.as_bytes());
            Error::entry(
                self.source.name(),
                &shown,
                "no SHA-256 digest: not supported",
            )
        })?;
        Ok((format!("{}{}", self.blobs, digest.hex()), digest))
    }

    fn is_there(&self, descriptor: &Descriptor) -> Result<bool> {
        let (path, _) = self.blob(descriptor)?;
        Ok(self.source.open_entry(&path)?.is_some())
    }

    fn descriptor(&mut self, descriptor: &Descriptor, depth: usize) -> Result<Meant> {
        interrupt::check()?;
        let (path, digest) = self.blob(descriptor)?;
        let path = format!("{path}{}", self.manifests);
        let bytes = self.source.required(&path)?;
        self.read += bytes.len();
        if self.read > MAX_KNOWN {
            let what = format!("its manifests take more than {MAX_KNOWN} bytes");
            return Err(Error::entry(self.source.name(), "the archive", what));
        }
        matches(self.source, &path, &digest, &bytes)?;
        let document = parse(self.source, &path, &bytes)?;
        self.document(descriptor, document, depth)
    }

    fn document(
        &mut self,
        descriptor: &Descriptor,
        document: Document,
        depth: usize,
    ) -> Result<Meant> {
        let own = document.media_type.as_deref().unwrap_or_default();
        let media = match descriptor.media_type.as_str() {
            "" => own,
            media => media,
        };
        match (document.manifests, document.config) {
            (Some(entries), None) if media.is_empty() || is_index(media) => {
                self.index(descriptor, &entries, depth)
            }
            _ if is_index(media) => self.index(descriptor, &[], depth),
            (_, config) => {
                let layers = document.layers.unwrap_or_default();
                let artifact = document.artifact_type.unwrap_or_default();
                self.manifest(&artifact, config.as_ref(), &layers)
            }
        }
    }

    /// Returns the image of an index that suits best, the first of equals.
    fn index(
        &mut self,
        descriptor: &Descriptor,
        entries: &[Descriptor],
        depth: usize,
    ) -> Result<Meant> {
        let mut suitable: Vec<(u32, &Descriptor)> = entries
            .iter()
            .filter(|entry| entry.artifact_type.is_none())
            .filter_map(|entry| Some((fit(entry, self.platform)?, entry)))
            .collect();
        suitable.sort_by_key(|(fit, _)| std::cmp::Reverse(*fit));
        let mut other = None;
        for (_, entry) in suitable {
            if depth >= MAX_DEPTH {
                break;
            }
            match self.descriptor(entry, depth + 1)? {
                Meant::Other(kind) => other = other.or(Some(kind)),
                meant => return Ok(meant),
            }
        }
        let types = entries
            .iter()
            .filter_map(|entry| entry.artifact_type.as_deref());
        let listed = || types.map(artifact::kind).next();
        Ok(match other.or_else(listed) {
            Some(kind) => Meant::Other(format!("an index of artifacts, {kind}")),
            None => Meant::NotHere(descriptor.digest.clone()),
        })
    }

    fn manifest(
        &mut self,
        artifact: &str,
        config: Option<&Descriptor>,
        layers: &[Descriptor],
    ) -> Result<Meant> {
        let media: Vec<&str> = layers.iter().map(|d| d.media_type.as_str()).collect();
        let types = MediaTypes {
            artifact,
            config: config.map(|d| d.media_type.as_str()),
            layers: &media,
        };
        if let Some(kind) = types.no_image() {
            return Ok(Meant::Other(kind));
        }
        let Some(config) = config else {
            return Ok(Meant::Other(artifact::kind(artifact)));
        };
        let (path, digest) = self.blob(config)?;
        let config = self.source.required(&path)?;
        matches(self.source, &path, &digest, &config)?;
        let layers = layers.iter().map(|layer| {
            let (path, digest) = self.blob(layer)?;
            Ok(LayerBlob {
                path,
                digest: Some(digest),
                size: layer.size,
            })
        });
        let layers = layers.collect::<Result<_>>()?;
        incoming(self.source, &path, config, layers).map(Meant::Image)
    }
}

/// Returns the layout's references of an image: those of containerd and Docker, and `ref.name`,
/// which is a whole name with podman and only a tag with others.
fn called(descriptor: &Descriptor) -> Vec<&str> {
    let annotations = descriptor.annotations.as_ref();
    let get = |key: &str| annotations.and_then(|a| a.get(key)).map(String::as_str);
    let mut called: Vec<&str> = [CONTAINERD_NAME, REF_NAME]
        .into_iter()
        .filter_map(get)
        .filter(|text| !text.is_empty())
        .collect();
    called.dedup();
    called
}

/// Returns the whole names of an image.
fn names(descriptor: &Descriptor) -> Vec<Reference> {
    let annotations = descriptor.annotations.as_ref();
    let get = |key: &str| annotations.and_then(|a| a.get(key));
    let whole = get(CONTAINERD_NAME).or_else(|| get(REF_NAME).filter(|n| n.contains([':', '/'])));
    whole
        .and_then(|name| Reference::parse(name).ok())
        .filter(|name| name.digest().is_none())
        .into_iter()
        .collect()
}
