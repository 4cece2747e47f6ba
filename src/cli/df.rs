//! `unionfs df` shows the disk space of images and read-write layers.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::command_sandbox::{Missing, SandboxArgs};
use super::error::Usage;
use super::filters::{Condition as _, DfFilter, Kind, Resolved};
use super::images::complain;
use super::output::{Cut, Table, print, print_json, size};
use super::rows::{Field, RowArgs, Rows, field};
use unionfs::image_mounts::ImageCatalogs;
use unionfs::oci::Digest;
use unionfs::store::{Image, Listing, Stores, Writable};

/// Show the disk usage of images and read-write layers
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  unionfs df
  unionfs df --format 'table {{.Name}}\\t{{.Own}}'
  unionfs df --filter kind=image --filter 'reference=sample*'
  unionfs df --json | jq '.images[] | {id, own}'

SIZE counts all layers of an image, SHARED the layers that other images use too, OWN the bytes that
are freed when the image is removed. The total counts each layer once.
Filters: kind=image|layer|changes, name=NAME (of a read-write layer, or the ID of changes), and for
images reference=PATTERN, label=NAME[=VALUE], label!=NAME[=VALUE], before=IMAGE, since=IMAGE,
until=TIME, dangling=true|false, store=unionfs|docker|podman|containerd|ROOT. All must fit; the totals
are those of the rows.
Fields of --format: Kind (image, read-write layer or changes), Name, ID, Image, Size, Shared, Own, Root.")]
pub(super) struct Args {
    /// Show only images and layers that fit; may be repeated
    #[arg(long, short = 'f', value_name = "KEY=VALUE", value_parser = DfFilter::parse)]
    filter: Vec<DfFilter>,
    #[command(flatten)]
    rows: RowArgs,
    /// Print JSON: sizes in bytes
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    sandbox: SandboxArgs,
}

#[derive(Serialize)]
struct Report {
    images: Vec<ImageRow>,
    /// The read-write layers made by mount --name.
    named: Vec<NamedRow>,
    /// The changes of mounts without a name.
    unnamed: Vec<UnnamedRow>,
    /// The size of all layers of images, each counted once.
    layers: u64,
    /// The size of all read-write layers.
    read_write: u64,
    /// The size of all catalogs.
    catalogs: u64,
    /// The size of unfinished downloads, which the next pull continues.
    downloads: u64,
    /// The size of what is kept whole of names, beside their images (pull --all).
    kept: u64,
}

#[derive(Serialize)]
struct ImageRow {
    id: String,
    names: Vec<String>,
    /// The size of all layers.
    size: u64,
    /// The size of the layers that other images have too.
    shared: u64,
    /// The size of the layers that no other image has.
    own: u64,
    root: String,
}

#[derive(Serialize)]
struct NamedRow {
    name: String,
    image: String,
    /// The disk space in bytes.
    size: u64,
    root: String,
}

#[derive(Serialize)]
struct UnnamedRow {
    id: String,
    /// The image that they were made to, if that is recorded.
    image: Option<String>,
    /// The disk space in bytes.
    size: u64,
    path: String,
}

impl ImageRow {
    fn new(image: &Image) -> Self {
        let own = image.layers.iter().filter(|l| l.shared_by == Some(1));
        let own: u64 = own.map(|layer| layer.size).sum();
        Self {
            id: image.id.to_string(),
            names: image.names.iter().map(ToString::to_string).collect(),
            size: image.size,
            shared: image.size.saturating_sub(own),
            own,
            root: image.root.to_string_lossy().into_owned(),
        }
    }
}

pub(super) fn run(args: &Args, root: Option<&Path>) -> anyhow::Result<()> {
    let mut cage = args.sandbox.cage("df")?;
    let places = cage.stores(root, &[])?;
    let catalogs = cage.catalogs(Missing::Leave)?;
    // The given root is not a store of unionfs, as with --root of Docker.
    let own = cage.read_own(root).ok().flatten();
    let stores = cage.enter_with_stores(places)?;
    let mut listing = stores.images();
    let fits = |kind, key: &str| {
        let mut filters = args.filter.iter();
        filters.all(|filter| filter.fits_layer(kind, key))
    };
    let named = named(&stores, &mut listing, |name| {
        fits(Kind::ReadWriteLayer, name)
    });
    let unnamed = unnamed(&stores, |id| fits(Kind::Changes, id));
    let filters = of_images(&args.filter, &listing)?;
    let shown: Vec<&Image> = listing
        .images
        .iter()
        .filter(|image| !listing.is_intermediate(image))
        .filter(|image| {
            let mut filters = filters.iter();
            filters.all(|filter| filter.as_ref().is_some_and(|filter| filter.fits(image)))
        })
        .collect();
    let layers: HashMap<(&PathBuf, &str, Digest), u64> = shown
        .iter()
        .flat_map(|image| {
            let layers = image.layers.iter();
            layers.map(|l| ((&image.root, image.driver, l.chain_id), l.size))
        })
        .collect();
    let own = own.and_then(|own| Writable::to_look_at(&own).ok().flatten());
    let report = Report {
        images: shown.iter().map(|image| ImageRow::new(image)).collect(),
        layers: layers.values().sum(),
        read_write: named.iter().map(|row| row.size).sum::<u64>()
            + unnamed.iter().map(|row| row.size).sum::<u64>(),
        named,
        unnamed,
        catalogs: catalogs.map_or(0, |own| ImageCatalogs::of(own).disk_usage()),
        downloads: own.as_ref().map_or(0, Writable::downloaded),
        kept: own.as_ref().map_or(0, Writable::kept_usage),
    };
    if args.json {
        print_json(&report)?;
    } else if args.rows.only_rows() {
        rows(&report, &args.rows).print(&args.rows)?;
    } else {
        print(&text(&report, &args.rows))?;
    }
    complain(&listing)
}

/// Returns the conditions on images. `None`: no image fits.
fn of_images<'f>(
    filters: &'f [DfFilter],
    listing: &Listing,
) -> Result<Vec<Option<Resolved<'f>>>, Usage> {
    let resolved = filters.iter().filter_map(|filter| match filter {
        DfFilter::Image(filter) => Some(filter.resolve(listing).map(Some)),
        DfFilter::Kind(Kind::Image) => None,
        DfFilter::Kind(Kind::ReadWriteLayer | Kind::Changes) | DfFilter::Name(_) => Some(Ok(None)),
    });
    resolved.collect()
}

fn named(stores: &Stores, listing: &mut Listing, fits: impl Fn(&str) -> bool) -> Vec<NamedRow> {
    let mut rows = Vec::new();
    for named in stores.named() {
        match named {
            Ok((_, named)) if !fits(&named.name) => {}
            Ok((store, named)) => rows.push(NamedRow {
                size: store.named_usage(&named),
                name: named.name,
                image: named.image_name,
                root: store.root().to_string_lossy().into_owned(),
            }),
            Err(error) => listing.problems.push(error),
        }
    }
    rows
}

fn unnamed(stores: &Stores, fits: impl Fn(&str) -> bool) -> Vec<UnnamedRow> {
    let layers = stores.unnamed().into_iter();
    let fitting = layers.filter(|layer| fits(&layer.id));
    let rows = fitting.map(|layer| UnnamedRow {
        size: layer.disk_usage(),
        path: layer.diff().to_string_lossy().into_owned(),
        image: layer.origin.map(|origin| origin.image_name),
        id: layer.id,
    });
    rows.collect()
}

const FIELDS: [Field; 8] = [
    field("Kind", "KIND", Cut::No),
    field("Name", "NAME", Cut::Middle),
    field("ID", "ID", Cut::No),
    field("Image", "IMAGE", Cut::Middle),
    field("Size", "SIZE", Cut::No),
    field("Shared", "SHARED", Cut::No),
    field("Own", "OWN", Cut::No),
    field("Root", "ROOT", Cut::Middle),
];

/// Images and read-write layers in one list.
fn rows(report: &Report, args: &RowArgs) -> Rows {
    let columns = ["Kind", "Name", "ID", "Size", "Shared", "Own"];
    let mut rows = Rows::new(&FIELDS, columns, "ID");
    let none = || "-".to_owned();
    for row in &report.images {
        rows.row([
            Kind::Image.name().to_owned(),
            names(row),
            id(row, args),
            names(row),
            size(row.size),
            size(row.shared),
            size(row.own),
            row.root.clone(),
        ]);
    }
    for row in &report.named {
        rows.row([
            Kind::ReadWriteLayer.name().to_owned(),
            row.name.clone(),
            row.name.clone(),
            row.image.clone(),
            size(row.size),
            none(),
            size(row.size),
            row.root.clone(),
        ]);
    }
    for row in &report.unnamed {
        rows.row([
            Kind::Changes.name().to_owned(),
            "-".to_owned(),
            if args.no_trunc {
                row.id.clone()
            } else {
                short_id(&row.id)
            },
            row.image.clone().unwrap_or_else(none),
            size(row.size),
            none(),
            size(row.size),
            row.path.clone(),
        ]);
    }
    rows
}

fn names(row: &ImageRow) -> String {
    match row.names.as_slice() {
        [] => "<none>".to_owned(),
        names => names.join(" "),
    }
}

fn id(row: &ImageRow, args: &RowArgs) -> String {
    let short = Digest::parse(&row.id).filter(|_| !args.no_trunc);
    short.map_or_else(|| row.id.clone(), |id| id.short())
}

fn text(report: &Report, args: &RowArgs) -> String {
    let mut images = Table::new(&["IMAGE", "ID", "SIZE", "SHARED", "OWN"]);
    if !args.no_trunc {
        images.may_cut(0, Cut::Middle);
    }
    for row in &report.images {
        images.row([
            names(row),
            id(row, args),
            size(row.size),
            size(row.shared),
            size(row.own),
        ]);
    }
    let mut text = images.render();
    text += &format!("all layers of images, each once: {}\n", size(report.layers));
    if report.catalogs > 0 {
        text += &format!("catalogs (unionfs catalog ls): {}\n", size(report.catalogs));
    }
    if report.downloads > 0 {
        let kept = size(report.downloads);
        text += &format!("downloads for a later pull (unionfs prune removes them): {kept}\n");
    }
    if report.kept > 0 {
        text += &format!(
            "kept whole (pull --all, load --all): {}\n",
            size(report.kept)
        );
    }
    if !report.named.is_empty() || !report.unnamed.is_empty() {
        let mut named = Table::new(&["NAME", "IMAGE", "SIZE"]);
        named.may_cut(0, Cut::Middle);
        named.may_cut(1, Cut::Middle);
        for row in &report.named {
            named.row([row.name.clone(), row.image.clone(), size(row.size)]);
        }
        for row in &report.unnamed {
            let image = row.image.clone().unwrap_or_else(|| "<unknown>".to_owned());
            named.row([short_id(&row.id), image, size(row.size)]);
        }
        text += &format!("\n{}", named.render());
        text += &format!("all read-write layers: {}\n", size(report.read_write));
    }
    text
}

/// Returns the form of an ID that tables have.
pub(super) fn short_id(id: &str) -> String {
    id.chars().take(12).collect()
}
