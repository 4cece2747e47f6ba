//! Figures of a report within pages that people write. `just bench --publish` replaces them:
//!
//! - a line of a table that begins with a known text, as in README.md;
//! - the lines between `<!-- figures: NAME -->` and `<!-- end of figures -->`.

use std::fmt::Write as _;

use super::aims;
use super::report::{DEFAULT, Report, Row};

const END: &str = "<!-- end of figures -->";

/// A page with quoted figures, and the function that replaces them.
pub(crate) struct Page {
    /// The path in the repository.
    pub(crate) path: &'static str,
    /// Returns the page with the figures of the report, or the reason why the page has no place for
    /// them.
    pub(crate) with: fn(&Report, &str) -> Result<String, String>,
}

/// The pages that quote figures.
pub(crate) const PAGES: [Page; 3] = [
    Page {
        path: "README.md",
        with: |report, text| {
            let [ours, theirs] = means(report);
            let line = format!(
                "| time of {} workloads, geometric mean ([report](docs/BENCHMARKS.md)), smaller \
                 is faster | {ours} | {theirs} | 1 |",
                report.count()
            );
            replace_line(text, "| time of ", &line)
        },
    },
    Page {
        path: "docs/guide/migration.md",
        with: |report, text| {
            let [ours, theirs] = means(report);
            let line = format!(
                "| speed: geometric mean of [{} workloads](../BENCHMARKS.md), smaller is faster | \
                 {ours} | not measured | {theirs} | not measured | 1 |",
                report.count()
            );
            replace_line(text, "| speed: ", &line)
        },
    },
    Page {
        path: "docs/PROFILE.md",
        with: |report, text| replace_block(text, "aims", &missed(report)),
    },
];

/// Returns the means of all rows of unionfs and of fuse-overlayfs.
fn means(report: &Report) -> [String; 2] {
    [DEFAULT, "fuse-overlayfs"].map(|column| {
        let mean = report.mean(column, None);
        mean.map_or("not measured".into(), |mean| format!("{:.2}", mean.ratio))
    })
}

/// Returns the rows that miss their aims with default options.
fn missed(report: &Report) -> String {
    let mut rows: Vec<(&Row, f64)> = report
        .counted()
        .filter_map(|row| Some((row, row.ratio(DEFAULT)?)))
        .filter(|(row, ratio)| !aims::is_kept(&row.name, *ratio))
        .collect();
    let by_distance = |(row, ratio): &(&Row, f64)| ratio / aims::at_most(&row.name);
    rows.sort_by(|a, b| by_distance(b).total_cmp(&by_distance(a)));
    let mut out = format!(
        "{} of {} rows miss their aims with default options:\n\n\
         | row | aim | default | messages | kernel and messages | best column of unionfs |\n\
         | --- | ---: | ---: | ---: | ---: | ---: |\n",
        rows.len(),
        report.count()
    );
    for (row, ratio) in rows {
        let (aim, best) = (aims::at_most(&row.name), report.best(row).unwrap_or(ratio));
        let messages = row.messages.map_or("–".into(), |n| n.to_string());
        let bound = report.with_messages(row);
        let bound = bound.map_or("–".into(), |bound| format!("{bound:.2}"));
        let _ = writeln!(
            out,
            "| {} | {aim} | {ratio:.2} | {messages} | {bound} | {best:.2} |",
            row.name
        );
    }
    if let Some([measured, least]) = report.means_with_messages() {
        let _ = writeln!(
            out,
            "\nThe mean of the {} rows whose messages were counted is {:.2}. With \"kernel and messages\" in each row, \
             or the\nmeasured ratio where that is smaller, it would be {:.2}.",
            measured.rows, measured.ratio, least.ratio
        );
    }
    out
}

/// Replaces the one line that begins with `start`.
fn replace_line(text: &str, start: &str, line: &str) -> Result<String, String> {
    let places = text.lines().filter(|l| l.starts_with(start)).count();
    if places != 1 {
        return Err(format!("{places} lines begin with {start:?}"));
    }
    let lines = text
        .lines()
        .map(|l| if l.starts_with(start) { line } else { l });
    Ok(lines.fold(String::new(), |all, line| all + line + "\n"))
}

/// Replaces what is between the marks of the block `name`.
fn replace_block(text: &str, name: &str, block: &str) -> Result<String, String> {
    let begin = format!("<!-- figures: {name} -->");
    let (before, rest) = text.split_once(&begin).ok_or(format!("no {begin}"))?;
    let (_, after) = rest.split_once(END).ok_or(format!("no {END}"))?;
    Ok(format!("{before}{begin}\n{block}{END}{after}"))
}
