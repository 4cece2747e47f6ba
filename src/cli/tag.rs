//! `unionfs tag` gives an image another name.

use std::path::Path;

use super::archive_names;
use super::candidates;
use super::command_sandbox::SandboxArgs;
use super::own_store;

/// Add names to an image of the own store
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  unionfs tag myapp:2 myapp:latest
  unionfs tag myapp:2 myapp:stable example.org/team/myapp:2

An image that had the name before loses it. It stays in the store, also without a name.")]
pub(super) struct Args {
    /// The image: name, ID or ID prefix
    #[arg(add = candidates::images())]
    image: String,
    /// The new names: name[:tag]
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,
    #[command(flatten)]
    sandbox: SandboxArgs,
}

pub(super) fn run(args: &Args, root: Option<&Path>) -> anyhow::Result<()> {
    own_store::refuse_root("tag", root)?;
    let names = args.names.iter().map(|name| own_store::new_name(name));
    let names = names.collect::<anyhow::Result<Vec<_>>>()?;
    let image = archive_names::resolve(&args.image, &args.sandbox, root)?;
    let store = own_store::must_exist()?;
    let mut cage = args.sandbox.cage("tag")?;
    let places = cage.stores(root, &[&*image])?;
    let store = cage.enter_with_own(store)?;
    let store = own_store::lock(&store)?;
    let (id, found) = own_store::find(&store, &image, &places)?;
    for name in &names {
        store.tag_as(name, found.as_ref(), &id)?;
    }
    Ok(())
}
