//! `unionfs version` prints the version.

use super::output::{print, print_json};

/// Show the version
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  unionfs version
  unionfs version --json")]
pub(super) struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) const VERSION: &str = env!("CARGO_PKG_VERSION");

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    if args.json {
        print_json(&serde_json::json!({ "version": VERSION }))
    } else {
        print(&format!("unionfs {VERSION}\n"))
    }
}
