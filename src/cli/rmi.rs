//! `unionfs rmi`: removes images of our own store. Called by `cli::main`.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::bail;

use super::names;
use super::output::{print, print_json};
use super::own::{self, Mounted};
use super::{catalog, error, warn};
use crate::store::writable::{Exclusive, Removed, in_use_on};

/// Remove names of images, and images without another name
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  unionfs rmi myapp:1
  unionfs rmi --force 1f0c

A name of several is only taken away. With the last name, or by ID, the image goes, with the
layers that no other image has. Refused while the image is in use: while a read-write layer is
on it (unionfs ps -a), or while it is mounted, by whatever name (unionfs ps). An image that others were made from may go while those are mounted: they
keep its layers.")]
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
    let all = store.names(&id)?;
    let split = name.as_ref().map(|name| names::split(&all, name));
    match split {
        Some((going, others)) if !others.is_empty() => {
            for name in &going {
                store.untag(&crate::store::Reference::parse(&name.to_string())?)?;
            }
            return Ok(Removed {
                untagged: going,
                ..Removed::default()
            });
        }
        None if names::shown(&all).count() > 1 && !force => {
            let names: Vec<String> = all.iter().map(ToString::to_string).collect();
            bail!(
                "image {id} has several names ({}): give those to go, or --force",
                names.join(", ")
            );
        }
        _ => (),
    }
    // Also where its layers would stay, for other images that have them.
    let whole = store.image(&id).ok();
    if let Some(mountpoint) = whole.and_then(|image| mounted.image(&image)) {
        return Err(in_use_on(&id, &mountpoint).into());
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
