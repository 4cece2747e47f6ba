//! Manifests and indexes of registries and layouts: what they refer to, whatever kind of object they are of.
//!
//! Formats: OCI image specification, manifest.md and image-index.md; distribution, "Image Manifest Version
//! 2, Schema 2" and its manifest list, whose fields are the same.

use std::collections::HashSet;
use std::path::Path;

use serde::Deserialize;

use super::error::{Error, Result};
use super::text::excerpt;
use super::{Digest, Platform, json};

/// The size limit of a manifest or an index in bytes, as in registries.
pub(crate) const MAX_DOCUMENT: u64 = 4 << 20;
/// The limit of nested indexes.
pub(crate) const MAX_DEPTH: usize = 4;
/// The limit of objects that one document refers to, and of documents below one.
const MAX_PARTS: usize = 10_000;
/// The limit of the bytes of all documents below one.
const MAX_BYTES: usize = 64 << 20;

/// A reference to another object.
#[derive(Clone, Debug)]
pub(crate) struct Descriptor {
    #[cfg(feature = "registry")]
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    /// The length in bytes.
    pub(crate) size: u64,
    /// The platform of an image in an index.
    pub(crate) platform: Option<Platform>,
}

/// What a document refers to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Parts {
    /// The manifests of an index.
    pub(crate) manifests: Vec<Descriptor>,
    /// The configuration and the layers of a manifest.
    pub(crate) blobs: Vec<Descriptor>,
}

/// A document, and its digest.
pub(crate) trait Document {
    fn digest(&self) -> Digest;
    fn bytes(&self) -> &[u8];
}

impl Document for (Digest, Vec<u8>) {
    fn digest(&self) -> Digest {
        self.0
    }

    fn bytes(&self) -> &[u8] {
        &self.1
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    schema_version: Option<u32>,
    manifests: Option<Vec<RawDescriptor>>,
    config: Option<RawDescriptor>,
    layers: Option<Vec<RawDescriptor>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
    platform: Option<Platform>,
}

fn refused(reason: impl Into<String>) -> Error {
    Error::BadDocument {
        reason: reason.into(),
    }
}

impl RawDescriptor {
    fn checked(self) -> Result<Descriptor> {
        let digest = Digest::parse(&self.digest).ok_or_else(|| {
            let shown = excerpt(self.digest.as_bytes());
            refused(format!("{shown} is not a SHA-256 digest"))
        })?;
        Ok(Descriptor {
            #[cfg(feature = "registry")]
            media_type: self.media_type,
            digest,
            size: self.size,
            platform: self.platform,
        })
    }
}

/// Parses a document.
///
/// # Errors
/// [`Error::BadDocument`], [`Error::Json`].
pub(crate) fn parts(bytes: &[u8]) -> Result<Parts> {
    let raw: Raw = json::parse(Path::new("its manifest"), bytes)?;
    if raw.schema_version != Some(2) {
        return Err(refused(
            "its manifest is of version 1, or none: push it again with a tool of this decade",
        ));
    }
    let manifests = raw.manifests.unwrap_or_default();
    let layers = raw.layers.unwrap_or_default();
    if manifests.len() + layers.len() > MAX_PARTS {
        return Err(refused(format!("it has more than {MAX_PARTS} parts")));
    }
    // Readers would disagree about a document that is both.
    if !manifests.is_empty() && raw.config.is_some() {
        return Err(refused("its manifest is both image and index"));
    }
    // Layers that only their vendor may give out are in no registry.
    let elsewhere = ["foreign", "nondistributable"];
    let is_here =
        |blob: &RawDescriptor| !elsewhere.iter().any(|kind| blob.media_type.contains(kind));
    let manifests = manifests.into_iter().map(RawDescriptor::checked);
    let blobs = raw.config.into_iter().chain(layers).filter(is_here);
    Ok(Parts {
        manifests: manifests.collect::<Result<_>>()?,
        blobs: blobs.map(RawDescriptor::checked).collect::<Result<_>>()?,
    })
}

/// Returns a document with all documents below it, each once, the innermost first. `get` returns the
/// document with a digest, which is compared already; `None` leaves it out. `fault` makes the error of a
/// document that is malformed.
///
/// # Errors
/// Those of `get`; [`Error::BadDocument`] for too many documents, too much data and too much depth.
pub(crate) fn tree<D: Document, E>(
    top: D,
    mut get: impl FnMut(&Descriptor) -> std::result::Result<Option<D>, E>,
    fault: impl Fn(Error) -> E,
) -> std::result::Result<Vec<(D, Parts)>, E> {
    let mut walk = Walk {
        get: &mut get,
        fault: &fault,
        seen: HashSet::from([top.digest()]),
        bytes: 0,
        found: Vec::new(),
    };
    walk.below(top, 0)?;
    Ok(walk.found)
}

struct Walk<'w, D, E> {
    get: &'w mut dyn FnMut(&Descriptor) -> std::result::Result<Option<D>, E>,
    fault: &'w dyn Fn(Error) -> E,
    seen: HashSet<Digest>,
    bytes: usize,
    found: Vec<(D, Parts)>,
}

impl<D: Document, E> Walk<'_, D, E> {
    fn below(&mut self, document: D, depth: usize) -> std::result::Result<(), E> {
        let refuse = |reason: String| Err((self.fault)(refused(reason)));
        if depth > MAX_DEPTH {
            return refuse("too many indexes within indexes".to_owned());
        }
        self.bytes += document.bytes().len();
        if self.bytes > MAX_BYTES || self.seen.len() > MAX_PARTS {
            return refuse(format!(
                "it has more than {MAX_PARTS} manifests, or more than {MAX_BYTES} bytes of them"
            ));
        }
        let parts = parts(document.bytes()).map_err(self.fault)?;
        for descriptor in &parts.manifests {
            if self.seen.insert(descriptor.digest)
                && let Some(next) = (self.get)(descriptor)?
            {
                self.below(next, depth + 1)?;
            }
        }
        self.found.push((document, parts));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn manifest(layer: &str) -> (Digest, Vec<u8>) {
        let digest = Digest::of(layer.as_bytes());
        let text = format!(
            r#"{{"schemaVersion":2,"config":{{"digest":"{digest}","size":1}},
               "layers":[{{"digest":"{digest}","size":2,"mediaType":"x/foreign"}}]}}"#
        );
        (Digest::of(text.as_bytes()), text.into_bytes())
    }

    fn index(of: &[Digest]) -> (Digest, Vec<u8>) {
        let entries = of.iter().map(|d| format!(r#"{{"digest":"{d}","size":1}}"#));
        let entries: Vec<String> = entries.collect();
        let text = format!(
            r#"{{"schemaVersion":2,"manifests":[{}]}}"#,
            entries.join(",")
        );
        (Digest::of(text.as_bytes()), text.into_bytes())
    }

    fn walk(
        top: &(Digest, Vec<u8>),
        all: &[&(Digest, Vec<u8>)],
    ) -> std::result::Result<Vec<Digest>, String> {
        let all: HashMap<Digest, Vec<u8>> = all.iter().map(|d| (d.0, d.1.clone())).collect();
        let get = |wanted: &Descriptor| {
            let found = all.get(&wanted.digest);
            Ok(found.map(|bytes| (wanted.digest, bytes.clone())))
        };
        let found = tree(top.clone(), get, |error| error.to_string())?;
        Ok(found.into_iter().map(|(document, _)| document.0).collect())
    }

    #[test]
    fn each_document_comes_once_and_the_innermost_first() {
        let (one, two) = (manifest("1"), manifest("2"));
        let inner = index(&[one.0, two.0]);
        let outer = index(&[two.0, inner.0, inner.0]);
        let all = [&one, &two, &inner];
        assert_eq!(
            walk(&outer, &all).unwrap(),
            [two.0, one.0, inner.0, outer.0]
        );
        assert_eq!(
            walk(&outer, &[&inner, &two]).unwrap(),
            [two.0, inner.0, outer.0]
        );
        let parts = parts(&one.1).unwrap();
        assert_eq!(parts.blobs.len(), 1, "only the configuration is here");
    }

    #[test]
    fn what_has_no_end_is_refused() {
        let mut top = manifest("x");
        let mut all = vec![top.clone()];
        for _ in 0..=MAX_DEPTH {
            top = index(&[top.0]);
            all.push(top.clone());
        }
        let all: Vec<_> = all.iter().collect();
        assert!(walk(&top, &all).unwrap_err().contains("within indexes"));
        for bad in [
            "",
            "{}",
            r#"{"schemaVersion":1}"#,
            r#"{"schemaVersion":2,"manifests":[{"digest":"sha256:../..","size":1}]}"#,
            r#"{"schemaVersion":2,"manifests":[{"digest":"sha512:0","size":-1}]}"#,
        ] {
            assert!(parts(bad.as_bytes()).is_err(), "{bad}");
        }
        let many = vec![Digest::of(b"m"); MAX_PARTS + 1];
        assert!(parts(&index(&many).1).is_err());
    }
}
