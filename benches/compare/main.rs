//! Compares unionfs with kernel overlayfs, fuse-overlayfs and an ordinary directory over the same
//! layers. All run interleaved in one run, so that the ratios are valid on a busy machine. Needs
//! root.
//!
//! ```text
//! disk      the file system of all measurements         machine    what they run on
//! layers    the files: images of several depths         image      made and loaded into a store of unionfs
//! subjects  the columns, and a mount that can be made cold
//! metadata  workloads on names and attributes           data       on contents, mostly fio    copy_up
//! messages  how many messages of FUSE a row sends, and what one costs
//! work      compilers, git, databases, chroots          footprint  memory, descriptors, page cache, CPU
//! busy      latency beside other processes, many clients, one CPU
//! progress  how long a run takes
//! figures   what is made of the measurements: medians, means, pages, plots
//! ```
//! No time is asserted. `report.json` is written after each row, and a row that fails, also by a panic,
//! leaves the others as they are.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

mod busy;
mod copy_up;
mod data;
mod disk;
mod figures;
mod footprint;
mod image;
mod layers;
mod machine;
mod messages;
mod metadata;
mod progress;
mod subjects;
mod work;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser as _;

use disk::Disk;
use figures::publish;
use figures::report::{DEFAULT, Group, Report, Sample, Weight};
use layers::{DEPTH, Layers, MILLION};
use progress::Progress;
use subjects::{Bed, Subject};

/// The function of a workload. It returns what it measured on a mount. An error is reported and
/// does not end the run.
type Run = fn(&mut Bed) -> Result<Sample, String>;

/// One row of the report.
#[derive(Clone, Copy)]
pub(crate) struct Workload {
    group: Group,
    weight: Weight,
    name: &'static str,
    run: Run,
}

/// Returns a [`Workload`] that counts in the means.
const fn row(group: Group, name: &'static str, run: Run) -> Workload {
    let weight = Weight::Counted;
    Workload {
        group,
        weight,
        name,
        run,
    }
}

/// Returns a [`Workload`] that is a variation of another one, or no time of a whole workload.
const fn aside(group: Group, name: &'static str, run: Run) -> Workload {
    let weight = Weight::Aside;
    Workload {
        group,
        weight,
        name,
        run,
    }
}

/// The depths of the rows on other numbers of layers.
const DEPTHS: [usize; 4] = [1, 32, 128, 500];

/// unionfs beside kernel overlayfs, fuse-overlayfs and an ordinary directory
#[derive(Debug, clap::Parser)]
struct Args {
    /// Compare two reports (JSON) instead of measuring: what got slower or faster
    #[arg(long, num_args = 2, value_names = ["OLD", "NEW"])]
    diff: Option<Vec<PathBuf>>,
    /// Rounds; every subject runs every workload once in each
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// No further round that would end later than this many minutes after the start of the first;
    /// the rows that take long come after the rounds
    #[arg(long)]
    minutes: Option<u64>,
    /// Make the root file system and the images, which later runs use, and end
    #[arg(long)]
    prepare: bool,
    /// Only workloads whose names contain TEXT (what they build on runs too); may be repeated
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,
    /// Only this column; may be repeated (kernel overlayfs is always one)
    #[arg(long = "subject", value_name = "NAME")]
    subjects: Vec<String>,
    /// A small made tree instead of a Debian root file system, at most 32 layers, one round
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
    /// Also write all pages and plots of the repository that are made of the report
    #[arg(long, conflicts_with_all = ["only", "quick", "subjects"])]
    publish: bool,
    /// Measure nothing: make the pages and plots of this report.json again
    #[arg(long, value_name = "REPORT")]
    render: Option<PathBuf>,
    /// Also print how long each row takes with its preparation
    #[arg(long, short)]
    verbose: bool,
    /// Mount kernel overlayfs and end: how the benchmark does it
    #[arg(long, hide = true, num_args = 1.., value_name = "PLACE")]
    mount_kernel: Option<Vec<PathBuf>>,
    /// Create and remove files in a new directory and end: one process of several
    #[arg(long, hide = true, num_args = 2, value_names = ["DIR", "FILES"])]
    create_and_remove: Option<Vec<PathBuf>>,
    /// Use a CPU until this is killed: one process of a busy machine
    #[arg(long, hide = true)]
    spin: bool,
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
    if let Some(of_it) = &args.create_and_remove {
        let files = of_it[1].to_str().and_then(|n| n.parse().ok()).unwrap();
        busy::create_and_remove(&of_it[0], files).unwrap();
        return ExitCode::SUCCESS;
    }
    if args.spin {
        busy::spin();
    }
    if let Some(files) = &args.diff {
        return figures::diff::diff(&files[0], &files[1]);
    }
    let report = if let Some(file) = &args.render {
        Report::read(file)
    } else if let Err(reason) = testkit::need::can_mount() {
        eprintln!("cannot measure: {reason}");
        return ExitCode::FAILURE;
    } else {
        match measure(&args) {
            Some(report) => report,
            None => return ExitCode::SUCCESS,
        }
    };
    publish::write(&report, &args.out);
    if args.publish {
        publish::publish(&report, Path::new(env!("CARGO_MANIFEST_DIR")));
    }
    print!("{}", figures::page::tables(&report));
    ExitCode::SUCCESS
}

/// Returns the measurements; `None` if there is only something to prepare.
fn measure(args: &Args) -> Option<Report> {
    let rounds = if args.quick {
        args.rounds.min(1)
    } else {
        args.rounds
    };
    let disk = if args.on_loop {
        Disk::of_its_own()
    } else {
        Disk::here()
    };
    progress::announce(args.quick, rounds);
    let layers = Layers::make(&disk, args.quick, |image| needs(args, image));
    if args.prepare {
        return None;
    }
    let mut subjects = subjects::subjects(args.peer.clone());
    subjects.retain(|s| s.is_wanted(&args.subjects));
    let columns = subjects.iter().map(Subject::column).collect();
    let mut report = Report::new(columns, machine::facts(&disk, &subjects, args.quick));
    let parts = [
        metadata::ALL,
        data::COUNTED,
        data::OTHERS,
        data::ASIDE,
        copy_up::ALL,
        work::ALL,
        busy::LATENCIES,
        busy::CALLERS,
        footprint::ALL,
        metadata::LAST,
    ];
    let workloads: Vec<Workload> = parts.concat();
    let once = subjects.iter().filter(|subject| subject.is_once()).count();
    let long = subjects.iter().filter(|subject| subject.takes_long_rows());
    let turns = rounds * (subjects.len() - once) + once + long.count();
    let mut progress = Progress::new(turns, args.verbose);
    std::fs::create_dir_all(&args.out).unwrap();
    let turn = |subject, report: &mut Report, progress: &mut Progress, part: &dyn Fn(&mut Turn)| {
        let layers = &layers;
        part(&mut Turn {
            args,
            layers,
            subject,
            report,
            progress,
        });
    };
    for round in 0..rounds {
        report.begin(round + 1);
        progress.round_begins();
        for index in order(subjects.len(), round) {
            let subject = &subjects[index];
            if round > 0 && subject.is_once() {
                continue;
            }
            turn(subject, &mut report, &mut progress, &|turn| {
                turn.part("4 layers", |turn| turn.on_the_stack(&workloads));
            });
            let what = format!("round {}: {}", round + 1, subject.name);
            progress.turn_done(&what, !subject.is_once());
        }
        report.rounds = round + 1;
        let left = rounds - report.rounds;
        if left > 0 && args.minutes.is_some_and(|m| progress.would_exceed(m)) {
            eprintln!("another round would take too long");
            progress.turns_skipped(left * (subjects.len() - once));
            break;
        }
    }
    // Last, so that a run that is ended early has all rows that count.
    for subject in subjects.iter().filter(|s| s.takes_long_rows()) {
        turn(subject, &mut report, &mut progress, &|turn| {
            turn.part("other numbers of layers", Turn::over_depths);
            turn.part("a million files", Turn::on_a_million);
        });
        progress.turn_done(&format!("long rows: {}", subject.name), false);
    }
    report.end();
    Some(report)
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
    if image == Layers::image(DEPTH) {
        return true;
    }
    let depth = DEPTHS.into_iter().find(|d| image == Layers::image(*d));
    let long = |depth| {
        metadata::DEPTH
            .iter()
            .any(|w| wanted(args, &over(w, depth)))
    };
    depth.is_some_and(|depth| takes_depth(args, depth) && long(depth))
}

/// Returns the name of a row on another number of layers.
fn over(workload: &Workload, depth: usize) -> String {
    format!("{}, {depth} layers", workload.name)
}

/// Whether a run has rows on so many layers.
fn takes_depth(args: &Args, depth: usize) -> bool {
    !args.quick || depth <= 32
}

/// The measurements of one subject in one round.
struct Turn<'r> {
    args: &'r Args,
    layers: &'r Layers,
    subject: &'r Subject,
    report: &'r mut Report,
    progress: &'r mut Progress,
}

/// Returns the result of `action`. A panic, which the standard library prints, is an error.
fn caught<T>(action: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(action)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref().copied());
        Err(text.unwrap_or("a panic").to_owned())
    })
}

impl Turn<'_> {
    /// Does a part of the turn. If the files for it cannot be made, the other parts go on.
    fn part(&mut self, what: &str, part: impl FnOnce(&mut Self)) {
        let name = self.subject.name.clone();
        let done = caught(|| {
            part(self);
            Ok(())
        });
        if let Err(why) = done {
            eprintln!("{what} on {name}: {why}");
        }
    }

    /// Measures one row, on the mount as it is.
    fn one(&mut self, bed: &mut Bed<'_>, workload: &Workload, name: &str) {
        let counts = self.subject.name == DEFAULT;
        messages::of(counts.then(|| bed.path()));
        self.add(workload, name, caught(|| (workload.run)(bed)));
        messages::of(None);
    }

    /// Adds what was measured to the report, and writes it.
    fn add(&mut self, workload: &Workload, name: &str, outcome: Result<Sample, String>) {
        let row = (name, workload.group, workload.weight);
        if let Err(why) = &outcome
            && why != figures::report::NOTHING
        {
            eprintln!("{name} on {}: {why}", self.subject.name);
        }
        self.report.add(row, &self.subject.name, outcome);
        publish::save(self.report, &self.args.out);
        self.progress.row_done(name);
    }

    /// Measures one row on a new mount with a new upper.
    fn refreshed(&mut self, bed: &mut Bed<'_>, workload: &Workload, name: &str) {
        match caught(|| bed.refresh().map_err(|e| e.to_string())) {
            Ok(()) => self.one(bed, workload, name),
            Err(why) => self.add(workload, name, Err(format!("no new mount: {why}"))),
        }
    }

    /// Measures the rows on the stack of [`DEPTH`] layers.
    fn on_the_stack(&mut self, workloads: &[Workload]) {
        let subject = self.subject;
        let rows: Vec<_> = workloads
            .iter()
            .filter(|w| wanted(self.args, w.name) && subject.takes(w))
            .collect();
        if rows.is_empty() {
            return;
        }
        let mut bed = Bed::new(self.layers, subject, &Layers::image(DEPTH));
        for workload in rows {
            self.refreshed(&mut bed, workload, workload.name);
        }
    }

    /// Measures the walks again over other numbers of layers, which contain the same files.
    fn over_depths(&mut self) {
        for depth in DEPTHS {
            let named = metadata::DEPTH.iter().map(|w| (w, over(w, depth)));
            let rows: Vec<_> = named
                .filter(|(w, name)| wanted(self.args, name) && self.subject.takes(w))
                .collect();
            if !takes_depth(self.args, depth) || rows.is_empty() {
                continue;
            }
            let mut bed = Bed::new(self.layers, self.subject, &Layers::image(depth));
            for (workload, name) in rows {
                self.refreshed(&mut bed, workload, &name);
            }
        }
    }

    /// Measures the rows on an image of a million files.
    fn on_a_million(&mut self) {
        let takes = |w: &Workload| wanted(self.args, w.name) && self.subject.takes(w);
        let any = footprint::MILLION.iter().any(takes);
        if !any || self.layers.stack(MILLION).is_none() {
            return;
        }
        let mut bed = Bed::new(self.layers, self.subject, MILLION);
        bed.refresh().unwrap();
        for workload in footprint::MILLION {
            self.one(&mut bed, workload, workload.name);
        }
    }
}
