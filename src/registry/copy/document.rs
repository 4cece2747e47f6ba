//! What a manifest or an index refers to, whatever kind of object it is.

use std::path::Path;

use serde::Deserialize;

use super::super::error::{Error, Result};
use super::super::manifest::Blob;
use crate::oci::text::excerpt;
use crate::oci::{Digest, json};

/// The limit of objects that one document refers to.
const MAX_PARTS: usize = 10_000;

/// The parts of a document.
#[derive(Clone, Debug, Default)]
pub(super) struct Parts {
    /// The manifests of an index.
    pub(super) manifests: Vec<Digest>,
    /// The configuration and the layers of a manifest.
    pub(super) blobs: Vec<Blob>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    schema_version: Option<u32>,
    manifests: Option<Vec<Descriptor>>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
}

/// Parses a document. `what` is for messages.
pub(super) fn parts(what: &str, bytes: &[u8]) -> Result<Parts> {
    let malformed = |why: String| Error::malformed(what, why);
    let raw: Raw = json::parse(Path::new("its manifest"), bytes)
        .map_err(|error| malformed(error.to_string()))?;
    if raw.schema_version != Some(2) {
        let why = "its manifest is of version 1, or none: push it again with a tool of this decade";
        return Err(malformed(why.to_owned()));
    }
    let digest = |text: &str| {
        let why = || {
            malformed(format!(
                "{} is not a SHA-256 digest",
                excerpt(text.as_bytes())
            ))
        };
        Digest::parse(text).ok_or_else(why)
    };
    let manifests = raw.manifests.unwrap_or_default();
    let layers = raw.layers.unwrap_or_default();
    if manifests.len() + layers.len() > MAX_PARTS {
        return Err(malformed(format!("it has more than {MAX_PARTS} parts")));
    }
    // Readers would disagree about a document that is both.
    if !manifests.is_empty() && raw.config.is_some() {
        return Err(malformed("its manifest is both image and index".to_owned()));
    }
    let mut parts = Parts::default();
    for manifest in &manifests {
        parts.manifests.push(digest(&manifest.digest)?);
    }
    for blob in raw.config.into_iter().chain(layers) {
        // Layers that only their vendor may give out are in no registry.
        let elsewhere = ["foreign", "nondistributable"];
        if elsewhere.iter().any(|kind| blob.media_type.contains(kind)) {
            continue;
        }
        parts.blobs.push(Blob {
            digest: digest(&blob.digest)?,
            media_type: blob.media_type,
            size: blob.size,
            annotations: std::collections::BTreeMap::new(),
        });
    }
    Ok(parts)
}

/// Returns the media type of a document: its own, else that of the response or descriptor, else by its
/// content.
pub(super) fn media_type(declared: &str, bytes: &[u8]) -> String {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Typed {
        media_type: Option<String>,
        manifests: Option<serde::de::IgnoredAny>,
    }
    let typed: Option<Typed> = serde_json::from_slice(bytes).ok();
    let is_index = typed
        .as_ref()
        .is_some_and(|typed| typed.manifests.is_some());
    let declared = declared.split(';').next().unwrap_or_default().trim();
    match typed.and_then(|typed| typed.media_type) {
        Some(media) => media,
        None if declared.starts_with("application/vnd.") => declared.to_owned(),
        None if is_index => "application/vnd.oci.image.index.v1+json".to_owned(),
        None => "application/vnd.oci.image.manifest.v1+json".to_owned(),
    }
}
