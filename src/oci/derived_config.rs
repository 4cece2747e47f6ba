//! The configuration of an image that is made from another image and one more layer.
//!
//! All fields of the image below stay as they are, also unknown ones (OCI image specification,
//! config.md; moby, image/image.go).

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};

use super::{Digest, Result, instructions, json};

/// The differences of an image from the image below.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Derivation {
    /// The author.
    pub author: Option<String>,
    /// The comment.
    pub comment: Option<String>,
    /// The command that made it.
    pub created_by: String,
    /// Dockerfile instructions: CMD, ENV and so on.
    pub changes: Vec<String>,
}

/// A configuration to which the layer has not been added yet.
#[derive(Clone, Debug)]
pub struct Draft {
    config: Map<String, Value>,
    step: Value,
}

impl Derivation {
    /// Makes it from the configuration of the image below. `None`: there is none.
    ///
    /// # Errors
    /// [`Json`](super::Error::Json) for a malformed configuration,
    /// [`BadInstruction`](super::Error::BadInstruction) for a malformed change.
    pub fn draft(&self, base: Option<(&Path, &[u8])>) -> Result<Draft> {
        let mut config: Map<String, Value> = match base {
            Some((path, bytes)) => json::parse(path, bytes)?,
            None => Map::new(),
        };
        let now = rfc3339(SystemTime::now());
        // These fields describe the container that the image below was made from.
        for old in [
            "id",
            "container",
            "container_config",
            "docker_version",
            "parent",
        ] {
            config.remove(old);
        }
        config
            .entry("architecture")
            .or_insert_with(|| json!(architecture()));
        config.entry("os").or_insert_with(|| json!("linux"));
        config.insert("created".into(), json!(now));
        let mut step = json!({"created": now, "created_by": self.created_by});
        for (key, text) in [("author", &self.author), ("comment", &self.comment)] {
            config.remove(key);
            if let Some(text) = text {
                step[key] = json!(text);
                config.insert(key.into(), json!(text));
            }
        }
        let run = config.entry("config").or_insert_with(|| json!({}));
        if !run.is_object() {
            *run = json!({});
        }
        if let Value::Object(run) = run {
            instructions::apply(run, &self.changes)?;
        }
        Ok(Draft { config, step })
    }
}

impl Draft {
    /// Returns the bytes of the configuration, with the layer on top of `below`, which is base
    /// first.
    pub fn with_layer(mut self, below: &[Digest], diff_id: &Digest) -> Vec<u8> {
        let diffs: Vec<&Digest> = below.iter().chain([diff_id]).collect();
        self.config.insert(
            "rootfs".into(),
            json!({"type": "layers", "diff_ids": diffs}),
        );
        let history = self.config.entry("history").or_insert_with(|| json!([]));
        match history {
            Value::Array(steps) => steps.push(self.step),
            other => *other = json!([self.step]),
        }
        Value::Object(self.config).to_string().into_bytes()
    }
}

/// A configuration for an image whose upper layers became one.
#[derive(Clone, Debug)]
pub struct Squash {
    /// The number of layers that stay.
    pub kept: usize,
    /// The command that made it.
    pub created_by: String,
    /// The comment.
    pub comment: Option<String>,
}

impl Squash {
    /// Makes it from the configuration of the image. All settings stay. The steps of the layers that
    /// became one are steps without a layer, and one step with the new layer follows.
    ///
    /// # Errors
    /// [`Json`](super::Error::Json) for a malformed configuration.
    pub fn draft(&self, path: &Path, bytes: &[u8]) -> Result<Draft> {
        let mut config: Map<String, Value> = json::parse(path, bytes)?;
        let now = rfc3339(SystemTime::now());
        config.insert("created".into(), json!(now));
        let mut layers = 0;
        if let Some(Value::Array(steps)) = config.get_mut("history") {
            for step in steps.iter_mut().filter_map(Value::as_object_mut) {
                if step.get("empty_layer") == Some(&json!(true)) {
                    continue;
                }
                layers += 1;
                if layers > self.kept {
                    step.insert("empty_layer".into(), json!(true));
                }
            }
        }
        let mut step = json!({"created": now, "created_by": self.created_by});
        if let Some(text) = &self.comment {
            step["comment"] = json!(text);
            config.insert("comment".into(), json!(text));
        }
        Ok(Draft { config, step })
    }
}

/// The name of this machine's architecture in Go.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        "loongarch64" => "loong64",
        other => other,
    }
}

/// Formats a time as `2026-01-31T23:59:59.123456789Z`. Linux has a signed 64-bit number of
/// nanoseconds, so no time is later than the year 2262. A time before 1970 becomes 1970.
fn rfc3339(time: SystemTime) -> String {
    humantime::format_rfc3339_nanos(time.max(UNIX_EPOCH)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// The expected values are from date(1).
    #[test]
    fn times_are_those_of_the_calendar() {
        let at = |seconds| rfc3339(UNIX_EPOCH + Duration::new(seconds, 5));
        assert_eq!(at(0), "1970-01-01T00:00:00.000000005Z");
        assert_eq!(at(951_827_696), "2000-02-29T12:34:56.000000005Z");
        assert_eq!(at(1_709_251_199), "2024-02-29T23:59:59.000000005Z");
        assert_eq!(at(4_107_542_400), "2100-03-01T00:00:00.000000005Z");
    }

    #[test]
    fn the_image_below_is_kept_and_the_step_added() {
        let base = json!({
            "architecture": "arm64", "os": "linux", "variant": "v8", "author": "them",
            "container": "c", "config": {"Cmd": ["a"], "Env": null}, "history": [{"created_by": "x"}],
            "rootfs": {"type": "layers", "diff_ids": []},
        });
        let derivation = Derivation {
            comment: Some("why".into()),
            created_by: "unionfs commit".into(),
            changes: vec!["USER me".into(), "ENV A=b".into()],
            ..Derivation::default()
        };
        let bytes = base.to_string();
        let draft = derivation.draft(Some((Path::new("f"), bytes.as_bytes())));
        let (one, two) = (Digest::of(b"1"), Digest::of(b"2"));
        let bytes = draft.unwrap().with_layer(&[one], &two);
        let made: Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(made["variant"], "v8");
        assert_eq!(
            made["config"],
            json!({"Cmd": ["a"], "User": "me", "Env": ["A=b"]})
        );
        assert_eq!(made["rootfs"]["diff_ids"], json!([one, two]));
        assert_eq!(made["history"][1]["comment"], "why");
        assert_eq!(made["history"][1]["created"], made["created"]);
        assert_eq!((made.get("author"), made.get("container")), (None, None));
    }
}
