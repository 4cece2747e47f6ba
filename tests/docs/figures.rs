//! The pages and plots that `just bench --publish` makes are those of the published report, and the
//! pages that quote figures quote the published ones. This compiles the part of the benchmark that
//! makes them.

#[path = "../../benches/compare/figures/mod.rs"]
#[allow(dead_code)]
mod made;

use std::fs;
use std::path::Path;

use made::publish::published;
use made::report::{Group, KERNEL, Report, Sample, Unit, Weight};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn report() -> Report {
    Report::read(&root().join("docs/bench/report.json"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap()
}

/// If this fails, `just bench --render docs/bench/report.json --publish` makes them again.
#[test]
fn published_files_are_made_of_the_published_report() {
    let files = published(&report(), read).unwrap();
    let differ = |(path, made): &(&'static str, Vec<u8>)| {
        (fs::read(root().join(path)).ok().as_ref() != Some(made)).then_some(*path)
    };
    let stale: Vec<_> = files.iter().filter_map(differ).collect();
    assert!(stale.is_empty(), "not of the published report: {stale:?}");
    assert!(files.len() > 6);
}

/// A page that lost the place of its figures is an error, not a page without figures.
#[test]
fn a_page_without_a_place_for_its_figures_is_noticed() {
    let without = |path: &str| read(path).replace("<!-- figures: aims -->", "");
    let why = published(&report(), without).unwrap_err();
    assert!(why.contains("docs/PROFILE.md"), "{why}");
}

/// Each row that counts has the same weight, whatever its times are; the others have none.
#[test]
fn means_weigh_every_row_once() {
    let mut report = Report::new(Vec::new(), std::collections::BTreeMap::new());
    let rows = [
        ("short", Weight::Counted, 0.001, 0.004),
        ("long", Weight::Counted, 100.0, 100.0),
        ("a variation", Weight::Aside, 1.0, 50.0),
    ];
    for (name, weight, kernel, ours) in rows {
        for (column, value) in [(KERNEL, kernel), ("unionfs", ours)] {
            let sample = Sample::seconds(value);
            report.add((name, Group::Walks, weight), column, Ok(sample));
        }
    }
    let mean = report.mean("unionfs", None).unwrap();
    assert_eq!((mean.rows, (mean.ratio * 1e6).round()), (2, 2e6));
    assert!(report.mean("unionfs", Some(Group::Data)).is_none());
}

/// A cell has the median, the least and the largest value.
#[test]
fn rows_have_a_median_and_a_range() {
    let mut report = Report::new(Vec::new(), std::collections::BTreeMap::new());
    let mut medians = Vec::new();
    for value in [3.0, 1.0, 9.0] {
        let sample = Sample {
            value,
            unit: Unit::Seconds,
            messages: None,
            bytes: None,
        };
        report.add(("row", Group::Data, Weight::Counted), KERNEL, Ok(sample));
        medians.extend(report.row("row").unwrap().median(KERNEL));
    }
    assert_eq!(medians, [3.0, 2.0, 3.0]);
    let row = report.row("row").unwrap();
    assert_eq!(row.range(KERNEL), Some((1.0, 9.0)));
}
