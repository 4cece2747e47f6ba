//! Named read-write layers of our own store: `unionfs mount --name`. This file reads them;
//! `writable` writes them.
//!
//! ```text
//! unionfs/containers/NAME          {"id", "mount_id", "image", "image_name", "created", "source"}
//! image/overlay2/layerdb/mounts/<id>/{mount-id,parent}     as a container of Docker's
//! overlay2/<mount id>/{diff,link,lower,work}
//! ```
//! If the image is in another store (`source`: its root and driver), layerdb has no entry and there
//! is no `lower`, since both refer to layers of the same store: only the record says where the
//! layers are. A record of a layer on our own image whose `mounts/<id>` is missing was left by a
//! crash and is ignored.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::{Error, Result};
use super::image_store::Store;
use super::layerdb::CacheId;
use super::{Container, containers};
use crate::oci::text::excerpt;
use crate::oci::{Digest, json};

/// The directory of the records, relative to the root.
pub(crate) const DIR: &str = "unionfs/containers";

/// The size limit of a record, in bytes.
const LIMIT: u64 = 64 << 10;

/// The length limit of a name, in bytes.
const MAX_NAME: usize = 128;

/// A named read-write layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct NamedLayer {
    /// The name.
    pub name: String,
    /// The ID, as that of a container: 64 hexadecimal digits.
    pub id: CacheId,
    /// The name of its directory in the driver's directory.
    pub mount_id: CacheId,
    /// The image below it.
    pub image: Digest,
    /// The name of that image when the layer was made.
    pub image_name: String,
    /// The time when it was made, in seconds since 1970.
    pub created: u64,
    /// The store of the image; `None` if the layer is in the same store.
    pub source: Option<SourceStore>,
}

/// Another store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct SourceStore {
    /// Its root.
    pub root: PathBuf,
    /// Its driver.
    pub driver: String,
}

impl SourceStore {
    /// Names a store.
    pub fn new(root: PathBuf, driver: String) -> Self {
        Self { root, driver }
    }
}

/// A record with the fields of the file.
#[derive(Serialize, Deserialize)]
struct Raw {
    id: String,
    mount_id: String,
    image: Digest,
    image_name: String,
    created: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<SourceStore>,
}

impl NamedLayer {
    /// Whether the text is a valid name: what Docker allows for containers, except a full ID, which
    /// always means the ID.
    pub fn is_name(text: &str) -> bool {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
        text.len() <= MAX_NAME
            && text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text.bytes().all(plain)
            && Digest::from_hex(text).is_none()
    }

    /// Returns the record's bytes; fails if the path of the source is not UTF-8.
    pub(crate) fn to_json(&self) -> Result<Vec<u8>> {
        let raw = Raw {
            id: self.id.to_string(),
            mount_id: self.mount_id.to_string(),
            image: self.image,
            image_name: self.image_name.clone(),
            created: self.created,
            source: self.source.clone(),
        };
        serde_json::to_vec(&raw).map_err(|_| Error::Malformed {
            path: self
                .source
                .as_ref()
                .map(|s| s.root.clone())
                .unwrap_or_default(),
            found: "bytes in its name that are not UTF-8".to_owned(),
            expected: "a path that can be recorded",
        })
    }

    pub(crate) fn parse(path: &Path, name: &str, bytes: &[u8]) -> Result<Self> {
        let raw: Raw = json::parse(path, bytes)?;
        let id = |text: &str| {
            let id = CacheId::parse(text.as_bytes());
            id.ok_or_else(|| Error::BadCacheId {
                path: path.to_owned(),
                found: excerpt(text.as_bytes()),
            })
        };
        Ok(Self {
            name: name.to_owned(),
            id: id(&raw.id)?,
            mount_id: id(&raw.mount_id)?,
            image: raw.image,
            image_name: raw.image_name,
            created: raw.created,
            source: raw.source,
        })
    }
}

impl Store {
    /// Returns the named layer with that name.
    ///
    /// # Errors
    /// [`Error::Malformed`], [`Error::TooLarge`] or [`Error::Symlink`] for a damaged record; [`Error::Io`].
    pub fn named(&self, name: &str) -> Result<Option<NamedLayer>> {
        let named = self.named_record(name)?;
        Ok(match named {
            Some(named) if self.is_complete(&named)? => Some(named),
            _ => None,
        })
    }

    /// Returns the layers of a named layer, verified.
    ///
    /// # Errors
    /// Those of [`Store::image`], for its layers.
    pub fn load_named(&self, named: &NamedLayer) -> Result<Container> {
        containers::load_named(self, named)
    }

    /// Returns the directory of everything that was written to the layer.
    pub fn named_dir(&self, named: &NamedLayer) -> PathBuf {
        let dir = Path::new(self.driver()).join(named.mount_id.as_str());
        self.root.full(dir)
    }

    /// Returns the bytes that a layer uses on the disk; files that cannot be read are not counted.
    pub fn named_usage(&self, named: &NamedLayer) -> u64 {
        let dir = Path::new(self.driver()).join(named.mount_id.as_str());
        self.root.disk_usage(dir)
    }

    /// As [`Store::named`], but also returns records that a crash has left.
    pub(crate) fn named_record(&self, name: &str) -> Result<Option<NamedLayer>> {
        // Podman's stores do not contain our layers.
        if self.records.is_some() || !NamedLayer::is_name(name) {
            return Ok(None);
        }
        let file = Path::new(DIR).join(name);
        let bytes = self.root.read(&file, LIMIT)?;
        bytes
            .map(|bytes| NamedLayer::parse(&self.root.full(&file), name, &bytes))
            .transpose()
    }

    /// Whether everything that a record names was written.
    pub(crate) fn is_complete(&self, named: &NamedLayer) -> Result<bool> {
        match named.source {
            Some(_) => Ok(true),
            None => Ok(self.layerdb().mount(&named.id)?.is_some()),
        }
    }

    /// Returns all named layers, sorted by name; damaged records as errors.
    ///
    /// # Errors
    /// [`Error::Io`] if the directory of the records cannot be read.
    pub fn all_named(&self) -> Result<Vec<Result<NamedLayer>>> {
        let mut all = Vec::new();
        for name in self.named_names()? {
            match self.named(&name) {
                Ok(Some(named)) => all.push(Ok(named)),
                Ok(None) => (),
                Err(error) => all.push(Err(error)),
            }
        }
        Ok(all)
    }

    /// Returns the names that have records, complete or not.
    pub(crate) fn named_names(&self) -> Result<Vec<String>> {
        if self.records.is_some() {
            return Ok(Vec::new());
        }
        let names = self.root.list(DIR)?;
        let names = names.into_iter().filter_map(|name| name.into_string().ok());
        Ok(names.filter(|name| NamedLayer::is_name(name)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain() {
        for good in ["a", "web-1", "A.b_c", "0f"] {
            assert!(NamedLayer::is_name(good), "{good}");
        }
        let id = Digest::of(b"").hex();
        for bad in [
            "",
            ".",
            "..",
            "-a",
            "a/b",
            "a b",
            "a\n",
            "é",
            &id,
            &"a".repeat(129),
        ] {
            assert!(!NamedLayer::is_name(bad), "{bad:?}");
        }
    }

    #[test]
    fn a_record_survives_and_a_bad_one_is_refused() {
        let id = CacheId::parse(b"1f").unwrap();
        let named = NamedLayer {
            name: "web".into(),
            id: id.clone(),
            mount_id: id,
            image: Digest::of(b"i"),
            image_name: "app:1".into(),
            created: 7,
            source: Some(SourceStore {
                root: "/var/lib/docker".into(),
                driver: "overlay2".into(),
            }),
        };
        let path = Path::new("/s/web");
        let bytes = named.to_json().unwrap();
        assert_eq!(NamedLayer::parse(path, "web", &bytes).unwrap(), named);
        let text = String::from_utf8(bytes)
            .unwrap()
            .replace("\"1f\"", "\"../1f\"");
        let error = NamedLayer::parse(path, "web", text.as_bytes()).unwrap_err();
        assert!(matches!(error, Error::BadCacheId { .. }), "{error}");
    }
}
