//! `unionfs verify` checks stores for damage.

use std::path::Path;

use anyhow::bail;

use super::archive_names;
use super::candidates;
use super::command_sandbox::SandboxArgs;
use super::output::{one_line, print, print_json, size};
use super::pool::PoolArgs;
use super::progress::{ON_TERMINAL, ProgressArgs, Unit, verb};
use unionfs::store::verify::{Report, SCRATCH_FILES};
use unionfs::store::writable::Staging;

/// Check images and layers for damage
///
/// The command hashes configurations, compares chains of layers and the links of the storage
/// driver, rebuilds the tar of each layer from its files and hashes it, and compares sizes. It
/// names each damaged file and exits with 1. It changes nothing. The stores of Docker and podman
/// can be checked too.
#[derive(Debug, clap::Args)]
#[command(
    override_usage = "unionfs verify [OPTIONS] <IMAGE|--all>",
    mut_arg("progress", |arg| arg.help(ON_TERMINAL)),
    after_help = "\
Examples:
  unionfs verify myapp:2
  unionfs verify --all --json | jq '.problems[]'
  unionfs --root /var/lib/docker verify --all
  unionfs verify --progress=plain myapp:2

unionfs pull --repair IMAGE and unionfs load --repair -i ARCHIVE replace damaged layers of the own
store. Layers of other stores are repaired by their engine."
)]
pub(super) struct Args {
    /// The image: name, ID or ID prefix
    #[arg(required_unless_present = "all", add = candidates::images())]
    image: Option<String>,
    /// Check everything in every store, including containers and layers without an image
    #[arg(long, conflicts_with = "image")]
    all: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    progress: ProgressArgs,
    #[command(flatten)]
    pool: PoolArgs,
    #[command(flatten)]
    sandbox: SandboxArgs,
}

pub(super) fn run(args: &Args, root: Option<&Path>) -> anyhow::Result<()> {
    let resolve = |image| archive_names::resolve(image, &args.sandbox, root);
    let image = args.image.as_deref().map(resolve).transpose()?;
    // This happens before the sandbox is entered, which has no directory for the files.
    let scratch = Staging::of_files(SCRATCH_FILES)?;
    let mut cage = args.sandbox.cage("verify")?;
    let names: Vec<&str> = image.as_deref().into_iter().collect();
    let mut places = cage.stores(root, &names)?;
    args.pool.open(&mut places)?;
    let stores = cage.enter_with_stores(places)?;
    let work = args
        .progress
        .work(Unit::Bytes, verb("verifying", "verified"));
    let report = stores.verify_with(image.as_deref(), &scratch, &mut |step| work.show(step))?;
    work.done();
    if args.json {
        print_json(&report)?;
    } else {
        print(&text(&report))?;
    }
    let remedy = match report.in_own_stores {
        0 => "",
        _ => {
            "; `unionfs pull --repair IMAGE` and `unionfs load --repair -i ARCHIVE` replace damaged \
             layers"
        }
    };
    match report.problems.len() {
        0 => Ok(()),
        1 => bail!("1 problem found{remedy}"),
        count => bail!("{count} problems found{remedy}"),
    }
}

/// Formats one line for each problem, then the totals.
fn text(report: &Report) -> String {
    let mut text = String::new();
    for problem in &report.problems {
        text += &one_line(&format!("{}: {}", problem.of, problem.what));
        text.push('\n');
    }
    for note in &report.notes {
        text += &one_line(&format!("{}: {}", note.of, note.what));
        text.push('\n');
    }
    let count = |n: usize, what: &str| match n {
        1 => format!("1 {what}"),
        n => format!("{n} {what}s"),
    };
    let images = count(report.images, "image");
    let layers = count(report.layers, "layer");
    let outcome = if report.problems.is_empty() {
        "no damage"
    } else {
        "damaged"
    };
    let unchecked = match report.unchecked {
        0 => String::new(),
        n => format!(", {} on damaged ones not checked", count(n, "layer")),
    };
    let hashed = size(report.bytes);
    let kept = match report.kept {
        0 => String::new(),
        1 => ", 1 index".to_owned(),
        n => format!(", {n} indexes"),
    };
    text + &format!("{images}, {layers}{kept}, {hashed} hashed{unchecked}: {outcome}\n")
}
