//! `unionfs catalog`: makes, checks, lists and removes catalogs; and which catalog a mount
//! uses. Called by `cli::main`, `mount`, `compat` and `launch`.

use std::ffi::OsString;
use std::io::IsTerminal as _;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, bail};
use indicatif::{ProgressBar, ProgressStyle};
use rustix::net::{RecvFlags, SendFlags};
use serde::Serialize;

use super::error::Usage;
use super::open_stores;
use super::options::{CatalogChoice, MountOptions};
use super::output::{Table, one_line, print, print_json, size};
use crate::catalog::{self, Label, Progress, place};
use crate::layer::StackSpec;
use crate::sandbox::{self, Mode};
use crate::store::roots::Environment;
use crate::store::writable::{DRIVER, Garbage, Kind};
use crate::store::{Chain, Container, Digest, Mountable};
use crate::sys::process;

/// Make and check catalogs: the merged view of an image's layers, for fast mounts
///
/// With a catalog a mount asks nothing of the layers' directories, however many there are. The
/// first mount of an image makes one in the background, which the next uses. See docs/CATALOG.md.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  unionfs catalog build myapp:2
  unionfs catalog verify myapp:2
  unionfs catalog ls
  unionfs catalog build -o lowerdir=/b:/a /var/cache/ab.catalog
  unionfs -o lowerdir=/b:/a,catalog=/var/cache/ab.catalog /mnt

A catalog of plain directories is right as long as nothing in them is changed.")]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Make the catalog of an image, in place of the one there is
    #[command(after_help = "Example:\n  unionfs catalog build myapp:2")]
    Build(What),
    /// Compare a catalog with the layers, name by name
    #[command(after_help = "Example:\n  unionfs catalog verify myapp:2")]
    Verify(What),
    /// Remove the catalog of an image; mounts that use it keep it
    #[command(after_help = "Example:\n  unionfs catalog rm myapp:2")]
    Rm(What),
    /// List catalogs
    #[command(after_help = "Example:\n  unionfs catalog ls --json | jq .[].bytes")]
    Ls(List),
}

#[derive(Debug, clap::Args)]
struct What {
    /// The image; with -o the file of the catalog
    #[arg(value_name = "IMAGE|FILE")]
    what: OsString,
    /// Layers that are plain directories: lowerdir=TOP:…:BOTTOM, dialect=all|overlay
    #[arg(short = 'o', value_name = "OPTS")]
    options: Vec<OsString>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct List {
    /// Print JSON: sizes in bytes
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, root: Option<&Path>) -> anyhow::Result<()> {
    match &args.command {
        Command::Build(what) => build(what, root),
        Command::Verify(what) => verify(what, root),
        Command::Rm(what) => remove(what, root),
        Command::Ls(args) => list(args),
    }
}

/// Layers, and where their catalog is.
struct Target {
    stack: StackSpec,
    label: Label,
    path: PathBuf,
    /// Keep the layers from being removed.
    _held: Vec<std::fs::File>,
}

fn target(what: &What, root: Option<&Path>) -> anyhow::Result<Target> {
    if !what.options.is_empty() {
        let mut options = MountOptions::default();
        for text in &what.options {
            options.parse(text).map_err(Usage::from)?;
        }
        return Ok(Target {
            stack: super::compat::stack(&options, true)?,
            label: Label::default(),
            path: std::path::absolute(&what.what).context("cannot tell where that is")?,
            _held: Vec::new(),
        });
    }
    let Some(name) = what.what.to_str() else {
        let what = format!("{} is no image name: names are ASCII", what.what.display());
        return Err(Usage(what).into());
    };
    let stores = open_stores(root)?;
    let image = stores.mountable(name, |_| None)?;
    let label = label(&image);
    Ok(Target {
        stack: StackSpec {
            lowers: image.lowers,
            data_only: Vec::new(),
            upper: None,
        },
        path: place::path(&Environment::current().own_root()?, &label),
        label,
        _held: stores.into_held(),
    })
}

#[derive(Serialize)]
struct BuildReport {
    path: String,
    /// Layers it is of.
    layers: usize,
    /// Names in it.
    names: u64,
    directories: u64,
    /// Names about which the layers are still asked.
    live: u64,
    /// Bytes of the file.
    bytes: u64,
}

fn build(what: &What, root: Option<&Path>) -> anyhow::Result<()> {
    let target = target(what, root)?;
    let bar = spinner();
    let built = catalog::build(&target.stack, &target.label, &target.path, &mut |step| {
        show(&bar, step);
        true
    })?;
    bar.finish_and_clear();
    let report = BuildReport {
        path: target.path.to_string_lossy().into_owned(),
        layers: target.stack.lowers.len() + target.stack.data_only.len(),
        names: built.progress.names,
        directories: built.progress.dirs,
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

/// How many differences `verify` shows.
const SHOWN: usize = 100;

#[derive(Serialize)]
struct VerifyReport {
    path: String,
    /// Why it would not be used at all.
    unusable: Option<String>,
    differences: Vec<DifferenceRow>,
}

#[derive(Serialize)]
struct DifferenceRow {
    path: String,
    what: &'static str,
}

fn verify(what: &What, root: Option<&Path>) -> anyhow::Result<()> {
    let target = target(what, root)?;
    let mut report = VerifyReport {
        path: target.path.to_string_lossy().into_owned(),
        unusable: None,
        differences: Vec::new(),
    };
    match catalog::open(&target.path) {
        Ok(view) if view.verify() && view.walk().is_ok() => {
            let bar = spinner();
            let mut step = |step| show(&bar, step);
            match catalog::compare(&target.stack, &target.path, SHOWN, &mut step)? {
                Ok(found) => report.differences = found.iter().map(DifferenceRow::new).collect(),
                Err(unusable) => report.unusable = Some(unusable.to_string()),
            }
            bar.finish_and_clear();
        }
        Ok(_) => report.unusable = Some("it is damaged".into()),
        Err(e) => report.unusable = Some(e.to_string()),
    }
    match what.json {
        true => print_json(&report)?,
        false => {
            for row in &report.differences {
                print(&format!("{}: {}\n", one_line(&row.path), row.what))?;
            }
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
    let path = target(what, root)?.path;
    let removed = discard(&path)?;
    if what.json {
        return print_json(
            &serde_json::json!({"path": path.to_string_lossy(), "removed": removed}),
        );
    }
    print(match removed {
        true => "removed\n",
        false => "there was none\n",
    })
}

#[derive(Serialize)]
struct Row {
    path: String,
    /// Bytes on the disk.
    bytes: u64,
    /// Chain ID of the layers; none: it is no catalog that this version reads.
    chain: Option<Digest>,
    store: Option<String>,
    driver: Option<String>,
}

fn list(args: &List) -> anyhow::Result<()> {
    let own = Environment::current().own_root()?;
    let kept = place::list(&own).with_context(|| format!("cannot list {:?}", place::dir(&own)))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let row = |kept: &place::Kept| Row {
        path: kept.path.to_string_lossy().into_owned(),
        bytes: kept.bytes,
        chain: kept.label.as_ref().map(|l| Digest::from_bytes(l.chain)),
        store: kept.label.as_ref().map(|label| text(&label.store)),
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

fn spinner() -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {pos} names {msg}") {
        bar.set_style(style);
    }
    bar
}

fn show(bar: &ProgressBar, step: Progress) {
    bar.set_position(step.names);
}

/// Whose layers an image's are; `None` for one without layers.
pub(super) fn label(image: &Mountable) -> Label {
    Label {
        notes: image.note.clone().unwrap_or_default(),
        ..label_of(&image.chain)
    }
}

fn label_of(chain: &Chain) -> Label {
    Label {
        chain: chain.id.bytes(),
        store: chain.root.as_os_str().as_bytes().to_vec(),
        driver: chain.driver.into(),
        notes: Vec::new(),
    }
}

/// What the catalog of a chain, as the options have it, has noted of its layers.
pub(super) fn note(options: &MountOptions, chain: &Chain) -> Option<Vec<u8>> {
    let CatalogChoice::On = options.catalog else {
        return None;
    };
    let own = Environment::current().own_root().ok()?;
    let view = catalog::open(&place::path(&own, &label_of(chain))).ok()?;
    view.notes().ok().map(<[u8]>::to_vec)
}

/// As [`label`], of the layers below a read-write layer of the store in `root`; `None` where
/// a layer of its own is between them.
pub(super) fn label_below(root: &Path, container: &Container) -> Option<Label> {
    let chain = container.parent.filter(|_| container.init.is_none())?;
    let (store, driver) = match &container.source {
        Some(source) => (source.root.as_path(), source.driver.as_str()),
        None => (root, DRIVER),
    };
    Some(Label {
        chain: chain.bytes(),
        store: store.as_os_str().as_bytes().to_vec(),
        driver: driver.into(),
        notes: Vec::new(),
    })
}

/// The catalog of a mount.
#[derive(Clone, Debug)]
pub(super) struct Catalogued {
    pub(super) path: PathBuf,
    /// Whose layers it is of; `None`: it is used, but not made.
    label: Option<Label>,
    /// It lacks a note of where the layers are, or has an old one: one with it is made.
    pub(super) renew: bool,
}

/// The catalog of a mounted image, as the options have it.
pub(super) fn of_image(options: &MountOptions, chain: Option<Label>) -> Option<Catalogued> {
    match &options.catalog {
        CatalogChoice::On => {
            let label = chain?;
            Some(Catalogued {
                path: place::path(&Environment::current().own_root().ok()?, &label),
                renew: !label.notes.is_empty(),
                label: Some(label),
            })
        }
        _ => of_directories(options),
    }
}

/// The catalog of mounted directories: only one that is named.
pub(super) fn of_directories(options: &MountOptions) -> Option<Catalogued> {
    match &options.catalog {
        CatalogChoice::File(path) => Some(Catalogued {
            path: std::path::absolute(path).ok()?,
            label: None,
            renew: false,
        }),
        CatalogChoice::On | CatalogChoice::Off => None,
    }
}

/// A process that makes a catalog beside a mount; dropping this stops it and waits for its end.
pub(super) struct Building(OwnedFd);

impl Catalogued {
    /// Starts a process that will make the catalog of the lowers of `stack`, giving way to
    /// everything: one of its own, since a daemon in its sandbox could not. Call it before there
    /// is a second thread.
    pub(super) fn prepare_aside(self, stack: &StackSpec, mode: Mode) -> Option<Building> {
        let label = self.label.clone()?;
        let work = |socket: OwnedFd| {
            // Nothing is wanted when the mount fails.
            if let Ok((1.., _)) = rustix::net::recv(&socket, &mut [0], RecvFlags::empty()) {
                self.build_aside(stack, &label, mode, socket);
            }
        };
        let keep = stack.dirs().map(|dir| dir.as_fd());
        match process::beside(&keep.collect::<Vec<_>>(), work) {
            Ok(socket) => Some(Building(socket)),
            Err(e) => {
                tracing::warn!("no catalog is made of the layers: {e}");
                None
            }
        }
    }

    fn build_aside(&self, stack: &StackSpec, label: &Label, mode: Mode, socket: OwnedFd) {
        crate::sys::schedule::idle_thread();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let mut step = |_| !stopped.load(Ordering::Relaxed);
        let confine = |catalogs: BorrowedFd<'_>| {
            let layers = stack.lowers.iter().chain(&stack.data_only);
            let layers: Vec<_> = layers.map(|layer| layer.dir.as_fd()).collect();
            let in_force = sandbox::daemon::enter_beside(mode, &layers, catalogs)?;
            tracing::debug!(%in_force, "sandbox of the process that makes a catalog");
            // Ends with the process.
            std::thread::spawn(move || {
                // The daemon sends no more; this is its end, or that of the mount.
                let _ = rustix::net::recv(&socket, &mut [0], RecvFlags::empty());
                stop.store(true, Ordering::Relaxed);
                std::mem::forget(socket);
            });
            Ok(())
        };
        match catalog::build_confined(stack, label, &self.path, confine, &mut step) {
            Ok(built) => tracing::info!(?built, "catalog {} made", self.path.display()),
            Err(catalog::Error::Stopped | catalog::Error::Busy(_)) => {}
            Err(e) => tracing::warn!("no catalog is made of the layers: {e}"),
        }
    }
}

impl Building {
    /// The mount is live.
    pub(super) fn start(&self) {
        if let Err(error) = rustix::net::send(&self.0, &[0], SendFlags::NOSIGNAL) {
            tracing::warn!(%error, "no catalog is made of the layers");
        }
    }
}

impl Drop for Building {
    fn drop(&mut self) {
        let _ = rustix::net::shutdown(&self.0, rustix::net::Shutdown::Write);
        // Until it has closed its end by ending.
        let _ = rustix::net::recv(&self.0, &mut [0], RecvFlags::empty());
    }
}

/// Removes a catalog; whether there was one.
pub(super) fn discard(path: &Path) -> anyhow::Result<bool> {
    place::remove(path).with_context(|| format!("cannot remove the catalog {path:?}"))
}

/// What of our own place for catalogs nobody needs.
pub(super) fn garbage() -> anyhow::Result<Vec<Garbage>> {
    let own = Environment::current().own_root()?;
    let kept = place::list(&own).with_context(|| format!("cannot list {:?}", place::dir(&own)))?;
    let unneeded = kept
        .into_iter()
        .filter(|kept| !kept.label.as_ref().is_some_and(is_needed));
    let garbage = unneeded.map(|kept| Garbage {
        kind: Kind::Catalog,
        path: kept.path,
        bytes: kept.bytes,
        image: None,
        layer: None,
    });
    Ok(garbage.collect())
}

/// Removes the catalogs of chains that have been removed from the store in `root`.
pub(super) fn discard_of(root: &Path, chains: &[Digest]) {
    let Ok(own) = Environment::current().own_root() else {
        return;
    };
    for chain in chains {
        let label = Label {
            chain: chain.bytes(),
            store: root.as_os_str().as_bytes().to_vec(),
            driver: DRIVER.into(),
            notes: Vec::new(),
        };
        // What stays is prune's.
        let _ = discard(&place::path(&own, &label));
    }
}

/// Bytes on the disk of all catalogs.
pub(super) fn disk_usage() -> u64 {
    let own = Environment::current().own_root().ok();
    let kept = own.and_then(|own| place::list(&own).ok());
    kept.into_iter().flatten().map(|kept| kept.bytes).sum()
}

/// Whether the chain of a catalog is still there: in a store laid out as Docker's it has a
/// record; others keep their catalogs as long as they are there themselves.
fn is_needed(label: &Label) -> bool {
    let store = PathBuf::from(OsString::from_vec(label.store.clone()));
    let driver = OsString::from_vec(label.driver.clone());
    let layers = store.join("image").join(driver).join("layerdb/sha256");
    match layers.is_dir() {
        true => layers
            .join(Digest::from_bytes(label.chain).hex())
            .symlink_metadata()
            .is_ok(),
        false => store.is_dir(),
    }
}
