//! `unionfs completions` prints the completion script of a shell.

use clap::CommandFactory as _;

/// Print a completion script for a shell
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  unionfs completions bash > /etc/bash_completion.d/unionfs")]
pub(super) struct Args {
    /// The shell
    shell: clap_complete::Shell,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(
        args.shell,
        &mut super::Cli::command(),
        "unionfs",
        &mut script,
    );
    super::output::print_bytes(&script)
}
