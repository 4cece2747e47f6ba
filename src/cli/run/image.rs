//! The image to run: commands of this program, each in its own sandbox, find and mount it.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};
use serde::Deserialize;
use serde_json::Value;

use crate::cli::global_words;

/// This program, as it is called for the steps.
pub(super) struct Own<'r> {
    program: PathBuf,
    root: Option<&'r Path>,
}

impl<'r> Own<'r> {
    pub(super) fn new(root: Option<&'r Path>) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("cannot find this program again")?;
        Ok(Self { program, root })
    }

    /// Runs a command of this program; returns its output, or its message as the error.
    pub(super) fn call<A: AsRef<OsStr>>(
        &self,
        args: impl IntoIterator<Item = A>,
    ) -> anyhow::Result<Vec<u8>> {
        let mut command = Command::new(&self.program);
        if let Some(root) = self.root {
            command.arg("--root").arg(root);
        }
        command.args(global_words()).args(args).stdin(Stdio::null());
        let output = command.output();
        let output = output.with_context(|| format!("cannot start {:?}", self.program))?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        let text = String::from_utf8_lossy(&output.stderr);
        let line = text.lines().last().unwrap_or("a step failed");
        bail!("{}", line.strip_prefix("unionfs: ").unwrap_or(line))
    }
}

/// The image, or the read-write layer.
pub(super) struct ImageToRun {
    pub(super) id: String,
    /// The read-write layer, if that was named.
    pub(super) layer: Option<String>,
    /// The settings for containers.
    pub(super) config: Value,
}

#[derive(Deserialize)]
struct Inspected {
    id: String,
    config: Option<Value>,
}

#[derive(Deserialize)]
struct Row {
    name: Option<String>,
    image_id: Option<String>,
}

impl ImageToRun {
    pub(super) fn find(own: &Own<'_>, name: &str) -> anyhow::Result<Self> {
        let failure = match inspect(own, name) {
            Ok(found) => return Ok(Self::of(found, None)),
            Err(failure) => failure,
        };
        let rows = own.call(["ps", "-a", "--json"]).unwrap_or_default();
        let rows: Vec<Row> = serde_json::from_slice(&rows).unwrap_or_default();
        let row = rows
            .into_iter()
            .find(|row| row.name.as_deref() == Some(name));
        match row.and_then(|row| row.image_id) {
            Some(id) => Ok(Self::of(inspect(own, &id)?, Some(name.to_owned()))),
            None => Err(failure),
        }
    }

    fn of(found: Inspected, layer: Option<String>) -> Self {
        Self {
            id: found.id,
            layer,
            config: found.config.unwrap_or_default(),
        }
    }
}

fn inspect(own: &Own<'_>, name: &str) -> anyhow::Result<Inspected> {
    let bytes = own.call(["inspect", "--json", name])?;
    let unread = || format!("cannot read what unionfs inspect says of {name:?}");
    let value: Value = serde_json::from_slice(&bytes).with_context(unread)?;
    let value = match value {
        Value::Array(mut all) if !all.is_empty() => all.swap_remove(0),
        value => value,
    };
    serde_json::from_value(value).with_context(unread)
}
