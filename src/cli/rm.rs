//! `unionfs rm` removes named read-write layers.

use std::path::Path;

use super::command_sandbox::SandboxArgs;
use super::output::{print, print_json};
use super::{error, own_store, warn};
use unionfs::store::Error;

/// Remove read-write layers that were created by mount --name
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  unionfs rm web
  unionfs ps -a --json | jq -r '.[] | select(.state == \"stopped\").name' | xargs unionfs rm

All changes in the layer are lost. A mounted layer is not removed.")]
pub(super) struct Args {
    /// The names of the layers
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    sandbox: SandboxArgs,
}

pub(super) fn run(args: &Args, root: Option<&Path>) -> anyhow::Result<()> {
    let store = own_store::must_exist(root)?;
    let store = args.sandbox.cage("rm")?.enter_with_own(store)?;
    let store = own_store::lock(&store)?;
    let mut removed = Vec::new();
    let mut failures: Vec<Error> = Vec::new();
    for name in &args.names {
        match store.remove_container(name) {
            Ok(named) => removed.push(named.name),
            Err(failure) => failures.push(failure),
        }
    }
    if args.json {
        print_json(&removed)?;
    } else {
        print(
            &removed
                .iter()
                .map(|name| format!("{name}\n"))
                .collect::<String>(),
        )?;
    }
    let Some(last) = failures.pop() else {
        return Ok(());
    };
    for failure in failures {
        warn(error::line(&failure.into()));
    }
    Err(last.into())
}
