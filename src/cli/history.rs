//! `unionfs history` shows the build steps of an image.

use std::path::Path;

use super::archive_names;
use super::candidates;
use super::command_sandbox::SandboxArgs;
use super::filters::{Condition as _, StepFilter};
use super::output::{Cut, print_json, shortened, size};
use super::rows::{Field, RowArgs, Rows, field};
use super::times;
use unionfs::store::HistoryRow;

/// Show the build steps of an image, newest first
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  unionfs history myapp:2
  unionfs history --format '{{.Size}} {{.CreatedBy}}' --no-trunc myapp:2
  unionfs history --filter empty=false --filter created-by=COPY myapp:2

Filters: created-by=TEXT, comment=TEXT (a part of it), empty=true|false (whether the step made no
layer), since=TIME, until=TIME (a duration such as 24h, a day, or RFC 3339). All must fit.
Fields of --format: ID, CreatedSince, CreatedAt, CreatedBy, Size, Comment.")]
pub(super) struct Args {
    /// The image: name, ID or ID prefix
    #[arg(add = candidates::images())]
    image: String,
    /// Show only steps that fit; may be repeated
    #[arg(long, short = 'f', value_name = "KEY=VALUE", value_parser = StepFilter::parse)]
    filter: Vec<StepFilter>,
    #[command(flatten)]
    rows: RowArgs,
    /// Print JSON: sizes in bytes
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    sandbox: SandboxArgs,
}

/// The number of columns of a command that are shown in a pipe.
const COMMAND: usize = 60;

pub(super) fn run(args: &Args, root: Option<&Path>) -> anyhow::Result<()> {
    let image = archive_names::resolve(&args.image, &args.sandbox, root)?;
    let stores = args.sandbox.stores("history", root, &[&*image])?;
    let mut steps = stores.find(&image)?.history();
    steps.retain(|step| args.filter.iter().all(|filter| filter.fits(step)));
    if args.json {
        return print_json(&steps);
    }
    rows(&steps, &args.rows).print(&args.rows)
}

const FIELDS: [Field; 6] = [
    field("ID", "LAYER", Cut::No),
    field("CreatedSince", "CREATED", Cut::No),
    field("CreatedAt", "CREATED AT", Cut::No),
    field("Size", "SIZE", Cut::No),
    field("CreatedBy", "CREATED BY", Cut::End),
    field("Comment", "COMMENT", Cut::End),
];

fn rows(steps: &[HistoryRow], args: &RowArgs) -> Rows {
    let mut rows = Rows::new(&FIELDS, ["ID", "CreatedSince", "Size", "CreatedBy"], "ID");
    for row in steps {
        let command = row.step.created_by.as_deref().unwrap_or_default();
        let id = row.chain_id.map(|id| {
            if args.no_trunc {
                id.to_string()
            } else {
                id.short()
            }
        });
        rows.row([
            id.unwrap_or_else(|| "-".into()),
            times::since(row.step.created.as_deref()),
            row.step.created.clone().unwrap_or_else(|| "-".into()),
            size(row.size),
            if args.no_trunc {
                command.into()
            } else {
                shortened(command, COMMAND, Cut::End)
            },
            row.step.comment.clone().unwrap_or_default(),
        ]);
    }
    rows
}
