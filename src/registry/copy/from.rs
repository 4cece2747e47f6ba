//! Where a copy comes from: a registry, an OCI layout, a directory of skopeo's kind `dir:`.

use std::io;

use serde::Deserialize;
use ureq::http::Method;

use super::super::Show;
use super::super::client::Client;
use super::super::error::{Error, Result};
use super::super::manifest::Blob;
use super::super::pace::Paced;
use super::super::pull::{RawManifest, expected_digest, manifest_from};
use super::super::retry::Failure;
use super::super::sources::{Needs, Sources};
use super::{CopyFrom, Staged};
use crate::archive::Source;
use crate::oci::text::excerpt;
use crate::oci::{Digest, Reference};

/// The annotation with the tag of an image in a layout.
pub(super) const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// An opened source.
pub(super) enum From<'s> {
    Registry {
        sources: Box<Sources<'s>>,
        name: Reference,
    },
    Layout(&'s Source, Option<&'s str>),
    Dir(&'s Source),
}

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    #[serde(default)]
    media_type: String,
    digest: String,
    #[serde(default)]
    annotations: std::collections::BTreeMap<String, String>,
}

impl<'s> From<'s> {
    pub(super) fn open(from: CopyFrom<'s>, show: Show<'s>) -> Result<Self> {
        Ok(match from {
            CopyFrom::Registry(name, access) => Self::Registry {
                sources: Sources::of(name, access, show)?.into(),
                name: name.clone(),
            },
            CopyFrom::Layout(source, reference) => Self::Layout(source, reference),
            CopyFrom::Dir(source) => Self::Dir(source),
        })
    }

    /// Returns the name, for messages.
    pub(super) fn name(&self) -> String {
        match self {
            Self::Registry { sources, .. } => sources.name(),
            Self::Layout(source, _) | Self::Dir(source) => source.name().to_owned(),
        }
    }

    /// Returns the object of the name.
    pub(super) fn top(&self) -> Result<RawManifest> {
        match self {
            Self::Registry { sources, name } => {
                manifest_from(sources, name, expected_digest(name)?)
            }
            Self::Layout(source, reference) => {
                let bytes = source.required_entry("index.json")?;
                let index: Index = serde_json::from_slice(&bytes)
                    .map_err(|error| Error::malformed(self.name(), error.to_string()))?;
                let entry = self.entry(&index.manifests, *reference)?;
                let bad = || Error::malformed(self.name(), "index.json has a malformed digest");
                let digest = Digest::parse(&entry.digest).ok_or_else(bad)?;
                let mut raw = self.manifest(&digest)?;
                raw.media.clone_from(&entry.media_type);
                Ok(raw)
            }
            Self::Dir(source) => {
                let bytes = source.required_entry("manifest.json")?;
                Ok(raw(bytes))
            }
        }
    }

    fn entry<'e>(&self, entries: &'e [Entry], wanted: Option<&str>) -> Result<&'e Entry> {
        let tag = |entry: &&Entry| entry.annotations.get(REF_NAME).cloned();
        let found = match wanted {
            None if entries.len() == 1 => entries.first(),
            None => None,
            Some(wanted) => match wanted.strip_prefix('@').map(str::parse::<usize>) {
                Some(Ok(number)) => entries.get(number),
                _ => entries
                    .iter()
                    .find(|entry| tag(entry).as_deref() == Some(wanted)),
            },
        };
        found.ok_or_else(|| {
            let tags = entries.iter().filter_map(|entry| tag(&entry));
            let tags: Vec<String> = tags.take(30).map(|tag| excerpt(tag.as_bytes())).collect();
            let why = format!(
                "no single image is meant; there are {} with the tags {}: write PATH:TAG or PATH:@N",
                entries.len(),
                tags.join(", ")
            );
            Error::malformed(self.name(), why)
        })
    }

    /// Returns the manifest with a digest.
    pub(super) fn manifest(&self, digest: &Digest) -> Result<RawManifest> {
        let found = match self {
            Self::Registry { sources, name } => return manifest_from(sources, name, Some(*digest)),
            Self::Layout(source, _) => raw(source.required_entry(&in_layout(digest))?),
            Self::Dir(source) => {
                raw(source.required_entry(&format!("{}.manifest.json", digest.hex()))?)
            }
        };
        if found.digest == *digest {
            Ok(found)
        } else {
            Err(Error::Digest {
                what: format!("{}, manifest {digest}", self.name()),
                expected: *digest,
                actual: found.digest,
            })
        }
    }

    /// Writes the bytes of a blob, which the caller compares with the digest.
    pub(super) fn blob(&self, blob: &Blob, out: &mut Staged<'_>) -> Result<()> {
        let mut entry = match self {
            Self::Registry { sources, .. } => {
                return sources.first(Needs::Digest, |client| download(client, blob, out));
            }
            Self::Layout(source, _) => source.reader(&in_layout(&blob.digest))?,
            Self::Dir(source) => source.reader(&blob.digest.hex())?,
        };
        io::copy(&mut entry, out).map_err(|error| {
            let what = format!("{}, blob {}", self.name(), blob.digest);
            Error::malformed(what, error.to_string())
        })?;
        Ok(())
    }
}

fn raw(bytes: Vec<u8>) -> RawManifest {
    RawManifest {
        digest: Digest::of(&bytes),
        media: String::new(),
        bytes,
    }
}

/// Returns the path of a blob in a layout.
pub(super) fn in_layout(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// Downloads a blob from one place. A failure begins again.
fn download(client: &Client<'_>, blob: &Blob, out: &mut Staged<'_>) -> Result<()> {
    let what = client.blob_name(&blob.digest);
    let path = client.path(&format!("blobs/{}", blob.digest));
    let request = client.request(Method::GET, &path, what.clone())?;
    client.ask(&what, || {
        let failed = |error: &io::Error| Error::Unreachable {
            url: what.clone(),
            why: error.to_string(),
        };
        out.restart().map_err(|error| failed(&error))?;
        let mut response = client.exchange(&request)?;
        let body = response.body_mut().with_config().limit(u64::MAX).reader();
        let mut body = Paced::new(body, client.patience);
        match io::copy(&mut body, out) {
            Ok(length) if length == blob.size => Ok(()),
            Ok(length) => {
                let why = format!("the answer ends after {length} of {} bytes", blob.size);
                let error = io::Error::other(why);
                Err(Failure::Transient(failed(&error)))
            }
            Err(error) if out.refused => {
                let why = error.to_string();
                let what = what.clone();
                Err(Error::Destination { what, why }.into())
            }
            Err(error) => Err(Failure::Transient(failed(&error))),
        }
    })
}
