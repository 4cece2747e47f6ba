//! `unionfs logout` removes logins.

use std::path::PathBuf;

use super::error::Usage;
use super::output::print;
use unionfs::registry::{Access, CredentialFiles, LoginPlace, LoginTarget};

/// Remove the login of a registry
///
/// The login is removed from all files of logins of docker and podman that have it, and from their
/// credential helpers.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  unionfs logout quay.io
  unionfs logout --all")]
pub(super) struct Args {
    /// The registry: HOST[:PORT][/NAMESPACE]
    #[arg(default_value = "docker.io")]
    registry: String,
    /// Remove the logins of all registries from the files
    #[arg(long, short = 'a', conflicts_with = "registry")]
    all: bool,
    /// Use this file of logins, and no other
    #[arg(long, value_name = "FILE")]
    authfile: Option<PathBuf>,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let mut access = Access::default();
    if let Some(path) = &args.authfile {
        access.credentials = CredentialFiles::of_file(path);
    }
    let removed = if args.all {
        access.remove_all_logins()?
    } else {
        let target = LoginTarget::parse(&args.registry).map_err(|e| Usage(e.to_string()))?;
        let removed = access.remove_login(&target)?;
        if removed.is_empty() {
            return print(&format!("Not logged in to {}\n", target.key()));
        }
        removed
    };
    let lines = removed.iter().map(|place| match place {
        LoginPlace::File(path) => format!("Removed login from {}\n", path.display()),
        LoginPlace::Helper(name) => format!("Removed login from docker-credential-{name}\n"),
        _ => String::new(),
    });
    print(&lines.collect::<String>())
}
