//! `unionfs prune` removes unused data.

use std::io::{IsTerminal as _, Write as _};
use std::path::Path;

use anyhow::Context as _;
use serde::Serialize;

use super::catalog;
use super::command_sandbox::SandboxArgs;
use super::error::Usage;
use super::filters::{Condition as _, ForPrune, Resolved};
use super::live_mounts::Mounted;
use super::output::{Cut, Table, print, print_json, size, terminal_width, wrapped};
use super::own_store;
use unionfs::image_mounts::{ImageCatalogs, PresentMounts};
use unionfs::store::writable::{Exclusive, Garbage, GarbageKind, LiveMounts as _, Unused};
use unionfs::store::{Image, Listing};

/// Remove unused data from the own store
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  unionfs prune --dry-run
  unionfs prune --dangling
  unionfs prune --all --dry-run --filter until=30days
  unionfs prune --json | jq .bytes

The command removes layers that no image and no read-write layer has, directories and links without
a layer, catalogs of removed layers, files of commands that were killed, downloads that a pull
could resume, and indexes (pull --all) whose name means another image now. Images without a name stay, since import creates them on purpose. unionfs rmi ID removes
one of them; --dangling removes all that are not in use and that no image with a name was built from.
Changes of mounts without a name stay too, also with --all: the last line says how many bytes they
have, and unionfs ps -a lists them. --changes removes those that are not mounted.
--all also removes images with names that no mount and no read-write layer uses, as docker image prune
--all does. It asks first on a terminal, and needs --force elsewhere.

Filters: until=TIME (a duration such as 24h, a day, or RFC 3339): images that are older; label=NAME[=VALUE],
label!=NAME[=VALUE]. They apply to images only.")]
pub(super) struct Args {
    /// Show what would be removed, and remove nothing
    #[arg(long, short = 'n')]
    dry_run: bool,
    /// Also remove unused images without a name, and their layers
    #[arg(long)]
    dangling: bool,
    /// Also remove the changes of mounts without a name that are not mounted: what was written is lost
    #[arg(long)]
    changes: bool,
    /// Also remove unused images with names, and their layers
    #[arg(long, short = 'a')]
    all: bool,
    /// Do not ask
    #[arg(long, short = 'f')]
    force: bool,
    /// With --all or --dangling: remove only images that fit; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = ForPrune::parse)]
    filter: Vec<ForPrune>,
    /// Print JSON: sizes in bytes
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    sandbox: SandboxArgs,
}

#[derive(Serialize)]
struct Report<'a> {
    dry_run: bool,
    /// The disk space of all items in bytes.
    bytes: u64,
    items: &'a [Garbage],
    kept_changes: KeptChanges,
}

/// Changes of mounts without a name that are not mounted, and that stay because --changes was not given.
#[derive(Default, Serialize)]
struct KeptChanges {
    /// The number of mounts.
    count: usize,
    /// The disk space in bytes.
    bytes: u64,
}

impl KeptChanges {
    fn of(changes: &[Garbage]) -> Self {
        Self {
            count: changes.len(),
            bytes: changes.iter().map(|item| item.bytes).sum(),
        }
    }

    /// Says what stays, and how it is removed.
    fn text(&self) -> String {
        let what = match self.count {
            0 => return String::new(),
            1 => "1 mount without a name stay".to_owned(),
            count => format!("{count} mounts without a name stay"),
        };
        let text = format!(
            "{} of changes of {what}: `unionfs ps -a` lists them, `unionfs prune --changes` removes them",
            size(self.bytes)
        );
        wrapped("", &text, terminal_width())
    }
}

pub(super) fn run(args: &Args, root: Option<&Path>) -> anyhow::Result<()> {
    if !args.filter.is_empty() && !args.all && !args.dangling {
        return Err(Usage("--filter chooses images: add --dangling or --all".into()).into());
    }
    if args.all && !args.force && !args.dry_run {
        confirm()?;
    }
    own_store::refuse_root("prune", root)?;
    // A dry run makes no store, except beside changes of mounts without a name.
    let store = own_store::existing_or_changes()?;
    let present = PresentMounts::now();
    let mut cage = args.sandbox.cage("prune")?;
    let catalogs = cage.catalogs_with_stores()?;
    let (store, mounted) = match store {
        Some(store) => {
            let (store, lock, mounted) = cage.enter_with_mounts(store)?;
            (Some((store, lock)), mounted)
        }
        None => {
            cage.enter()?;
            (None, Mounted::none())
        }
    };
    let locked = match &store {
        Some((store, lock)) => {
            let lock = lock.try_clone().context("cannot keep the store locked")?;
            Some(store.locked_by(lock)?)
        }
        None => None,
    };
    let filters = args.filter.iter();
    let filters = filters.map(|filter| filter.0.resolve(&Listing::default()));
    let filters = filters.collect::<Result<Vec<_>, _>>()?;
    let mut items = Vec::new();
    let mut kept_changes = KeptChanges::default();
    if let Some(store) = &locked {
        let going = match which(args) {
            Some(which) => store.unused(which, &|image| is_kept(image, &mounted, &filters))?,
            None => Vec::new(),
        };
        items = store.garbage(&mounted, &going)?;
        let changes = store.unnamed_garbage(&mounted)?;
        if args.changes {
            items.extend(changes);
        } else {
            kept_changes = KeptChanges::of(&changes);
        }
        if !args.dry_run {
            items = remove_all(store, items, &mounted)?;
        }
    }
    // Catalogs of all stores are listed, also of those that are only read.
    let catalogs = match &catalogs {
        Some(own) => ImageCatalogs::of(own).garbage(&present)?,
        None => Vec::new(),
    };
    for item in catalogs.iter().filter(|_| !args.dry_run) {
        catalog::discard(&item.path)?;
    }
    items.extend(catalogs);
    let report = Report {
        dry_run: args.dry_run,
        bytes: items.iter().map(|item| item.bytes).sum(),
        items: &items,
        kept_changes,
    };
    if args.json {
        print_json(&report)
    } else {
        print(&text(&report))
    }
}

/// Removes all items, and returns those that were not in use by then.
fn remove_all(
    store: &Exclusive<'_>,
    items: Vec<Garbage>,
    mounted: &Mounted,
) -> anyhow::Result<Vec<Garbage>> {
    let mut removed = Vec::with_capacity(items.len());
    for item in items {
        if store.remove_garbage(&item, mounted)? {
            removed.push(item);
        }
    }
    Ok(removed)
}

/// Asks whether images with names may go.
fn confirm() -> anyhow::Result<()> {
    if !std::io::stdin().is_terminal() {
        let text = "--all removes images with names: add --force, or look first with --dry-run";
        return Err(Usage(text.into()).into());
    }
    let question = "Remove all images that no mount and no read-write layer uses? [y/N] ";
    let mut out = std::io::stderr();
    out.write_all(question.as_bytes())?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    anyhow::ensure!(
        matches!(answer.trim(), "y" | "Y" | "yes"),
        "nothing was removed"
    );
    Ok(())
}

fn which(args: &Args) -> Option<Unused> {
    match args {
        Args { all: true, .. } => Some(Unused::All),
        Args { dangling: true, .. } => Some(Unused::Nameless),
        _ => None,
    }
}

/// Whether an image stays. `None`: it is damaged, which no filter fits.
fn is_kept(image: Option<&Image>, mounted: &Mounted, filters: &[Resolved<'_>]) -> bool {
    let Some(image) = image else {
        return !filters.is_empty();
    };
    let fits = filters.iter().all(|filter| filter.fits(image));
    !fits || mounted.image(image).is_some()
}

fn text(report: &Report<'_>) -> String {
    let total = size(report.bytes);
    let line = if report.dry_run {
        format!("{total} can be reclaimed\n")
    } else {
        format!("{total} reclaimed\n")
    };
    let line = line + &report.kept_changes.text();
    if report.items.is_empty() {
        return line;
    }
    let mut table = Table::new(&["KIND", "SIZE", "NAME OR PATH"]);
    table.may_cut(2, Cut::Middle);
    for item in report.items {
        let kind = match item.kind {
            GarbageKind::Image if item.names.is_empty() => "image without a name",
            GarbageKind::Image => "unused image",
            GarbageKind::Layer => "unused layer",
            GarbageKind::Removing => "partly removed layer",
            GarbageKind::LayerDirectory => "directory of no layer",
            GarbageKind::ShortName => "link to no layer",
            GarbageKind::Staging => "unfinished file",
            GarbageKind::ImageMetadata => "notes on no image",
            GarbageKind::NameRecord => "unfinished read-write layer",
            GarbageKind::Catalog => "catalog of no layer",
            GarbageKind::Download => "download for a later pull",
            GarbageKind::Kept => "index of no name",
            GarbageKind::Changes => "changes of a mount without a name",
        };
        table.row([
            kind.into(),
            size(item.bytes),
            if item.names.is_empty() {
                item.path.display().to_string()
            } else {
                let names: Vec<String> = item.names.iter().map(ToString::to_string).collect();
                names.join(" ")
            },
        ]);
    }
    table.render() + &line
}
