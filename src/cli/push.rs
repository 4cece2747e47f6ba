//! `unionfs push`: an image of any store to a registry. Called by `cli::main`.

use std::path::Path;

use super::blobs::Blobs;
use super::error::Usage;
use super::output::{print, print_json};
use super::pull::RegistryArgs;
use super::{open_stores, own};
use crate::store::Reference;
use crate::store::registry::{Kind, PushOptions, push};
use crate::store::writable::Staging;

/// Bring an image to a registry
///
/// Layers are rebuilt, checked, and compressed to the same bytes each time; what the registry has
/// is not sent. An image that was pulled keeps its layers' digests there. Images of every store
/// can be pushed, Docker's too. Logins and certificates are as with unionfs pull.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  unionfs push registry.example.org/team/app:2
  unionfs push myapp:2 localhost:5000/myapp:2
  unionfs push --json myapp:2 localhost:5000/myapp | jq -r .digest")]
pub(super) struct Args {
    /// The image: a name, an ID or the start of one
    image: String,
    /// Where to: [HOST/]NAME[:TAG] [default: what the image is called]
    destination: Option<String>,
    #[command(flatten)]
    registry: RegistryArgs,
    /// Media types of the manifest: docker: version 2, schema 2; oci: OCI
    #[arg(long, value_enum, default_value = "docker")]
    format: Format,
    /// Show no progress
    #[arg(long, short = 'q')]
    quiet: bool,
    /// Print JSON: sizes in bytes
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Format {
    Docker,
    Oci,
}

pub(super) fn run(args: &Args, root: Option<&Path>) -> anyhow::Result<()> {
    let name = match &args.destination {
        Some(destination) => own::new_name(destination)?,
        None => implied(&args.image)?,
    };
    let stores = open_stores(root)?;
    let (store, id) = stores.locate(&args.image)?;
    let image = store.image(&id)?;
    // None of ours, as with --root of Docker: nothing is noted there.
    let ours = own::existing(root).ok().flatten();
    let options = PushOptions {
        access: args.registry.access(),
        kind: match args.format {
            Format::Docker => Kind::Docker,
            Format::Oci => Kind::Oci,
        },
        parallel: args.registry.parallel,
        staging: match &ours {
            Some(ours) => ours.staging(),
            None => Staging::temporary(),
        },
    };
    let blobs = Blobs::new(args.quiet, "pushed");
    let pushed = push(store, &image, &name, &options, &|event| blobs.show(event))?;
    let noted = ours.filter(|ours| ours.root() == image.root);
    // Who waits for the lock must not keep others from removing.
    drop(stores);
    if let Some(ours) = noted {
        pushed.note(&own::lock(&ours)?)?;
    }
    match args.json {
        true => print_json(&pushed),
        false => print(&format!(
            "Digest: {}\nPushed: {}\n",
            pushed.digest, pushed.name
        )),
    }
}

/// The image's own name as the destination.
fn implied(image: &str) -> anyhow::Result<Reference> {
    use crate::store::Query;
    let refused = |why: &str| Usage(format!("{image:?} {why}: give a destination"));
    match Query::parse(image)? {
        Query::Id(_) => Err(refused("is an ID").into()),
        Query::Name { reference, .. } if reference.digest().is_some() => {
            Err(refused("has a digest, which no image is pushed under").into())
        }
        Query::Name { reference, .. } => Ok(reference),
    }
}
