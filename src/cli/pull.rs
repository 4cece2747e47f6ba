//! `unionfs pull` copies an image of a registry to the own store.

use std::path::Path;
use std::sync::Arc;

use super::command_sandbox::SandboxArgs;
use super::error::Usage;
use super::live_mounts::Mounted;
use super::load::warn_of_devices;
use super::output::{print, print_json, size};
use super::progress::{ProgressArgs, verb};
use super::registry_args::RegistryArgs;
use super::{error, interrupt, own_store, path_hints, remote_names, warn};
use unionfs::layer_tar::Limits;
use unionfs::oci::{Digest, Platform, Reference};
use unionfs::progress::Progress;
use unionfs::registry::{Fetched, PullOptions, Pulled, Purpose, Show, fetch};
use unionfs::store::writable::{LiveMounts as _, LiveUse, Writable};

/// Pull images from registries into the own store
///
/// Every digest is checked. Layers that the store has are not downloaded. After an interruption the
/// next pull resumes the downloads (unionfs prune removes them). Registries are contacted over https
/// with the certificates of the system and those in the directory HOST of containers/certs.d or
/// docker/certs.d, in ~/.config or /etc: ca.crt, and client.cert with client.key for the client.
/// Registries on this machine (localhost, 127.0.0.0/8) may use http. Logins of docker and podman are
/// used: $REGISTRY_AUTH_FILE, ~/.docker/config.json, auth.json, credential helpers. Short names, mirrors
/// and blocked registries are those of registries.conf, mirrors also those of containerd
/// (certs.d/HOST/hosts.toml). An image that policy.json does not accept is refused.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  unionfs pull debian:12
  unionfs pull debian:12 alpine:3
  unionfs pull --platform linux/arm64 registry.example.org/team/app:2
  unionfs pull --all registry.example.org/team/app:2
  unionfs pull localhost:5000/app@sha256:4fd4…

With --all, as with skopeo copy --all, what the name means in the registry is kept whole beside the
image: an index with the images for all platforms, as they are compressed. push, save and copy with --all then
give the same digests, and unionfs inspect lists the platforms. The image for this machine, or for
--platform, gets the name. The rest takes as much space as was downloaded (unionfs df), until the name is
removed.")]
pub(super) struct Args {
    /// The images: [HOST/]NAME[:TAG][@DIGEST]; with a digest, the tag has no effect
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<String>,
    /// Pull the image for this platform: os/architecture[/variant] [default: this machine]
    #[arg(long, value_name = "PLATFORM", value_parser = own_store::platform)]
    platform: Option<Platform>,
    /// Also keep the images for all platforms, and the index, for push --all, save --all and copy --all
    #[arg(long)]
    all: bool,
    /// What docker and podman call all tags
    #[arg(long, short = 'a', hide = true)]
    all_tags: bool,
    /// Give the image this name, instead of its own
    #[arg(long, value_name = "NAME")]
    tag: Option<String>,
    #[command(flatten)]
    registry: RegistryArgs,
    /// Check the layers that the store has already, and replace the files of damaged ones
    #[arg(long)]
    repair: bool,
    /// Refuse layers that expand to more than this number of bytes
    #[arg(long, value_name = "BYTES", default_value_t = Limits::default().bytes)]
    max_layer_size: u64,
    #[command(flatten)]
    progress: ProgressArgs,
    #[command(flatten)]
    sandbox: SandboxArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, root: Option<&Path>) -> anyhow::Result<()> {
    own_store::refuse_root("pull", root)?;
    if args.all_tags {
        let text = "pull takes one tag at a time: `unionfs tags NAME` lists them; --all is for all platforms";
        return Err(Usage(text.to_owned()).into());
    }
    if args.tag.is_some() && args.images.len() > 1 {
        let text = "--tag names one image: pull one at a time";
        return Err(Usage(text.to_owned()).into());
    }
    let mut cage = args.sandbox.cage("pull")?;
    let mut wanted = Vec::with_capacity(args.images.len());
    for image in &args.images {
        let options = options(args)?;
        path_hints::learn(image);
        let name = remote_names::of_registry(image, || {
            format!("`unionfs copy {image} NAME` copies it into the own store")
        })?;
        wanted.push((options.access.candidates(name)?, options));
    }
    let store = own_store::open()?;
    for (names, options) in &mut wanted {
        for name in names {
            options.access.look_up(name, Purpose::Pull)?;
        }
    }
    cage.talk()?;
    let mounted = args.repair.then(Mounted::watched).transpose()?;
    let mounted: Option<LiveUse> = match mounted {
        Some(mounted) => Some(Arc::new(move |diff| mounted.layer(diff))),
        None => None,
    };
    let store = cage.enter_to_take_in(store)?;
    let place = store.root().to_owned();
    interrupt::note(move || {
        let store = Writable::existing(&place).ok().flatten()?;
        let kept = Some(store.downloaded()).filter(|bytes| *bytes > 0)?;
        Some(format!(
            "{} of downloads are kept for the next pull (unionfs prune removes them)",
            size(kept)
        ))
    });
    let mut pulled = Vec::with_capacity(wanted.len());
    let mut failures = Vec::new();
    for (names, options) in &wanted {
        match pull(args, &store, names, options, mounted.as_ref()) {
            Ok(image) => pulled.push(image),
            Err(failure) => failures.push(failure),
        }
    }
    warn_of_devices(pulled.iter().map(|image| image.kept_devices).sum());
    match (args.json, pulled.as_slice()) {
        // An object for one image, as ever.
        (true, [only]) if args.images.len() == 1 => print_json(only)?,
        (true, []) if !failures.is_empty() => {}
        (true, all) => print_json(&all)?,
        (false, all) => print(&text(args, all))?,
    }
    // Each image is pulled independently.
    let Some(last) = failures.pop() else {
        return Ok(());
    };
    for failure in &failures {
        warn(error::line(failure));
    }
    Err(last)
}

fn options(args: &Args) -> anyhow::Result<PullOptions> {
    let mut options = PullOptions::default();
    options.access = args.registry.access()?;
    options.platform.clone_from(&args.platform);
    options.name = args.tag.as_deref().map(own_store::new_name).transpose()?;
    options.parallel = args.registry.parallel;
    options.limits.bytes = args.max_layer_size;
    options.repair = args.repair;
    options.whole = args.all;
    Ok(options)
}

fn pull(
    args: &Args,
    store: &Writable,
    names: &[Reference],
    options: &PullOptions,
    mounted: Option<&LiveUse>,
) -> anyhow::Result<Pulled> {
    let items = args.progress.items(verb("downloading", "downloaded"));
    let show = |step: Progress<'_, &Digest>| items.show(step);
    let fetched = first_of(store, names, options, &show)?;
    // The store is locked late, so that others may use it during downloads.
    let locked = own_store::lock(store)?;
    if let Some(mounted) = mounted {
        let damaged = fetched.damaged().to_vec();
        locked.distrust(damaged, Arc::clone(mounted))?;
    }
    // A layer keeps the line and the name of its blob.
    items.next(verb("extracting", "unpacked"), fetched.blobs());
    Ok(fetched.register(&locked, &|step| match step {
        // This was shown before the downloads.
        Progress::Exists { .. } => (),
        step => items.show(step),
    })?)
}

fn text(args: &Args, pulled: &[Pulled]) -> String {
    let mut text = String::new();
    for (image, asked) in pulled.iter().zip(&args.images) {
        for layer in &image.repaired_layers {
            text += &format!("Repaired layer: {layer}\n");
        }
        let name = image.names.first().unwrap_or(asked);
        text += &format!("Digest: {}\n", image.digest);
        text += &image
            .kept
            .as_ref()
            .map_or_else(String::new, super::load::whole);
        text += &format!("Pulled image: {name}\n");
    }
    text
}

/// Downloads the first of these images that exists.
fn first_of<'o>(
    store: &Writable,
    names: &[Reference],
    options: &'o PullOptions,
    show: Show<'o>,
) -> anyhow::Result<Fetched<'o>> {
    let mut failures = Vec::new();
    for name in names {
        match fetch(store, name, options, show) {
            Ok(fetched) => return Ok(fetched),
            Err(error) if names.len() == 1 => return Err(error.into()),
            Err(error) => failures.push(error.to_string()),
        }
    }
    anyhow::bail!(
        "no search registry gives the image: {}",
        failures.join("; ")
    )
}
