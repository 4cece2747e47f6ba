//! `unionfs ps`: what is mounted. Called by `cli::main`.

use serde::Serialize;

use super::output::{Table, print, print_json};
use crate::fuse::{MountRecord, MountState, runtime};

/// List this user's mounts
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  unionfs ps
  unionfs ps --json | jq -r '.[].mountpoint'

A mount is live, detached (unmounted lazily, still in use) or dead (its daemon was
killed: unmount it, or mount there again).")]
pub(super) struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Row<'a> {
    state: MountState,
    #[serde(flatten)]
    record: &'a MountRecord,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let records = runtime::list();
    let rows: Vec<Row<'_>> = records
        .iter()
        .filter_map(|record| {
            let state = record.state()?;
            Some(Row { state, record })
        })
        .collect();
    match args.json {
        true => print_json(&rows),
        false => print(&table(&rows)),
    }
}

fn table(rows: &[Row<'_>]) -> String {
    let mut table = Table::new(&["MOUNTPOINT", "SOURCE", "STATE", "PID", "LAYERS", "CHANGES"]);
    for Row { state, record } in rows {
        let description = &record.description;
        table.row([
            record.mountpoint.display().to_string(),
            description
                .image
                .clone()
                .unwrap_or_else(|| record.source.clone()),
            match state {
                MountState::Live => "live",
                MountState::Detached => "detached",
                MountState::Dead => "dead",
            }
            .into(),
            record.pid.to_string(),
            description.lowers.len().to_string(),
            match &description.upper {
                Some(upper) => upper.display().to_string(),
                None => "read-only".into(),
            },
        ]);
    }
    table.render()
}
