//! `unionfs info` shows the version, the stores and the mounts.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::command_sandbox::SandboxArgs;
use super::images::complain;
use super::output::{Cut, Table, one_line, print, print_json, size};
use super::version::VERSION;
use super::{environment, images};
use unionfs::fuse::{MountState, runtime};
use unionfs::store::Listing;

/// Show the version, the stores with their images, and the mounts
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  unionfs info
  unionfs info --json | jq -r '.stores[].root'")]
pub(super) struct Args {
    /// Print JSON: sizes in bytes
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    sandbox: SandboxArgs,
}

#[derive(Serialize)]
struct Report {
    version: &'static str,
    kernel: String,
    /// The store that unionfs writes to, whether it exists or not.
    own_store: Option<PathBuf>,
    own_store_exists: bool,
    /// The number of live mounts.
    mounts: usize,
    stores: Vec<StoreRow>,
}

#[derive(Serialize)]
struct StoreRow {
    engine: &'static str,
    driver: &'static str,
    root: String,
    images: usize,
    /// The size of all layers of its images, each counted once.
    size: u64,
}

pub(super) fn run(args: &Args, root: Option<&Path>) -> anyhow::Result<()> {
    let mounts = runtime::list();
    let live = |record: &&_| unionfs::fuse::MountRecord::state(record) == Some(MountState::Live);
    let mounts = mounts.iter().filter(live).count();
    let own_store = match root {
        Some(root) => Some(root.to_owned()),
        None => environment().own_root().ok(),
    };
    let (stores, listing) = match images::stores_if_any(&args.sandbox, "info", root)? {
        Some(stores) => {
            let listing = stores.images();
            let rows = stores.all().iter().map(|store| StoreRow {
                engine: store.engine(),
                driver: store.driver(),
                root: store.root().to_string_lossy().into_owned(),
                images: 0,
                size: 0,
            });
            (rows.collect(), listing)
        }
        None => (Vec::new(), Listing::default()),
    };
    let report = Report {
        version: VERSION,
        kernel: rustix::system::uname().release().to_string_lossy().into(),
        own_store_exists: stores.iter().any(|row: &StoreRow| {
            (own_store.as_ref()).is_some_and(|own| *row.root == *own.to_string_lossy())
        }),
        own_store,
        mounts,
        stores: counted(stores, &listing),
    };
    if args.json {
        print_json(&report)?;
    } else {
        print(&text(&report))?;
    }
    complain(&listing)
}

/// Adds the images of each store.
fn counted(mut rows: Vec<StoreRow>, listing: &Listing) -> Vec<StoreRow> {
    for row in &mut rows {
        let here = listing.images.iter().filter(|image| {
            *image.root.to_string_lossy() == *row.root
                && image.driver == row.driver
                && image.engine == row.engine
        });
        let mut layers = BTreeMap::new();
        for image in here {
            row.images += usize::from(!listing.is_intermediate(image));
            layers.extend(
                image
                    .layers
                    .iter()
                    .map(|l| (l.chain_id.to_string(), l.size)),
            );
        }
        row.size = layers.values().sum();
    }
    rows
}

fn text(report: &Report) -> String {
    let mut text = String::new();
    let mut line = |key: &str, value: &str| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{key:<14}{}", one_line(value));
    };
    line("Version:", report.version);
    line("Kernel:", &report.kernel);
    let own = match (&report.own_store, report.own_store_exists) {
        (Some(own), true) => own.to_string_lossy().into_owned(),
        (Some(own), false) => format!("{} (does not exist yet)", own.to_string_lossy()),
        (None, _) => "unknown: set HOME or UNIONFS_ROOT".to_owned(),
    };
    line("Own store:", &own);
    line("Mounts:", &report.mounts.to_string());
    if report.stores.is_empty() {
        line("Stores:", "none");
        return text;
    }
    let mut table = Table::new(&["STORE", "DRIVER", "IMAGES", "SIZE", "ROOT"]);
    table.may_cut(4, Cut::Middle);
    for row in &report.stores {
        table.row([
            row.engine.to_owned(),
            row.driver.to_owned(),
            row.images.to_string(),
            size(row.size),
            row.root.clone(),
        ]);
    }
    text + "\n" + &table.render()
}
