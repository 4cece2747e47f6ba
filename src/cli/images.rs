//! `unionfs images` lists the images in the stores.

use std::path::Path;

use anyhow::bail;
use serde::Serialize;

use super::command_sandbox::SandboxArgs;
use super::digest_names::shown;
use super::output::{Table, print, print_json, size};
use super::warn;
use unionfs::store::{Error, Image, Listing, Name, Stores};

/// List images
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  unionfs images
  unionfs images --json | jq -r '.[].names[]'")]
pub(super) struct Args {
    /// Include the unnamed intermediate images of builds
    #[arg(long, short = 'a')]
    all: bool,
    /// Print JSON: sizes in bytes
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    sandbox: SandboxArgs,
}

#[derive(Serialize)]
struct Row<'a> {
    id: String,
    names: &'a [Name],
    created: Option<&'a str>,
    /// Whether its layers are directories. Otherwise they are on thin devices, or only their blobs
    /// exist, whose sizes are not known.
    unpacked: bool,
    /// The number of layers.
    layers: usize,
    /// The size of all layers.
    size: u64,
    /// The size of the layers that no other image of the store has.
    unshared: u64,
    driver: &'static str,
    root: String,
}

impl<'a> Row<'a> {
    fn new(image: &'a Image) -> Self {
        let own = image.layers.iter().filter(|l| l.shared_by == Some(1));
        Self {
            id: image.id.to_string(),
            names: &image.names,
            created: image.config.created.as_deref(),
            unpacked: image.unpacked,
            layers: image.config.diff_ids.len(),
            size: image.size,
            unshared: own.map(|layer| layer.size).sum(),
            driver: image.driver,
            root: image.root.to_string_lossy().into_owned(),
        }
    }
}

pub(super) fn run(args: &Args, root: Option<&Path>) -> anyhow::Result<()> {
    let listing = match stores_if_any(&args.sandbox, "images", root)? {
        Some(stores) => stores.images(),
        None => Listing::default(),
    };
    if listing.images.is_empty() && listing.problems.is_empty() && !args.json {
        warn(FIRST_STEPS);
    }
    let shown: Vec<&Image> = listing
        .images
        .iter()
        .filter(|image| args.all || !listing.is_intermediate(image))
        .collect();
    if args.json {
        print_json(
            &shown
                .iter()
                .map(|image| Row::new(image))
                .collect::<Vec<_>>(),
        )?;
    } else {
        print(&table(&shown))?;
    }
    complain(&listing)
}

/// Opens the stores. `None`: this machine has none yet, which is no error of a command that lists.
pub(super) fn stores_if_any(
    sandbox: &SandboxArgs,
    command: &str,
    root: Option<&Path>,
) -> anyhow::Result<Option<Stores>> {
    match sandbox.stores(command, root) {
        Ok(stores) => Ok(Some(stores)),
        Err(error) if is_no_store(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

fn is_no_store(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(Error::NoStore { .. }))
}

/// What to do on a machine without images.
const FIRST_STEPS: &str = "no images yet: `unionfs pull NAME` downloads one, `unionfs load -i ARCHIVE` \
    takes those of an archive, `unionfs import ROOTFS NAME` makes one";

fn table(images: &[&Image]) -> String {
    let mut table = Table::new(&["NAME", "ID", "LAYERS", "SIZE", "UNSHARED", "CREATED"]);
    for image in images {
        let row = Row::new(image);
        let has_sizes = image.unpacked || !image.layers.is_empty();
        let sizes = if has_sizes {
            [size(row.size), size(row.unshared)]
        } else {
            ["not unpacked".to_owned(), "-".to_owned()]
        };
        let unnamed = [String::from("<none>")];
        let names: Vec<String> = shown(&image.names).map(ToString::to_string).collect();
        for name in if names.is_empty() {
            &unnamed[..]
        } else {
            &names
        } {
            table.row([
                name.clone(),
                image.id.short(),
                row.layers.to_string(),
                sizes[0].clone(),
                sizes[1].clone(),
                super::history::day(row.created),
            ]);
        }
    }
    table.render()
}

/// Damaged images do not hide the others, but the command fails.
pub(super) fn complain(listing: &Listing) -> anyhow::Result<()> {
    let Some((last, others)) = listing.problems.split_last() else {
        return Ok(());
    };
    for problem in others {
        warn(problem);
    }
    bail!("{last}")
}
