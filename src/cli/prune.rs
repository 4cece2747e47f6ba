//! `unionfs prune`: removes what nothing needs. Called by `cli::main`.

use std::path::Path;

use serde::Serialize;

use super::catalog;
use super::output::{Table, print, print_json, size};
use super::own::{self, Mounted};
use crate::store::writable::{Garbage, Kind};

/// Remove what crashes and removals have left in our own store
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  unionfs prune --dry-run
  unionfs prune --dangling
  unionfs prune --json | jq .bytes

Removed are layers that no image and no read-write layer has, directories and links of no
layer, catalogs of layers that are gone, files of commands that were killed, and downloads that a
pull could resume. Images without a name stay, as import makes them on purpose: unionfs rmi ID
removes one, --dangling all that no image with a name was made from and nothing uses, such as
those whose name another image has got, and what killed commands have left.")]
pub(super) struct Args {
    /// Only say what would be removed
    #[arg(long, short = 'n')]
    dry_run: bool,
    /// Also images without a name that nothing uses, and their layers
    #[arg(long)]
    dangling: bool,
    /// Print JSON: sizes in bytes
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report<'a> {
    dry_run: bool,
    /// Bytes on the disk, of all items.
    bytes: u64,
    items: &'a [Garbage],
}

pub(super) fn run(args: &Args, root: Option<&Path>) -> anyhow::Result<()> {
    // Looking makes no store.
    let store = own::existing(root)?;
    let locked = store.as_ref().map(own::lock).transpose()?;
    let mounted = Mounted::now();
    let in_use = |diff: &Path| mounted.find(diff);
    let mut items = Vec::new();
    if let Some(store) = &locked {
        let going = match args.dangling {
            true => store.dangling(&|image| mounted.image(image).is_some())?,
            false => Vec::new(),
        };
        items = store.garbage(&in_use, &going)?;
        for item in items.iter().filter(|_| !args.dry_run) {
            store.remove_garbage(item)?;
        }
    }
    // Of every store, also of those that are only read.
    let catalogs = catalog::garbage()?;
    for item in catalogs.iter().filter(|_| !args.dry_run) {
        catalog::discard(&item.path)?;
    }
    items.extend(catalogs);
    let report = Report {
        dry_run: args.dry_run,
        bytes: items.iter().map(|item| item.bytes).sum(),
        items: &items,
    };
    match args.json {
        true => print_json(&report),
        false => print(&text(&report)),
    }
}

fn text(report: &Report<'_>) -> String {
    let total = size(report.bytes);
    let line = match report.dry_run {
        true => format!("{total} can be reclaimed\n"),
        false => format!("{total} reclaimed\n"),
    };
    if report.items.is_empty() {
        return line;
    }
    let mut table = Table::new(&["KIND", "SIZE", "PATH"]);
    for item in report.items {
        let kind = match item.kind {
            Kind::Image => "image without a name",
            Kind::Layer => "unused layer",
            Kind::Removing => "half removed layer",
            Kind::LayerDirectory => "directory of no layer",
            Kind::ShortName => "link to no layer",
            Kind::Staging => "unfinished file",
            Kind::ImageMetadata => "notes on no image",
            Kind::NameRecord => "unfinished read-write layer",
            Kind::Catalog => "catalog of no layer",
            Kind::Download => "download for a later pull",
        };
        table.row([
            kind.into(),
            size(item.bytes),
            item.path.display().to_string(),
        ]);
    }
    table.render() + &line
}
