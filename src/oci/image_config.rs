//! The fields of image configurations that this program reads (OCI image specification, config.md).

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::chain_id::MAX_LAYERS;
use super::{Digest, Error, Result, json};

/// The fields of the configuration of an image that are used.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Config {
    /// The build time, RFC 3339, as in the file.
    pub created: Option<String>,
    /// The processor architecture, as in Go: `amd64`.
    pub architecture: Option<String>,
    /// The variant of the architecture: `v7`.
    pub variant: Option<String>,
    /// The operating system: `linux`.
    pub os: Option<String>,
    /// The author.
    pub author: Option<String>,
    /// The comment of the author.
    pub comment: Option<String>,
    /// The settings for containers: Cmd, Env, Labels and so on.
    pub config: Option<Value>,
    /// The steps of the build, oldest first.
    pub history: Vec<Step>,
    /// The diff IDs of the layers, base first.
    pub diff_ids: Vec<Digest>,
}

/// One step in the history of an image.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[non_exhaustive]
pub struct Step {
    /// The time, RFC 3339, as in the file.
    pub created: Option<String>,
    /// The command.
    pub created_by: Option<String>,
    /// The author.
    pub author: Option<String>,
    /// The comment.
    pub comment: Option<String>,
    /// Whether the step made no layer.
    #[serde(default)]
    pub empty_layer: bool,
}

#[derive(Deserialize)]
struct RawConfig {
    created: Option<String>,
    architecture: Option<String>,
    variant: Option<String>,
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

/// Parses a configuration. `path` is for messages.
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
        variant: raw.variant,
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
