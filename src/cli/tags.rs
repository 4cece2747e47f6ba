//! `unionfs tags` lists the tags of a repository in its registry.

use super::command_sandbox::SandboxArgs;
use super::output::{one_line, print, print_json};
use super::registry_args::Credentials;
use super::remote_names;
use unionfs::registry::{Purpose, tags};

/// List the tags of a repository in its registry
///
/// Nothing is pulled. Logins and configuration are those of unionfs pull; mirrors are not asked.
#[derive(Debug, clap::Args)]
#[command(
    visible_alias = "list-tags",
    after_help = "\
Examples:
  unionfs tags quay.io/podman/stable
  unionfs tags --json docker://registry.example.org/team/app"
)]
pub(super) struct Args {
    /// The repository: [docker://][HOST/]NAME
    repository: String,
    #[command(flatten)]
    credentials: Credentials,
    #[command(flatten)]
    sandbox: SandboxArgs,
    /// Print JSON, as skopeo list-tags
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let (name, access) = remote_names::ask(
        &args.repository,
        Purpose::Pull,
        &args.credentials,
        &args.sandbox,
        "tags",
    )?;
    let tags = tags(&name, &access, &|_| ())?;
    if args.json {
        let repository = format!("{}/{}", name.domain(), name.path());
        return print_json(&serde_json::json!({"Repository": repository, "Tags": tags}));
    }
    let lines = tags.iter().map(|tag| format!("{}\n", one_line(tag)));
    print(&lines.collect::<String>())
}
