//! What a registry says of an image, without pulling it: tags, digest, configuration. And the removal of
//! an image from its registry.

use std::path::Path;

use serde::Serialize;
use ureq::http::{Method, header};

use super::Show;
use super::access::Access;
use super::client::Client;
use super::endpoint;
use super::error::{Error, Result};
use super::manifest::{self, Document, Entry};
use super::pull::{RawManifest, config_from, expected_digest, manifest_from};
use super::response::read_all;
use super::sources::{Needs, Sources};
use crate::oci::image_config::{self, Config};
use crate::oci::{Digest, Platform, Reference};

/// The limit of pages of a list of tags.
const MAX_PAGES: usize = 1000;
/// The size limit of a page, in bytes.
const MAX_PAGE: u64 = 4 << 20;
/// The limit of tags.
const MAX_TAGS: usize = 1_000_000;

/// An image in a registry.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RemoteImage {
    /// The name.
    pub name: Reference,
    /// The digest that the name has: that of a manifest or index.
    pub digest: Digest,
    /// The digest of the manifest for the platform.
    pub manifest_digest: Digest,
    /// The media type of the name's own object.
    pub media_type: String,
    /// The bytes of the name's own object.
    pub raw: Vec<u8>,
    /// The images of the index; empty if the name is not one of an index.
    pub platforms: Vec<RemotePlatform>,
    /// The configuration.
    pub config: Config,
    /// The bytes of the configuration.
    pub config_bytes: Vec<u8>,
    /// The layers, base first.
    pub layers: Vec<RemoteLayer>,
}

/// An image of an index.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct RemotePlatform {
    /// The platform, os/architecture/variant; `None` for attestations and the like.
    pub platform: Option<String>,
    /// The digest of its manifest.
    pub digest: Digest,
}

/// A layer in a registry.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct RemoteLayer {
    /// The digest of the blob.
    pub digest: Digest,
    /// The media type.
    pub media_type: String,
    /// The bytes of the blob, compressed.
    pub size: u64,
}

/// Looks at an image of a registry or its mirrors. `platform`: that of an index; `None` for this machine.
///
/// # Errors
/// [`Error`] with the image.
pub fn look(
    name: &Reference,
    platform: Option<&Platform>,
    access: &Access,
    show: Show<'_>,
) -> Result<RemoteImage> {
    let sources = Sources::of(name, access, show)?;
    let host = Platform::host();
    let platform = platform.unwrap_or(&host);
    let what = sources.name();
    let top = manifest_from(&sources, name, expected_digest(name)?)?;
    let mut found = top.clone();
    for _ in 0..=manifest::MAX_DEPTH {
        match manifest::parse(&what, &found.media, &found.bytes, platform)? {
            Document::Index(next) => found = manifest_from(&sources, name, Some(next))?,
            Document::Image(image) => {
                let config_bytes = config_from(&sources, &image.config)?;
                let config = image_config::parse(Path::new("its configuration"), &config_bytes)
                    .map_err(|error| Error::malformed(what.as_str(), error.without_remedy()))?;
                let layers = image.layers.into_iter().map(|blob| RemoteLayer {
                    digest: blob.digest,
                    media_type: blob.media_type,
                    size: blob.size,
                });
                return Ok(RemoteImage {
                    name: name.clone(),
                    digest: top.digest,
                    manifest_digest: found.digest,
                    platforms: platforms(&what, &top)?,
                    media_type: top.media,
                    raw: top.bytes,
                    config,
                    config_bytes,
                    layers: layers.collect(),
                });
            }
        }
    }
    Err(Error::malformed(what, "too many indexes within indexes"))
}

fn platforms(what: &str, top: &RawManifest) -> Result<Vec<RemotePlatform>> {
    let entries = manifest::entries(what, &top.bytes)?;
    let shown = |entry: Entry| RemotePlatform {
        platform: entry
            .platform
            .filter(|platform| platform.os != "unknown")
            .map(|platform| platform.to_string()),
        digest: entry.digest,
    };
    Ok(entries.into_iter().map(shown).collect())
}

/// Returns the bytes of the manifest or index that a name means, without a look at its meaning.
///
/// # Errors
/// [`Error`] with the image.
pub fn raw_manifest(name: &Reference, access: &Access, show: Show<'_>) -> Result<Vec<u8>> {
    let sources = Sources::of(name, access, show)?;
    Ok(manifest_from(&sources, name, expected_digest(name)?)?.bytes)
}

/// Returns the digest that a name has; with a platform, that of the manifest in the index.
///
/// # Errors
/// [`Error`] with the image.
pub fn digest(
    name: &Reference,
    platform: Option<&Platform>,
    access: &Access,
    show: Show<'_>,
) -> Result<Digest> {
    let sources = Sources::of(name, access, show)?;
    let what = sources.name();
    let mut found = manifest_from(&sources, name, expected_digest(name)?)?;
    let Some(platform) = platform else {
        return Ok(found.digest);
    };
    for _ in 0..=manifest::MAX_DEPTH {
        match manifest::parse(&what, &found.media, &found.bytes, platform)? {
            Document::Image(_) => return Ok(found.digest),
            Document::Index(next) => found = manifest_from(&sources, name, Some(next))?,
        }
    }
    Err(Error::malformed(what, "too many indexes within indexes"))
}

#[derive(serde::Deserialize)]
struct Tags {
    tags: Option<Vec<String>>,
}

/// Returns the tags of a repository, as the registry itself lists them.
///
/// # Errors
/// [`Error`] with the repository.
pub fn tags(name: &Reference, access: &Access, show: Show<'_>) -> Result<Vec<String>> {
    let sources = Sources::of(name, access, show)?;
    let client = sources.registry()?;
    let what = format!("the tags of {}/{}", name.domain(), name.path());
    let path = client.path("tags/list?n=1000");
    let mut request = client.request(Method::GET, &path, what.clone())?;
    let mut all = Vec::new();
    for _ in 0..MAX_PAGES {
        let (bytes, next) = client.ask(&what, || {
            let mut response = client.exchange(&request)?;
            let next = response.headers().get(header::LINK);
            let next = next
                .and_then(|value| value.to_str().ok())
                .and_then(next_page);
            let bytes = read_all(&mut response, MAX_PAGE, &what, client.patience)?;
            Ok((bytes, next))
        })?;
        let page: Tags = serde_json::from_slice(&bytes)
            .map_err(|error| Error::malformed(what.as_str(), error.to_string()))?;
        all.extend(page.tags.unwrap_or_default());
        let Some(next) = next else {
            all.retain(|tag| !tag.is_empty());
            return Ok(all);
        };
        let uri = endpoint::resolve(&request.uri, &next);
        let uri = uri.filter(|uri| endpoint::same_origin(uri, &request.uri));
        let elsewhere = || Error::malformed(what.as_str(), "the next page is elsewhere: refused");
        request.uri = uri.ok_or_else(elsewhere)?;
        if all.len() > MAX_TAGS {
            break;
        }
    }
    Err(Error::malformed(what, "too many tags or pages"))
}

/// Returns the address of the next page in a Link header (RFC 8288): `</v2/…>; rel="next"`.
fn next_page(header: &str) -> Option<String> {
    header.split(',').find_map(|link| {
        let (address, rest) = link.trim().strip_prefix('<')?.split_once('>')?;
        let is_next = rest.contains("rel=\"next\"") || rest.contains("rel=next");
        is_next.then(|| address.to_owned())
    })
}

/// Removes an image from its registry: the manifest that the name means, with all its tags. The registry
/// itself removes the blobs. Returns the digest of the manifest.
///
/// # Errors
/// [`Error`] with the image; [`Error::Status`] 405 if the registry does not allow it.
pub fn delete(name: &Reference, access: &Access, show: Show<'_>) -> Result<Digest> {
    let client = Client::open(name, "*", &[], access, show)?;
    let digest = match expected_digest(name)? {
        Some(digest) => digest,
        None => super::pull::get_manifest(&client, name, None)?.digest,
    };
    let what = format!("{}, manifest {digest}", client.name());
    let path = client.path(&format!("manifests/{digest}"));
    let request = client.request(Method::DELETE, &path, what.clone())?;
    client.ask(&what, || client.exchange(&request).map(drop))?;
    Ok(digest)
}

impl Sources<'_> {
    /// Returns the registry itself, or the last mirror if no other place is configured.
    fn registry(&self) -> Result<&Client<'_>> {
        let last = self.count().saturating_sub(1);
        self.client(last, Needs::Digest)?.ok_or_else(|| self.none())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_page_is_read_from_the_header() {
        let next = |text: &str| next_page(text);
        assert_eq!(
            next(r#"</v2/a/tags/list?n=1&last=x>; rel="next""#).unwrap(),
            "/v2/a/tags/list?n=1&last=x"
        );
        assert_eq!(next(r#"</a>; rel="prev", </b>; rel="next""#).unwrap(), "/b");
        for none in ["", "</a>", "</a>; rel=\"prev\"", "x"] {
            assert_eq!(next(none), None);
        }
    }
}
