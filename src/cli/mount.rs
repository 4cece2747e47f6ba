//! `unionfs mount` mounts an image or a container by name.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context as _;

use super::candidates;
use super::environment;
use super::error::Usage;
use super::launch::{self, MountpointIs, Request};
use super::logging::Verbosity;
use super::mount_lookup::{self, Asked, ToMount};
use super::mount_upper::{Fresh, Lasts};
use super::options::MountOptions;
use super::pool::PoolArgs;
use super::{archive_names, catalog, mount_checks, own_store};
use unionfs::fuse::runtime;
use unionfs::image_mounts::UPPER_DIALECT;
use unionfs::layer::{LayerSpec, UpperSpec};
use unionfs::store::temporary_upper::empty_layer;
use unionfs::store::{SourceStore, UnnamedOrigin};

const EXAMPLES: &str = "\
Examples:
  unionfs mount myapp:2 /mnt              changes are kept; the directory is printed
  unionfs mount --ephemeral myapp:2 /mnt  changes are discarded at unmount
  unionfs mount --read-only sha256:1f0c /mnt
  unionfs mount myapp:2 /mnt --upper /data/changes --work /data/work
  unionfs mount --container web /mnt      the files of the container web
  unionfs mount --name work myapp:2 /mnt  changes are kept in the layer work
  unionfs mount --name work /mnt          mounts the layer work again
  dir=$(unionfs mount myapp:2)            on a new directory, which is printed
  unionfs mount oci:layout:v1 /mnt        an image of a layout or archive

Without MOUNTPOINT a directory is made in the runtime directory, and unionfs umount removes it.

IMAGE is name[:tag][@digest], an image ID or an ID prefix, as in Docker; or oci:DIR[:REF],
oci-archive:FILE[:REF], docker-archive:FILE[:REF] or dir:DIR, as in skopeo. Without --read-only,
--ephemeral or --upper, changes go to a new directory in /var/lib/unionfs/rw ($UNIONFS_ROOT/rw, for
plain users $XDG_DATA_HOME/unionfs/rw), which stays after unmount. With --name, changes go to a
read-write layer in the own store, wherever the image is: unionfs ps -a lists these layers, unionfs
rm removes them. Only --in-place writes to the store of Docker.

Set-id bits and file capabilities of an image have no effect and its devices cannot be opened,
except with -o suid,dev. If root mounts, all users may use the mount, as the modes of its files allow
(allow_other).

Exit codes: 0 mounted, 1 failed, 2 wrong usage, 3 a mount on MOUNTPOINT, or on the way to it, does
not answer (within 5 seconds, or $UNIONFS_TIMEOUT).";

/// Mount an image or a container
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, override_usage = "\
unionfs mount [OPTIONS] IMAGE [MOUNTPOINT]
       unionfs mount [OPTIONS] --name NAME [[IMAGE] MOUNTPOINT]
       unionfs mount [OPTIONS] --container ID [MOUNTPOINT]")]
pub(super) struct Args {
    /// The image (not with --container) and the directory to mount it on
    #[arg(value_name = "IMAGE MOUNTPOINT", num_args = 0..=2, add = candidates::image_and_directory())]
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
    /// Discard changes at unmount
    #[arg(long, conflicts_with = "read_only")]
    ephemeral: bool,
    /// Keep changes in the read-write layer NAME; it is created if it does not exist
    #[arg(long, value_name = "NAME", conflicts_with_all = ["read_only", "ephemeral", "upper", "container"], add = candidates::layers())]
    name: Option<String>,
    /// Mount the container with this name, ID or ID prefix
    #[arg(long, value_name = "ID", add = candidates::containers())]
    container: Option<String>,
    /// The first operand is a container (container mount ID MOUNTPOINT)
    #[arg(long, hide = true, conflicts_with_all = ["container", "name"])]
    of_container: bool,
    /// Write to the container's own layer; the container must be stopped
    #[arg(long, requires = "container", conflicts_with_all = ["read_only", "ephemeral", "upper"])]
    in_place: bool,
    #[command(flatten)]
    pool: PoolArgs,
    /// Mount options: ro, suid, dev, noexec, noatime, allow_other, volatile, nonempty,
    /// fsname=NAME, redirect_dir=on|off, metacopy=on|off, catalog=on|off,
    /// io=auto|cached|passthrough|shared, writeback, nobtime, noxattrs, allow_idmap,
    /// transport=auto|classic|uring|fuser, sandbox=auto|off|strict,
    /// uidmapping=DISK:SHOWN:LEN[:…], gidmapping=…, squash_to_root, squash_to_uid=N,
    /// squash_to_gid=N, xattr_permissions=0|1|2, owners=image|mine, user_as=UID[:GID]
    #[arg(short = 'o', value_name = "OPTS")]
    options: Vec<OsString>,
    /// Stay in the foreground
    #[arg(long, short = 'f')]
    foreground: bool,
    /// Log requests to stderr in the foreground, otherwise to a file in the runtime directory
    #[arg(long, short = 'd')]
    debug: bool,
}

pub(super) fn run(mut args: Args, root: Option<&Path>) -> anyhow::Result<()> {
    if args.of_container && !args.operands.is_empty() {
        let container = args.operands.remove(0);
        args.container = Some(container.to_string_lossy().into_owned());
    }
    let mut options = MountOptions::default();
    for text in &args.options {
        options.parse(text).map_err(Usage::from)?;
    }
    options.check().map_err(Usage::from)?;
    launch::run(request(args, options, root)?)
}

/// Returns the mount that fstab or mount(8) asks for by the name of an image.
pub(super) fn of_fstab(fstab: FromFstab) -> anyhow::Result<Request> {
    let FromFstab {
        mut options,
        texts,
        image,
        mountpoint,
        foreground,
    } = fstab;
    let by_name = std::mem::take(&mut options.image);
    let image = by_name.image.or(image);
    let operands = match (&by_name.container, image) {
        (Some(_), _) => vec![mountpoint],
        (None, image) => image.into_iter().chain([mountpoint]).collect(),
    };
    let args = Args {
        operands,
        read_only: false,
        upper: options.upper.take(),
        work: options.work.take(),
        ephemeral: by_name.ephemeral,
        name: by_name.name,
        container: by_name.container,
        of_container: false,
        in_place: false,
        pool: PoolArgs::default(),
        options: texts,
        foreground,
        debug: false,
    };
    if args.upper.is_some() != args.work.is_some() {
        let text = "upperdir and workdir go together, on one file system";
        return Err(Usage(text.into()).into());
    }
    let choices = [args.name.is_some(), args.ephemeral, args.upper.is_some()];
    let chosen = choices.iter().filter(|given| **given).count();
    if chosen > 1 || args.name.is_some() && args.container.is_some() {
        let text = "name, ephemeral and upperdir say where changes go: give one of them, and \
            name not with container";
        return Err(Usage(text.into()).into());
    }
    request(args, options, by_name.root.as_deref())
}

/// What fstab or mount(8) says about a mount.
pub(super) struct FromFstab {
    pub(super) options: MountOptions,
    /// The `-o` arguments as given.
    pub(super) texts: Vec<OsString>,
    /// The source, if it is not only shown.
    pub(super) image: Option<OsString>,
    pub(super) mountpoint: OsString,
    pub(super) foreground: bool,
}

/// Finds the layers of a mount, and makes its upper.
fn request(args: Args, options: MountOptions, root: Option<&Path>) -> anyhow::Result<Request> {
    refuse_layers(&options)?;
    let (image, mountpoint) = operands(&args)?;
    let read_only = args.read_only || options.read_only == Some(true);
    if read_only && (args.upper.is_some() || args.name.is_some() || args.ephemeral || args.in_place)
    {
        let text = "-o ro contradicts --upper, --name, --ephemeral and --in-place";
        return Err(Usage(text.into()).into());
    }
    // This happens before the store is read: nothing may be made for an unusable mountpoint.
    let rules = mount_checks::Rules {
        nonempty: options.nonempty,
        stacked: false,
    };
    let what = args.name.as_deref().or(args.container.as_deref());
    let what = what.or(image.as_deref()).unwrap_or_default().to_owned();
    let (mountpoint, mountpoint_is) = match mountpoint {
        Some(mountpoint) => (mountpoint, MountpointIs::Given),
        None => (runtime::make_mountpoint(&what)?, MountpointIs::Made),
    };
    let plan = Plan {
        image,
        mountpoint: mountpoint.clone(),
        mountpoint_is,
        read_only,
        rules,
        options,
    };
    let request = planned(args, plan, root);
    if request.is_err() && mountpoint_is == MountpointIs::Made {
        // The first failure is the one to report.
        let _ = runtime::remove_mountpoint(&mountpoint);
    }
    request
}

/// What the arguments ask for.
struct Plan {
    image: Option<String>,
    mountpoint: PathBuf,
    mountpoint_is: MountpointIs,
    read_only: bool,
    rules: mount_checks::Rules,
    options: MountOptions,
}

fn planned(args: Args, plan: Plan, root: Option<&Path>) -> anyhow::Result<Request> {
    let Plan {
        image,
        mountpoint_is,
        read_only,
        mut options,
        ..
    } = plan;
    let target = mount_checks::target(&plan.mountpoint, plan.rules)?;
    if args.in_place {
        // The engine makes layers from the files of the upper (docker commit). It would lose
        // everything below a renamed directory.
        options.redirect_dir.get_or_insert(false);
        options.check().map_err(Usage::from)?;
    }
    let namespace = launch::prepare_namespace(options.sandbox, !args.foreground);
    // A process that holds the lock for readers must not wait for the store.
    let lock = match args.name {
        Some(_) => Some(own_store::lock(&own_store::open()?)?.into_lock()),
        None => None,
    };
    let taken = match &image {
        Some(image) => archive_names::take_in(image, options.sandbox, root, lock.as_ref())?,
        None => None,
    };
    let id = taken.as_ref().map(|taken| taken.id.to_string());
    let asked = Asked {
        image: id.as_deref().or(image.as_deref()),
        name: args.name.as_deref().zip(lock.as_ref()),
        container: args.container.as_deref(),
        in_place: args.in_place,
        options: &options,
        pool: &args.pool,
    };
    let (mut found, mut held) = mount_lookup::look_up(&asked, root)?;
    drop(lock);
    held.extend(taken.map(|taken| taken.held));
    if let Some(image) = image.filter(|_| id.is_some()) {
        found.label = image;
    }
    if found.stack.lowers.is_empty() {
        let base = environment().own_root()?;
        found.stack.lowers.push(empty_layer(&base)?);
    }
    mount_checks::lower_count(found.stack.lowers.len())?;
    let fresh = if read_only || found.stack.upper.is_some() {
        found.fresh
    } else {
        add_upper(&mut found, &args)?
    };
    let source = match &options.fsname {
        Some(name) => name.clone(),
        None => found.label.clone().into(),
    };
    Ok(Request {
        stack: found.stack,
        target,
        read_only,
        source,
        image: Some(found.label),
        image_id: found.image,
        held,
        fresh,
        name: args.name,
        mountpoint: mountpoint_is,
        foreground: args.foreground,
        verbosity: Verbosity::of_flag(args.debug || options.debug),
        option_texts: args.options,
        catalog: catalog::of_image(&options, found.chain),
        options,
        namespace,
    })
}

/// The image determines the layers, and changes have options of their own.
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
    if options.image.is_given() {
        let what = "-o image, name, container, ephemeral and root are for fstab and mount(8): use the \
            operands and --name, --container, --ephemeral and --root";
        return Err(Usage(what.into()));
    }
    Ok(())
}

/// Returns the image and the mountpoint.
fn operands(args: &Args) -> Result<(Option<String>, Option<PathBuf>), Usage> {
    if args.name.is_some()
        && let [] | [_] = args.operands.as_slice()
    {
        return Ok((None, args.operands.first().map(PathBuf::from)));
    }
    match (&args.container, args.operands.as_slice()) {
        (Some(_), []) => Ok((None, None)),
        (Some(_), [mountpoint]) => Ok((None, Some(mountpoint.into()))),
        (Some(_), _) => Err(Usage(
            "--container takes the place of IMAGE: unionfs mount --container ID MOUNTPOINT".into(),
        )),
        (None, [image, rest @ ..]) => match image.to_str() {
            Some(image) => Ok((Some(image.to_owned()), rest.first().map(PathBuf::from))),
            None => Err(Usage(format!(
                "{} is not an image name: names are ASCII",
                image.display()
            ))),
        },
        (None, _) => Err(Usage(
            "IMAGE is missing: unionfs mount IMAGE MOUNTPOINT".into(),
        )),
    }
}

/// Adds an upper: the user's, or a new one.
fn add_upper(found: &mut ToMount, args: &Args) -> anyhow::Result<Option<Fresh>> {
    let stack = &found.stack;
    let top = stack.lowers.first().context("the stack has no layers")?;
    let (fresh, upper) = match (&args.upper, &args.work) {
        (Some(upper), Some(work)) => {
            let dir = mount_checks::open_dir("upper directory", upper)?;
            let work = mount_checks::open_dir("work directory", work)?;
            let dialect = UPPER_DIALECT;
            let layer = LayerSpec { dir, dialect };
            (None, UpperSpec { layer, work })
        }
        _ => {
            let origin = origin(found);
            let lasts = Lasts::of_flag(args.ephemeral);
            let (fresh, spec) = Fresh::make(&top.dir, UPPER_DIALECT, lasts, origin.as_ref())?;
            (Some(fresh), spec)
        }
    };
    found.stack.upper = Some(upper);
    Ok(fresh)
}

/// Returns what changes are made to, if it is an image that can be found again.
fn origin(found: &ToMount) -> Option<UnnamedOrigin> {
    let chain = found.chain.as_ref()?;
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    Some(UnnamedOrigin {
        image: found.image?,
        image_name: found.label.clone(),
        created: since.map_or(0, |since| since.as_secs()),
        source: SourceStore::new(
            PathBuf::from(OsString::from_vec(chain.store.clone())),
            String::from_utf8_lossy(&chain.driver).into_owned(),
        ),
    })
}
