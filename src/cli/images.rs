//! `unionfs images` lists the images in the stores.

use std::path::Path;

use anyhow::bail;
use serde::Serialize;

use super::command_sandbox::SandboxArgs;
use super::digest_names::shown;
use super::filters::{Condition as _, ImageFilter, NamePattern, Resolved};
use super::output::{Cut, print_json, size};
use super::rows::{Field, RowArgs, Rows, field};
use super::{times, warn};
use unionfs::store::{Error, Image, Listing, Name, Stores};

/// List images
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  unionfs images
  unionfs images 'sample*'
  unionfs images --filter since=sample:1 --format 'table {{.Name}}\\t{{.Size}}'
  unionfs images --json | jq -r '.[].names[]'

Filters: reference=PATTERN, label=NAME[=VALUE], label!=NAME[=VALUE], before=IMAGE, since=IMAGE,
until=TIME, dangling=true|false, store=unionfs|docker|podman|containerd|ROOT. All must fit.
Fields of --format: Name, Repository, Tag, Digest, ID, Store, Driver, Root, Platform, Layers, Size,
Unshared, CreatedSince, CreatedAt.")]
pub(super) struct Args {
    /// Show only images with this name: NAME[:TAG], with *, ? and [a-z]
    #[arg(value_parser = NamePattern::parse)]
    pattern: Option<NamePattern>,
    /// Include the unnamed intermediate images of builds
    #[arg(long, short = 'a')]
    all: bool,
    /// Show only images that fit; may be repeated
    #[arg(long, short = 'f', value_name = "KEY=VALUE", value_parser = ImageFilter::parse)]
    filter: Vec<ImageFilter>,
    /// Show the digests that registries gave
    #[arg(long)]
    digests: bool,
    #[command(flatten)]
    rows: RowArgs,
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
    engine: &'static str,
    /// os/architecture[/variant]
    platform: String,
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
            engine: image.engine,
            platform: platform(image),
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
    let filters = args.filter.iter().map(|filter| filter.resolve(&listing));
    let mut filters = filters.collect::<Result<Vec<_>, _>>()?;
    let pattern = args.pattern.clone().map(ImageFilter::Reference);
    filters.extend(pattern.iter().map(Resolved::Other));
    let shown: Vec<&Image> = listing
        .images
        .iter()
        .filter(|image| args.all || !listing.is_intermediate(image))
        .filter(|image| filters.iter().all(|filter| filter.fits(image)))
        .collect();
    if args.json {
        print_json(
            &shown
                .iter()
                .map(|image| Row::new(image))
                .collect::<Vec<_>>(),
        )?;
    } else {
        rows(&shown, &filters, args).print(&args.rows)?;
    }
    complain(&listing)
}

/// Returns the platform of an image, as far as its configuration has it.
pub(super) fn platform(image: &Image) -> String {
    let config = &image.config;
    let words = [&config.os, &config.architecture, &config.variant];
    let words: Vec<&str> = words.into_iter().flatten().map(String::as_str).collect();
    let words: Vec<&str> = words.into_iter().filter(|word| !word.is_empty()).collect();
    if words.is_empty() {
        "-".to_owned()
    } else {
        words.join("/")
    }
}

/// Opens the stores. `None`: this machine has none yet, which is no error of a command that lists.
pub(super) fn stores_if_any(
    sandbox: &SandboxArgs,
    command: &str,
    root: Option<&Path>,
) -> anyhow::Result<Option<Stores>> {
    match sandbox.stores(command, root, &[]) {
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

const FIELDS: [Field; 14] = [
    field("Name", "NAME", Cut::Middle),
    field("Repository", "REPOSITORY", Cut::Middle),
    field("Tag", "TAG", Cut::Middle),
    field("Digest", "DIGEST", Cut::End),
    field("ID", "ID", Cut::No),
    field("Store", "STORE", Cut::No),
    field("Driver", "DRIVER", Cut::No),
    field("Root", "ROOT", Cut::Middle),
    field("Platform", "PLATFORM", Cut::End),
    field("Layers", "LAYERS", Cut::No),
    field("Size", "SIZE", Cut::No),
    field("Unshared", "UNSHARED", Cut::No),
    field("CreatedSince", "CREATED", Cut::No),
    field("CreatedAt", "CREATED AT", Cut::No),
];

/// A row for each name, as in Docker.
fn rows(images: &[&Image], filters: &[Resolved<'_>], args: &Args) -> Rows {
    let mut columns = vec![
        "Name", "ID", "Store", "Platform", "Layers", "Size", "Unshared",
    ];
    columns.push("CreatedSince");
    if args.digests {
        columns.insert(1, "Digest");
    }
    let mut rows = Rows::new(&FIELDS, columns, "ID");
    rows.may_leave_out(&["Unshared", "Layers", "Platform"]);
    for image in images {
        let row = Row::new(image);
        let has_sizes = image.unpacked || !image.layers.is_empty();
        let sizes = if has_sizes {
            [size(row.size), size(row.unshared)]
        } else {
            ["not unpacked".to_owned(), "-".to_owned()]
        };
        let [all, unshared] = sizes;
        let names: Vec<&Name> = shown(&image.names)
            .filter(|name| filters.iter().all(|filter| filter.fits_name(name)))
            .collect();
        let unnamed = [None];
        let named: Vec<Option<&Name>> = names.into_iter().map(Some).collect();
        for name in if named.is_empty() {
            &unnamed[..]
        } else {
            &named
        } {
            let none = || "<none>".to_owned();
            rows.row([
                name.map_or_else(none, ToString::to_string),
                name.map_or_else(none, |name| name.repository.clone()),
                name.and_then(|name| name.tag.clone()).unwrap_or_else(none),
                name.and_then(|name| digest(name, image))
                    .unwrap_or_else(none),
                if args.rows.no_trunc {
                    row.id.clone()
                } else {
                    image.id.short()
                },
                row.engine.to_owned(),
                row.driver.to_owned(),
                row.root.clone(),
                row.platform.clone(),
                row.layers.to_string(),
                all.clone(),
                unshared.clone(),
                times::since(row.created),
                row.created.unwrap_or("-").to_owned(),
            ]);
        }
    }
    rows
}

/// Returns the digest that a registry gave for the repository of a name.
fn digest(name: &Name, image: &Image) -> Option<String> {
    let mut near = image
        .names
        .iter()
        .filter(|other| other.repository == name.repository);
    near.find_map(|other| other.digest.clone())
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
