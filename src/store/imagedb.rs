//! `imagedb`: image configurations and their metadata. Called by `store`.
//!
//! `content/sha256/<image id>` is the configuration (OCI image specification,
//! config.md); the image ID is the SHA-256 of its bytes, which is checked.
//! `metadata/sha256/<image id>/{parent,lastUpdated}` is local (moby, image/fs.go).

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::beneath::{Beneath, SMALL};
use super::chain::MAX_LAYERS;
use super::error::{Error, Result, excerpt};
use super::{Digest, json};

/// The most that is read of a configuration, in bytes.
const LIMIT: u64 = 32 << 20;

/// What an image's configuration says, as far as anyone here asks.
#[derive(Clone, Debug, Serialize)]
pub struct Config {
    /// When it was built, RFC 3339 as the file has it.
    pub created: Option<String>,
    /// Processor architecture, as Go calls it: `amd64`.
    pub architecture: Option<String>,
    /// Operating system: `linux`.
    pub os: Option<String>,
    /// Who built it.
    pub author: Option<String>,
    /// A remark of whoever built it.
    pub comment: Option<String>,
    /// How a container is to be run: Cmd, Env, Labels and so on.
    pub config: Option<Value>,
    /// How it was built, oldest first.
    pub history: Vec<Step>,
    /// The layers' diff IDs, base first.
    pub diff_ids: Vec<Digest>,
}

/// One step of an image's history.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Step {
    /// When, RFC 3339 as the file has it.
    pub created: Option<String>,
    /// The command.
    pub created_by: Option<String>,
    /// Who did it.
    pub author: Option<String>,
    /// A remark.
    pub comment: Option<String>,
    /// Whether it made no layer.
    #[serde(default)]
    pub empty_layer: bool,
}

#[derive(Deserialize)]
struct RawConfig {
    created: Option<String>,
    architecture: Option<String>,
    os: Option<String>,
    author: Option<String>,
    comment: Option<String>,
    config: Option<Value>,
    history: Option<Vec<Step>>,
    rootfs: RawRootFs,
}

#[derive(Deserialize)]
struct RawRootFs {
    #[serde(rename = "type")]
    kind: String,
    diff_ids: Option<Vec<Digest>>,
}

/// What Docker notes about an image beside its configuration.
#[derive(Clone, Debug, Default)]
pub(crate) struct Metadata {
    pub(crate) parent: Option<Digest>,
    pub(crate) last_updated: Option<String>,
}

/// The images of a store.
pub(crate) struct ImageDb<'s> {
    pub(crate) root: &'s Beneath,
    /// `image/<driver>/imagedb`.
    pub(crate) dir: PathBuf,
}

impl ImageDb<'_> {
    /// An image's configuration, relative to the root.
    pub(crate) fn content(&self, id: &Digest) -> PathBuf {
        self.dir.join("content/sha256").join(id.hex())
    }

    /// The IDs of all images, sorted. What is not named like an ID is none.
    pub(crate) fn ids(&self) -> Result<Vec<Digest>> {
        let names = self.root.list(self.dir.join("content/sha256"))?;
        let ids = names.iter().filter_map(|name| name.to_str());
        Ok(ids.filter_map(Digest::from_hex).collect())
    }

    /// Whether there is an image of that ID.
    pub(crate) fn contains(&self, id: &Digest) -> Result<bool> {
        self.root.exists(self.content(id))
    }

    /// The configuration of an image, verified.
    pub(crate) fn config(&self, id: &Digest) -> Result<Config> {
        config_at(self.root, &self.content(id), id)
    }

    /// Docker's notes on an image.
    pub(crate) fn metadata(&self, id: &Digest) -> Result<Metadata> {
        let dir = self.dir.join("metadata/sha256").join(id.hex());
        let parent = dir.join("parent");
        let parent = match self.root.read(&parent, SMALL)? {
            None => None,
            Some(bytes) => Some(digest(&self.root.full(parent), &bytes)?),
        };
        let last_updated = self.root.read(dir.join("lastUpdated"), SMALL)?;
        Ok(Metadata {
            parent,
            last_updated: last_updated
                .map(|bytes| String::from_utf8_lossy(bytes.trim_ascii()).into_owned()),
        })
    }
}

/// The configuration in a file below the root, verified to be that of the image.
pub(crate) fn config_at(root: &Beneath, relative: &Path, id: &Digest) -> Result<Config> {
    parse(&root.full(relative), &bytes_at(root, relative, id)?)
}

/// The configuration's bytes, which hash to the ID.
pub(crate) fn bytes_at(root: &Beneath, relative: &Path, id: &Digest) -> Result<Vec<u8>> {
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

/// Reads a configuration; `path` is for the message.
pub(crate) fn parse(path: &Path, bytes: &[u8]) -> Result<Config> {
    let raw: RawConfig = json::parse(path, bytes)?;
    if raw.rootfs.kind != "layers" {
        return Err(Error::ConfigRootfs {
            path: path.to_owned(),
            found: raw.rootfs.kind.chars().take(100).collect(),
        });
    }
    let diff_ids = raw.rootfs.diff_ids.unwrap_or_default();
    if diff_ids.len() > MAX_LAYERS {
        return Err(Error::TooManyLayers {
            what: format!("the image of {path:?}"),
        });
    }
    Ok(Config {
        created: raw.created,
        architecture: raw.architecture,
        os: raw.os,
        author: raw.author,
        comment: raw.comment,
        config: raw.config,
        history: raw.history.unwrap_or_default(),
        diff_ids,
    })
}

/// A file that holds one digest.
pub(crate) fn digest(path: &Path, bytes: &[u8]) -> Result<Digest> {
    let text = std::str::from_utf8(bytes.trim_ascii()).ok();
    text.and_then(Digest::parse)
        .ok_or_else(|| Error::Malformed {
            path: path.to_owned(),
            found: excerpt(bytes),
            expected: "a digest (sha256: and 64 hexadecimal digits)",
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn try_parse(text: &str) -> Result<Config> {
        parse(Path::new("/s/content/x"), text.as_bytes())
    }

    #[test]
    fn optional_parts_may_be_absent_or_null() {
        let least = try_parse(r#"{"rootfs":{"type":"layers"}}"#).unwrap();
        assert!(least.diff_ids.is_empty() && least.history.is_empty());
        let nulls = r#"{"created":null,"config":null,"history":[{"created":null}],"rootfs":{"type":"layers","diff_ids":null}}"#;
        assert_eq!(try_parse(nulls).unwrap().history.len(), 1);
    }

    #[test]
    fn configurations_without_usable_layers_are_refused() {
        for text in [
            "{}",
            "[]",
            r#"{"rootfs":null}"#,
            r#"{"rootfs":{"type":"layers","diff_ids":["../.."]}}"#,
        ] {
            assert!(matches!(try_parse(text), Err(Error::Json { .. })), "{text}");
        }
        let windows = r#"{"rootfs":{"type":"layers+base","diff_ids":[]}}"#;
        assert!(matches!(
            try_parse(windows),
            Err(Error::ConfigRootfs { .. })
        ));
        let many = vec![format!("\"{}\"", Digest::of(b"")); MAX_LAYERS + 1].join(",");
        let many = format!(r#"{{"rootfs":{{"type":"layers","diff_ids":[{many}]}}}}"#);
        assert!(matches!(try_parse(&many), Err(Error::TooManyLayers { .. })));
    }
}
