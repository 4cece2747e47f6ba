//! `unionfs rmi`: removes images of our own store. Called by `cli::main`.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::bail;

use super::output::{print, print_json};
use super::own::{self, Mounted};
use super::{catalog, error, warn};
use crate::store::writable::{Exclusive, Removed};

/// Remove names of images, and images without another name
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  unionfs rmi myapp:1
  unionfs rmi --force 1f0c

A name of several is only taken away. With the last name, or by ID, the image goes, with the
layers that no other image has. Refused while a read-write layer (unionfs ps -a) or a mount
needs it.")]
pub(super) struct Args {
    /// Names or IDs
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<String>,
    /// By ID: also an image with several names
    #[arg(long, short = 'f')]
    force: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, root: Option<&Path>) -> anyhow::Result<()> {
    let store = own::must_exist(root)?;
    let store = own::lock(&store)?;
    let mounted = Mounted::now();
    let mut removed = Vec::new();
    let mut failures = Vec::new();
    for image in &args.images {
        match remove(&store, image, args.force, &mounted, root) {
            Ok(done) => removed.push(done),
            Err(failure) => failures.push(failure),
        }
    }
    match args.json {
        true => print_json(&removed)?,
        false => print(&text(&removed))?,
    }
    // Each image for itself, as with rm(1).
    let Some(last) = failures.pop() else {
        return Ok(());
    };
    for failure in &failures {
        warn(error::line(failure));
    }
    Err(last)
}

fn remove(
    store: &Exclusive<'_>,
    image: &str,
    force: bool,
    mounted: &Mounted,
    root: Option<&Path>,
) -> anyhow::Result<Removed> {
    let (id, name) = own::find(store, image, root)?;
    let names = store.names(&id)?;
    match name {
        Some(name) if names.len() > 1 => {
            store.untag(&name)?;
            let untagged = names.into_iter().filter(|n| n.is(&name)).collect();
            return Ok(Removed {
                untagged,
                ..Removed::default()
            });
        }
        None if names.len() > 1 && !force => {
            let names: Vec<String> = names.iter().map(ToString::to_string).collect();
            bail!(
                "image {id} has several names ({}): give those to go, or --force",
                names.join(", ")
            );
        }
        _ => (),
    }
    let removed = store.remove_image(&id, &|diff| mounted.find(diff))?;
    catalog::discard_of(store.writable().root(), &removed.layers);
    Ok(removed)
}

fn text(removed: &[Removed]) -> String {
    let mut text = String::new();
    for removed in removed {
        // Writing to a String cannot fail.
        for name in &removed.untagged {
            let _ = writeln!(text, "Untagged: {name}");
        }
        for id in removed.image.iter().chain(&removed.layers) {
            let _ = writeln!(text, "Deleted: {id}");
        }
    }
    text
}
