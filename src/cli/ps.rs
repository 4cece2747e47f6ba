//! `unionfs ps` lists mounts, and read-write layers that are not mounted.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::command_sandbox::SandboxArgs;
use super::images::complain;
use super::output::{Table, print, print_json};
use unionfs::fuse::{MountRecord, MountState, runtime};
use unionfs::store::{Listing, NamedLayer, Writable};

/// List the mounts of this user
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  unionfs ps
  unionfs ps --all
  unionfs ps --json | jq -r '.[].mountpoint'

The state of a mount is live, detached (unmounted lazily and still in use) or dead (its daemon was
killed: unmount it, or mount on the directory again). A read-write layer of mount --name that is not
mounted is stopped.")]
pub(super) struct Args {
    /// Include read-write layers that are not mounted
    #[arg(long, short = 'a')]
    all: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    sandbox: SandboxArgs,
}

/// The state: that of [`MountState`], or without a mount.
#[derive(Clone, Copy, Serialize)]
#[serde(rename_all = "lowercase")]
enum RowState {
    Live,
    Detached,
    Dead,
    Stopped,
}

#[derive(Serialize)]
struct Row<'a> {
    state: RowState,
    /// The name of the read-write layer.
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(flatten)]
    record: Option<&'a MountRecord>,
    #[serde(flatten)]
    stopped: Option<Stopped<'a>>,
}

/// The row of a layer without a mount.
#[derive(Serialize)]
struct Stopped<'a> {
    image: &'a str,
    image_id: String,
    /// The time of its creation, in seconds since 1970.
    created: u64,
    upper: String,
}

pub(super) fn run(args: &Args, root: Option<&Path>) -> anyhow::Result<()> {
    let records: Vec<_> = runtime::list()
        .into_iter()
        .filter_map(|record| Some((record.state()?, record)))
        .collect();
    let mut cage = args.sandbox.cage("ps")?;
    let own = cage.read_own(root);
    cage.enter()?;
    let mut listing = Listing::default();
    let named = match own.and_then(|own| named(own, &mut listing)) {
        Ok(named) => named,
        Err(error) if args.all => return Err(error),
        // Mounts are listed also if the store is damaged.
        Err(_) => Vec::new(),
    };
    let mut rows: Vec<Row<'_>> = records
        .iter()
        .map(|(state, record)| mounted(record, *state, &named))
        .collect();
    if args.all {
        rows.extend(
            named
                .iter()
                .filter_map(|(named, upper)| stopped(named, upper, &records)),
        );
    }
    if args.json {
        print_json(&rows)?;
    } else {
        print(&table(&rows, args.all))?;
    }
    if args.all { complain(&listing) } else { Ok(()) }
}

/// Returns the named layers of the own store, with their directories for changes.
fn named(
    own: Option<PathBuf>,
    listing: &mut Listing,
) -> anyhow::Result<Vec<(NamedLayer, PathBuf)>> {
    let own = own.map(|own| Writable::to_look_at(&own)).transpose()?;
    let Some(own) = own.flatten() else {
        return Ok(Vec::new());
    };
    let mut all = Vec::new();
    for named in own.store().all_named()? {
        match named {
            Ok(named) => {
                let upper = own.store().named_dir(&named).join("diff");
                all.push((named, upper));
            }
            Err(error) => listing.problems.push(error),
        }
    }
    Ok(all)
}

fn mounted<'a>(
    record: &'a MountRecord,
    state: MountState,
    named: &'a [(NamedLayer, PathBuf)],
) -> Row<'a> {
    let upper = record.description.upper.as_ref();
    let named = named.iter().find(|(_, theirs)| Some(theirs) == upper);
    Row {
        state: match state {
            MountState::Live => RowState::Live,
            MountState::Detached => RowState::Detached,
            MountState::Dead => RowState::Dead,
        },
        name: named.map(|(named, _)| named.name.as_str()),
        record: Some(record),
        stopped: None,
    }
}

fn stopped<'a>(
    named: &'a NamedLayer,
    upper: &Path,
    records: &[(MountState, MountRecord)],
) -> Option<Row<'a>> {
    let here = |record: &MountRecord| record.description.upper.as_deref() == Some(upper);
    let stopped = Stopped {
        image: &named.image_name,
        image_id: named.image.to_string(),
        created: named.created,
        upper: upper.to_string_lossy().into_owned(),
    };
    (!records.iter().any(|(_, record)| here(record))).then_some(Row {
        state: RowState::Stopped,
        name: Some(&named.name),
        record: None,
        stopped: Some(stopped),
    })
}

fn table(rows: &[Row<'_>], all: bool) -> String {
    let mut head = vec![
        "MOUNTPOINT",
        "SOURCE",
        "STATE",
        "PID",
        "TRANSPORT",
        "LAYERS",
        "CHANGES",
    ];
    if all {
        head.insert(0, "NAME");
    }
    let mut table = Table::new(&head);
    for row in rows {
        let mut cells = cells(row);
        if all {
            cells.insert(0, row.name.unwrap_or("-").to_owned());
        }
        table.row(cells);
    }
    table.render()
}

fn cells(row: &Row<'_>) -> Vec<String> {
    let state = match row.state {
        RowState::Live => "live",
        RowState::Detached => "detached",
        RowState::Dead => "dead",
        RowState::Stopped => "stopped",
    };
    let none = || "-".to_owned();
    if let Some(stopped) = &row.stopped {
        let (image, upper) = (stopped.image.to_owned(), stopped.upper.clone());
        return vec![none(), image, state.into(), none(), none(), none(), upper];
    }
    let Some(record) = row.record else {
        return Vec::new();
    };
    let description = &record.description;
    let image = description.image.clone();
    vec![
        record.mountpoint.display().to_string(),
        image.unwrap_or_else(|| record.source.clone()),
        state.into(),
        record.pid.to_string(),
        record.transport.name().to_owned(),
        description.lowers.len().to_string(),
        match &description.upper {
            Some(upper) => upper.display().to_string(),
            None => "read-only".into(),
        },
    ]
}
