//! Documents for OCI layouts: manifests and lists with the media types of Docker become manifests and
//! indexes of OCI, as with skopeo. Their digests change, those of blobs stay. Readers of layouts, skopeo
//! among them, find no others.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::super::error::{Error, Result};
use super::super::pull::RawManifest;
use super::media_type::media_type;
use crate::oci::Digest;
use crate::oci::document::Parts;

/// Docker's media types, and those of OCI.
const TYPES: [(&str, &str); 7] = [
    (
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.oci.image.index.v1+json",
    ),
    (
        "application/vnd.docker.distribution.manifest.v2+json",
        "application/vnd.oci.image.manifest.v1+json",
    ),
    (
        "application/vnd.docker.container.image.v1+json",
        "application/vnd.oci.image.config.v1+json",
    ),
    (
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
        "application/vnd.oci.image.layer.v1.tar+gzip",
    ),
    (
        "application/vnd.docker.image.rootfs.diff.tar",
        "application/vnd.oci.image.layer.v1.tar",
    ),
    (
        "application/vnd.docker.image.rootfs.diff.tar.zstd",
        "application/vnd.oci.image.layer.v1.tar+zstd",
    ),
    (
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    ),
];

fn of_oci(media: &str) -> &str {
    let mut types = TYPES.iter();
    types
        .find(|(docker, _)| *docker == media)
        .map_or(media, |(_, oci)| oci)
}

/// Converts documents, the innermost first. Those of OCI stay as they are, unless what they refer to
/// has changed.
pub(super) fn converted(tree: Vec<(RawManifest, Parts)>) -> Result<Vec<(RawManifest, Parts)>> {
    let mut changed: HashMap<String, RawManifest> = HashMap::new();
    let mut all = Vec::with_capacity(tree.len());
    for (raw, mut parts) in tree {
        let new = document(&raw, &changed)?;
        for manifest in &mut parts.manifests {
            if let Some(other) = changed.get(&manifest.digest.to_string()) {
                manifest.digest = other.digest;
            }
        }
        if new.digest != raw.digest {
            changed.insert(raw.digest.to_string(), new.clone());
        }
        all.push((new, parts));
    }
    Ok(all)
}

fn document(raw: &RawManifest, changed: &HashMap<String, RawManifest>) -> Result<RawManifest> {
    let bad = |error: serde_json::Error| Error::malformed("its manifest", error.to_string());
    let before: Value = serde_json::from_slice(&raw.bytes).map_err(bad)?;
    let mut after = before.clone();
    let media = media_type(&raw.media, &raw.bytes);
    if of_oci(&media) != media {
        after["mediaType"] = json!(of_oci(&media));
    }
    if let Some(config) = after.get_mut("config") {
        descriptor(config, changed);
    }
    for list in ["layers", "manifests"] {
        let entries = after.get_mut(list).and_then(Value::as_array_mut);
        for entry in entries.into_iter().flatten() {
            descriptor(entry, changed);
        }
    }
    if after == before {
        return Ok(raw.clone());
    }
    let bytes = serde_json::to_vec(&after).map_err(bad)?;
    Ok(RawManifest {
        digest: Digest::of(&bytes),
        media: of_oci(&media).to_owned(),
        bytes,
    })
}

fn descriptor(entry: &mut Value, changed: &HashMap<String, RawManifest>) {
    let media = entry.get("mediaType").and_then(Value::as_str);
    if let Some(media) = media.map(|media| of_oci(media).to_owned()) {
        entry["mediaType"] = json!(media);
    }
    let digest = entry.get("digest").and_then(Value::as_str);
    if let Some(new) = digest.and_then(|digest| changed.get(digest)) {
        entry["digest"] = json!(new.digest);
        entry["size"] = json!(new.bytes.len());
    }
}
