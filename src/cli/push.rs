//! `unionfs push` copies an image of any store to a registry.

use std::path::Path;

use super::command_sandbox::SandboxArgs;
use super::error::Usage;
use super::output::{print, print_json};
use super::pool::PoolArgs;
use super::progress::Items;
use super::pull::RegistryArgs;
use super::{command_sandbox, own_store};
use unionfs::oci::Reference;
use unionfs::registry::{ManifestFormat, PushOptions, push};
use unionfs::store::writable::Staging;

/// Push an image to a registry
///
/// Each layer is rebuilt, checked, and compressed to the same bytes each time. Blobs that the
/// registry has are not sent. The layers of a pulled image keep their digests. Images of every
/// store can be pushed, including those of Docker. Logins and certificates are those of unionfs
/// pull.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  unionfs push registry.example.org/team/app:2
  unionfs push myapp:2 localhost:5000/myapp:2
  unionfs push --json myapp:2 localhost:5000/myapp | jq -r .digest")]
pub(super) struct Args {
    /// The image: name, ID or ID prefix
    image: String,
    /// The destination: [HOST/]NAME[:TAG] [default: the name of the image]
    destination: Option<String>,
    #[command(flatten)]
    registry: RegistryArgs,
    /// Media types of the manifest: docker: version 2, schema 2; oci: OCI
    #[arg(long, value_enum, default_value = "docker")]
    format: Format,
    /// Do not show progress
    #[arg(long, short = 'q')]
    quiet: bool,
    /// Print JSON: sizes in bytes
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    pool: PoolArgs,
    #[command(flatten)]
    sandbox: SandboxArgs,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Format {
    Docker,
    Oci,
}

pub(super) fn run(args: &Args, root: Option<&Path>) -> anyhow::Result<()> {
    let name = match &args.destination {
        Some(destination) => own_store::new_name(destination)?,
        None => implied(&args.image)?,
    };
    let mut access = args.registry.access();
    let mut cage = args.sandbox.cage("push")?.moves_images();
    let mut places = cage.stores(root)?;
    args.pool.open(&mut places)?;
    // The given root is not a store of unionfs, as with --root of Docker: no blobs are recorded
    // there.
    let ours = own_store::existing(root).ok().flatten();
    access.look_up(&name)?;
    cage.talk()?;
    let temporary = match &ours {
        Some(_) => None,
        None => Some(Staging::of_files(args.registry.parallel)?),
    };
    let ours = match ours {
        Some(ours) => Some(cage.enter_with_own(ours)?),
        None => {
            cage.enter()?;
            None
        }
    };
    let stores = command_sandbox::open(places)?;
    let (store, id) = stores.locate(&args.image)?;
    let image = store.image(&id)?;
    let mut options = PushOptions::new(match (&ours, temporary) {
        (Some(ours), _) => ours.staging(),
        (None, Some(temporary)) => temporary,
        (None, None) => Staging::of_files(args.registry.parallel)?,
    });
    options.access = access;
    options.kind = match args.format {
        Format::Docker => ManifestFormat::Docker,
        Format::Oci => ManifestFormat::Oci,
    };
    options.parallel = args.registry.parallel;
    let blobs = Items::new(args.quiet, "pushed");
    let pushed = push(store, &image, &name, &options, &|step| blobs.show(step))?;
    let noted = ours.filter(|ours| ours.root() == image.root);
    // While this process waits for the lock, it must not keep others from removing layers.
    drop(stores);
    if let Some(ours) = noted {
        pushed.note(&own_store::lock(&ours)?)?;
    }
    if args.json {
        print_json(&pushed)
    } else {
        print(&format!(
            "Digest: {}\nPushed: {}\n",
            pushed.digest, pushed.name
        ))
    }
}

/// Returns the name of the image as the destination.
fn implied(image: &str) -> anyhow::Result<Reference> {
    use unionfs::oci::Query;
    let refused = |why: &str| Usage(format!("{image:?} {why}: give a destination"));
    match Query::parse(image)? {
        Query::Id(_) => Err(refused("is an ID").into()),
        Query::Name { reference, .. } if reference.digest().is_some() => {
            Err(refused("has a digest, which no image is pushed under").into())
        }
        Query::Name { reference, .. } => Ok(reference),
    }
}
