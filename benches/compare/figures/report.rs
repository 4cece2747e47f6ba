//! The data of a run: medians, spread, ratios to kernel overlayfs, and means of groups of rows.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The column to which the ratios refer.
pub(crate) const KERNEL: &str = "kernel";
/// Our column with default options, on plain directories.
pub(crate) const DEFAULT: &str = "unionfs";

/// The row of messages that the server answers from memory, and their number.
pub(crate) const EMPTY: &str = "20000 messages without work";
pub(crate) const EMPTY_MESSAGES: u32 = 20_000;

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
    /// The number of messages of FUSE that were sent in that time, if it was counted.
    pub(crate) messages: Option<u64>,
}

impl Sample {
    pub(crate) fn seconds(value: f64) -> Self {
        Self {
            value,
            unit: Unit::Seconds,
            bytes: None,
            messages: None,
        }
    }

    pub(crate) fn time(time: Duration) -> Self {
        Self::seconds(time.as_secs_f64())
    }
}

/// The reason why a row has no figure for a subject to which it does not apply. This is no failure.
pub(crate) const NOTHING: &str = "has no such thing";

/// The fact that a run was aborted.
const STATE: &str = "the run";

/// What the rows of a table have in common.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Group {
    Mounts,
    Walks,
    Metadata,
    Data,
    Programs,
    /// Beside other processes, with many clients, on fewer CPUs. No mean is made of these.
    Busy,
    /// Memory, descriptors and processor time. No mean is made of these.
    Costs,
}

impl Group {
    pub(crate) const ALL: [Self; 7] = [
        Self::Mounts,
        Self::Walks,
        Self::Metadata,
        Self::Data,
        Self::Programs,
        Self::Busy,
        Self::Costs,
    ];

    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Mounts => "Mounts",
            Self::Walks => "Walks, lookups and opens",
            Self::Metadata => "Metadata",
            Self::Data => "Data",
            Self::Programs => "Programs",
            Self::Busy => "Busy machines and many clients",
            Self::Costs => "Costs",
        }
    }
}

/// Whether a row is one of those of which a mean is made.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Weight {
    /// It counts once, as every other such row.
    Counted,
    /// It is a variation of a row that counts, such as another number of layers or another size of
    /// a request, or no time of a whole workload.
    Aside,
}

/// All measurements of one workload.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) group: Group,
    pub(crate) weight: Weight,
    pub(crate) unit: Option<Unit>,
    pub(crate) bytes: Option<f64>,
    /// The number of messages of FUSE in the column [`DEFAULT`].
    #[serde(default)]
    pub(crate) messages: Option<u64>,
    /// Values by column, in the order of the rounds.
    values: BTreeMap<String, Vec<f64>>,
    /// Reasons by column.
    pub(crate) failed: BTreeMap<String, String>,
}

impl Row {
    fn sorted(&self, column: &str) -> Option<Vec<f64>> {
        let mut values = self.values.get(column).filter(|v| !v.is_empty())?.clone();
        values.sort_by(f64::total_cmp);
        Some(values)
    }

    /// Returns the median; of an even number of values, the middle between the two in the middle.
    pub(crate) fn median(&self, column: &str) -> Option<f64> {
        let values = self.sorted(column)?;
        let (low, high) = (values[(values.len() - 1) / 2], values[values.len() / 2]);
        Some(f64::midpoint(low, high))
    }

    /// Returns the least and the largest value.
    pub(crate) fn range(&self, column: &str) -> Option<(f64, f64)> {
        let values = self.sorted(column)?;
        Some((values[0], values[values.len() - 1]))
    }

    /// Returns the ratio of the column's median to that of kernel overlayfs.
    pub(crate) fn ratio(&self, column: &str) -> Option<f64> {
        Some(self.median(column)? / self.median(KERNEL)?)
    }

    pub(crate) fn counts(&self) -> bool {
        self.weight == Weight::Counted
    }
}

/// One column: a subject of the measurements.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Column {
    pub(crate) name: String,
    /// How its files were mounted, for readers.
    pub(crate) mounted: String,
}

impl Column {
    pub(crate) fn is_ours(&self) -> bool {
        self.name.starts_with(DEFAULT)
    }
}

/// All measurements of a run.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Report {
    /// Facts on the machine and the programs.
    pub(crate) machine: BTreeMap<String, String>,
    /// The number of complete rounds.
    pub(crate) rounds: usize,
    pub(crate) columns: Vec<Column>,
    pub(crate) rows: Vec<Row>,
}

/// A geometric mean of ratios.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mean {
    pub(crate) ratio: f64,
    /// The number of rows that have a ratio.
    pub(crate) rows: usize,
}

/// Returns the mean of `ratios`; `None` if there are none.
pub(crate) fn mean(ratios: impl Iterator<Item = f64>) -> Option<Mean> {
    let (mut logs, mut rows) = (0.0, 0);
    for ratio in ratios {
        logs += ratio.ln();
        rows += 1;
    }
    (rows > 0).then(|| Mean {
        ratio: (logs / rows as f64).exp(),
        rows,
    })
}

impl Report {
    pub(crate) fn new(columns: Vec<Column>, machine: BTreeMap<String, String>) -> Self {
        Self {
            machine,
            rounds: 0,
            columns,
            rows: Vec::new(),
        }
    }

    /// Notes that a round began. The note stays if the run is aborted.
    pub(crate) fn begin(&mut self, round: usize) {
        let note = format!("was aborted in round {round}");
        self.machine.insert(STATE.into(), note);
    }

    /// Notes that all rounds are complete.
    pub(crate) fn end(&mut self) {
        self.machine.remove(STATE);
    }

    /// Adds a measurement, or the reason why there is none, to the row `name`.
    pub(crate) fn add(
        &mut self,
        (name, group, weight): (&str, Group, Weight),
        column: &str,
        outcome: Result<Sample, String>,
    ) {
        let found = self.rows.iter().position(|r| r.name == name);
        let index = found.unwrap_or_else(|| {
            self.rows.push(Row {
                name: name.to_owned(),
                group,
                weight,
                unit: None,
                bytes: None,
                messages: None,
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
                row.messages = sample.messages.or(row.messages);
                let values = row.values.entry(column.to_owned()).or_default();
                // Nanoseconds are enough. A number with more digits may be read as another one than was
                // written.
                values.push((sample.value * 1e9).round() / 1e9);
            }
            Err(why) => {
                row.failed.insert(column.to_owned(), why);
            }
        }
    }

    /// # Panics
    /// If the file cannot be read or is no report.
    pub(crate) fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        serde_json::from_slice(&bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }

    pub(crate) fn json(&self) -> Vec<u8> {
        serde_json::to_vec_pretty(self).unwrap()
    }

    pub(crate) fn row(&self, name: &str) -> Option<&Row> {
        self.rows.iter().find(|r| r.name == name)
    }

    pub(crate) fn counted(&self) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(|r| r.counts())
    }

    /// Returns the number of rows of which means are made.
    pub(crate) fn count(&self) -> usize {
        self.counted()
            .filter(|r| r.median(KERNEL).is_some())
            .count()
    }

    /// Returns the mean of all rows that count, or of those of a group.
    pub(crate) fn mean(&self, column: &str, group: Option<Group>) -> Option<Mean> {
        let rows = self
            .counted()
            .filter(|r| group.is_none_or(|g| r.group == g));
        mean(rows.filter_map(|r| r.ratio(column)))
    }

    /// Whether a column was measured in all parts, so that a mean of all rows says something.
    pub(crate) fn is_whole(&self, column: &str) -> bool {
        let with = self.counted().filter(|r| r.median(column).is_some());
        with.count() * 2 > self.count()
    }

    /// Returns the ratio for a user of unionfs who chooses the best options for the row.
    pub(crate) fn best(&self, row: &Row) -> Option<f64> {
        let ours = self.columns.iter().filter(|c| c.is_ours());
        ours.filter_map(|c| row.ratio(&c.name)).reduce(f64::min)
    }

    /// Returns the ratio of a column that does the work of kernel overlayfs in the same time, and
    /// sends the messages of the column [`DEFAULT`], each at the cost of one without work.
    pub(crate) fn with_messages(&self, row: &Row) -> Option<f64> {
        let empty = self.row(EMPTY)?;
        let message = (empty.median(DEFAULT)? - empty.median(KERNEL)?) / f64::from(EMPTY_MESSAGES);
        Some(1.0 + row.messages? as f64 * message / row.median(KERNEL)?)
    }

    /// Returns the means of the rows whose messages were counted: of the column [`DEFAULT`], and of
    /// [`Self::with_messages`], or of the column where that is faster.
    pub(crate) fn means_with_messages(&self) -> Option<[Mean; 2]> {
        let both = |row: &Row| Some((row.ratio(DEFAULT)?, self.with_messages(row)?));
        let rows: Vec<_> = self.counted().filter_map(both).collect();
        let measured = rows.iter().map(|(ratio, _)| *ratio);
        let least = rows.iter().map(|(ratio, least)| least.min(*ratio));
        Some([mean(measured)?, mean(least)?])
    }

    /// Returns what is known of the machine, or "unknown".
    pub(crate) fn fact(&self, name: &str) -> &str {
        self.machine.get(name).map_or("unknown", String::as_str)
    }
}
