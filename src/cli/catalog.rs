//! `unionfs catalog` builds, checks, lists and removes catalogs. This module also chooses the
//! catalog of a mount from its options.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde::Serialize;

use super::candidates;
use super::command_sandbox::{Cage, Missing, SandboxArgs};
use super::environment;
use super::error::Usage;
use super::options::{CatalogChoice, MountOptions};
use super::output::{Table, one_line, print, print_json, size};
use super::progress::{ON_TERMINAL, ProgressArgs, Unit, Verb, Work, verb};
use super::{path_hints, short_names};
use unionfs::catalog::{self, Label, directory};
use unionfs::image_mounts::{ImageCatalogs, MountCatalog, label_of_image};
use unionfs::layer::{LayerSpec, StackSpec};
use unionfs::oci::Digest;
use unionfs::progress::Progress;
use unionfs::store::Chain;

/// Build and check catalogs: the merged view of an image's layers, for fast mounts
///
/// A mount with a catalog does not read the directories of the layers. The first mount of an image
/// builds its catalog in the background; the next mount uses it. See docs/CATALOG.md.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  unionfs catalog build myapp:2
  unionfs catalog verify myapp:2
  unionfs catalog ls
  unionfs catalog build -o lowerdir=/b:/a /var/cache/ab.catalog
  unionfs -o lowerdir=/b:/a,catalog=/var/cache/ab.catalog /mnt

A catalog of directories is valid as long as nothing in them changes.")]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Build the catalog of an image; an existing one is replaced
    #[command(after_help = "Example:\n  unionfs catalog build myapp:2")]
    Build(Long),
    /// Compare a catalog with the layers, name by name
    #[command(after_help = "Example:\n  unionfs catalog verify myapp:2")]
    Verify(Long),
    /// Remove the catalog of an image; mounts continue to use it
    #[command(after_help = "Example:\n  unionfs catalog rm myapp:2")]
    Rm(What),
    /// List catalogs
    #[command(after_help = "Example:\n  unionfs catalog ls --json | jq .[].bytes")]
    Ls(List),
}

#[derive(Debug, clap::Args)]
struct What {
    /// The image; with -o, the file of the catalog
    #[arg(value_name = "IMAGE|FILE", add = candidates::images())]
    what: OsString,
    /// Layers that are directories: lowerdir=TOP:…:BOTTOM, dialect=all|overlay
    #[arg(short = 'o', value_name = "OPTS")]
    options: Vec<OsString>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    sandbox: SandboxArgs,
}

/// The arguments of what takes long.
#[derive(Debug, clap::Args)]
#[command(mut_arg("progress", |arg| arg.help(ON_TERMINAL)))]
struct Long {
    #[command(flatten)]
    what: What,
    #[command(flatten)]
    progress: ProgressArgs,
}

impl Long {
    fn work(&self, verb: Verb) -> Work {
        let name = self.what.what.to_string_lossy();
        self.progress.work_on(&name, Unit::Names, verb)
    }
}

#[derive(Debug, clap::Args)]
struct List {
    /// Print JSON: sizes in bytes
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    sandbox: SandboxArgs,
}

pub(super) fn run(args: &Args, root: Option<&Path>) -> anyhow::Result<()> {
    match &args.command {
        Command::Build(what) => build(what, root),
        Command::Verify(what) => verify(what, root),
        Command::Rm(what) => remove(what, root),
        Command::Ls(args) => list(args),
    }
}

/// Layers and the place of their catalog.
struct Target {
    stack: StackSpec,
    label: Label,
    path: PathBuf,
    /// Locks that keep the layers from being removed.
    _held: Vec<std::fs::File>,
}

/// Enters the sandbox and finds the layers there. `missing` says what to do if the directory of the
/// catalog does not exist.
fn target(what: &What, root: Option<&Path>, missing: Missing) -> anyhow::Result<Target> {
    let mut cage = what.sandbox.cage("catalog")?;
    if !what.options.is_empty() {
        return of_directories_in(cage, what, missing);
    }
    let Some(name) = what.what.to_str() else {
        let what = format!(
            "{} is not an image name: names are ASCII",
            what.what.display()
        );
        return Err(Usage(what).into());
    };
    path_hints::learn(name);
    short_names::learn(name);
    let places = cage.stores(root, &[name])?;
    let own = match cage.catalogs(missing)? {
        Some(own) => own,
        None => environment().own_root()?,
    };
    let stores = cage.enter_with_stores(places)?;
    let image = stores.mountable(name, |_| None)?;
    let Some(label) = label_of_image(&image) else {
        bail!("{name} has no layers: there is nothing for a catalog");
    };
    Ok(Target {
        stack: StackSpec {
            lowers: image.lowers,
            data_only: Vec::new(),
            upper: None,
        },
        path: directory::path(&own, &label),
        label,
        _held: stores.into_held(),
    })
}

fn of_directories_in(mut cage: Cage, what: &What, missing: Missing) -> anyhow::Result<Target> {
    let mut options = MountOptions::default();
    for text in &what.options {
        options.parse(text).map_err(Usage::from)?;
    }
    // The layers are opened again inside, by their paths there.
    let stack = super::fuse_overlayfs_args::stack(&options, true)?;
    let found = |layers: &[LayerSpec], cage: &mut Cage| -> anyhow::Result<Vec<PathBuf>> {
        let paths = layers.iter().map(|layer| layer.path());
        let read = |path: &Path| {
            cage.read(path)
                .with_context(|| format!("cannot open {path:?}"))
        };
        paths.map(read).collect()
    };
    options.lowers = found(&stack.lowers, &mut cage)?;
    options.data_only = found(&stack.data_only, &mut cage)?;
    drop(stack);
    let path = std::path::absolute(&what.what).context("cannot tell where that is")?;
    let path = cage.file_to_replace(&path, missing)?;
    cage.enter()?;
    Ok(Target {
        stack: super::fuse_overlayfs_args::stack(&options, true)?,
        label: Label::default(),
        path,
        _held: Vec::new(),
    })
}

#[derive(Serialize)]
struct BuildReport {
    path: String,
    /// The number of layers.
    layers: usize,
    /// The number of names.
    names: u64,
    directories: u64,
    /// The number of names that are still looked up in the layers.
    live: u64,
    /// The size of the file in bytes.
    bytes: u64,
}

fn build(args: &Long, root: Option<&Path>) -> anyhow::Result<()> {
    let what = &args.what;
    let target = target(what, root, Missing::Make)?;
    let work = args.work(verb("building", "built"));
    let built = catalog::build(&target.stack, &target.label, &target.path, &mut |step| {
        work.show(step);
        true
    })?;
    work.done();
    let report = BuildReport {
        path: target.path.to_string_lossy().into_owned(),
        layers: target.stack.lowers.len() + target.stack.data_only.len(),
        names: built.names,
        directories: built.directories,
        live: built.live,
        bytes: built.bytes,
    };
    if what.json {
        return print_json(&report);
    }
    let live = match report.live {
        0 => String::new(),
        n => format!(", {n} of them still asked of the layers"),
    };
    print(&format!(
        "{} names{live}, {} layers, {}: {}\n",
        report.names,
        report.layers,
        size(report.bytes),
        one_line(&report.path)
    ))
}

/// The maximum number of differences that `verify` shows.
const SHOWN: usize = 100;

#[derive(Serialize)]
struct VerifyReport {
    path: String,
    /// The reason why no mount would use it.
    unusable: Option<String>,
    differences: Vec<DifferenceRow>,
}

#[derive(Serialize)]
struct DifferenceRow {
    path: String,
    what: &'static str,
}

fn verify(args: &Long, root: Option<&Path>) -> anyhow::Result<()> {
    let what = &args.what;
    let target = target(what, root, Missing::Leave)?;
    let mut report = VerifyReport {
        path: target.path.to_string_lossy().into_owned(),
        unusable: None,
        differences: Vec::new(),
    };
    match catalog::open(&target.path) {
        Ok(view) if view.verify() && view.walk().is_ok() => {
            let work = args.work(verb("comparing", "compared"));
            let mut show = |step: Progress<'_, ()>| work.show(step);
            match catalog::compare(&target.stack, &target.path, SHOWN, &mut show)? {
                Ok(found) => report.differences = found.iter().map(DifferenceRow::new).collect(),
                Err(unusable) => report.unusable = Some(unusable.to_string()),
            }
            work.done();
        }
        Ok(_) => report.unusable = Some("it is damaged".into()),
        Err(e) => report.unusable = Some(e.to_string()),
    }
    if what.json {
        print_json(&report)?;
    } else {
        for row in &report.differences {
            print(&format!("{}: {}\n", one_line(&row.path), row.what))?;
        }
    }
    let remedy = "unionfs catalog build makes it anew";
    match (&report.unusable, report.differences.len()) {
        (Some(why), _) => bail!("catalog {:?} is not used: {why}; {remedy}", target.path),
        (None, 0) if what.json => Ok(()),
        (None, 0) => print("the catalog and the layers agree\n"),
        (None, 1) => bail!("1 name differs from the layers; {remedy}"),
        (None, SHOWN) => bail!("{SHOWN} or more names differ from the layers; {remedy}"),
        (None, n) => bail!("{n} names differ from the layers; {remedy}"),
    }
}

impl DifferenceRow {
    fn new(difference: &catalog::Difference) -> Self {
        Self {
            path: String::from_utf8_lossy(&difference.path).into_owned(),
            what: difference.what,
        }
    }
}

fn remove(what: &What, root: Option<&Path>) -> anyhow::Result<()> {
    let path = target(what, root, Missing::Leave)?.path;
    let removed = discard(&path)?;
    if what.json {
        return print_json(
            &serde_json::json!({"path": path.to_string_lossy(), "removed": removed}),
        );
    }
    print(if removed {
        "removed\n"
    } else {
        "there was none\n"
    })
}

#[derive(Serialize)]
struct Row {
    path: String,
    /// The disk space in bytes.
    bytes: u64,
    /// The chain ID of the layers. None: this version cannot read the catalog.
    chain: Option<Digest>,
    /// None: it is of directories on file systems that cannot be written.
    store: Option<String>,
    driver: Option<String>,
}

fn list(args: &List) -> anyhow::Result<()> {
    let mut cage = args.sandbox.cage("catalog")?;
    let own = match cage.catalogs(Missing::Leave)? {
        Some(own) => own,
        None => environment().own_root()?,
    };
    cage.enter()?;
    let kept = ImageCatalogs::of(own).list()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let row = |kept: &directory::Kept| Row {
        path: kept.path.to_string_lossy().into_owned(),
        bytes: kept.bytes,
        chain: kept.label.as_ref().map(|l| Digest::from_bytes(l.chain)),
        store: kept
            .label
            .as_ref()
            .map(|label| text(&label.store))
            .filter(|store| !store.is_empty()),
        driver: kept.label.as_ref().map(|label| text(&label.driver)),
    };
    let rows: Vec<Row> = kept.iter().map(row).collect();
    if args.json {
        return print_json(&rows);
    }
    let mut table = Table::new(&["CHAIN", "SIZE", "DRIVER", "STORE"]);
    for row in rows {
        table.row([
            row.chain.map_or("<unknown>".into(), |chain| chain.short()),
            size(row.bytes),
            row.driver.unwrap_or_default(),
            row.store.unwrap_or(row.path),
        ]);
    }
    print(&table.render())
}

/// Returns the catalogs in the own store.
fn own_catalogs() -> Option<ImageCatalogs> {
    environment().own_root().ok().map(ImageCatalogs::of)
}

/// Returns the note of a catalog about its layers. The options choose the catalog of the chain.
pub(super) fn note(options: &MountOptions, chain: &Chain) -> Option<Vec<u8>> {
    match options.catalog {
        CatalogChoice::On => own_catalogs()?.note(chain),
        CatalogChoice::Off | CatalogChoice::File(_) => None,
    }
}

/// Returns the catalog of a mounted image, chosen by the options.
pub(super) fn of_image(options: &MountOptions, chain: Option<Label>) -> Option<MountCatalog> {
    chosen(options, |own| Some(own.choose(chain?)))
}

/// Returns the catalog of mounted directories: the named one, or that of lowers that cannot change,
/// or that are layers of a store.
pub(super) fn of_directories(options: &MountOptions, stack: &StackSpec) -> Option<MountCatalog> {
    chosen(options, |own| {
        own.of_unwritable(stack).or_else(|| own.of_stored(stack))
    })
}

/// Returns the catalog that the options choose; `by_itself` is that of `catalog=on`.
fn chosen(
    options: &MountOptions,
    by_itself: impl FnOnce(ImageCatalogs) -> Option<MountCatalog>,
) -> Option<MountCatalog> {
    match &options.catalog {
        CatalogChoice::On => by_itself(own_catalogs()?),
        CatalogChoice::File(path) => MountCatalog::file(path).ok(),
        CatalogChoice::Off => None,
    }
}

/// Removes a catalog. Returns whether there was one.
pub(super) fn discard(path: &Path) -> anyhow::Result<bool> {
    directory::remove(path).with_context(|| format!("cannot remove the catalog {path:?}"))
}
