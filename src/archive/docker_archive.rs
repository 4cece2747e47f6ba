//! The images of a `docker save` archive: its `manifest.json`.
//!
//! Format: moby, image/tarexport ("manifest.json": Config, RepoTags, Layers as paths).

use serde::Deserialize;

use super::contents::{Found, Incoming, LayerBlob};
use super::entries::{incoming, limited, matches, parse};
use super::error::{Error, Result};
use super::source::Source;
use crate::oci::{Digest, Reference};
use crate::sys::interrupt;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Option<Vec<String>>,
}

/// Finds the wanted content of an archive with that `manifest.json`.
pub(super) fn read(source: &Source, bytes: &[u8], found: &mut Found<'_>) -> Result<()> {
    let listed: Vec<DockerImage> = parse(source, "manifest.json", bytes)?;
    limited(source, "manifest.json", listed.len())?;
    for (number, image) in listed.iter().enumerate() {
        interrupt::check()?;
        let tags = image.repo_tags.iter().flatten().map(String::as_str);
        if found.wants(number, &tags.collect::<Vec<_>>()) {
            found.add(docker(source, image)?)?;
        }
    }
    Ok(())
}

fn docker(source: &Source, image: &DockerImage) -> Result<Incoming> {
    let config = source.required(&image.config)?;
    // `<hex>.json`, or `blobs/sha256/<hex>`: the name contains the digest.
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
            // A registry verifies the digest of a name; an archive could claim any.
            match name.digest() {
                None => Ok(name),
                Some(_) => Err(refused(format!("the name \"{name}\" has a digest"))),
            }
        })
        .collect::<Result<_>>()?;
    let mut found = incoming(source, &image.config, config, layers)?;
    found.names = names;
    found.references = image.repo_tags.clone().unwrap_or_default();
    Ok(found)
}
