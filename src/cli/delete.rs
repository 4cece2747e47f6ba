//! `unionfs delete` removes an image from its registry.

use super::command_sandbox::SandboxArgs;
use super::error::Usage;
use super::output::print;
use super::registry_args::Credentials;
use super::remote_names;
use unionfs::registry::{Purpose, delete};

/// Remove an image from its registry
///
/// The registry removes the manifest that the name means, and with it all tags of that manifest. Many
/// registries must be configured to allow it. Images of the own store are removed by unionfs rmi.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  unionfs delete docker://registry.example.org/team/app:1
  unionfs delete docker://localhost:5000/app:1")]
pub(super) struct Args {
    /// The image: docker://[HOST/]NAME[:TAG][@DIGEST]
    image: String,
    #[command(flatten)]
    credentials: Credentials,
    #[command(flatten)]
    sandbox: SandboxArgs,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    remote_names::of_registry(&args.image, || {
        "unionfs rmi removes images of the own store, rm(1) removes files".to_owned()
    })?;
    if !remote_names::is_one(&args.image) {
        let text = format!(
            "delete removes images of registries: write docker://{} (unionfs rmi removes local images)",
            args.image
        );
        return Err(Usage(text).into());
    }
    let (name, access) = remote_names::ask(
        &args.image,
        Purpose::Push,
        &args.credentials,
        &args.sandbox,
        "delete",
    )?;
    let digest = delete(&name, &access, &|_| ())?;
    print(&format!("Deleted: {name}\nDigest: {digest}\n"))
}
