//! The content store: blobs by digest, and the manifest of an image's name.
//!
//! Formats: OCI image specification, manifest.md and image-index.md; distribution, "Image Manifest
//! Version 2, Schema 2", whose fields are the same.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::oci::chain_id::MAX_LAYERS;
use crate::oci::{Digest, Platform, json};
use crate::store::confined_dir::ConfinedDir;
use crate::store::error::{Error, Result};

/// The size limit of a manifest or an index, in bytes, as in containerd.
const MAX_MANIFEST: u64 = 8 << 20;
/// The limit of nested indexes.
const MAX_DEPTH: usize = 4;
/// The limit of blobs that are read for one name, so that indexes that list each other many times
/// end.
const MAX_BLOBS: usize = 200;

/// The manifest of a name.
#[derive(Clone, Debug)]
pub(super) struct PulledManifest {
    /// The digest of the configuration: the image ID.
    pub(super) config: Digest,
    /// The layers' blobs, base first.
    pub(super) layers: Vec<Digest>,
}

#[derive(Deserialize)]
struct Document {
    manifests: Option<Vec<Entry>>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
}

#[derive(Deserialize)]
struct Entry {
    digest: String,
    platform: Option<Platform>,
}

#[derive(Deserialize)]
struct Descriptor {
    digest: String,
}

/// Returns the path of a blob, below the root.
pub(crate) fn blob(digest: &Digest) -> PathBuf {
    Path::new("io.containerd.content.v1.content/blobs/sha256").join(digest.hex())
}

/// Finds the manifest for `platform`, which is `target` or listed in it: the best of those whose
/// configuration exists. If none suits the platform, it is the first that exists, because the user
/// pulled it on purpose. `None` if none exists.
///
/// # Errors
/// [`Error::Malformed`], and those of reading; a missing blob below an index is no error.
pub(super) fn manifest(
    root: &ConfinedDir,
    target: &Digest,
    platform: &Platform,
) -> Result<Option<PulledManifest>> {
    let mut search = Search {
        root,
        platform,
        left: MAX_BLOBS,
    };
    search.at_depth(target, 0)
}

/// A search for the manifest of a name.
struct Search<'s> {
    root: &'s ConfinedDir,
    platform: &'s Platform,
    /// The number of blobs that may still be read.
    left: usize,
}

impl Search<'_> {
    fn at_depth(&mut self, target: &Digest, depth: usize) -> Result<Option<PulledManifest>> {
        let path = blob(target);
        let malformed = |expected| Error::Malformed {
            path: self.root.full(&path),
            found: "something else".to_owned(),
            expected,
        };
        let left = self.left.checked_sub(1);
        self.left = left.ok_or_else(|| malformed("an index of few images"))?;
        let Some(bytes) = self.root.read(&path, MAX_MANIFEST)? else {
            return Ok(None);
        };
        let actual = Digest::of(&bytes);
        if actual != *target {
            let path = self.root.full(&path);
            return Err(Error::ConfigHash { path, actual });
        }
        let document: Document = json::parse(&self.root.full(&path), &bytes)?;
        if let Some(entries) = document.manifests {
            if depth == MAX_DEPTH {
                return Err(malformed("an index of few images"));
            }
            return self.of_index(&entries, depth);
        }
        let Some(config) = document.config else {
            return Err(malformed("a manifest or an index"));
        };
        let layers = document.layers.unwrap_or_default();
        if layers.len() > MAX_LAYERS {
            return Err(malformed("a manifest of fewer layers"));
        }
        let digest = |descriptor: &Descriptor| Digest::parse(&descriptor.digest);
        let parsed = digest(&config).zip(layers.iter().map(digest).collect());
        let (config, layers) = parsed.ok_or_else(|| malformed("digests of SHA-256"))?;
        let is_there = self.root.exists(blob(&config))?;
        Ok(is_there.then_some(PulledManifest { config, layers }))
    }

    fn of_index(&mut self, entries: &[Entry], depth: usize) -> Result<Option<PulledManifest>> {
        let platform = self.platform;
        let suits = |entry: &Entry| entry.platform.as_ref().and_then(|p| platform.suits(p));
        // Entries that are not images, such as attestations, have the platform unknown/unknown.
        let is_image = |entry: &&Entry| entry.platform.as_ref().is_none_or(|p| p.os == "linux");
        let mut entries: Vec<&Entry> = entries.iter().filter(is_image).collect();
        entries.sort_by_key(|entry| std::cmp::Reverse(suits(entry)));
        for entry in entries {
            let Some(digest) = Digest::parse(&entry.digest) else {
                continue;
            };
            if let Some(found) = self.at_depth(&digest, depth + 1)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(root: &ConfinedDir, text: &str) -> Digest {
        let digest = Digest::of(text.as_bytes());
        let path = root.full(blob(&digest));
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
        digest
    }

    fn index(of: &Digest, times: usize) -> String {
        let entry = format!("{{\"digest\": \"{of}\"}}");
        format!("{{\"manifests\": [{}]}}", vec![entry; times].join(","))
    }

    #[test]
    fn indexes_that_list_each_other_many_times_end() {
        let dir = tempfile::tempdir().unwrap();
        let root = ConfinedDir::open(dir.path()).unwrap();
        let host = Platform::host();
        // The configuration does not exist, so that the search goes on.
        let absent = Digest::of(b"absent");
        let manifest = format!("{{\"config\": {{\"digest\": \"{absent}\"}}, \"layers\": []}}");
        let mut target = put(&root, &manifest);
        assert!(super::manifest(&root, &target, &host).unwrap().is_none());
        for _ in 0..MAX_DEPTH {
            target = put(&root, &index(&target, 1000));
        }
        assert!(super::manifest(&root, &target, &host).is_err());
    }

    #[test]
    fn the_image_of_this_machine_is_taken_and_else_one_that_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let root = ConfinedDir::open(dir.path()).unwrap();
        let host = Platform::host();
        let image = |text: &str| {
            let config = put(&root, text);
            let manifest = format!("{{\"config\": {{\"digest\": \"{config}\"}}}}");
            (config, put(&root, &manifest))
        };
        let (other, ours) = (image("other"), image("ours"));
        let entry = |digest: &Digest, platform: &Platform| {
            let (os, architecture) = (&platform.os, &platform.architecture);
            format!(
                "{{\"digest\": \"{digest}\", \"platform\": {{\"os\": \"{os}\", \"architecture\": \"{architecture}\"}}}}"
            )
        };
        let foreign = Platform {
            architecture: "s390x".to_owned(),
            variant: None,
            ..host.clone()
        };
        let unknown = Platform {
            os: "unknown".to_owned(),
            ..foreign.clone()
        };
        let found = |entries: &[String]| {
            let target = put(
                &root,
                &format!("{{\"manifests\": [{}]}}", entries.join(",")),
            );
            let found = manifest(&root, &target, &host).unwrap();
            found.map(|manifest| manifest.config)
        };
        let both = [entry(&other.1, &foreign), entry(&ours.1, &host)];
        assert_eq!(found(&both), Some(ours.0));
        assert_eq!(found(&both[..1]), Some(other.0));
        assert_eq!(found(&[entry(&other.1, &unknown)]), None);
    }
}
