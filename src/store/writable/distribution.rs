//! Docker's notes on layers that were pulled or pushed: the digest of a layer's compressed blob,
//! and the repositories that have the blob.
//!
//! Format (moby, distribution/metadata): `distribution/diffid-by-digest/sha256/<hex>`, the diff ID
//! as text; `distribution/v2metadata-by-diffid/sha256/<hex>`, a JSON list, newest last. Notes are
//! only hints: they are verified by a request to the registry.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Exclusive;
use crate::oci::{Digest, json};
use crate::store::error::Result;
use crate::store::image_store::Store;

/// The size limit of a note, in bytes.
const LIMIT: u64 = 1 << 20;
/// The limit of notes on one layer, as in Docker.
const MAX_NOTES: usize = 50;

/// A note that a layer is a blob of a repository.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct KnownBlob {
    /// The digest of the compressed blob.
    pub digest: Digest,
    /// The repository: `docker.io/library/app`.
    pub source_repository: String,
    /// An HMAC that identifies the credentials of the push; our own notes have none.
    #[serde(rename = "HMAC", default, skip_serializing_if = "String::is_empty")]
    hmac: String,
}

fn notes_path(store: &Store, diff_id: &Digest) -> PathBuf {
    let mut path = Path::new("image").join(store.driver());
    path.push("distribution/v2metadata-by-diffid/sha256");
    path.join(diff_id.hex())
}

/// Returns the known blobs of a layer; none if the notes cannot be read.
pub fn seen(store: &Store, diff_id: &Digest) -> Vec<KnownBlob> {
    let path = notes_path(store, diff_id);
    let bytes = store.root.read(&path, LIMIT).ok().flatten();
    let notes = bytes.and_then(|bytes| json::parse(&path, &bytes).ok());
    notes.unwrap_or_default()
}

impl Exclusive<'_> {
    /// Writes a note that a layer is this gzip-compressed blob of this repository.
    ///
    /// # Errors
    /// [`crate::store::Error::Io`].
    pub fn note_blob(&self, diff_id: &Digest, blob: &Digest, repository: &str) -> Result<()> {
        let note = KnownBlob {
            digest: *blob,
            source_repository: repository.to_owned(),
            hmac: String::new(),
        };
        let mut notes = seen(self.store(), diff_id);
        if notes.contains(&note) {
            return Ok(());
        }
        notes.push(note);
        let excess = notes.len().saturating_sub(MAX_NOTES);
        let by_digest = self.writable.image_dir("distribution/diffid-by-digest");
        let by_digest = by_digest.join("sha256").join(blob.hex());
        let by_diff = notes_path(self.store(), diff_id);
        let root = self.confined_root();
        for dir in [&by_digest, &by_diff] {
            dir.parent()
                .map_or(Ok(()), |parent| root.make_dirs(parent, 0o700))?;
        }
        let tmp = self.writable.ours("tmp");
        let text = diff_id.to_string();
        root.replace(&tmp, &by_digest, 0o644, text.as_bytes())?;
        let notes = serde_json::json!(&notes[excess..]).to_string();
        root.replace(&tmp, &by_diff, 0o644, notes.as_bytes())
    }
}
