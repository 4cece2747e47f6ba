//! Makes an image from layer directories and loads it into a store of unionfs, as a user does.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use testkit::program;

use crate::subjects::sh;

/// Loads `stack` (top first) as image `name` into the store at `root`. Afterwards `stack` does not
/// exist any more.
pub(crate) fn load(root: &Path, name: &str, stack: &[PathBuf]) {
    let layout = root.with_extension("layout");
    fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
    let mut layers = Vec::new();
    for dir in stack.iter().rev() {
        layers.push(pack(&layout, dir));
        fs::remove_dir_all(dir).unwrap();
    }
    describe(&layout, name, &layers);
    unionfs(root, &["load", "--quiet", "-i", layout.to_str().unwrap()]).unwrap();
    fs::remove_dir_all(&layout).unwrap();
}

/// Returns the directories of an image in the store, top first; `None` if the image does not exist.
pub(crate) fn directories(root: &Path, name: &str) -> Option<Vec<PathBuf>> {
    let listed = unionfs(root, &["layers", "--json", name]).ok()?;
    let listed: Vec<Value> = serde_json::from_str(&listed).unwrap();
    let paths = listed.iter().map(|l| l["path"].as_str().unwrap().into());
    Some(paths.rev().collect())
}

/// Builds the catalog of its chain, which otherwise the first mount builds.
pub(crate) fn build_catalog(root: &Path, name: &str) {
    unionfs(root, &["catalog", "build", name]).unwrap();
}

/// Returns the output of `unionfs`, or its error.
fn unionfs(root: &Path, args: &[&str]) -> Result<String, String> {
    let output = Command::new(program())
        .args(args)
        .env("UNIONFS_ROOT", root)
        .output()
        .unwrap();
    if output.status.success() {
        return Ok(String::from_utf8(output.stdout).unwrap());
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    Err(format!("unionfs {args:?}: {errors}"))
}

/// Adds a blob of the layout. Returns its descriptor.
fn blob(layout: &Path, bytes: &Path, kind: &str) -> Value {
    let size = fs::metadata(bytes).unwrap().len();
    let hex = sh("sha256sum <\"$1\" | cut -c1-64", &[bytes]).unwrap();
    let hex = hex.trim();
    fs::rename(bytes, layout.join("blobs/sha256").join(hex)).unwrap();
    json!({
        "mediaType": format!("application/vnd.oci.image.{kind}"),
        "digest": format!("sha256:{hex}"),
        "size": size,
    })
}

fn pack(layout: &Path, dir: &Path) -> Value {
    let tar = layout.join("layer.tar");
    let script =
        "tar --format=pax --numeric-owner --xattrs --xattrs-include='*' -cf \"$1\" -C \"$2\" .";
    sh(script, &[&tar, dir]).unwrap();
    blob(layout, &tar, "layer.v1.tar")
}

fn document(layout: &Path, value: &Value, kind: &str) -> Value {
    let file = layout.join("document");
    fs::write(&file, value.to_string()).unwrap();
    blob(layout, &file, kind)
}

/// Writes configuration, manifest and index for `layers`, bottom first.
fn describe(layout: &Path, name: &str, layers: &[Value]) {
    let diff_ids: Vec<_> = layers.iter().map(|l| &l["digest"]).collect();
    let config = json!({
        "architecture": std::env::consts::ARCH.replace("x86_64", "amd64").replace("aarch64", "arm64"),
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let config = document(layout, &config, "config.v1+json");
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": layers});
    let mut manifest = document(layout, &manifest, "manifest.v1+json");
    manifest["annotations"] = json!({"org.opencontainers.image.ref.name": name});
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    fs::write(layout.join("index.json"), index.to_string()).unwrap();
    fs::write(
        layout.join("oci-layout"),
        r#"{"imageLayoutVersion":"1.0.0"}"#,
    )
    .unwrap();
}
