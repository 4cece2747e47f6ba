//! `unionfs load`: images of an archive into our own store. Called by `cli::main`.

use std::path::{Path, PathBuf};

use super::caged::{Input, SandboxArgs};
use super::output::{print, print_json};
use super::own;
use super::transfer::Transfer;
use super::warn;
use crate::store::archive::{Platform, Source, Wanted, load};
use crate::store::tarball::Limits;

/// Take the images of an archive into our own store
///
/// Archives are those of `docker save` and `podman save`, OCI layouts as tar or directory, and
/// what skopeo writes; also compressed with gzip or zstd. Every digest is checked. All images of
/// an archive appear at once, when all of them are there; if one is bad, none does.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  unionfs load -i myapp.tar
  docker save myapp:2 | unionfs load
  unionfs load -i oci-layout-directory --tag myapp:2

Of an index with several platforms the image for this machine is taken, or for --platform:
on arm the newest variant that runs (v7, v6, v5), elsewhere the one without a variant first.
A plain user's store keeps no owners: all files are the user's own. A layer with device
nodes is refused there, and xattrs that need root are left out.")]
pub(super) struct Args {
    /// The archive: file or directory; - or nothing: standard input
    #[arg(long, short = 'i', value_name = "ARCHIVE")]
    input: Option<PathBuf>,
    /// Name the image so, not as the archive does; may be repeated
    #[arg(long, value_name = "NAME")]
    tag: Vec<String>,
    /// Take the image for this platform: os/architecture[/variant]
    #[arg(long, value_name = "PLATFORM", value_parser = own::platform)]
    platform: Option<Platform>,
    /// Refuse layers, and compressed archives, that expand to more bytes than this
    #[arg(long, value_name = "BYTES", default_value_t = Limits::default().bytes)]
    max_layer_size: u64,
    /// Show no progress
    #[arg(long, short = 'q')]
    quiet: bool,
    #[command(flatten)]
    sandbox: SandboxArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, root: Option<&Path>) -> anyhow::Result<()> {
    let names = args.tag.iter().map(|name| own::new_name(name));
    let names = names.collect::<anyhow::Result<Vec<_>>>()?;
    let mut cage = args.sandbox.cage()?;
    let path = args.input.as_deref();
    let store = own::open(root)?;
    let typed = "an archive is not typed: give -i ARCHIVE or a pipe";
    let input = Input::of(&mut cage, path, typed)?;
    let store = cage.enter_with_store(store)?;
    let tmp = store.staging();
    let limits = Limits {
        bytes: args.max_layer_size,
        ..Limits::default()
    };
    let shown = path.unwrap_or(Path::new("-"));
    let source = match input {
        Input::At(place) => Source::open_as(&place, shown, &tmp, limits.bytes)?,
        Input::Open(file) => Source::of_file(file, shown, &tmp, limits.bytes)?,
        Input::Stdin => Source::from_reader(std::io::stdin(), &tmp, limits.bytes)?,
    };
    let transfer = Transfer::new(args.quiet || args.json, "loaded");
    let store = own::lock(&store)?;
    let wanted = Wanted {
        limits,
        platform: args.platform.as_ref(),
    };
    let loaded = load(&store, &source, &names, &wanted, &|step| {
        transfer.show(step)
    })?;
    let lost: u64 = loaded.iter().map(|image| image.lost_xattrs).sum();
    if lost > 0 {
        warn(format_args!(
            "{lost} extended attributes could not be set, which need root or another file \
             system; `unionfs save` still has them"
        ));
    }
    if args.json {
        return print_json(&loaded);
    }
    let mut text = String::new();
    for image in &loaded {
        for name in &image.names {
            text += &format!("Loaded image: {name}\n");
        }
        if image.names.is_empty() {
            text += &format!("Loaded image ID: {}\n", image.id);
        }
    }
    print(&text)
}
