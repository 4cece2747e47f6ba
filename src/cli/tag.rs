//! `unionfs tag` gives an image another name.

use std::path::Path;

use super::archive_names;
use super::command_sandbox::SandboxArgs;
use super::own_store;

/// Add a name to an image of the own store
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  unionfs tag myapp:2 myapp:latest
  unionfs tag 1f0c example.org/team/myapp:2

An image that had the name before loses it. It stays in the store, also without a name.")]
pub(super) struct Args {
    /// The image: name, ID or ID prefix
    image: String,
    /// The new name: name[:tag]
    name: String,
    #[command(flatten)]
    sandbox: SandboxArgs,
}

pub(super) fn run(args: &Args, root: Option<&Path>) -> anyhow::Result<()> {
    let name = own_store::new_name(&args.name)?;
    let image = archive_names::resolve(&args.image, &args.sandbox, root)?;
    let store = own_store::must_exist(root)?;
    let mut cage = args.sandbox.cage("tag")?;
    let places = cage.stores(root)?;
    let store = cage.enter_with_own(store)?;
    let store = own_store::lock(&store)?;
    let (id, _) = own_store::find(&store, &image, &places)?;
    store.tag(&name, &id)?;
    Ok(())
}
