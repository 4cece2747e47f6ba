//! `unionfs inspect` shows an image.

use std::fmt::Write as _;
use std::path::Path;

use super::command_sandbox::SandboxArgs;
use super::inspect_remote::{self, RemoteArgs};
use super::output::{one_line, print, print_json, size};
use super::{archive_names, remote_names};
use unionfs::store::Image;

/// Show the configuration and layers of an image
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  unionfs inspect myapp:2
  unionfs inspect --json myapp:2 | jq .config.Env
  unionfs inspect docker://quay.io/podman/stable:latest")]
pub(super) struct Args {
    /// The image: name, ID or ID prefix; docker://NAME is an image of a registry, which is not pulled
    image: String,
    /// Print JSON: the whole configuration, sizes in bytes
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    remote: RemoteArgs,
    #[command(flatten)]
    sandbox: SandboxArgs,
}

/// How it is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Text,
    Json,
}

pub(super) fn run(args: &Args, root: Option<&Path>) -> anyhow::Result<()> {
    if remote_names::is_one(&args.image) {
        let form = if args.json { Form::Json } else { Form::Text };
        return inspect_remote::run(&args.image, &args.remote, &args.sandbox, form);
    }
    let image = archive_names::resolve(&args.image, &args.sandbox, root)?;
    let image = args.sandbox.stores("inspect", root)?.find(&image)?;
    if args.json {
        print_json(&image)
    } else {
        print(&describe(&image))
    }
}

fn describe(image: &Image) -> String {
    let mut text = String::new();
    let mut line = |key: &str, value: &str| {
        let key = one_line(key);
        let _ = writeln!(text, "{:<14}{}", format!("{key}:"), one_line(value));
    };
    line("ID", &image.id.to_string());
    for name in &image.names {
        line("Name", &name.to_string());
    }
    let config = &image.config;
    for (key, value) in [
        ("Created", &config.created),
        ("Architecture", &config.architecture),
        ("OS", &config.os),
        ("Author", &config.author),
        ("Comment", &config.comment),
    ] {
        if let Some(value) = value.as_deref().filter(|value| !value.is_empty()) {
            line(key, value);
        }
    }
    line("Size", &size(image.size));
    line("Store", &image.root.to_string_lossy());
    line("Driver", image.driver);
    let run = config.config.as_ref().and_then(|value| value.as_object());
    for (key, value) in run.into_iter().flatten() {
        // Empty fields are left out. --json has them.
        let empty = value.is_null()
            || value == false
            || value.as_str() == Some("")
            || value.as_array().is_some_and(Vec::is_empty);
        if !empty {
            line(key, &value.to_string());
        }
    }
    let layers = image.layers.iter().enumerate().rev();
    for (number, layer) in layers {
        line(
            &format!("Layer {}", number + 1),
            &format!(
                "{} {} {}",
                layer.diff_id,
                size(layer.size),
                layer.place.path().display()
            ),
        );
    }
    text
}
