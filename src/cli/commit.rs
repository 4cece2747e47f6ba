//! `unionfs commit`: an image from what was changed. Called by `cli::main`.
//!
//! ```text
//!  upper ──pack──► pipe ──unpack──► the new layer's files, tar-split, diff ID
//! ```
//! The layer is unpacked from its own tar, so that tar, tar-split and files agree.

use std::io::Write;
use std::path::Path;

use anyhow::bail;

use super::transfer::Transfer;
use super::{open_stores, own};
use crate::changes::Tree;
use crate::store::derive::{Derivation, Draft};
use crate::store::roots::Environment;
use crate::store::tarball::Limits;
use crate::store::writable::{Exclusive, Intake};
use crate::store::{Container, Digest, Layer, Store, Stores, copy_layers};

/// Make an image of our own store from what was changed
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  unionfs commit web myapp:3
  unionfs commit web myapp:3 -m 'configured' --change 'CMD [\"/bin/app\"]' --change 'ENV A=b'

The image's ID is printed. The layer may be mounted meanwhile: what was written before the
command is in the image, what is written during it may be or not. --change takes the
Dockerfile's CMD, ENTRYPOINT, ENV, LABEL, EXPOSE, VOLUME, USER, WORKDIR, STOPSIGNAL and
ONBUILD.")]
pub(super) struct Args {
    /// The named layer: name, ID or start of an ID
    name: String,
    /// The new image's name: name[:tag]
    image: String,
    /// Say what was changed
    #[arg(long, short = 'm', value_name = "TEXT")]
    message: Option<String>,
    /// Say who changed it
    #[arg(long, short = 'a', value_name = "NAME")]
    author: Option<String>,
    /// Apply a Dockerfile instruction to the configuration; may be repeated
    #[arg(long, short = 'c', value_name = "INSTRUCTION")]
    change: Vec<String>,
    /// Show no progress
    #[arg(long, short = 'q')]
    quiet: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, root: Option<&Path>) -> anyhow::Result<()> {
    let name = own::new_name(&args.image)?;
    let store = own::open(root)?;
    let store = own::writer(&store)?;
    // Before the stores that are read: what it takes away waits for them.
    let mut intake = store.intake();
    let stores = open_stores(root)?;
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
    let transfer = Transfer::new(args.quiet || args.json, "committed");
    let draft = draft(args, &all, base.as_ref())?;
    let below = below(&store, &mut intake, &container, &all, base.as_ref())?;
    own::flush(&container)?;
    let tree = Tree::open(&container.changed_stack()?)?;
    let mut staged = store.stage_layer(container.parent.as_ref())?;
    transfer.begin(&args.name, None);
    let pack = |out: &mut dyn Write| anyhow::Ok(tree.pack_layer(out)?);
    let unpacked = staged.unpack_from(&Limits::default(), pack, |count| transfer.add(count))?;
    intake.layer(staged, &unpacked)?;
    let id = intake.image(&draft.with_layer(&below, &unpacked.diff_id))?;
    if let Some(base) = &base
        && store.image(base).is_ok()
    {
        store.set_parent(&id, base)?;
    }
    intake.finish([(&name, id)])?;
    transfer.done(Some(&unpacked.diff_id.short()));
    own::print_made(&id, &name, args.json)
}

/// The image below: the one that is recorded, else one with the same layers.
fn base_of(stores: &Stores, container: &Container) -> anyhow::Result<Option<Digest>> {
    if container.image.is_some() {
        return Ok(container.image);
    }
    let listing = stores.images();
    let top = |image: &&crate::store::Image| {
        image.layers.last().map(|layer| layer.chain_id) == container.parent
    };
    Ok(listing.images.iter().find(top).map(|image| image.id))
}

fn draft(args: &Args, stores: &[&Store], base: Option<&Digest>) -> anyhow::Result<Draft> {
    let derivation = Derivation {
        author: args.author.clone(),
        comment: args.message.clone(),
        created_by: format!("unionfs commit {}", args.name),
        changes: args.change.clone(),
    };
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

/// The diff IDs of the layers below, base first; those of another store are taken in.
fn below(
    store: &Exclusive<'_>,
    intake: &mut Intake<'_>,
    container: &Container,
    stores: &[&Store],
    base: Option<&Digest>,
) -> anyhow::Result<Vec<Digest>> {
    if let Some(parent) = &container.parent
        && !store.has_layer(parent)?
    {
        let holds = |from: &&&Store| {
            let below = |layer: &Layer| layer.spec.path().starts_with(from.root());
            container.layers.iter().all(below)
        };
        match (stores.iter().find(holds), base) {
            (Some(from), Some(base)) => {
                let image = from.image(base)?;
                copy_layers(from, &image, store, intake, |_| ())?;
            }
            _ => bail!(
                "the image below is not in {:?} and cannot be told: load it there first",
                store.writable().root()
            ),
        }
    }
    Ok(container.layers.iter().map(|layer| layer.diff_id).collect())
}
