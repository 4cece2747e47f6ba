//! The results: medians, spread and ratios to kernel overlayfs, as JSON for programs and Markdown
//! for people; and the changes between two reports.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::subjects::{NOTHING, Subject};
use crate::{aims, plot};

/// The unit of a [`Sample`]. Less is better for all units.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Unit {
    Seconds,
    Bytes,
    Count,
}

/// One measurement.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    pub(crate) value: f64,
    pub(crate) unit: Unit,
    /// The number of bytes that were moved in that time, for workloads on throughput.
    pub(crate) bytes: Option<f64>,
}

impl Sample {
    pub(crate) fn seconds(value: f64) -> Self {
        Self {
            value,
            unit: Unit::Seconds,
            bytes: None,
        }
    }

    pub(crate) fn time(time: Duration) -> Self {
        Self::seconds(time.as_secs_f64())
    }
}

/// All measurements of one workload.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) unit: Option<Unit>,
    pub(crate) bytes: Option<f64>,
    /// Values by subject, in the order of the rounds.
    values: BTreeMap<String, Vec<f64>>,
    failed: BTreeMap<String, String>,
}

impl Row {
    fn sorted(&self, subject: &str) -> Option<Vec<f64>> {
        let mut values = self.values.get(subject).filter(|v| !v.is_empty())?.clone();
        values.sort_by(f64::total_cmp);
        Some(values)
    }

    pub(crate) fn median(&self, subject: &str) -> Option<f64> {
        let values = self.sorted(subject)?;
        Some(values[values.len() / 2])
    }

    /// Returns half the distance between the fastest and the slowest round, as a share of the
    /// median.
    fn spread(&self, subject: &str) -> Option<f64> {
        let values = self.sorted(subject)?;
        Some((values[values.len() - 1] - values[0]) / 2.0 / values[values.len() / 2])
    }

    /// Returns the ratio of the subject's median to that of kernel overlayfs.
    pub(crate) fn ratio(&self, subject: &str) -> Option<f64> {
        Some(self.median(subject)? / self.median("kernel")?)
    }

    /// Whether the row counts in the geometric mean. Times of whole workloads do.
    pub(crate) fn counts(&self) -> bool {
        self.unit == Some(Unit::Seconds) && !self.name.starts_with(' ')
    }

    fn show(&self, value: f64) -> String {
        match self.unit {
            Some(Unit::Bytes) => format!("{:.1} MiB", value / 1048576.0),
            Some(Unit::Count) => format!("{value:.0}"),
            _ if value < 0.001 => format!("{:.0} µs", value * 1e6),
            _ => format!("{:.1} ms", value * 1e3),
        }
    }
}

/// All measurements of a run.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Report {
    machine: BTreeMap<String, String>,
    /// The number of complete rounds.
    pub(crate) rounds: usize,
    pub(crate) subjects: Vec<String>,
    pub(crate) rows: Vec<Row>,
}

fn first_line(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().next().map(str::to_owned)
}

fn machine(disk: &str) -> BTreeMap<String, String> {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = cpu.lines().find_map(|l| l.strip_prefix("model name"));
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let facts = [
        ("date", first_line("date", &["+%F"])),
        ("kernel", first_line("uname", &["-r"])),
        ("CPUs", Some(cpus.to_string())),
        (
            "CPU",
            cpu.map(|c| c.trim_start_matches(['\t', ' ', ':']).to_owned()),
        ),
        ("disk", Some(disk.to_owned())),
        (
            "unionfs",
            first_line("git", &["describe", "--always", "--dirty", "--tags"]),
        ),
        ("fio", first_line("fio", &["--version"])),
    ];
    let known = facts
        .into_iter()
        .filter_map(|(k, v)| Some((k.to_owned(), v?)));
    known.collect()
}

impl Report {
    pub(crate) fn new(subjects: &[Subject], rounds: usize, disk: &str) -> Self {
        let mut machine = machine(disk);
        for subject in subjects {
            if let Some(version) = subject.version() {
                machine.insert(subject.name.clone(), version);
            }
        }
        Self {
            machine,
            rounds,
            subjects: subjects.iter().map(|s| s.name.clone()).collect(),
            rows: Vec::new(),
        }
    }

    pub(crate) fn add(&mut self, name: &str, subject: &str, outcome: Result<Sample, String>) {
        let found = self.rows.iter().position(|r| r.name == name);
        let index = found.unwrap_or_else(|| {
            self.rows.push(Row {
                name: name.to_owned(),
                unit: None,
                bytes: None,
                values: BTreeMap::new(),
                failed: BTreeMap::new(),
            });
            self.rows.len() - 1
        });
        let row = &mut self.rows[index];
        match outcome {
            Ok(sample) => {
                row.unit = Some(sample.unit);
                row.bytes = sample.bytes;
                let values = row.values.entry(subject.to_owned()).or_default();
                values.push(sample.value);
            }
            Err(why) => {
                row.failed.insert(subject.to_owned(), why);
            }
        }
    }

    /// Returns the rows that count, each with the ratio that `of` returns.
    fn counted<'a>(&'a self, of: impl Fn(&Row) -> Option<f64> + 'a) -> Vec<(&'a Row, f64)> {
        let rows = self.rows.iter().filter(|r| r.counts());
        rows.filter_map(|r| Some((r, of(r)?))).collect()
    }

    /// Returns the ratio for a user of unionfs who chooses the best policy for the row.
    fn best(&self, row: &Row) -> Option<f64> {
        let ours = self.subjects.iter().filter(|s| s.starts_with("unionfs"));
        ours.filter_map(|s| row.ratio(s)).reduce(f64::min)
    }

    /// Describes the geometric means, and the rows with large ratios.
    fn summary(&self) -> String {
        let mut out = String::new();
        let mut line = |name: &str, rows: &[(&Row, f64)]| {
            if rows.is_empty() {
                return;
            }
            let logs: f64 = rows.iter().map(|(_, ratio)| ratio.ln()).sum();
            let mean = (logs / rows.len() as f64).exp();
            let _ = writeln!(
                out,
                "- {name}: geometric mean {mean:.2}x over {} workloads",
                rows.len()
            );
        };
        for subject in &self.subjects {
            line(subject, &self.counted(|row| row.ratio(subject)));
        }
        let best = self.counted(|row| self.best(row));
        line("unionfs, the best column of each row", &best);
        for (name, mut rows) in [
            (
                "unionfs with default options",
                self.counted(|row| row.ratio("unionfs")),
            ),
            ("the best column", best),
        ] {
            rows.sort_by(|a, b| b.1.total_cmp(&a.1));
            let list = |rows: Vec<String>| {
                if rows.is_empty() {
                    "nothing".into()
                } else {
                    rows.join(", ")
                }
            };
            let far = rows.iter().filter(|(_, ratio)| *ratio > 3.0);
            let far = list(
                far.map(|(r, ratio)| format!("{} {ratio:.1}x", r.name))
                    .collect(),
            );
            let _ = writeln!(out, "- above 3x, {name}: {far}");
            let all = rows.len();
            rows.retain(|(row, ratio)| !aims::is_kept(&row.name, *ratio));
            let missed = rows.iter().map(|(row, ratio)| {
                let aim = aims::at_most(&row.name);
                format!("{} {ratio:.2}x (at most {aim})", row.name)
            });
            let missed = list(missed.collect());
            let _ = writeln!(
                out,
                "- aims kept, {name}: {} of {all}; missed: {missed}",
                all - rows.len()
            );
        }
        out
    }

    pub(crate) fn markdown(&self) -> String {
        let mut out = String::from("| workload |");
        for subject in &self.subjects {
            let _ = write!(out, " {subject} |");
        }
        out += "\n| --- |";
        out += &" ---: |".repeat(self.subjects.len());
        out += "\n";
        for row in &self.rows {
            let _ = write!(out, "| {} |", row.name.replace("  ", "&emsp;"));
            for subject in &self.subjects {
                let _ = write!(out, " {} |", Self::cell(row, subject));
            }
            out += "\n";
        }
        out += "\n";
        out += &self.summary();
        out += "\n";
        out
    }

    fn cell(row: &Row, subject: &str) -> String {
        let Some(median) = row.median(subject) else {
            return "–".into();
        };
        let mut cell = row.show(median);
        if let Some(spread) = row.spread(subject) {
            let _ = write!(cell, " ±{:.0}%", spread * 100.0);
        }
        if let (Some(ratio), true) = (row.ratio(subject), subject != "kernel") {
            let _ = write!(cell, ", **{ratio:.2}x**");
        }
        if let Some(bytes) = row.bytes {
            let _ = write!(cell, ", {:.0} MiB/s", bytes / median / 1048576.0);
        }
        cell
    }

    /// Returns the report with the explanations that a reader needs.
    fn page(&self, plots: &str) -> String {
        let mut page = String::from(
            "# Benchmarks\n\nThis page is the last published run of `just bench --publish`. \
             `benches/compare/report.rs` generates it; do not edit it. Each cell has the median, \
             half the range in percent, and the ratio to kernel overlayfs in the same run \
             (smaller is faster). The subjects take turns in every round, in another order in \
             each round. [Where the time goes](PROFILE.md) explains the ratios.\n\n",
        );
        page += COLUMNS;
        let _ = writeln!(page, "{} rounds.\n", self.rounds);
        for (what, value) in &self.machine {
            let _ = writeln!(page, "- {what}: {value}");
        }
        let _ = write!(
            page,
            "\n![ratio to kernel overlayfs]({plots}ratios.svg)\n\n![time over the number of \
             layers]({plots}layers.svg)\n\n![throughput over the size of a \
             request]({plots}throughput.svg)\n\n"
        );
        page + &self.markdown() + &self.failures()
    }

    fn failures(&self) -> String {
        let mut out = String::new();
        for row in &self.rows {
            for (subject, why) in row.failed.iter().filter(|(_, why)| *why != NOTHING) {
                let why = why.lines().next_back().unwrap_or_default();
                let _ = writeln!(out, "- {subject} failed at {}: {why}", row.name);
            }
        }
        if out.is_empty() {
            return out;
        }
        format!("\n## Failures\n\n{out}")
    }

    /// Writes `report.json`, `report.md` and the plots into `dir`.
    pub(crate) fn write(&self, dir: &Path) {
        std::fs::create_dir_all(dir).unwrap();
        let json = serde_json::to_vec_pretty(self).unwrap();
        std::fs::write(dir.join("report.json"), json).unwrap();
        std::fs::write(dir.join("report.md"), self.page("")).unwrap();
        plot::write(self, dir);
    }

    /// Writes the report into `docs/`, for readers of the repository.
    pub(crate) fn publish(&self) {
        let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
        let plots: PathBuf = docs.join("bench");
        std::fs::create_dir_all(&plots).unwrap();
        std::fs::write(docs.join("BENCHMARKS.md"), self.page("bench/")).unwrap();
        let json = serde_json::to_vec_pretty(self).unwrap();
        std::fs::write(plots.join("report.json"), json).unwrap();
        plot::write(self, &plots);
    }
}

/// The description of the columns.
const COLUMNS: &str = "\
- kernel: kernel overlayfs on the directories of the image's layers in our own store. A program
  makes the system call, as mount(8) does.
- unionfs: `unionfs mount IMAGE` by root with default options, and with a catalog that exists
  already. `io=auto` is `passthrough` here: the kernel reads and writes the files, and each open
  costs a message. `transport=auto` is `classic` unless root has switched io_uring on.
- unionfs io=cached: the default for plain users, and for root before Linux 6.9. An open costs no
  message, and each write is a message.
- unionfs writeback: `io=cached,writeback`, for the rows where it matters. The kernel collects
  writes. They are lost with the server until the file is closed or synced.
- unionfs metacopy=on, kernel metacopy=on: changes of metadata copy no data. Only for the row of chown.
- unionfs transport=uring: as the first, over io_uring (`enable_uring` is Y).
- fuse-overlayfs: on the same directories.
- plain: an ordinary directory with the same files, without a union.

The geometric mean leaves out rows that begin with a space, amounts of memory, and counts. `auto`
is `passthrough` for root because whole programs take as long either way, and data is written
several times as fast. `io=cached` is faster where files are mostly opened and read again.
Read-only mounts are `cached` with `auto`, also the ten mounts whose page cache is measured. With
`io=passthrough` these share the pages of the layers.

";

/// The factor below which a change counts as noise.
const NOISE: f64 = 1.15;

/// Prints the changes in unionfs' ratios. Fails if a row became slower.
pub(crate) fn diff(old: &Path, new: &Path) -> ExitCode {
    let read = |path: &Path| -> Report {
        let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        serde_json::from_slice(&bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    };
    let (old, new) = (read(old), read(new));
    let mut slower = 0;
    for row in &new.rows {
        let before = old.rows.iter().find(|r| r.name == row.name);
        let before = before.and_then(|r| r.ratio("unionfs"));
        let (Some(before), Some(after)) = (before, row.ratio("unionfs")) else {
            continue;
        };
        let word = match after / before {
            change if change > NOISE => "SLOWER",
            change if change < 1.0 / NOISE => "faster",
            _ => "",
        };
        slower += i32::from(word == "SLOWER");
        println!("{:40} {before:6.2}x → {after:6.2}x  {word}", row.name);
    }
    ExitCode::from(u8::from(slower > 0))
}
