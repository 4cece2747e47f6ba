//! `unionfs pull`: an image of a registry into our own store. Called by `cli::main`.

use std::path::Path;

use super::blobs::Blobs;
use super::caged::SandboxArgs;
use super::output::{print, print_json, size};
use super::transfer::Transfer;
use super::{interrupt, own};
use crate::store::Reference;
use crate::store::archive::{Platform, Progress};
use crate::store::registry::{
    Access, CertificateDirs, CredentialFiles, PARALLEL, Patience, PullOptions, Retry, fetch,
};
use crate::store::tarball::Limits;
use crate::store::writable::Writable;

/// Take an image from a registry into our own store
///
/// Every digest is checked. Layers that are there are not downloaded, several others at once; what
/// an interruption leaves is gone on with by the next pull (unionfs prune removes it). Registries
/// are spoken to over https, with the system's certificates and those in HOST of containers/certs.d
/// or docker/certs.d in ~/.config or /etc (ca.crt; client.cert and client.key to show them ours);
/// those of this machine (localhost, 127.0.0.0/8) may be without. Logins are those of docker and
/// podman: $REGISTRY_AUTH_FILE, ~/.docker/config.json, auth.json, credential helpers.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  unionfs pull debian:12
  unionfs pull --platform linux/arm64 registry.example.org/team/app:2
  unionfs pull localhost:5000/app@sha256:4fd4…")]
pub(super) struct Args {
    /// The image: [HOST/]NAME[:TAG][@DIGEST]; a digest is all that counts where there is one
    image: String,
    /// Which one of several: os/architecture[/variant] [default: this machine's]
    #[arg(long, value_name = "PLATFORM", value_parser = own::platform)]
    platform: Option<Platform>,
    #[command(flatten)]
    registry: RegistryArgs,
    /// Refuse layers that unpack to more bytes
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

/// How a registry is talked to, for `pull` and `push`.
#[derive(Debug, clap::Args)]
pub(super) struct RegistryArgs {
    /// Speak http, not https; credentials are then sent to this machine only
    #[arg(long)]
    plain_http: bool,
    /// Layers at once
    #[arg(long, value_name = "N", default_value_t = PARALLEL, value_parser = at_once)]
    pub(super) parallel: usize,
}

fn at_once(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number @ 1..=64) => Ok(number),
        _ => Err("a number from 1 to 64".to_owned()),
    }
}

impl RegistryArgs {
    pub(super) fn access(&self) -> Access {
        Access {
            plain_http: self.plain_http,
            credentials: CredentialFiles::of_user(),
            certificates: CertificateDirs::of_user(),
            retry: Retry::default(),
            patience: Patience::default(),
        }
    }
}

pub(super) fn run(args: &Args, root: Option<&Path>) -> anyhow::Result<()> {
    let name = Reference::parse(&args.image)?;
    let mut options = PullOptions {
        access: args.registry.access(),
        platform: args.platform.clone(),
        parallel: args.registry.parallel,
        limits: Limits {
            bytes: args.max_layer_size,
            ..Limits::default()
        },
    };
    let mut cage = args.sandbox.cage()?;
    let store = own::open(root)?;
    options.access.look_up(&name)?;
    cage.talk()?;
    let store = cage.enter_with_store(store)?;
    let place = store.root().to_owned();
    interrupt::note(move || {
        let store = Writable::existing(&place).ok().flatten()?;
        let kept = Some(store.downloaded()).filter(|bytes| *bytes > 0)?;
        Some(format!(
            "{} of downloads are kept for the next pull (unionfs prune removes them)",
            size(kept)
        ))
    });
    let blobs = Blobs::new(args.quiet, "downloaded");
    let show = |event: crate::store::registry::Event<'_>| blobs.show(event);
    let fetched = fetch(&store, &name, &options, &show)?;
    // Not before: others may use the store while blobs come in.
    let locked = own::lock(&store)?;
    let transfer = Transfer::new(args.quiet, "unpacked");
    let pulled = fetched.register(&locked, &|step| match step {
        // That was said before the downloads.
        Progress::Exists { .. } => (),
        step => transfer.show(step),
    })?;
    if args.json {
        return print_json(&pulled);
    }
    print(&format!(
        "Digest: {}\nPulled image: {}\n",
        pulled.digest,
        pulled.names.first().unwrap_or(&args.image)
    ))
}
