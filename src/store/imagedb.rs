//! `imagedb`: image configurations and their metadata.
//!
//! `content/sha256/<image id>` is the configuration (OCI image specification,
//! config.md); the image ID is the SHA-256 of its bytes, which is checked.
//! `metadata/sha256/<image id>/{parent,lastUpdated}` is local (moby, image/fs.go).

use std::path::{Path, PathBuf};

use super::confined_dir::{ConfinedDir, SMALL};
use super::error::{Error, Result};
use crate::oci::Digest;
use crate::oci::image_config::{self, Config};
use crate::oci::text::excerpt;

/// The size limit of a configuration, in bytes.
const LIMIT: u64 = 32 << 20;

/// Docker's metadata of an image, beside its configuration.
#[derive(Clone, Debug, Default)]
pub(crate) struct Metadata {
    pub(crate) parent: Option<Digest>,
    pub(crate) last_updated: Option<String>,
}

/// The images of a store.
pub(crate) struct ImageDb<'s> {
    pub(crate) root: &'s ConfinedDir,
    /// `image/<driver>/imagedb`.
    pub(crate) dir: PathBuf,
}

impl ImageDb<'_> {
    /// Returns the path of an image's configuration, relative to the root.
    pub(crate) fn content(&self, id: &Digest) -> PathBuf {
        self.dir.join("content/sha256").join(id.hex())
    }

    /// Returns the IDs of all images, sorted. Files whose names are not IDs are ignored.
    pub(crate) fn ids(&self) -> Result<Vec<Digest>> {
        let names = self.root.list(self.dir.join("content/sha256"))?;
        let ids = names.iter().filter_map(|name| name.to_str());
        Ok(ids.filter_map(Digest::from_hex).collect())
    }

    /// Whether there is an image with that ID.
    pub(crate) fn contains(&self, id: &Digest) -> Result<bool> {
        self.root.exists(self.content(id))
    }

    /// Returns the configuration of an image, verified.
    pub(crate) fn config(&self, id: &Digest) -> Result<Config> {
        config_at(self.root, &self.content(id), id)
    }

    /// Returns Docker's metadata of an image.
    pub(crate) fn metadata(&self, id: &Digest) -> Result<Metadata> {
        let dir = self.dir.join("metadata/sha256").join(id.hex());
        let Some(files) = self.root.below(dir)? else {
            return Ok(Metadata::default());
        };
        let parent = files.read("parent", SMALL)?;
        let parent = parent.map(|bytes| digest(&files.full("parent"), &bytes));
        let last_updated = files.read("lastUpdated", SMALL)?;
        Ok(Metadata {
            parent: parent.transpose()?,
            last_updated: last_updated
                .map(|bytes| String::from_utf8_lossy(bytes.trim_ascii()).into_owned()),
        })
    }
}

/// Returns the configuration in a file below the root, verified to be that of the image.
pub(crate) fn config_at(root: &ConfinedDir, relative: &Path, id: &Digest) -> Result<Config> {
    let bytes = bytes_at(root, relative, id)?;
    Ok(image_config::parse(&root.full(relative), &bytes)?)
}

/// Returns the configuration's bytes, whose SHA-256 is the ID.
pub(crate) fn bytes_at(root: &ConfinedDir, relative: &Path, id: &Digest) -> Result<Vec<u8>> {
    let path = root.full(relative);
    let Some(bytes) = root.read(relative, LIMIT)? else {
        return Err(Error::ConfigMissing { id: *id, path });
    };
    let actual = Digest::of(&bytes);
    if actual != *id {
        return Err(Error::ConfigHash { path, actual });
    }
    Ok(bytes)
}

/// Parses the content of a file that holds one digest.
pub(crate) fn digest(path: &Path, bytes: &[u8]) -> Result<Digest> {
    let text = std::str::from_utf8(bytes.trim_ascii()).ok();
    text.and_then(Digest::parse)
        .ok_or_else(|| Error::Malformed {
            path: path.to_owned(),
            found: excerpt(bytes),
            expected: "a digest (sha256: and 64 hexadecimal digits)",
        })
}
