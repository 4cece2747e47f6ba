//! `unionfs verify`: is a store whole? Called by `cli::main`.

use std::io::IsTerminal as _;
use std::path::Path;
use std::time::Duration;

use anyhow::bail;
use indicatif::{ProgressBar, ProgressStyle};

use super::open_stores;
use super::output::{one_line, print, print_json, size};
use crate::store::verify::{Progress, Report};

/// Check images and layers for damage
///
/// Configurations are hashed, chains of layers and the driver's links compared, every layer's
/// files put together to the tar they came from and hashed, sizes counted. Each damaged file is
/// named, and the exit code is 1. Nothing is changed; Docker's and podman's stores can be checked
/// too.
#[derive(Debug, clap::Args)]
#[command(
    override_usage = "unionfs verify [OPTIONS] <IMAGE|--all>",
    after_help = "\
Examples:
  unionfs verify myapp:2
  unionfs verify --all --json | jq '.problems[]'
  unionfs --root /var/lib/docker verify --all"
)]
pub(super) struct Args {
    /// The image: name, ID or start of an ID
    #[arg(required_unless_present = "all")]
    image: Option<String>,
    /// Everything in every store: also layers without an image, and containers
    #[arg(long, conflicts_with = "image")]
    all: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, root: Option<&Path>) -> anyhow::Result<()> {
    let stores = open_stores(root)?;
    let bar = Bar::new();
    let report = stores.verify(args.image.as_deref(), &mut |step| bar.step(step))?;
    bar.0.finish_and_clear();
    match args.json {
        true => print_json(&report)?,
        false => print(&text(&report))?,
    }
    match report.problems.len() {
        0 => Ok(()),
        1 => bail!("1 problem found"),
        count => bail!("{count} problems found"),
    }
}

/// One line a problem, then what was checked.
fn text(report: &Report) -> String {
    let mut text = String::new();
    for problem in &report.problems {
        text += &one_line(&format!("{}: {}", problem.of, problem.what));
        text.push('\n');
    }
    let count = |n: usize, what: &str| match n {
        1 => format!("1 {what}"),
        n => format!("{n} {what}s"),
    };
    let images = count(report.images, "image");
    let layers = count(report.layers, "layer");
    let outcome = match report.problems.is_empty() {
        true => "no damage",
        false => "damaged",
    };
    let unchecked = match report.unchecked {
        0 => String::new(),
        n => format!(", {} on damaged ones not checked", count(n, "layer")),
    };
    let hashed = size(report.bytes);
    text + &format!("{images}, {layers}, {hashed} hashed{unchecked}: {outcome}\n")
}

/// A progress bar on a terminal, else nothing.
struct Bar(ProgressBar);

impl Bar {
    fn new() -> Self {
        if !std::io::stderr().is_terminal() {
            return Self(ProgressBar::hidden());
        }
        let bar = ProgressBar::new(0);
        let form = "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec}";
        if let Ok(style) = ProgressStyle::with_template(form) {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(100));
        Self(bar)
    }

    fn step(&self, step: Progress) {
        match step {
            Progress::Total { bytes, .. } => self.0.set_length(bytes),
            Progress::Layer { chain } => self.0.set_message(chain.short()),
            Progress::Bytes(count) => {
                self.0.inc(count);
                // Headers are not in the layers' sizes.
                if self
                    .0
                    .length()
                    .is_some_and(|length| length < self.0.position())
                {
                    self.0.set_length(self.0.position());
                }
            }
        }
    }
}
