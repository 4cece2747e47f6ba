//! Uploads a blob to a registry, unless the registry has it, here or in another repository. It is
//! sent in one piece.
//!
//! Format: OCI distribution specification, "Pushing a blob monolithically", POST then PUT.

use std::fs::File;

use ureq::http::{Method, StatusCode, header};

use super::client::{Client, Payload};
use super::endpoint;
use super::error::{Error, Result};
use super::retry::{Failure, Outcome};
use crate::oci::Digest;

/// Returns the length of a blob that the registry has; `None` if it does not have it.
pub(super) fn size_there(client: &Client<'_>, digest: &Digest) -> Result<Option<u64>> {
    let path = client.path(&format!("blobs/{digest}"));
    let request = client.request(Method::HEAD, &path, client.blob_name(digest))?;
    let response = client.ask(&request.what, || match client.exchange(&request) {
        Ok(response) => Ok(Some(response)),
        Err(Failure::Final(Error::NotFound { .. })) => Ok(None),
        Err(failure) => Err(failure),
    })?;
    let length = response.and_then(|response| {
        let value = response.headers().get(header::CONTENT_LENGTH)?;
        value.to_str().ok()?.parse().ok()
    });
    Ok(length)
}

/// Asks the registry to mount a blob of another repository in this one; returns whether it did.
/// Format: OCI distribution specification, "Mounting a blob from another repository".
pub(super) fn mount(client: &Client<'_>, digest: &Digest, from: &str) -> Result<bool> {
    // Names of repositories need no escaping in a query, nor does the digest's colon.
    let path = format!("blobs/uploads/?mount={digest}&from={from}");
    let mut request =
        client.request(Method::POST, &client.path(&path), client.blob_name(digest))?;
    request.body = Payload::Bytes(b"");
    let asked = client.ask(&request.what, || match client.exchange(&request) {
        Ok(response) => Ok(Some(response)),
        // The blob is not there, not accessible, or mounts are not supported: the blob is then
        // sent.
        Err(Failure::Final(_)) => Ok(None),
        Err(failure) => Err(failure),
    })?;
    let Some(response) = asked else {
        return Ok(false);
    };
    if response.status() == StatusCode::CREATED {
        return Ok(true);
    }
    // The registry began an upload instead, which is cancelled.
    let location = response.headers().get(header::LOCATION);
    let location = location.and_then(|value| value.to_str().ok());
    if let Some(uri) = location.and_then(|location| endpoint::resolve(&request.uri, location)) {
        let mut cancel = client.request(Method::DELETE, "/", client.blob_name(digest))?;
        cancel.uri = uri;
        if let Err(why) = client.exchange(&cancel) {
            tracing::debug!(?why, "an upload that is not wanted cannot be cancelled");
        }
    }
    Ok(false)
}

/// The content of a blob.
#[derive(Clone, Copy)]
pub(super) enum Content<'c> {
    Bytes(&'c [u8]),
    /// The whole file, and its length in bytes.
    File(&'c File, u64),
}

impl Content<'_> {
    /// Returns the length in bytes.
    fn size(self) -> u64 {
        match self {
            Content::Bytes(bytes) => bytes.len() as u64,
            Content::File(_, size) => size,
        }
    }
}

/// Sends a blob; `passed` gets the number of bytes. If a registry rejects the blob but has it,
/// another push has brought it.
pub(super) fn send(
    client: &Client<'_>,
    digest: &Digest,
    content: Content<'_>,
    passed: &dyn Fn(u64),
) -> Result<()> {
    let sent = client.ask(&client.blob_name(digest), || {
        once(client, digest, content, passed)
    });
    match sent {
        // Some registries reject a blob that another push has brought meanwhile.
        Err(refused @ Error::Status { .. }) => match size_there(client, digest) {
            Ok(Some(size)) if size == content.size() => Ok(()),
            _ => Err(refused),
        },
        sent => sent,
    }
}

fn once(
    client: &Client<'_>,
    digest: &Digest,
    content: Content<'_>,
    passed: &dyn Fn(u64),
) -> Outcome<()> {
    let what = client.blob_name(digest);
    let mut begin = client.request(Method::POST, &client.path("blobs/uploads/"), what.clone())?;
    begin.body = Payload::Bytes(b"");
    let response = client.exchange(&begin)?;
    let location = response.headers().get(header::LOCATION);
    let location = location.and_then(|value| value.to_str().ok());
    let bad = || Error::malformed(what.as_str(), "the registry names no address to send it to");
    let location = location.and_then(|location| endpoint::resolve(&begin.uri, location));
    let location = location.ok_or_else(bad)?;
    if begin.uri.scheme_str() == Some("https") && location.scheme_str() != Some("https") {
        let why = "the registry wants it over http: refused";
        return Err(Error::malformed(what, why).into());
    }
    let text = location.to_string();
    let between = if location.query().is_some() { '&' } else { '?' };
    let mut put = client.request(Method::PUT, "/", what.clone())?;
    // The digest's colon is allowed in a query (RFC 3986).
    put.uri = format!("{text}{between}digest={digest}")
        .parse()
        .map_err(|_| bad())?;
    let octets = "application/octet-stream".to_owned();
    put.headers.push((header::CONTENT_TYPE, octets));
    put.body = match content {
        Content::Bytes(bytes) => Payload::Bytes(bytes),
        Content::File(file, size) => Payload::File { file, size, passed },
    };
    client.exchange(&put).map(drop)
}
