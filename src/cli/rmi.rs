//! `unionfs rmi`: removes images of our own store. Called by `cli::main`.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::bail;

use super::output::{print, print_json};
use super::own::{self, Mounted};
use super::{error, warn};
use crate::store::writable::{Exclusive, Removed};
use crate::store::{Name, Reference};

/// Remove names of images, and images without another name
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  unionfs rmi myapp:1
  unionfs rmi --force 1f0c

A name of several is only taken away; one by digest (from pull or push) goes with the last tag
of its repository. With the last name, or by ID, the image goes, with the layers that no other
image has. Refused while a read-write layer (unionfs ps -a) or a mount
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
        Some(name) => {
            let (going, others): (Vec<Name>, Vec<Name>) = names
                .iter()
                .cloned()
                .partition(|n| goes_with(n, &name, &names));
            if !others.is_empty() {
                for name in &going {
                    store.untag(&Reference::parse(&name.to_string())?)?;
                }
                return Ok(Removed {
                    untagged: going,
                    ..Removed::default()
                });
            }
        }
        None if tags(&names) > 1 && !force => {
            let names: Vec<String> = names.iter().map(ToString::to_string).collect();
            bail!(
                "image {id} has several names ({}): give those to go, or --force",
                names.join(", ")
            );
        }
        None => (),
    }
    Ok(store.remove_image(&id, &|diff| mounted.find(diff))?)
}

/// Whether a name is taken away with `asked`: as in Docker, a name by digest does not
/// outlive the last tag of its repository.
fn goes_with(name: &Name, asked: &Reference, all: &[Name]) -> bool {
    let is_last_tag = || {
        let repository = asked.familiar_name();
        let mut others = all.iter().filter(|n| n.repository == repository);
        asked.digest().is_none() && others.all(|n| n.tag.is_none() || n.is(asked))
    };
    let same = name.repository == asked.familiar_name();
    name.is(asked) || (same && name.tag.is_none() && is_last_tag())
}

/// How many names there are, not counting those by digest beside a tag.
fn tags(names: &[Name]) -> usize {
    let counted = names.iter().filter(|name| {
        let mut tags = names.iter().filter(|n| n.tag.is_some());
        name.tag.is_some() || !tags.any(|n| n.repository == name.repository)
    });
    counted.count()
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
