//! All that is made of a report, each with its place: in a directory for the person who measures,
//! and in the repository for its readers.

use std::path::Path;

use super::report::Report;
use super::{advice, page, plot, quoted};

/// A file and its contents.
pub(crate) type File = (&'static str, Vec<u8>);

/// Returns the files of the repository that are made of a report. `old` returns the present text of
/// a page that quotes figures.
///
/// # Errors
/// A page has no place for its figures.
pub(crate) fn published(
    report: &Report,
    old: impl Fn(&str) -> String,
) -> Result<Vec<File>, String> {
    let mut files = vec![
        ("docs/BENCHMARKS.md", page::page(report, "bench/").into()),
        ("docs/guide/which-options.md", advice::page(report).into()),
        ("docs/bench/report.json", report.json()),
        ("docs/bench/ratios.svg", plot::ratios(report).into()),
        ("docs/bench/layers.svg", plot::layers(report).into()),
        ("docs/bench/throughput.svg", plot::throughput(report).into()),
    ];
    for place in quoted::PAGES {
        let text = (place.with)(report, &old(place.path));
        let text = text.map_err(|why| format!("{}: {why}", place.path))?;
        files.push((place.path, text.into()));
    }
    Ok(files)
}

/// Writes `report.json` into `dir`, which exists: a row after the other, so that an aborted run leaves
/// what it has measured.
pub(crate) fn save(report: &Report, dir: &Path) {
    let part = dir.join("report.json.part");
    std::fs::write(&part, report.json()).unwrap();
    std::fs::rename(part, dir.join("report.json")).unwrap();
}

/// Writes `report.json`, `report.md` and the plots into `dir`.
pub(crate) fn write(report: &Report, dir: &Path) {
    std::fs::create_dir_all(dir).unwrap();
    let files: [File; 5] = [
        ("report.json", report.json()),
        ("report.md", page::page(report, "").into()),
        ("ratios.svg", plot::ratios(report).into()),
        ("layers.svg", plot::layers(report).into()),
        ("throughput.svg", plot::throughput(report).into()),
    ];
    for (name, bytes) in files {
        std::fs::write(dir.join(name), bytes).unwrap();
    }
}

/// Writes all pages and pictures that are made of a report into the repository at `root`.
///
/// # Panics
/// If a page has no place for its figures. Then nothing is written.
pub(crate) fn publish(report: &Report, root: &Path) {
    let old = |path: &str| std::fs::read_to_string(root.join(path)).unwrap();
    for (path, bytes) in published(report, old).unwrap() {
        std::fs::write(root.join(path), bytes).unwrap();
        eprintln!("published {path}");
    }
}
