//! `unionfs digest` shows the digest that a name has in its registry.

use super::command_sandbox::SandboxArgs;
use super::output::print;
use super::registry_args::Credentials;
use super::{own_store, remote_names};
use unionfs::oci::Platform;
use unionfs::registry::{Purpose, digest};

/// Show the digest of an image in its registry
///
/// It is that of the manifest, or of the index if the image is for several platforms. Nothing is pulled.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  unionfs digest debian:12
  unionfs digest --platform linux/arm64 docker://quay.io/podman/stable:latest")]
pub(super) struct Args {
    /// The image: [docker://][HOST/]NAME[:TAG]
    image: String,
    /// Show the digest of the manifest for this platform: os/architecture[/variant]
    #[arg(long, value_name = "PLATFORM", value_parser = own_store::platform)]
    platform: Option<Platform>,
    #[command(flatten)]
    credentials: Credentials,
    #[command(flatten)]
    sandbox: SandboxArgs,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let (name, access) = remote_names::ask(
        &args.image,
        Purpose::Pull,
        &args.credentials,
        &args.sandbox,
        "digest",
    )?;
    let digest = digest(&name, args.platform.as_ref(), &access, &|_| ())?;
    print(&format!("{digest}\n"))
}
