//! Image configurations (OCI image specification, config.md): what this program reads of them.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::chain_id::MAX_LAYERS;
use super::{Digest, Error, Result, json};

/// What an image's configuration says, as far as anyone here asks.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
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
#[non_exhaustive]
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
