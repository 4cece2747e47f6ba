//! `unionfs inspect docker://NAME` shows an image of a registry without pulling it.

use std::io::IsTerminal as _;

use super::command_sandbox::SandboxArgs;
use super::facts::Facts;
use super::inspect::Form;
use super::output::{print, print_bytes, print_json, size};
use super::registry_args::Credentials;
use super::{own_store, remote_names};
use unionfs::oci::Platform;
use unionfs::registry::{Purpose, RemoteImage, look, raw_manifest};

/// What `inspect` takes for images of registries.
#[derive(Debug, clap::Args)]
pub(super) struct RemoteArgs {
    /// For docker://: the image for this platform: os/architecture[/variant] [default: this machine]
    #[arg(long, value_name = "PLATFORM", value_parser = own_store::platform)]
    platform: Option<Platform>,
    /// For docker://: print the manifest or index as it is; with --config, the configuration
    #[arg(long)]
    raw: bool,
    /// For docker://: print the configuration
    #[arg(long)]
    config: bool,
    #[command(flatten)]
    credentials: Credentials,
}

/// Shows an image of a registry.
pub(super) fn run(
    image: &str,
    args: &RemoteArgs,
    sandbox: &SandboxArgs,
    form: Form<'_>,
) -> anyhow::Result<()> {
    let credentials = &args.credentials;
    let asked = remote_names::ask(image, Purpose::Pull, credentials, sandbox, "inspect");
    let (name, access) = asked?;
    if args.raw && !args.config {
        return print_raw(&raw_manifest(&name, &access, &|_| ())?);
    }
    let found = look(&name, args.platform.as_ref(), &access, &|_| ())?;
    match form {
        _ if args.config && args.raw => print_raw(&found.config_bytes),
        _ if args.config => {
            let value: serde_json::Value = serde_json::from_slice(&found.config_bytes)?;
            print_json(&value)
        }
        Form::Json => print_json(&as_skopeo(&found)),
        Form::Template(template) => {
            let line = template.render(&as_skopeo(&found)) + "\n";
            print_bytes(line.as_bytes())
        }
        Form::Text => print(&describe(&found)),
    }
}

/// Prints bytes as they are, except on a terminal, which they could control.
fn print_raw(bytes: &[u8]) -> anyhow::Result<()> {
    if std::io::stdout().is_terminal() {
        print(&String::from_utf8_lossy(bytes))
    } else {
        print_bytes(bytes)
    }
}

/// Returns what `skopeo inspect` prints, without the tags of the repository.
fn as_skopeo(image: &RemoteImage) -> serde_json::Value {
    let config = &image.config;
    let of_run = |key: &str| config.config.as_ref().and_then(|run| run.get(key)).cloned();
    let layers = image.layers.iter().map(|layer| {
        serde_json::json!({
            "MIMEType": layer.media_type,
            "Digest": layer.digest,
            "Size": layer.size,
        })
    });
    let digests: Vec<_> = image.layers.iter().map(|layer| layer.digest).collect();
    serde_json::json!({
        "Name": format!("{}/{}", image.name.domain(), image.name.path()),
        "Digest": image.digest,
        "ManifestDigest": image.manifest_digest,
        "MediaType": image.media_type,
        "Created": config.created,
        "Labels": of_run("Labels"),
        "Architecture": config.architecture,
        "Os": config.os,
        "Layers": digests,
        "LayersData": layers.collect::<Vec<_>>(),
        "Env": of_run("Env"),
        "Platforms": image.platforms,
        "Config": config.config,
    })
}

fn describe(image: &RemoteImage) -> String {
    let mut facts = Facts::default();
    facts.add("Name", &image.name.to_string());
    facts.add("Digest", &image.digest.to_string());
    if image.manifest_digest != image.digest {
        facts.add("Manifest", &image.manifest_digest.to_string());
    }
    let config = &image.config;
    facts.add_stated(&[
        ("Created", &config.created),
        ("Architecture", &config.architecture),
        ("OS", &config.os),
        ("Author", &config.author),
    ]);
    let total = image.layers.iter().map(|layer| layer.size).sum();
    facts.add("Size", &format!("{} compressed", size(total)));
    for platform in &image.platforms {
        if let Some(name) = &platform.platform {
            facts.add("Platform", &format!("{name} {}", platform.digest));
        }
    }
    facts.add_settings(config.config.as_ref());
    for (number, layer) in image.layers.iter().enumerate().rev() {
        let value = format!("{} {}", layer.digest, size(layer.size));
        facts.add(&format!("Layer {}", number + 1), &value);
    }
    facts.into_text()
}
