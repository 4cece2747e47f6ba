//! `layerdb`: the layers of a store and the read-write layers of containers.
//!
//! Format (moby, layer/filestore.go): `sha256/<chain id>/{cache-id,diff,size,parent}`,
//! `parent` absent for a base layer; `mounts/<container>/{mount-id,init-id,parent}`.

use std::collections::HashSet;
use std::fmt;
use std::path::PathBuf;

use serde::{Serialize, Serializer};

use super::confined_dir::{ConfinedDir, SMALL};
use super::error::{Error, Result};
use super::imagedb;
use crate::oci::chain_id::{self, MAX_LAYERS};
use crate::oci::text::excerpt;
use crate::oci::{self, Digest};

/// The cache ID: the name of a layer's directory in the driver's directory. It is one plain path
/// component of `[A-Za-z0-9_.-]`, so it is safe in a path.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CacheId(String);

impl CacheId {
    /// Parses a cache ID. `None` if the bytes are not one plain component.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let plain = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
        let name = bytes.len() <= 255 && bytes.iter().all(plain);
        if !name || matches!(bytes, b"" | b"." | b"..") {
            return None;
        }
        Some(Self(std::str::from_utf8(bytes).ok()?.to_owned()))
    }

    /// Returns the ID of a directory whose name is a number.
    pub(super) fn number(number: u64) -> Self {
        Self(number.to_string())
    }

    /// Returns the component.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for CacheId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for CacheId {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

/// The record of one layer in layerdb.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) chain_id: Digest,
    pub(crate) diff_id: Digest,
    pub(crate) parent: Option<Digest>,
    pub(crate) cache_id: CacheId,
    /// The bytes of the layer's files, as Docker counts them.
    pub(crate) size: u64,
}

/// The record of a container's read-write layer in layerdb.
#[derive(Clone, Debug)]
pub(crate) struct Mount {
    pub(crate) mount_id: CacheId,
    pub(crate) init_id: Option<CacheId>,
    pub(crate) parent: Option<Digest>,
}

/// The layers of a store.
pub(crate) struct LayerDb<'s> {
    pub(crate) root: &'s ConfinedDir,
    /// `image/<driver>/layerdb`.
    pub(crate) dir: PathBuf,
}

impl LayerDb<'_> {
    /// Returns the path of a layer's record, relative to the root.
    pub(crate) fn layer(&self, chain: &Digest) -> PathBuf {
        self.dir.join("sha256").join(chain.hex())
    }

    /// Reads the record of one layer, without checking it against its chain.
    pub(crate) fn record(&self, chain: &Digest) -> Result<Record> {
        let dir = self.layer(chain);
        let missing = |path| Error::LayerMissing {
            chain: *chain,
            path,
        };
        let Some(files) = self.root.below(&dir)? else {
            return Err(missing(self.root.full(dir.join("diff"))));
        };
        let required = |name: &str| {
            let bytes = files.read(name, SMALL)?;
            bytes.ok_or_else(|| missing(files.full(name)))
        };
        let diff_id = digest(&files, "diff", &required("diff")?)?;
        let cache_id = cache_id(&files, "cache-id", &required("cache-id")?)?;
        let size = size(&files, "size", &required("size")?)?;
        let parent = files.read("parent", SMALL)?;
        let parent = parent.map(|bytes| digest(&files, "parent", &bytes));
        Ok(Record {
            chain_id: *chain,
            diff_id,
            parent: parent.transpose()?,
            cache_id,
            size,
        })
    }

    /// Reads a layer's record and checks it: its diff ID is the expected one, its parent is the
    /// layer below, and its name is the chain ID of both.
    pub(crate) fn checked(&self, parent: Option<&Digest>, diff: &Digest) -> Result<Record> {
        let record = self.record(&chain_id::next(parent, diff))?;
        let dir = self.root.full(self.layer(&record.chain_id));
        if record.diff_id != *diff {
            return Err(Error::ChainMismatch {
                path: dir.join("diff"),
                found: record.diff_id.to_string(),
                expected: diff.to_string(),
            });
        }
        if record.parent.as_ref() != parent {
            let text = |d: Option<&Digest>| d.map_or("no parent".to_owned(), Digest::to_string);
            return Err(Error::ChainMismatch {
                path: dir.join("parent"),
                found: text(record.parent.as_ref()),
                expected: text(parent),
            });
        }
        Ok(record)
    }

    /// Returns the diff IDs of the layers from `top` down, base first, by the parent files. This is
    /// for containers, whose image may have been removed. The caller checks the chain.
    pub(crate) fn diffs_below(&self, top: &Digest) -> Result<Vec<Digest>> {
        let mut diffs = Vec::new();
        let mut seen = HashSet::new();
        let mut next = Some(*top);
        let mut from = self.layer(top);
        while let Some(chain) = next {
            if !seen.insert(chain) {
                let path = self.root.full(from.join("parent"));
                return Err(Error::Cycle { chain, path });
            }
            if seen.len() > MAX_LAYERS {
                let what = format!("layer {top}");
                return Err(oci::Error::TooManyLayers { what }.into());
            }
            let record = self.record(&chain)?;
            diffs.push(record.diff_id);
            next = record.parent;
            from = self.layer(&chain);
        }
        diffs.reverse();
        Ok(diffs)
    }

    /// Returns the chain IDs of all layers, sorted. Files whose names are not chain IDs are
    /// ignored.
    pub(crate) fn ids(&self) -> Result<Vec<Digest>> {
        let names = self.root.list(self.dir.join("sha256"))?;
        let ids = names.iter().filter_map(|name| name.to_str());
        Ok(ids.filter_map(Digest::from_hex).collect())
    }

    /// Returns the path of a layer's tar-split.
    pub(crate) fn tar_split(&self, chain: &Digest) -> PathBuf {
        self.layer(chain).join("tar-split.json.gz")
    }

    /// Returns the IDs of all containers, sorted. Files whose names are not IDs are ignored.
    pub(crate) fn containers(&self) -> Result<Vec<CacheId>> {
        let names = self.root.list(self.dir.join("mounts"))?;
        Ok(names
            .iter()
            .filter_map(|name| CacheId::parse(name.as_encoded_bytes()))
            .collect())
    }

    /// Returns a container's read-write layer; `None` if there is no such container.
    pub(crate) fn mount(&self, container: &CacheId) -> Result<Option<Mount>> {
        let dir = self.dir.join("mounts").join(container.as_str());
        let Some(files) = self.root.below(dir)? else {
            return Ok(None);
        };
        let Some(bytes) = files.read("mount-id", SMALL)? else {
            return Ok(None);
        };
        let mount_id = cache_id(&files, "mount-id", &bytes)?;
        let init = files.read("init-id", SMALL)?;
        let init = init.map(|bytes| cache_id(&files, "init-id", &bytes));
        let parent = files.read("parent", SMALL)?;
        let parent = parent.map(|bytes| digest(&files, "parent", &bytes));
        Ok(Some(Mount {
            mount_id,
            init_id: init.transpose()?,
            parent: parent.transpose()?,
        }))
    }
}

fn digest(files: &ConfinedDir, name: &str, bytes: &[u8]) -> Result<Digest> {
    imagedb::digest(&files.full(name), bytes)
}

fn cache_id(files: &ConfinedDir, name: &str, bytes: &[u8]) -> Result<CacheId> {
    CacheId::parse(bytes.trim_ascii()).ok_or_else(|| Error::BadCacheId {
        path: files.full(name),
        found: excerpt(bytes),
    })
}

fn size(files: &ConfinedDir, name: &str, bytes: &[u8]) -> Result<u64> {
    let text = std::str::from_utf8(bytes.trim_ascii()).ok();
    text.and_then(|text| text.parse().ok())
        .ok_or_else(|| Error::Malformed {
            path: files.full(name),
            found: excerpt(bytes),
            expected: "a size in bytes",
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_id_is_one_plain_component() {
        for good in [&b"abc"[..], b"0f-init", b"a.b_c", b"...", &[b'a'; 255]] {
            assert!(CacheId::parse(good).is_some(), "{good:?}");
        }
        for bad in [
            &b""[..],
            b".",
            b"..",
            b"/",
            b"/etc",
            b"../x",
            b"a/b",
            b"a/",
            b"a\0b",
            b"a\nb",
            b"\xff",
            b"a b",
            "é".as_bytes(),
            &[b'a'; 256],
        ] {
            assert!(CacheId::parse(bad).is_none(), "{bad:?}");
        }
    }
}
