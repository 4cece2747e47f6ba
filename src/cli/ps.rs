//! `unionfs ps` lists mounts, and read-write layers that are not mounted.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::command_sandbox::SandboxArgs;
use super::df::short_id;
use super::filters::{Condition as _, MountFilter};
use super::images::complain;
use super::output::{Cut, print_json};
use super::rows::{Field, RowArgs, Rows, field};
use super::times;
use unionfs::fuse::{MountRecord, MountState, runtime};
use unionfs::store::{Listing, NamedLayer, UnnamedLayer, Writable};

/// List the mounts of this user
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  unionfs ps
  unionfs ps --all
  unionfs ps --filter status=dead -q
  unionfs ps --format 'table {{.Mountpoint}}\\t{{.Source}}'
  unionfs ps --json | jq -r '.[].mountpoint'

The state of a mount is live, detached (unmounted lazily and still in use) or dead (its daemon was
killed: unmount it, or mount on the directory again). A read-write layer that is not mounted is
stopped: one of mount --name, or the changes of a mount without a name, which have an ID instead.
unionfs diff, commit, export, ls and rm take the name or the ID.

Filters: status=live|detached|dead|stopped, name=NAME, image=IMAGE, mountpoint=DIR. All must fit.
--quiet prints mountpoints, and names of layers that are not mounted.
Fields of --format: Key (as --quiet), Name, Mountpoint, Source, State, PID, Transport, Layers,
CreatedSince, CreatedAt, Changes.")]
pub(super) struct Args {
    /// Include read-write layers that are not mounted
    #[arg(long, short = 'a')]
    all: bool,
    /// Show only rows that fit; may be repeated
    #[arg(long, short = 'f', value_name = "KEY=VALUE", value_parser = MountFilter::parse)]
    filter: Vec<MountFilter>,
    #[command(flatten)]
    rows: RowArgs,
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

impl RowState {
    fn name(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Detached => "detached",
            Self::Dead => "dead",
            Self::Stopped => "stopped",
        }
    }
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

impl Row<'_> {
    fn fits(&self, filter: &MountFilter) -> bool {
        match filter {
            MountFilter::Status(state) => self.state.name() == *state,
            MountFilter::Name(name) => self.name == Some(name),
            MountFilter::Image(image) => self.source() == *image,
            MountFilter::Mountpoint(path) => {
                let record = self.record.map(|record| record.mountpoint.as_path());
                record == Some(Path::new(path))
            }
        }
    }

    /// The image, or the name of the mount's source.
    fn source(&self) -> String {
        match (self.record, &self.stopped) {
            (Some(record), _) => {
                let image = record.description.image.clone();
                image.unwrap_or_else(|| record.source.clone())
            }
            (None, Some(stopped)) => stopped.image.unwrap_or("<unknown>").to_owned(),
            (None, None) => String::new(),
        }
    }
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
    rows.retain(|row| args.filter.iter().all(|filter| row.fits(filter)));
    if args.json {
        print_json(&rows)?;
    } else {
        shown(&rows, args.all).print(&args.rows)?;
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

const FIELDS: [Field; 11] = [
    field("Key", "MOUNT", Cut::Middle),
    field("Name", "NAME", Cut::Middle),
    field("Mountpoint", "MOUNTPOINT", Cut::Middle),
    field("Source", "SOURCE", Cut::Middle),
    field("State", "STATE", Cut::No),
    field("PID", "PID", Cut::No),
    field("Transport", "TRANSPORT", Cut::No),
    field("Layers", "LAYERS", Cut::No),
    field("CreatedSince", "CREATED", Cut::No),
    field("CreatedAt", "CREATED AT", Cut::No),
    field("Changes", "CHANGES", Cut::Middle),
];

fn shown(rows: &[Row<'_>], all: bool) -> Rows {
    let mut columns = vec![
        "Mountpoint",
        "Source",
        "State",
        "PID",
        "Transport",
        "Layers",
    ];
    columns.push("Changes");
    if all {
        columns.insert(0, "Name");
    }
    let mut shown = Rows::new(&FIELDS, columns, "Key");
    shown.may_leave_out(&["Layers", "Transport", "PID"]);
    for row in rows {
        shown.row(cells(row));
    }
    shown
}

fn cells(row: &Row<'_>) -> [String; 11] {
    let none = || "-".to_owned();
    let id = row.changes.map(short_id);
    let name = row.name.map(str::to_owned).or(id).unwrap_or_else(none);
    let record = row.record;
    let about = |field: &dyn Fn(&MountRecord) -> String| record.map_or_else(none, field);
    let created = match (record, &row.stopped) {
        (Some(record), _) => Some(record.since),
        (None, Some(stopped)) => stopped.created,
        (None, None) => None,
    };
    let changes = match (record, &row.stopped) {
        (Some(record), _) => match &record.description.upper {
            Some(upper) => upper.display().to_string(),
            None => "read-only".into(),
        },
        (None, Some(stopped)) => stopped.upper.clone(),
        (None, None) => none(),
    };
    let mountpoint = about(&|record| record.mountpoint.display().to_string());
    [
        if record.is_some() {
            mountpoint.clone()
        } else {
            name.clone()
        },
        name,
        mountpoint,
        row.source(),
        row.state.name().to_owned(),
        about(&|record| record.pid.to_string()),
        about(&|record| record.transport.name().to_owned()),
        about(&|record| record.description.lowers.len().to_string()),
        created.map_or_else(none, times::since_seconds),
        created.map_or_else(none, times::absolute),
        changes,
    ]
}
