//! `unionfs inspect` shows an image.

use std::fmt::Write as _;
use std::path::Path;

use super::archive_names;
use super::command_sandbox::SandboxArgs;
use super::output::{one_line, print, print_json, size};
use unionfs::store::Image;

/// Show the configuration and layers of an image
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  unionfs inspect myapp:2
  unionfs inspect --json myapp:2 | jq .config.Env")]
pub(super) struct Args {
    /// The image: name, ID or ID prefix
    image: String,
    /// Print JSON: the whole configuration, sizes in bytes
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    sandbox: SandboxArgs,
}

pub(super) fn run(args: &Args, root: Option<&Path>) -> anyhow::Result<()> {
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
