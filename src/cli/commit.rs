//! `unionfs commit` makes an image from changes.
//!
//! ```text
//!  upper ──pack──► pipe ──unpack──► the new layer's files, tar-split, diff ID
//! ```
//! The layer is unpacked from its own tar, so that tar, tar-split and files agree.

use std::io::Write;
use std::path::Path;

use anyhow::{Context as _, bail};

use super::candidates;
use super::command_sandbox::SandboxArgs;
use super::outside_helper::Outside;
use super::progress::{Json, ProgressArgs, verb};
use super::{command_sandbox, own_store, path_hints};
use unionfs::changes::Tree;
use unionfs::layer_tar::Limits;
use unionfs::oci::Digest;
use unionfs::oci::derived_config::{Derivation, Draft};
use unionfs::store::discovery::Environment;
use unionfs::store::writable::{Exclusive, ImportTransaction};
use unionfs::store::{Container, Store, Stores, copy_layers};

/// Create an image from the changes of a container or named layer
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  unionfs commit web myapp:3
  unionfs commit web myapp:3 -m 'configured' --change 'CMD [\"/bin/app\"]' --change 'ENV A=b'

The ID of the image is printed. The layer may be mounted: changes that were made before the command
are in the image; changes that are made during it may be missing. --change takes the Dockerfile's
CMD, ENTRYPOINT, ENV, LABEL, EXPOSE, HEALTHCHECK, VOLUME, USER, WORKDIR, STOPSIGNAL, SHELL and
ONBUILD.")]
pub(super) struct Args {
    /// The container or named layer: name, ID or ID prefix
    #[arg(add = candidates::containers())]
    name: String,
    /// The name of the new image: name[:tag]
    image: String,
    /// Set the comment of the image
    #[arg(long, short = 'm', value_name = "TEXT")]
    message: Option<String>,
    /// Set the author of the image
    #[arg(long, short = 'a', value_name = "NAME")]
    author: Option<String>,
    /// Apply a Dockerfile instruction to the configuration; may be repeated
    #[arg(long, short = 'c', value_name = "INSTRUCTION")]
    change: Vec<String>,
    #[command(flatten)]
    progress: ProgressArgs,
    #[command(flatten)]
    sandbox: SandboxArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, root: Option<&Path>) -> anyhow::Result<()> {
    let name = own_store::new_name(&args.image)?;
    path_hints::learn(&args.name);
    let mut cage = args.sandbox.cage("commit")?;
    // This happens before stores are searched: the own store may be the first.
    let store = own_store::open()?;
    let places = cage.stores_of_containers(root, &[])?;
    let outside = Outside::start(None, Some(&places)).context("cannot start a process")?;
    let store = cage.enter_to_take_in(store)?;
    let store = own_store::lock(&store)?;
    // This happens before stores are read: the removal of leftovers waits for readers.
    let mut intake = store.begin_import();
    let stores = command_sandbox::open(places)?;
    let container = stores.container(&args.name)?;
    let base = base_of(&stores, &container)?;
    let source = container.source.as_ref();
    let source = source.map(|s| Stores::discover(Some(&s.root), &Environment::default()));
    let source = source.transpose()?;
    let all: Vec<&Store> = [&stores]
        .into_iter()
        .chain(&source)
        .flat_map(Stores::all)
        .collect();
    let draft = draft(args, &all, base.as_ref())?;
    let below = below(&store, &mut intake, &container, &all, base.as_ref())?;
    outside.flush(&container)?;
    let tree = Tree::open(&container.changed_stack()?)?;
    tree.find_origins_by(&outside.finder());
    let mut staged = store.stage_layer(container.parent.as_ref())?;
    let items = args
        .progress
        .items_beside(Json::of(args.json), verb("committing", "committed"));
    let layer = items.begin(&args.name, None);
    let pack = |out: &mut dyn Write| anyhow::Ok(tree.pack_layer(out)?);
    let unpacked = staged.unpack_from(&Limits::default(), pack, |count| layer.add(count))?;
    intake.layer(staged, &unpacked)?;
    let id = intake.image(&draft.with_layer(&below, &unpacked.diff_id))?;
    if let Some(base) = &base
        && store.image(base).is_ok()
    {
        store.set_parent(&id, base)?;
    }
    intake.finish([(&name, id)])?;
    layer.done_as(&unpacked.diff_id.short());
    own_store::print_made(&id, &name, args.json)
}

/// Returns the image below: the recorded one, else one with the same layers.
fn base_of(stores: &Stores, container: &Container) -> anyhow::Result<Option<Digest>> {
    if container.image.is_some() {
        return Ok(container.image);
    }
    let listing = stores.images();
    let top = |image: &&unionfs::store::Image| {
        image.layers.last().map(|layer| layer.chain_id) == container.parent
    };
    Ok(listing.images.iter().find(top).map(|image| image.id))
}

fn draft(args: &Args, stores: &[&Store], base: Option<&Digest>) -> anyhow::Result<Draft> {
    let mut derivation = Derivation::default();
    derivation.author.clone_from(&args.author);
    derivation.comment.clone_from(&args.message);
    derivation.created_by = format!("unionfs commit {}", args.name);
    derivation.changes.clone_from(&args.change);
    let Some(id) = base else {
        return Ok(derivation.draft(None)?);
    };
    let mut missing = None;
    for store in stores {
        match store.config_bytes(id) {
            Ok((path, bytes)) => return Ok(derivation.draft(Some((&path, &bytes)))?),
            Err(error) => missing = missing.or(Some(error)),
        }
    }
    match missing {
        Some(error) => Err(error.into()),
        None => Ok(derivation.draft(None)?),
    }
}

/// Returns the diff IDs of the layers below, base first. Layers of another store are copied.
fn below(
    store: &Exclusive<'_>,
    intake: &mut ImportTransaction<'_>,
    container: &Container,
    stores: &[&Store],
    base: Option<&Digest>,
) -> anyhow::Result<Vec<Digest>> {
    if let Some(parent) = &container.parent
        && !store.has_layer(parent)?
    {
        // Its layers may be in several roots, with additional stores of podman.
        let holds = |from: &&&Store| {
            let image = base.and_then(|base| from.image(base).ok());
            let top = image.as_ref().and_then(|image| image.layers.last());
            top.is_some_and(|top| top.chain_id == *parent)
        };
        match (stores.iter().find(holds), base) {
            (Some(from), Some(base)) => {
                let image = from.image(base)?;
                copy_layers(from, &image, store, intake, &mut |_| ())?;
            }
            _ => bail!(
                "the image below is not in {:?} and is not known: load it there first",
                store.writable().root()
            ),
        }
    }
    Ok(container.layers.iter().map(|layer| layer.diff_id).collect())
}
