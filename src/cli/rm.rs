//! `unionfs rm`: removes named read-write layers. Called by `cli::main`.

use std::path::Path;

use super::output::{print, print_json};
use super::{error, own, warn};
use crate::store::Error;

/// Remove read-write layers made by mount --name
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  unionfs rm web
  unionfs ps -a --json | jq -r '.[] | select(.state == \"stopped\").name' | xargs unionfs rm

Everything written to the layer is gone. Refused while it is mounted.")]
pub(super) struct Args {
    /// Names
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, root: Option<&Path>) -> anyhow::Result<()> {
    let store = own::must_exist(root)?;
    let store = own::lock(&store)?;
    let mut removed = Vec::new();
    let mut failures: Vec<Error> = Vec::new();
    for name in &args.names {
        match store.remove_container(name) {
            Ok(named) => removed.push(named.name),
            Err(failure) => failures.push(failure),
        }
    }
    match args.json {
        true => print_json(&removed)?,
        false => print(
            &removed
                .iter()
                .map(|name| format!("{name}\n"))
                .collect::<String>(),
        )?,
    }
    let Some(last) = failures.pop() else {
        return Ok(());
    };
    for failure in failures {
        warn(error::line(&failure.into()));
    }
    Err(last.into())
}
