//! `unionfs tag`: another name for an image. Called by `cli::main`.

use std::path::Path;

use super::own;

/// Give an image of our own store another name
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  unionfs tag myapp:2 myapp:latest
  unionfs tag 1f0c example.org/team/myapp:2

An image that had the name keeps its other names, and stays without any.")]
pub(super) struct Args {
    /// The image: a name, an ID or the start of one
    image: String,
    /// Its new name: name[:tag]
    name: String,
}

pub(super) fn run(args: &Args, root: Option<&Path>) -> anyhow::Result<()> {
    let name = own::new_name(&args.name)?;
    let store = own::must_exist(root)?;
    let store = own::lock(&store)?;
    let (id, _) = own::find(&store, &args.image, root)?;
    store.tag(&name, &id)?;
    Ok(())
}
