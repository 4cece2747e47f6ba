//! `unionfs rmi` removes images of the own store.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::bail;

use super::candidates;
use super::command_sandbox::{Missing, SandboxArgs};
use super::live_mounts::Mounted;
use super::output::{print, print_json};
use super::own_store;
use super::{digest_names, error, path_hints, short_names, warn};
use unionfs::image_mounts::ImageCatalogs;
use unionfs::store::writable::{Exclusive, Removed};
use unionfs::store::{Error, Places};

/// Remove images and their names
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  unionfs rmi myapp:1
  unionfs rmi --force 1f0c

If an image has several names, only the name is removed. With the last name, or by ID, the image is
removed with the layers that no other image has. An image in use is not removed: one that a
read-write layer is based on (unionfs ps -a), or that is mounted under any name (unionfs ps). An
image that others were built from may be removed while those are mounted; they keep its layers.")]
pub(super) struct Args {
    /// The images: names, IDs or ID prefixes
    #[arg(value_name = "IMAGE", required = true, add = candidates::images())]
    images: Vec<String>,
    /// Remove an image by ID even if it has several names; what does not exist is no error
    #[arg(long, short = 'f')]
    force: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    sandbox: SandboxArgs,
}

pub(super) fn run(args: &Args, root: Option<&Path>) -> anyhow::Result<()> {
    own_store::refuse_root("rmi", root)?;
    for image in &args.images {
        path_hints::learn(image);
        short_names::learn(image);
    }
    let store = own_store::must_exist()?;
    let mut cage = args.sandbox.cage("rmi")?;
    let places = cage.stores(root, &[])?;
    let catalogs = cage.catalogs(Missing::Leave)?;
    let (store, lock, mounted) = cage.enter_with_mounts(store)?;
    let store = store.locked_by(lock)?;
    let within = Within {
        store: &store,
        mounted,
        places,
        catalogs,
        force: args.force,
    };
    let mut removed = Vec::new();
    let mut failures = Vec::new();
    for image in &args.images {
        match remove(&within, image) {
            Ok(done) => removed.push(done),
            Err(failure) if args.force && is_unknown(&failure) => warn(error::line(&failure)),
            Err(failure) => failures.push(failure),
        }
    }
    if args.json {
        print_json(&removed)?;
    } else {
        print(&text(&removed))?;
    }
    // Each image is removed independently, as with rm(1).
    let Some(last) = failures.pop() else {
        return Ok(());
    };
    for failure in &failures {
        warn(error::line(failure));
    }
    Err(last)
}

fn is_unknown(failure: &anyhow::Error) -> bool {
    matches!(failure.downcast_ref(), Some(Error::UnknownImage { .. }))
}

/// The state inside of the sandbox.
struct Within<'s> {
    store: &'s Exclusive<'s>,
    mounted: Mounted,
    places: Places,
    catalogs: Option<PathBuf>,
    /// An image with several names is removed by its ID.
    force: bool,
}

fn remove(within: &Within<'_>, image: &str) -> anyhow::Result<Removed> {
    let (store, mounted) = (within.store, &within.mounted);
    let (id, name) = own_store::find(store, image, &within.places)?;
    let all = store.names(&id)?;
    let split = name.as_ref().map(|name| digest_names::split(&all, name));
    match split {
        Some((going, others)) if !others.is_empty() => {
            for name in &going {
                store.untag(&unionfs::oci::Reference::parse(&name.to_string())?)?;
            }
            let mut removed = Removed::default();
            removed.untagged = going;
            return Ok(removed);
        }
        None if digest_names::shown(&all).count() > 1 && !within.force => {
            let names: Vec<String> = all.iter().map(ToString::to_string).collect();
            bail!(
                "image {id} has several names ({}): name those to remove, or use --force",
                names.join(", ")
            );
        }
        _ => (),
    }
    let removed = store.remove_image(&id, mounted)?;
    if let Some(catalogs) = &within.catalogs {
        let catalogs = ImageCatalogs::of(catalogs);
        catalogs.remove_of_chains(store.writable().root(), &removed.layers);
    }
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
