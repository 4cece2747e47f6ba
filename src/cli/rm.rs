//! `unionfs rm` removes named read-write layers.

use std::path::Path;

use super::candidates;
use super::command_sandbox::SandboxArgs;
use super::output::{print, print_json};
use super::{error, own_store, warn};
use unionfs::store::writable::Exclusive;
use unionfs::store::{Error, UnnamedLayer};

/// Remove read-write layers: those of mount --name, and changes of mounts without a name
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  unionfs rm web
  unionfs ps -a --json | jq -r '.[] | select(.state == \"stopped\").name' | xargs unionfs rm

A layer is named by its name, or, if it has none, by its ID as unionfs ps -a shows it (or the
beginning of it, or the path of its directory). All changes in the layer are lost. A mounted layer is
not removed, also with --force.")]
pub(super) struct Args {
    /// The names or IDs of the layers
    #[arg(value_name = "NAME", required = true, add = candidates::layers())]
    names: Vec<String>,
    /// A layer that does not exist is no error
    #[arg(long, short = 'f')]
    force: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    sandbox: SandboxArgs,
}

pub(super) fn run(args: &Args, root: Option<&Path>) -> anyhow::Result<()> {
    own_store::refuse_root("rm", root)?;
    let store = own_store::of_changes()?;
    let store = args.sandbox.cage("rm")?.enter_with_own(store)?;
    let store = own_store::lock(&store)?;
    let mut removed = Vec::new();
    let mut failures: Vec<Error> = Vec::new();
    for name in &args.names {
        match remove(&store, name) {
            Ok(name) => removed.push(name),
            Err(failure @ Error::UnknownNamed { .. }) if args.force => {
                warn(error::line(&failure.into()));
            }
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

/// Removes the layer with this name, else that with this ID. Returns its name or ID.
fn remove(store: &Exclusive<'_>, name: &str) -> Result<String, Error> {
    let unknown = match store.remove_container(name) {
        Err(error @ (Error::UnknownNamed { .. } | Error::BadName { .. })) => error,
        removed => return removed.map(|named| named.name),
    };
    let root = store.writable().root();
    let found = UnnamedLayer::meant_by(root, name)?;
    match found.as_slice() {
        [] => Err(unknown),
        [layer] => {
            store.remove_unnamed(&layer.id)?;
            Ok(layer.id.clone())
        }
        several => Err(Error::AmbiguousContainer {
            prefix: name.to_owned(),
            candidates: several.iter().map(|layer| layer.id.clone()).collect(),
        }),
    }
}
