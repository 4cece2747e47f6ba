//! `unionfs squash` makes an image with fewer layers and the same files.
//!
//! ```text
//!  files of IMAGE, files up to LAYER ──pack──► pipe ──unpack──► one new layer
//! ```

use std::io::Write;
use std::path::Path;

use anyhow::bail;

use super::candidates;
use super::command_sandbox::{self, SandboxArgs};
use super::progress::{Json, ProgressArgs, verb};
use super::{archive_names, own_store};
use unionfs::changes::{self, Tree};
use unionfs::layer::StackSpec;
use unionfs::layer_tar::Limits;
use unionfs::oci::Digest;
use unionfs::oci::derived_config::Squash;
use unionfs::store::{Image, copy_layers};

/// Create an image with the same files in fewer layers
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  unionfs squash myapp:2 myapp:2-flat
  unionfs squash --from debian:12 myapp:2 myapp:2-small

All layers become one; with --from the layers on top of LAYER do, and LAYER and those below it stay
as they are, so that other images can share them. The configuration stays the same, with a further
step in the history. Files that a later layer removed or replaced take no room in the new image.
IMAGE itself stays. The ID of the new image is printed.")]
pub(super) struct Args {
    /// The image: name, ID or ID prefix
    #[arg(add = candidates::images())]
    image: String,
    /// The name of the new image: name[:tag]
    #[arg(value_name = "NEW")]
    name: String,
    /// Keep this layer and those below: a digest, as unionfs layers prints it, or an image whose
    /// layers IMAGE has
    #[arg(long, value_name = "LAYER")]
    from: Option<String>,
    /// Set the comment of the image
    #[arg(long, short = 'm', value_name = "TEXT")]
    message: Option<String>,
    #[command(flatten)]
    progress: ProgressArgs,
    #[command(flatten)]
    sandbox: SandboxArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, root: Option<&Path>) -> anyhow::Result<()> {
    let name = own_store::new_name(&args.name)?;
    let image = archive_names::resolve(&args.image, &args.sandbox, root)?;
    let mut cage = args.sandbox.cage("squash")?;
    let store = own_store::open()?;
    let places = {
        let from = args.from.as_deref();
        let names: Vec<&str> = std::iter::once(&*image).chain(from).collect();
        cage.stores(root, &names)?
    };
    let store = cage.enter_to_take_in(store)?;
    let store = own_store::lock(&store)?;
    let mut intake = store.begin_import();
    let stores = command_sandbox::open(places)?;
    let (from, id) = stores.locate(&image)?;
    let image = from.image(&id)?.called(&args.image);
    let kept = match &args.from {
        Some(layer) => kept_layers(&image, layer, stores.find(layer).ok().as_ref())?,
        None => 0,
    };
    let (path, config) = from.config_bytes(&id)?;
    let squash = Squash {
        kept,
        created_by: format!("unionfs squash {}", args.image),
        comment: args.message.clone(),
    };
    let draft = squash.draft(&path, &config)?;
    let mut below = image.clone();
    below.layers.truncate(kept);
    copy_layers(from, &below, &store, &mut intake, &mut |_| ())?;
    let parent = below.layers.last().map(|layer| layer.chain_id);
    let (tree, base) = (open(&image)?, open(&below)?);
    let mut staged = store.stage_layer(parent.as_ref())?;
    let items = args
        .progress
        .items_beside(Json::of(args.json), verb("squashing", "squashed"));
    let layer = items.begin(&args.image, None);
    let pack = |out: &mut dyn Write| {
        match &tree {
            Some(tree) => tree.pack_on(base.as_ref(), out)?,
            None => changes::pack_nothing(out)?,
        }
        anyhow::Ok(())
    };
    let unpacked = staged.unpack_from(&Limits::default(), pack, |count| layer.add(count))?;
    intake.layer(staged, &unpacked)?;
    let diffs: Vec<Digest> = below.layers.iter().map(|layer| layer.diff_id).collect();
    let id = intake.image(&draft.with_layer(&diffs, &unpacked.diff_id))?;
    intake.finish([(&name, id)])?;
    layer.done_as(&unpacked.diff_id.short());
    own_store::print_made(&id, &name, args.json)
}

/// Opens the tree of an image; `None` if it has no layers.
fn open(image: &Image) -> anyhow::Result<Option<Tree>> {
    let lowers = image.stack()?;
    if lowers.is_empty() {
        return Ok(None);
    }
    let stack = StackSpec {
        lowers,
        data_only: Vec::new(),
        upper: None,
    };
    Ok(Some(Tree::open(&stack)?))
}

/// Returns how many layers stay: up to the one with this digest, or those of the image below.
fn kept_layers(image: &Image, layer: &str, below: Option<&Image>) -> anyhow::Result<usize> {
    let prefix = layer.strip_prefix("sha256:").unwrap_or(layer);
    let is_it = |digest: &Digest| prefix.len() >= 6 && digest.hex().starts_with(prefix);
    let mut found = image.layers.iter().enumerate();
    let by_digest = found
        .by_ref()
        .find(|(_, layer)| is_it(&layer.chain_id) || is_it(&layer.diff_id));
    if let Some((at, _)) = by_digest {
        anyhow::ensure!(
            !found.any(|(_, layer)| is_it(&layer.chain_id) || is_it(&layer.diff_id)),
            "several layers of {} begin with {layer:?}: give more of the digest",
            image.label()
        );
        return Ok(at + 1);
    }
    let top = below.and_then(|below| below.layers.last());
    let at = top.and_then(|top| {
        let mut layers = image.layers.iter();
        layers.position(|layer| layer.chain_id == top.chain_id)
    });
    match at {
        Some(at) => Ok(at + 1),
        None => bail!(
            "{} has no layer {layer:?}: unionfs layers {0} shows its layers",
            image.label()
        ),
    }
}
