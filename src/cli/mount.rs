//! `unionfs mount`: an image or a container by name. Called by `cli::main`.

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::bail;

use super::error::Usage;
use super::fresh::Fresh;
use super::launch::{self, Request};
use super::options::MountOptions;
use super::{catalog, checks, named, open_stores, own};
use crate::catalog::Label;
use crate::layer::{Dialect, LayerSpec, StackSpec, UpperSpec};
use crate::store::{Chain, Digest, Stores};

const EXAMPLES: &str = "\
Examples:
  unionfs mount myapp:2 /mnt              changes are kept; their place is printed
  unionfs mount --ephemeral myapp:2 /mnt  changes are gone after the unmount
  unionfs mount --read-only sha256:1f0c /mnt
  unionfs mount myapp:2 /mnt --upper /data/changes --work /data/work
  unionfs mount --container web /mnt      what the container named web sees
  unionfs mount --name work myapp:2 /mnt  changes are kept under that name
  unionfs mount --name work /mnt          the same again, later

IMAGE is what Docker accepts: name[:tag][@digest], or an image ID or the start of one.
Without --read-only, --ephemeral or --upper, changes go to a new directory in
/var/lib/unionfs/rw ($UNIONFS_ROOT/rw, for users $XDG_DATA_HOME/unionfs/rw), which stays
after the unmount. With --name they go to a read-write layer in our own store, whichever
store the image is in: unionfs ps -a lists these, unionfs rm removes them. Docker's store is
never written to, save with --in-place.

Set-id bits and file capabilities of an image give no rights and its devices cannot be opened,
unless asked for (-o suid,dev). Mounted by root, all users may use the mount, as the modes of its
files allow (allow_other).

Exit codes: 0 mounted, 1 failed, 2 wrong usage, 3 a mount on MOUNTPOINT, or on the way to it, does
not answer (within 5 seconds, or $UNIONFS_TIMEOUT).";

/// Mount an image or a container
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, override_usage = "\
unionfs mount [OPTIONS] IMAGE MOUNTPOINT
       unionfs mount [OPTIONS] --name NAME [IMAGE] MOUNTPOINT
       unionfs mount [OPTIONS] --container ID MOUNTPOINT")]
pub(super) struct Args {
    /// The image, unless --container is given, and the directory to mount on
    #[arg(value_name = "IMAGE MOUNTPOINT", num_args = 1..=2, required = true)]
    operands: Vec<OsString>,
    /// Mount read-only
    #[arg(long, short = 'r')]
    read_only: bool,
    /// Keep changes in this directory
    #[arg(long, value_name = "DIR", requires = "work", conflicts_with_all = ["read_only", "ephemeral"])]
    upper: Option<PathBuf>,
    /// Work directory for --upper, on the same file system
    #[arg(long, value_name = "DIR", requires = "upper")]
    work: Option<PathBuf>,
    /// Throw changes away at the unmount
    #[arg(long, conflicts_with = "read_only")]
    ephemeral: bool,
    /// Keep changes in the read-write layer of this name, made if there is none
    #[arg(long, value_name = "NAME", conflicts_with_all = ["read_only", "ephemeral", "upper", "container"])]
    name: Option<String>,
    /// Mount this container: an ID, the start of one, or a name
    #[arg(long, value_name = "ID")]
    container: Option<String>,
    /// Write to the container's own layer; it must be stopped
    #[arg(long, requires = "container", conflicts_with_all = ["read_only", "ephemeral", "upper"])]
    in_place: bool,
    /// Mount options: ro, suid, dev, noexec, noatime, allow_other, volatile, nonempty,
    /// fsname=NAME, redirect_dir=on|off, catalog=on|off, io=auto|cached|passthrough, writeback,
    /// nobtime, noxattrs, transport=auto|classic|uring, sandbox=auto|off|strict
    #[arg(short = 'o', value_name = "OPTS")]
    options: Vec<OsString>,
    /// Stay in the foreground
    #[arg(long, short = 'f')]
    foreground: bool,
    /// Log requests: to stderr in the foreground, else to a file in the runtime directory
    #[arg(long, short = 'd')]
    debug: bool,
}

/// Of the uppers of images: what the union writes, as root or as a user, and nothing
/// else, so that every file name stays usable.
const UPPER_DIALECT: Dialect = Dialect {
    trusted: true,
    user: true,
    fuse_overlayfs: false,
    wh_names: false,
};

/// What was asked for, found in a store.
struct Found {
    stack: StackSpec,
    label: String,
    /// The image's ID, where it is known.
    image: Option<Digest>,
    /// Whose layers they are, where that decides what is in them.
    chain: Option<Label>,
    /// Of a named layer that was made.
    fresh: Option<Fresh>,
}

pub(super) fn run(args: Args, root: Option<&Path>) -> anyhow::Result<()> {
    let mut options = MountOptions::default();
    for text in &args.options {
        options.parse(text).map_err(Usage::from)?;
    }
    options.check().map_err(Usage::from)?;
    refuse_layers(&options)?;
    let (image, mountpoint) = operands(&args)?;
    let read_only = args.read_only || options.read_only == Some(true);
    if read_only && (args.upper.is_some() || args.name.is_some() || args.ephemeral || args.in_place)
    {
        let text = "-o ro contradicts --upper, --name, --ephemeral and --in-place";
        return Err(Usage(text.into()).into());
    }
    // Before the store is read: nothing may be made for a mountpoint that cannot be used.
    let rules = checks::Rules {
        nonempty: options.nonempty,
        stacked: false,
    };
    let target = checks::target(&mountpoint, rules)?;

    if args.in_place {
        // The engine makes layers of what the upper's files are (docker commit), and would miss
        // all that a renamed directory has below.
        options.redirect_dir.get_or_insert(false);
    }
    let (mut found, held) = look_up(&args, &options, image.as_deref(), root)?;
    checks::lower_count(found.stack.lowers.len())?;
    let fresh = match read_only || found.stack.upper.is_some() {
        true => found.fresh,
        false => add_upper(&mut found.stack, &args)?,
    };
    let source = match &options.fsname {
        Some(name) => name.clone(),
        None => found.label.clone().into(),
    };
    launch::run(Request {
        stack: found.stack,
        target,
        read_only,
        source,
        image: Some(found.label),
        image_id: found.image,
        held,
        fresh,
        foreground: args.foreground,
        debug: args.debug || options.debug,
        option_texts: args.options,
        catalog: catalog::of_image(&options, found.chain),
        options,
    })
}

/// The image names the layers, and changes have flags of their own.
fn refuse_layers(options: &MountOptions) -> Result<(), Usage> {
    let refuse = |what: &str| {
        Err(Usage(format!(
            "{what} does not go with mount IMAGE: use unionfs -o lowerdir=…,upperdir=…,workdir=… \
             MOUNTPOINT for plain directories, --upper and --work for an image's changes"
        )))
    };
    if options.lower_count() > 0 {
        return refuse("-o lowerdir");
    }
    if options.upper.is_some() || options.work.is_some() {
        return refuse("-o upperdir or workdir");
    }
    if options.markers.is_some() {
        return refuse("-o dialect");
    }
    Ok(())
}

fn operands(args: &Args) -> Result<(Option<String>, PathBuf), Usage> {
    if args.name.is_some()
        && let [mountpoint] = args.operands.as_slice()
    {
        return Ok((None, mountpoint.into()));
    }
    match (&args.container, args.operands.as_slice()) {
        (Some(_), [mountpoint]) => Ok((None, mountpoint.into())),
        (Some(_), _) => Err(Usage(
            "--container takes the place of IMAGE: unionfs mount --container ID MOUNTPOINT".into(),
        )),
        (None, [image, mountpoint]) => match image.to_str() {
            Some(image) => Ok((Some(image.to_owned()), mountpoint.into())),
            None => Err(Usage(format!(
                "{} is no image name: names are ASCII",
                image.display()
            ))),
        },
        (None, _) => Err(Usage(
            "MOUNTPOINT is missing: unionfs mount IMAGE MOUNTPOINT".into(),
        )),
    }
}

/// The stack, and the locks that keep its layers where they are.
fn look_up(
    args: &Args,
    options: &MountOptions,
    image: Option<&str>,
    root: Option<&Path>,
) -> anyhow::Result<(Found, Vec<File>)> {
    let Some(name) = &args.name else {
        let stores = open_stores(root)?;
        let found = find(&stores, args, options, image)?;
        return Ok((found, stores.into_held()));
    };
    // Always in our own store, also when images are looked for elsewhere.
    let own = own::open(None)?;
    let locked = own::lock(&own)?;
    let stores = open_stores(root)?;
    let layer = named::find_or_make(&locked, &stores, name, image)?;
    let found = Found {
        stack: layer.stack,
        label: layer.label,
        image: Some(layer.image),
        chain: layer.chain,
        fresh: layer.fresh,
    };
    Ok((found, stores.into_held()))
}

fn find(
    stores: &Stores,
    args: &Args,
    options: &MountOptions,
    image: Option<&str>,
) -> anyhow::Result<Found> {
    if let Some(id) = &args.container {
        let container = stores.container(id)?;
        let name = container.name.clone();
        return Ok(Found {
            stack: container.stack(args.in_place)?,
            label: name.unwrap_or_else(|| container.id.as_str().chars().take(12).collect()),
            image: container.image,
            chain: None,
            fresh: None,
        });
    }
    let noted = |chain: &Chain| catalog::note(options, chain);
    let image = stores.mountable(image.unwrap_or_default(), noted)?;
    let chain = Some(catalog::label(&image));
    Ok(Found {
        stack: StackSpec {
            lowers: image.lowers,
            data_only: Vec::new(),
            upper: None,
        },
        label: image.label,
        image: Some(image.id),
        chain,
        fresh: None,
    })
}

/// Puts a writable layer on top: the user's, or a fresh one.
fn add_upper(stack: &mut StackSpec, args: &Args) -> anyhow::Result<Option<Fresh>> {
    let Some(top) = stack.lowers.first() else {
        bail!("the image has no layers: nothing to mount");
    };
    let (fresh, upper) = match (&args.upper, &args.work) {
        (Some(upper), Some(work)) => {
            let dir = checks::open_dir("upper directory", upper)?;
            let work = checks::open_dir("work directory", work)?;
            let dialect = UPPER_DIALECT;
            let layer = LayerSpec { dir, dialect };
            (None, UpperSpec { layer, work })
        }
        _ => {
            let (fresh, spec) = Fresh::make(&top.dir, UPPER_DIALECT, args.ephemeral)?;
            (Some(fresh), spec)
        }
    };
    stack.upper = Some(upper);
    Ok(fresh)
}
