//! `unionfs history` shows the build steps of an image.

use std::path::Path;

use super::archive_names;
use super::command_sandbox::SandboxArgs;
use super::output::{Table, print, print_json, size};
use unionfs::store::HistoryRow;

/// Show the build steps of an image, newest first
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  unionfs history myapp:2")]
pub(super) struct Args {
    /// The image: name, ID or ID prefix
    image: String,
    /// Print whole commands
    #[arg(long)]
    no_trunc: bool,
    /// Print JSON: sizes in bytes
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    sandbox: SandboxArgs,
}

/// The number of characters of a command that are shown, as in `docker history`.
const COMMAND: usize = 60;

pub(super) fn run(args: &Args, root: Option<&Path>) -> anyhow::Result<()> {
    let image = archive_names::resolve(&args.image, &args.sandbox, root)?;
    let stores = args.sandbox.stores("history", root)?;
    let rows = stores.find(&image)?.history();
    if args.json {
        print_json(&rows)
    } else {
        print(&table(&rows, args.no_trunc))
    }
}

fn table(rows: &[HistoryRow], whole: bool) -> String {
    let mut table = Table::new(&["LAYER", "CREATED", "SIZE", "CREATED BY"]);
    for row in rows {
        let command = row.step.created_by.as_deref().unwrap_or_default();
        table.row([
            row.chain_id.map_or_else(|| "-".into(), |id| id.short()),
            day(row.step.created.as_deref()),
            size(row.size),
            if whole {
                command.into()
            } else {
                shorten(command)
            },
        ]);
    }
    table.render()
}

/// Returns the day of an RFC 3339 time.
pub(super) fn day(created: Option<&str>) -> String {
    let day = created.and_then(|time| time.split('T').next());
    day.filter(|day| !day.is_empty()).unwrap_or("-").to_owned()
}

fn shorten(command: &str) -> String {
    match command.char_indices().nth(COMMAND) {
        Some((end, _)) => format!("{}…", &command[..end]),
        None => command.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_and_commands() {
        assert_eq!(day(Some("2024-02-29T01:02:03.4Z")), "2024-02-29");
        assert_eq!(day(Some("")), "-");
        assert_eq!(day(None), "-");
        assert_eq!(shorten("ä"), "ä");
        assert_eq!(shorten(&"ä".repeat(61)), format!("{}…", "ä".repeat(60)));
    }
}
