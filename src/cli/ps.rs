//! `unionfs ps` lists mounts, and read-write layers that are not mounted.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::command_sandbox::SandboxArgs;
use super::df::short_id;
use super::images::complain;
use super::output::{Table, print, print_json};
use unionfs::fuse::{MountRecord, MountState, runtime};
use unionfs::store::{Listing, NamedLayer, UnnamedLayer, Writable};

/// List the mounts of this user
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  unionfs ps
  unionfs ps --all
  unionfs ps --json | jq -r '.[].mountpoint'

The state of a mount is live, detached (unmounted lazily and still in use) or dead (its daemon was
killed: unmount it, or mount on the directory again). A read-write layer that is not mounted is
stopped: one of mount --name, or the changes of a mount without a name, which have an ID instead.
unionfs diff, commit, export, ls and rm take the name or the ID.")]
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
    /// The ID of changes without a name.
    #[serde(skip_serializing_if = "Option::is_none")]
    changes: Option<&'a str>,
    #[serde(flatten)]
    record: Option<&'a MountRecord>,
    #[serde(flatten)]
    stopped: Option<Stopped<'a>>,
}

/// The row of a layer without a mount.
#[derive(Serialize)]
struct Stopped<'a> {
    /// The image, if it is known.
    image: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    image_id: Option<String>,
    /// The time of its creation, in seconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    created: Option<u64>,
    upper: String,
}

pub(super) fn run(args: &Args, root: Option<&Path>) -> anyhow::Result<()> {
    let records: Vec<_> = runtime::list()
        .into_iter()
        .filter_map(|record| Some((record.state()?, record)))
        .collect();
    let mut cage = args.sandbox.cage("ps")?;
    let own = cage.read_own(root);
    let changes = cage.read_changes(root)?;
    cage.enter()?;
    let changes = changes.map(|own| UnnamedLayer::all(&own));
    let changes = changes.transpose().map(Option::unwrap_or_default);
    let mut listing = Listing::default();
    let named = match own.and_then(|own| named(own, &mut listing)) {
        Ok(named) => named,
        Err(error) if args.all => return Err(error),
        // Mounts are listed also if the store is damaged.
        Err(_) => Vec::new(),
    };
    let changes = match changes {
        Err(error) if args.all => return Err(error.into()),
        changes => changes.unwrap_or_default(),
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
        rows.extend(
            changes
                .iter()
                .filter_map(|layer| stopped_unnamed(layer, &records)),
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
        changes: upper.and_then(|upper| UnnamedLayer::id_of(upper)),
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
        image: Some(&named.image_name),
        image_id: Some(named.image.to_string()),
        created: Some(named.created),
        upper: upper.to_string_lossy().into_owned(),
    };
    (!records.iter().any(|(_, record)| here(record))).then_some(Row {
        state: RowState::Stopped,
        name: Some(&named.name),
        changes: None,
        record: None,
        stopped: Some(stopped),
    })
}

fn stopped_unnamed<'a>(
    layer: &'a UnnamedLayer,
    records: &[(MountState, MountRecord)],
) -> Option<Row<'a>> {
    let diff = layer.diff();
    let here = |record: &MountRecord| record.description.upper.as_deref() == Some(&*diff);
    let origin = layer.origin.as_ref();
    let stopped = Stopped {
        image: origin.map(|origin| origin.image_name.as_str()),
        image_id: origin.map(|origin| origin.image.to_string()),
        created: origin.map(|origin| origin.created),
        upper: diff.to_string_lossy().into_owned(),
    };
    (!records.iter().any(|(_, record)| here(record))).then_some(Row {
        state: RowState::Stopped,
        name: None,
        changes: Some(&layer.id),
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
            let id = row.changes.map(short_id);
            let name = row.name.map(str::to_owned).or(id);
            cells.insert(0, name.unwrap_or_else(|| "-".to_owned()));
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
        let image = stopped.image.unwrap_or("<unknown>").to_owned();
        let upper = stopped.upper.clone();
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
