//! `unionfs inspect` shows an image.

use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use super::candidates;
use super::command_sandbox::SandboxArgs;
use super::error::Usage;
use super::facts::Facts;
use super::go_template::Template;
use super::inspect_remote::{self, RemoteArgs};
use super::output::{print, print_bytes, print_json, size};
use super::rows::Format;
use super::{archive_names, docker_inspect, error, remote_names, warn};
use unionfs::oci::Digest;
use unionfs::store::{Image, KeptPlatform, Stores};

/// Show the configuration and layers of images
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  unionfs inspect myapp:2
  unionfs inspect --json myapp:2 | jq '.[0].Config.Env'
  unionfs inspect docker://quay.io/podman/stable:latest
  unionfs inspect --format '{{.Architecture}} {{json .Config.Cmd}}' myapp:2

JSON is an array with an object for each image: Docker's fields (Id, RepoTags, Config, RootFS and so
on), and beside them those of unionfs (id, names, layers, root and so on). Fields of --format are
those of the objects. An image of a registry (docker://NAME) is inspected alone; its JSON is an object
with the fields of skopeo inspect.")]
pub(super) struct Args {
    /// The images: names, IDs or ID prefixes; docker://NAME is an image of a registry, which is not pulled
    #[arg(value_name = "IMAGE", required = true, add = candidates::images())]
    images: Vec<String>,
    /// Print JSON: the whole configuration, sizes in bytes
    #[arg(long)]
    json: bool,
    /// Print each image by a template: json, or a text with {{.FIELD}}, {{.FIELD.INNER}}, {{json .}}
    #[arg(long, short = 'f', value_name = "FORMAT", value_parser = Format::parse, conflicts_with = "json")]
    format: Option<Format>,
    #[command(flatten)]
    remote: RemoteArgs,
    #[command(flatten)]
    sandbox: SandboxArgs,
}

/// How an image is shown.
#[derive(Clone, Copy, Debug)]
pub(super) enum Form<'f> {
    Text,
    Json,
    Template(&'f Template),
}

pub(super) fn run(args: &Args, root: Option<&Path>) -> anyhow::Result<()> {
    if let Some(remote) = args.images.iter().find(|image| remote_names::is_one(image)) {
        if args.images.len() > 1 {
            let text = format!("{remote:?} is in a registry: inspect it alone");
            return Err(Usage(text).into());
        }
        let form = match &args.format {
            Some(Format::Table(template) | Format::Lines(template)) => Form::Template(template),
            Some(Format::Json) => Form::Json,
            _ if args.json => Form::Json,
            _ => Form::Text,
        };
        return inspect_remote::run(remote, &args.remote, &args.sandbox, form);
    }
    let names = archive_names::resolve_all(&args.images, &args.sandbox, root)?;
    let texts: Vec<&str> = names.iter().map(String::as_str).collect();
    let stores = args.sandbox.stores("inspect", root, &texts)?;
    let (mut images, mut failures) = (Vec::new(), Vec::new());
    for name in &names {
        match stores.find(name) {
            Ok(image) => images.push(Shown {
                kept: kept(&stores, name),
                image,
            }),
            Err(failure) => failures.push(failure),
        }
    }
    if !images.is_empty() {
        show(args, &images)?;
    }
    // Each image is shown independently.
    let Some(last) = failures.pop() else {
        return Ok(());
    };
    for failure in failures {
        warn(error::line(&failure.into()));
    }
    Err(last.into())
}

/// An image, and what the store keeps of its name besides it.
struct Shown {
    image: Image,
    kept: Option<Kept>,
}

/// The index or manifest of a name.
#[derive(Serialize)]
struct Kept {
    digest: Digest,
    /// The platforms of an index.
    platforms: Vec<KeptPlatform>,
}

/// Returns the index or manifest that a store keeps of a name. What is wrong with it does not hide the
/// image.
fn kept(stores: &Stores, name: &str) -> Option<Kept> {
    let found = stores.pulled_content(name).and_then(|content| {
        let content = content.map(|content| {
            Ok::<_, unionfs::store::Error>(Kept {
                digest: content.target(),
                platforms: content.platforms()?,
            })
        });
        content.transpose()
    });
    found.unwrap_or_else(|failure| {
        warn(error::line(&failure.into()));
        None
    })
}

impl Shown {
    /// Returns the fields of Docker, and ours.
    fn object(&self) -> anyhow::Result<Value> {
        let mut object = docker_inspect::object(&self.image)?;
        if let (Some(kept), Some(fields)) = (&self.kept, object.as_object_mut()) {
            fields.insert("kept".to_owned(), serde_json::to_value(kept)?);
        }
        Ok(object)
    }
}

fn show(args: &Args, images: &[Shown]) -> anyhow::Result<()> {
    let objects = || {
        let objects = images.iter().map(Shown::object);
        objects.collect::<Result<Vec<_>, _>>()
    };
    match &args.format {
        None if !args.json => {
            let texts: Vec<String> = images.iter().map(describe).collect();
            print(&texts.join("\n"))
        }
        None | Some(Format::Json) => print_json(&objects()?),
        Some(Format::Default) => {
            Err(Usage("inspect prints no table: use a template".into()).into())
        }
        Some(Format::Table(template) | Format::Lines(template)) => {
            let lines = objects()?;
            let lines = lines.iter().map(|object| template.render(object) + "\n");
            print_bytes(lines.collect::<String>().as_bytes())
        }
    }
}

fn describe(shown: &Shown) -> String {
    let image = &shown.image;
    let mut facts = Facts::default();
    facts.add("ID", &image.id.to_string());
    for name in &image.names {
        facts.add("Name", &name.to_string());
    }
    let config = &image.config;
    facts.add_stated(&[
        ("Created", &config.created),
        ("Architecture", &config.architecture),
        ("Variant", &config.variant),
        ("OS", &config.os),
        ("Author", &config.author),
        ("Comment", &config.comment),
    ]);
    facts.add("Size", &size(image.size));
    facts.add("Store", &image.root.to_string_lossy());
    facts.add("Driver", image.driver);
    facts.add_settings(config.config.as_ref());
    if let Some(kept) = &shown.kept {
        let of_index = !kept.platforms.is_empty();
        let kind = if of_index { "Index" } else { "Manifest" };
        facts.add(kind, &kept.digest.to_string());
        for one in &kept.platforms {
            let state = if one.kept { "" } else { " (not kept)" };
            facts.add("Platform", &format!("{}{state}", one.platform));
        }
    }
    for (number, layer) in image.layers.iter().enumerate().rev() {
        let place = layer.place.path().display();
        let value = format!("{} {} {place}", layer.diff_id, size(layer.size));
        facts.add(&format!("Layer {}", number + 1), &value);
    }
    facts.into_text()
}
