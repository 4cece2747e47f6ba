//! The page of all figures, `docs/BENCHMARKS.md`.

use std::fmt::Write as _;

use super::aims;
use super::report::{Column, DEFAULT, Group, KERNEL, NOTHING, Report, Row, Unit, Weight};

/// What the reader has to know before the tables.
const HEAD: &str = "# Benchmarks

This page is the last published run of `just bench --publish`. `benches/compare` generates it; do not edit it. Each
cell has the median of the rounds, the smallest and the largest value in brackets, and the ratio to kernel overlayfs
in the same run (smaller is faster). The subjects take turns in every round, in another order in each round.
[Which options for which work](guide/which-options.md) draws the conclusions,
[Where the time goes](PROFILE.md) explains the ratios.
";

const MEANS: &str = "## Means

Geometric means of the ratios. Every row counts once. Rows in italics are variations of another row (a number of
layers, a size of requests, more clients), or no time of a whole workload, and do not count. A number in brackets is
the number of rows, where a column has not all of them.
";

/// The number of rows in the list of the worst.
const WORST: usize = 12;

/// Returns the page. The pictures are in the directory `plots`, which is empty or ends with a slash.
pub(crate) fn page(report: &Report, plots: &str) -> String {
    let mut page = String::from(HEAD);
    page += "\nThe columns:\n\n";
    for Column { name, mounted } in &report.columns {
        let _ = writeln!(page, "- {name}: {mounted}");
    }
    let _ = writeln!(page, "\n| machine and programs | |\n| --- | --- |");
    let _ = writeln!(page, "| rounds | {} |", report.rounds);
    for (what, value) in &report.machine {
        let _ = writeln!(page, "| {what} | {value} |");
    }
    let _ = write!(
        page,
        "\n![ratios to kernel overlayfs]({plots}ratios.svg)\n\n![time over the number of \
         layers]({plots}layers.svg)\n\n![throughput over the size of a \
         request]({plots}throughput.svg)\n\n"
    );
    page + &tables(report)
}

/// Returns the part of the page that a terminal shows after a run: all tables.
pub(crate) fn tables(report: &Report) -> String {
    let mut out = format!("{MEANS}\n{}", means(report));
    out += &worst(report);
    for group in Group::ALL {
        out += &table(report, group);
    }
    out + &failures(report)
}

/// Returns a table row: the first cell, and one for each column.
fn line(first: &str, cells: impl Iterator<Item = String>) -> String {
    cells.fold(format!("| {first} |"), |line, cell| {
        line + &format!(" {cell} |")
    }) + "\n"
}

fn head<'a>(first: &str, columns: impl Iterator<Item = &'a Column> + Clone) -> String {
    let names = line(first, columns.clone().map(|c| c.name.clone()));
    names + &line("---", columns.map(|_| "---:".into()))
}

fn means(report: &Report) -> String {
    let columns = || {
        let some = report.columns.iter();
        some.filter(|c| report.mean(&c.name, None).is_some())
    };
    let cell = |column: &str, group: Option<Group>| {
        let most = report.mean(KERNEL, group).map_or(0, |mean| mean.rows);
        match report.mean(column, group) {
            None => "–".into(),
            Some(mean) if mean.rows == most => format!("{:.2}", mean.ratio),
            Some(mean) => format!("{:.2} ({})", mean.ratio, mean.rows),
        }
    };
    let mut out = head("group", columns());
    for group in Group::ALL {
        if report.mean(KERNEL, Some(group)).is_none() {
            continue;
        }
        let rows = report.mean(KERNEL, Some(group)).map_or(0, |mean| mean.rows);
        let noun = if rows == 1 { "row" } else { "rows" };
        let first = format!("{}, {rows} {noun}", group.title());
        out += &line(&first, columns().map(|c| cell(&c.name, Some(group))));
    }
    let first = format!("**all {} rows**", report.count());
    let all = |c: &Column| {
        if report.is_whole(&c.name) {
            cell(&c.name, None)
        } else {
            // The mean of a part of the rows, beside those of all rows, misleads.
            "–".into()
        }
    };
    out += &line(&first, columns().map(all));
    let best = super::report::mean(report.counted().filter_map(|row| report.best(row)));
    if let Some(best) = best {
        let _ = writeln!(
            out,
            "\nWith the best column of unionfs in each row: {:.2} over {} rows.",
            best.ratio, best.rows
        );
    }
    out
}

/// Lists the rows with the largest ratios of the default, and how many keep their aims.
fn worst(report: &Report) -> String {
    let mut rows: Vec<(&Row, f64)> = report
        .counted()
        .filter_map(|row| Some((row, row.ratio(DEFAULT)?)))
        .collect();
    rows.sort_by(|a, b| b.1.total_cmp(&a.1));
    let all = rows.len();
    let kept = |of: &dyn Fn(&Row) -> Option<f64>| {
        let ratios = report.counted().filter_map(|row| Some((row, of(row)?)));
        ratios
            .filter(|(row, ratio)| aims::is_kept(&row.name, *ratio))
            .count()
    };
    let mut out = format!(
        "\n## Worst rows\n\nOf {all} rows, {} keep their aims (`benches/compare/figures/aims.rs`) \
         with default options, and {} with the best column of unionfs. These have the largest \
         ratios with default options:\n\n| row | ratio | aim | best column of unionfs |\n\
         | --- | ---: | ---: | ---: |\n",
        kept(&|row| row.ratio(DEFAULT)),
        kept(&|row| report.best(row)),
    );
    for (row, ratio) in rows.iter().take(WORST) {
        let (best, aim) = (report.best(row).unwrap_or(*ratio), aims::at_most(&row.name));
        let _ = writeln!(out, "| {} | {ratio:.2} | {aim} | {best:.2} |", row.name);
    }
    out
}

/// Returns the table of a group, with the columns that have figures in it.
fn table(report: &Report, group: Group) -> String {
    let rows = || report.rows.iter().filter(|r| r.group == group);
    if rows().next().is_none() {
        return String::new();
    }
    let columns = || {
        let used = |c: &&Column| rows().any(|r| r.median(&c.name).is_some());
        report.columns.iter().filter(used)
    };
    let mut out = format!("\n## {}\n\n{}", group.title(), head("workload", columns()));
    for row in rows() {
        let name = match row.weight {
            Weight::Counted => row.name.clone(),
            Weight::Aside => format!("*{}*", row.name),
        };
        out += &line(&name, columns().map(|c| cell(row, &c.name)));
    }
    out
}

fn cell(row: &Row, column: &str) -> String {
    let (Some(median), Some((least, most))) = (row.median(column), row.range(column)) else {
        return "–".into();
    };
    let mut cell = amount(row, median, least, most);
    if let (Some(ratio), true) = (row.ratio(column), column != KERNEL) {
        let _ = write!(cell, ", **{ratio:.2}**");
    }
    if let Some(bytes) = row.bytes {
        let _ = write!(cell, ", {:.0} MiB/s", bytes / median / 1048576.0);
    }
    cell
}

/// Returns `median (least–most) unit`.
fn amount(row: &Row, median: f64, least: f64, most: f64) -> String {
    let (scale, places, unit) = match row.unit {
        Some(Unit::Bytes) => (1.0 / 1048576.0, 1, " MiB"),
        Some(Unit::Count) => (1.0, 0, ""),
        _ if median < 0.001 => (1e6, 0, " µs"),
        _ if median < 0.1 => (1e3, 1, " ms"),
        _ => (1e3, 0, " ms"),
    };
    let [median, least, most] = [median, least, most].map(|v| format!("{:.places$}", v * scale));
    format!("{median} ({least}–{most}){unit}")
}

fn failures(report: &Report) -> String {
    let mut out = String::new();
    for row in &report.rows {
        for (column, why) in row.failed.iter().filter(|(_, why)| *why != NOTHING) {
            let why = why.trim().lines().next_back().unwrap_or_default();
            let _ = writeln!(out, "- {column} failed at {}: {why}", row.name);
        }
    }
    if out.is_empty() {
        return out;
    }
    format!("\n## Failures\n\n{out}")
}
