//! Compares unionfs with kernel overlayfs, fuse-overlayfs and a plain directory over the same
//! layers. All run interleaved in one run, so that the ratios are valid on a busy machine. Needs
//! root.
//!
//! ```text
//! disk      the file system of all measurements
//! layers    the files: images of several depths    image  made and loaded into a store of unionfs
//! bed       the subjects, and a mount that can be made cold
//! metadata  workloads on names and attributes      data   fio          copy_up
//! work      compilers, git, databases, chroots     cost   memory, descriptors, page cache, CPU
//! report    medians, ratios, JSON, Markdown, comparing two reports     plot   SVG
//! aims      the maximum of each row
//! ```
//! No time is asserted.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod aims;
mod copy_up;
mod data;
mod disk;
mod footprint;
mod image;
mod layers;
mod metadata;
mod plot;
mod report;
mod subjects;
mod work;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser as _;

use disk::Disk;
use layers::{DEPTH, Layers, MILLION};
use report::{Report, Sample};
use subjects::{Bed, Subject};

/// The function of a workload. It returns what it measured on a mount. An error is reported and
/// does not end the run.
type Run = fn(&mut Bed) -> Result<Sample, String>;

/// One row of the report.
#[derive(Clone, Copy)]
struct Workload {
    name: &'static str,
    run: Run,
}

/// Returns a [`Workload`].
const fn row(name: &'static str, run: Run) -> Workload {
    Workload { name, run }
}

/// unionfs beside kernel overlayfs, fuse-overlayfs and a plain directory
#[derive(Debug, clap::Parser)]
struct Args {
    /// Compare two reports (JSON) instead of measuring: what got slower or faster
    #[arg(long, num_args = 2, value_names = ["OLD", "NEW"])]
    diff: Option<Vec<PathBuf>>,
    /// Rounds; every subject runs every workload once in each
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Only workloads whose names contain TEXT (what they build on runs too); may be repeated
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,
    /// Only this subject; may be repeated (kernel overlayfs is always one)
    #[arg(long = "subject", value_name = "NAME")]
    subjects: Vec<String>,
    /// A small made tree instead of a Debian root file system
    #[arg(long)]
    quick: bool,
    /// On a new ext4 on a loop device instead of the disk that the repository is on
    #[arg(long = "loop")]
    on_loop: bool,
    /// Directory for report.json, report.md and the plots
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
    /// fuse-overlayfs to compare with [default: $PEER, else from PATH, else none]
    #[arg(long, value_name = "PROGRAM")]
    peer: Option<PathBuf>,
    /// Also keep the report as docs/BENCHMARKS.md with its plots
    #[arg(long)]
    publish: bool,
    /// Mount kernel overlayfs and end: how the benchmark does it
    #[arg(long, hide = true, num_args = 1.., value_name = "PLACE")]
    mount_kernel: Option<Vec<PathBuf>>,
    /// Passed by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    // `cargo test --benches` runs this program too. It has no tests.
    if !std::env::args().any(|a| a == "--bench") {
        return ExitCode::SUCCESS;
    }
    let args = Args::parse();
    if let Some(places) = &args.mount_kernel {
        subjects::mount_kernel(places);
        return ExitCode::SUCCESS;
    }
    if let Some(files) = &args.diff {
        return report::diff(&files[0], &files[1]);
    }
    if let Err(reason) = testkit::need::can_mount() {
        eprintln!("cannot measure: {reason}");
        return ExitCode::FAILURE;
    }
    let report = measure(&args);
    report.write(&args.out);
    if args.publish {
        report.publish();
    }
    print!("{}", report.markdown());
    ExitCode::SUCCESS
}

fn measure(args: &Args) -> Report {
    let rounds = args.rounds;
    let disk = if args.on_loop {
        Disk::of_its_own()
    } else {
        Disk::here()
    };
    let layers = Layers::make(&disk, args.quick, |image| needs(args, image));
    let mut subjects = subjects::subjects(args.peer.clone());
    subjects.retain(|s| s.is_wanted(&args.subjects));
    let mut report = Report::new(&subjects, rounds, &disk.describe());
    let parts = [
        metadata::ALL,
        data::ALL,
        copy_up::ALL,
        work::ALL,
        footprint::ALL,
        metadata::LAST,
    ];
    let workloads: Vec<Workload> = parts.concat();
    for round in 0..rounds {
        for index in order(subjects.len(), round) {
            let subject = &subjects[index];
            let start = Instant::now();
            on_the_stack(args, &layers, subject, &workloads, round, &mut report);
            over_depths(args, &layers, subject, &mut report);
            if round == 0 {
                on_a_million(args, &layers, subject, &mut report);
            }
            let (round, took) = (round + 1, start.elapsed().as_secs());
            eprintln!("round {round} of {rounds}: {}, {took} s", subject.name);
        }
        // The report of complete rounds stays if the run is aborted.
        report.rounds = round + 1;
        report.write(&args.out);
    }
    report
}

/// Returns the order of subjects in a round. The first subject differs in each round, and each
/// subject follows another one, because a subject leaves work on the disk and data in the caches
/// that slow the next one down. The order is a row of Williams' square: 0, 1, -1, 2, -2, ...
fn order(subjects: usize, round: usize) -> impl Iterator<Item = usize> {
    (0..subjects).map(move |turn| {
        let step = turn.div_ceil(2);
        let place = if turn % 2 == 1 { step } else { subjects - step };
        (place + round) % subjects
    })
}

fn wanted(args: &Args, name: &str) -> bool {
    args.only.is_empty() || args.only.iter().any(|text| name.contains(text))
}

/// Whether a wanted row is measured on `image`.
fn needs(args: &Args, image: &str) -> bool {
    if image == MILLION {
        return footprint::MILLION.iter().any(|w| wanted(args, w.name));
    }
    let depth = image.rsplit(':').next().unwrap_or(image);
    image == Layers::image(DEPTH)
        || metadata::DEPTH
            .iter()
            .any(|(name, _)| wanted(args, &format!("{name}, {depth} layers")))
}

fn on_the_stack(
    args: &Args,
    layers: &Layers,
    subject: &Subject,
    workloads: &[Workload],
    round: usize,
    report: &mut Report,
) {
    let wanted: Vec<_> = workloads
        .iter()
        .filter(|w| wanted(args, w.name) && subject.takes(w.name))
        .collect();
    if wanted.is_empty() {
        return;
    }
    let mut bed = Bed::new(layers, subject, &Layers::image(DEPTH));
    for workload in wanted {
        let outcome = (workload.run)(&mut bed);
        if let (0, Err(why)) = (round, &outcome)
            && why != subjects::NOTHING
        {
            eprintln!("{} on {}: {why}", workload.name, subject.name);
        }
        report.add(workload.name, &subject.name, outcome);
    }
}

/// Measures the walks again over other numbers of layers, which contain the same files.
fn over_depths(args: &Args, layers: &Layers, subject: &Subject, report: &mut Report) {
    if subject.is_plain() {
        return;
    }
    for depth in [1, 32, 128, 500] {
        for (name, run) in metadata::DEPTH {
            let name = format!("{name}, {depth} layers");
            if wanted(args, &name) && subject.takes(&name) {
                let outcome = run(&mut Bed::new(layers, subject, &Layers::image(depth)));
                report.add(&name, &subject.name, outcome);
            }
        }
    }
}

/// Measures the rows that take too long for every round.
fn on_a_million(args: &Args, layers: &Layers, subject: &Subject, report: &mut Report) {
    let worth = |w: &Workload| wanted(args, w.name) && subject.takes(w.name);
    let wanted = footprint::MILLION.iter().any(worth);
    if !wanted || subject.is_plain() || layers.stack(MILLION).is_none() {
        return;
    }
    let mut bed = Bed::new(layers, subject, MILLION);
    for workload in footprint::MILLION {
        report.add(workload.name, &subject.name, (workload.run)(&mut bed));
    }
}
