//! Reads and writes manifests and indexes of a registry.
//!
//! Formats: OCI image specification, manifest.md and image-index.md; distribution,
//! "Image Manifest Version 2, Schema 2", whose fields are the same.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::compress::LayerCompression;
use super::error::{Error, Result};
use crate::archive::artifact::{self, MediaTypes};
use crate::oci::chain_id::MAX_LAYERS;
use crate::oci::document::{self, Descriptor};
use crate::oci::text::excerpt;
use crate::oci::{Digest, Platform, json};

/// The size limit of a manifest in bytes, as in registries.
pub(super) const MAX_MANIFEST: u64 = document::MAX_DOCUMENT;
/// The size limit of a configuration in bytes.
pub(super) const MAX_CONFIG: u64 = 32 << 20;
/// The limit of nested indexes.
pub(super) const MAX_DEPTH: usize = document::MAX_DEPTH;
/// The limit of images in an index.
const MAX_IMAGES: usize = 10_000;

const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// Returns the accepted media types, for the Accept header.
pub(super) fn accepted() -> String {
    [OCI_INDEX, DOCKER_LIST, OCI_MANIFEST, DOCKER_MANIFEST].join(", ")
}

/// The media types of a pushed image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ManifestFormat {
    /// Docker's version 2, schema 2, which every registry accepts.
    Docker,
    /// OCI's.
    Oci,
}

impl ManifestFormat {
    pub(super) fn manifest(self) -> &'static str {
        match self {
            Self::Docker => DOCKER_MANIFEST,
            Self::Oci => OCI_MANIFEST,
        }
    }

    pub(super) fn config(self) -> &'static str {
        match self {
            Self::Docker => "application/vnd.docker.container.image.v1+json",
            Self::Oci => "application/vnd.oci.image.config.v1+json",
        }
    }

    /// Returns the media type of a layer; that of gzip if the format does not allow the
    /// compression.
    pub(super) fn layer(self, compression: LayerCompression) -> &'static str {
        match (self, compression) {
            (Self::Docker, _) => "application/vnd.docker.image.rootfs.diff.tar.gzip",
            (Self::Oci, LayerCompression::Gzip(_)) => "application/vnd.oci.image.layer.v1.tar+gzip",
            (Self::Oci, _) => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }

    /// Whether manifests of this format may have layers with this compression.
    pub(super) fn allows(self, compression: LayerCompression) -> bool {
        self == Self::Oci || compression.is_gzip()
    }
}

/// A blob: its media type, its digest, its length in bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Blob {
    pub(super) media_type: String,
    pub(super) size: u64,
    pub(super) digest: Digest,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) annotations: BTreeMap<String, String>,
}

impl Blob {
    /// Returns the blob that a document refers to.
    pub(super) fn of(descriptor: &Descriptor) -> Self {
        Self {
            digest: descriptor.digest,
            media_type: descriptor.media_type.clone(),
            size: descriptor.size,
            annotations: BTreeMap::new(),
        }
    }

    /// Whether it is compressed with gzip, as every layer that Docker pushes.
    pub(super) fn is_gzip(&self) -> bool {
        self.media_type.ends_with("gzip")
    }
}

/// The parts of one image.
#[derive(Clone, Debug)]
pub(super) struct Manifest {
    pub(super) config: Blob,
    /// The layers, base first.
    pub(super) layers: Vec<Blob>,
}

/// The object of a reference.
#[derive(Debug)]
pub(super) enum Document {
    Image(Manifest),
    /// The digest of the manifest for the wanted platform.
    Index(Digest),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDocument {
    schema_version: Option<u32>,
    media_type: Option<String>,
    artifact_type: Option<String>,
    manifests: Option<Vec<RawEntry>>,
    config: Option<RawBlob>,
    layers: Option<Vec<RawBlob>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawEntry {
    artifact_type: Option<String>,
    digest: String,
    platform: Option<Platform>,
}

/// An entry of an index.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) digest: Digest,
    pub(super) platform: Option<Platform>,
}

/// Returns the entries of an index, all of them; none of a manifest. `what` is for messages.
pub(super) fn entries(what: &str, bytes: &[u8]) -> Result<Vec<Entry>> {
    let raw: RawDocument = json::parse(Path::new("its manifest"), bytes)
        .map_err(|error| Error::malformed(what, error.to_string()))?;
    let entries = raw.manifests.unwrap_or_default();
    if entries.len() > MAX_IMAGES {
        let why = format!("its index has more than {MAX_IMAGES} images");
        return Err(Error::malformed(what, why));
    }
    let entries = entries.into_iter().map(|entry| {
        Ok(Entry {
            digest: digest(what, &entry.digest)?,
            platform: entry.platform,
        })
    });
    entries.collect()
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawBlob {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Written<'m> {
    schema_version: u32,
    media_type: &'m str,
    config: &'m Blob,
    layers: &'m [Blob],
}

/// Parses a manifest or index. `what` is for messages, `declared` is the response's media type.
pub(super) fn parse(
    what: &str,
    declared: &str,
    bytes: &[u8],
    platform: &Platform,
) -> Result<Document> {
    let malformed = |why: String| Error::malformed(what, why);
    let raw: RawDocument = json::parse(Path::new("its manifest"), bytes)
        .map_err(|error| malformed(error.to_string()))?;
    if raw.schema_version != Some(2) {
        let why = "its manifest is of version 1 or none of an image: push it again with a tool \
                   of this decade";
        return Err(malformed(why.to_owned()));
    }
    // Readers would disagree about a document that is both.
    let media = raw.media_type.as_deref().unwrap_or(declared);
    let is_index = match (&raw.manifests, &raw.config) {
        (Some(_), None) => true,
        (None, Some(_)) => false,
        _ => {
            return Err(malformed(
                "its manifest is neither image nor index".to_owned(),
            ));
        }
    };
    if is_index != matches!(media, OCI_INDEX | DOCKER_LIST)
        && [OCI_INDEX, DOCKER_LIST, OCI_MANIFEST, DOCKER_MANIFEST].contains(&media)
    {
        let why = format!("its manifest is not what its media type {media} says");
        return Err(malformed(why));
    }
    match (raw.manifests, raw.config) {
        (Some(entries), _) => choose(what, &entries, platform).map(Document::Index),
        (None, Some(config)) => {
            let layers = raw.layers.unwrap_or_default();
            let types: Vec<&str> = layers.iter().map(|blob| blob.media_type.as_str()).collect();
            let types = MediaTypes {
                artifact: raw.artifact_type.as_deref().unwrap_or_default(),
                config: Some(&config.media_type),
                layers: &types,
            };
            if let Some(kind) = types.no_image() {
                return Err(Error::NoImage {
                    what: what.to_owned(),
                    kind,
                });
            }
            if layers.len() > MAX_LAYERS {
                let why = format!("its manifest has more than {MAX_LAYERS} layers");
                return Err(malformed(why));
            }
            let layers = layers.into_iter().map(|layer| blob(what, layer));
            Ok(Document::Image(Manifest {
                config: blob(what, config)?,
                layers: layers.collect::<Result<_>>()?,
            }))
        }
        (None, None) => Err(malformed("its manifest is empty".to_owned())),
    }
}

fn blob(what: &str, raw: RawBlob) -> Result<Blob> {
    Ok(Blob {
        digest: digest(what, &raw.digest)?,
        media_type: raw.media_type,
        size: raw.size,
        // Nothing is decided by them.
        annotations: BTreeMap::new(),
    })
}

fn digest(what: &str, text: &str) -> Result<Digest> {
    let malformed = || {
        let why = format!("{} is not a SHA-256 digest", excerpt(text.as_bytes()));
        Error::malformed(what, why)
    };
    Digest::parse(text).ok_or_else(malformed)
}

/// Returns the entry that fits best, the first of equals.
fn choose(what: &str, entries: &[RawEntry], wanted: &Platform) -> Result<Digest> {
    let considered = entries.iter().take(MAX_IMAGES);
    let artifact = |entry: &RawEntry| entry.artifact_type.as_deref().map(artifact::kind);
    let considered = considered.filter(|entry| artifact(entry).is_none());
    let fitting = considered.filter_map(|entry| {
        let suits = wanted.suits(entry.platform.as_ref()?)?;
        Some((suits, entry))
    });
    // `max_by_key` alone would return the last of equals.
    let best = fitting.rev().max_by_key(|(suits, _)| *suits);
    if let Some((_, entry)) = best {
        return digest(what, &entry.digest);
    }
    // A single entry without a platform is the one.
    if let [
        RawEntry {
            digest: only,
            platform: None,
            artifact_type: None,
        },
    ] = entries
    {
        return digest(what, only);
    }
    let mut kinds = entries.iter().map(artifact);
    if let Some(Some(kind)) = kinds.next()
        && kinds.all(|kind| kind.is_some())
    {
        return Err(Error::NoImage {
            what: what.to_owned(),
            kind: format!("an index of artifacts, {kind}"),
        });
    }
    let offered: Vec<String> = entries
        .iter()
        .filter_map(|entry| entry.platform.as_ref())
        // Attestations have the OS "unknown".
        .filter(|p| p.os != "unknown")
        .take(30)
        .map(|p| {
            let text = p.to_string();
            text.chars()
                .filter(|c| c.is_ascii_graphic())
                .take(60)
                .collect()
        })
        .collect();
    Err(Error::NoPlatform {
        what: what.to_owned(),
        wanted: wanted.to_string(),
        offered: if offered.is_empty() {
            "none".to_owned()
        } else {
            offered.join(", ")
        },
    })
}

/// Returns a manifest's bytes.
pub(super) fn write(kind: ManifestFormat, manifest: &Manifest) -> Result<Vec<u8>> {
    let written = Written {
        schema_version: 2,
        media_type: kind.manifest(),
        config: &manifest.config,
        layers: &manifest.layers,
    };
    let failed = |e: serde_json::Error| Error::malformed("the manifest", e.to_string());
    serde_json::to_vec(&written).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Document> {
        let platform = Platform::parse("linux/arm/v7").unwrap();
        parse("app:1", OCI_INDEX, text.as_bytes(), &platform)
    }

    #[test]
    fn the_best_platform_is_chosen() {
        let (six, seven) = (Digest::of(b"6"), Digest::of(b"7"));
        let text = format!(
            r#"{{"schemaVersion":2,"manifests":[
              {{"digest":"{six}","platform":{{"os":"linux","architecture":"arm","variant":"v6"}}}},
              {{"digest":"{seven}","platform":{{"os":"linux","architecture":"arm","variant":"v7"}}}},
              {{"digest":"x","platform":{{"os":"unknown","architecture":"unknown"}}}}]}}"#
        );
        assert!(matches!(read(&text).unwrap(), Document::Index(d) if d == seven));
        let error = read(&text.replace("v6", "v8").replace("v7", "v9"));
        let error = error.unwrap_err().to_string();
        assert!(error.contains("linux/arm/v8, linux/arm/v9:"), "{error}");
    }

    #[test]
    fn what_is_no_manifest_is_refused() {
        let d = Digest::of(b"");
        let config = format!(r#""config":{{"digest":"{d}","size":1}}"#);
        for text in [
            "",
            "[]",
            "{}",
            r#"{"schemaVersion":1,"fsLayers":[]}"#,
            r#"{"schemaVersion":2}"#,
            r#"{"schemaVersion":2,"manifests":[]}"#,
            &format!(r#"{{"schemaVersion":2,"manifests":[],{config}}}"#),
            r#"{"schemaVersion":2,"config":{"digest":"sha256:../..","size":1}}"#,
            &format!(r#"{{"schemaVersion":2,"mediaType":"{OCI_INDEX}",{config}}}"#),
            &format!(r#"{{"schemaVersion":2,{config}}}"#),
            &format!(r#"{{"schemaVersion":2,"config":{{"digest":"{d}","size":-1}}}}"#),
        ] {
            assert!(read(text).is_err(), "{text}");
        }
        let good = format!(r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}",{config}}}"#);
        assert!(matches!(read(&good).unwrap(), Document::Image(m) if m.layers.is_empty()));
    }
}
