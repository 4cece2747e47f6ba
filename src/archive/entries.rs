//! Small documents of an archive: parses them, compares them with their digests, counts them.

use std::path::Path;

use serde::de::DeserializeOwned;

use super::contents::{Incoming, LayerBlob};
use super::error::{Error, Result};
use super::source::Source;
use crate::oci::text::excerpt;
use crate::oci::{Digest, image_config, json};

/// The limit of images in one archive.
const MAX_IMAGES: usize = 10_000;

pub(super) fn limited(source: &Source, entry: &str, images: usize) -> Result<()> {
    let what = match images {
        0 => "lists no image".to_owned(),
        n if n > MAX_IMAGES => format!("lists more than {MAX_IMAGES} images"),
        _ => return Ok(()),
    };
    Err(Error::entry(source.name(), entry, what))
}

pub(super) fn parse<T: DeserializeOwned>(source: &Source, entry: &str, bytes: &[u8]) -> Result<T> {
    json::parse(Path::new(entry), bytes)
        .map_err(|error| Error::entry(source.name(), &excerpt(entry.as_bytes()), error.to_string()))
}

pub(super) fn matches(source: &Source, entry: &str, expected: &Digest, bytes: &[u8]) -> Result<()> {
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

/// Makes an image without names. The number of layers must be that of the configuration's diff IDs.
pub(super) fn incoming(
    source: &Source,
    entry: &str,
    config: Vec<u8>,
    layers: Vec<LayerBlob>,
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
        names: Vec::new(),
        references: Vec::new(),
        object: None,
    })
}
