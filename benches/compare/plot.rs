//! The plots of a report as SVG: ratios of all workloads as bars, and time over the number of
//! layers. Used by `report`. Colours are distinct without colour vision too (Okabe and Ito).

use std::fmt::Write as _;
use std::path::Path;

use crate::report::Report;

const COLOURS: [&str; 4] = ["#000000", "#0072b2", "#d55e00", "#999999"];
const TEXT: &str = "font-family=\"sans-serif\" font-size=\"12\"";

/// `ratios.svg` and `layers.svg` in `dir`.
pub(crate) fn write(report: &Report, dir: &Path) {
    std::fs::write(dir.join("ratios.svg"), ratios(report)).unwrap();
    std::fs::write(dir.join("layers.svg"), layers(report)).unwrap();
}

fn svg(width: f64, height: f64, body: &str) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\">\n<rect width=\"100%\" height=\"100%\" \
         fill=\"white\"/>\n{body}</svg>\n"
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

/// Columns other than kernel overlayfs, with their colours.
fn others(report: &Report) -> Vec<(&str, &str)> {
    let all = report.subjects.iter().map(String::as_str).zip(COLOURS);
    all.filter(|(name, _)| *name != "kernel").collect()
}

fn legend(body: &mut String, subjects: &[(&str, &str)], left: f64) {
    for (n, (name, colour)) in subjects.iter().enumerate() {
        let x = left + n as f64 * 150.0;
        let _ = writeln!(
            body,
            "<rect x=\"{x}\" y=\"8\" width=\"12\" height=\"12\" fill=\"{colour}\"/>\
             <text x=\"{}\" y=\"18\" {TEXT}>{}</text>",
            x + 18.0,
            escape(name)
        );
    }
}

/// Where a ratio is on a logarithmic axis from 1/8 to 64.
fn across(ratio: f64) -> f64 {
    (ratio.clamp(0.125, 64.0).log2() + 3.0) / 9.0
}

fn ratios(report: &Report) -> String {
    let subjects = others(report);
    let rows: Vec<_> = report.rows.iter().filter(|r| r.counts()).collect();
    let (left, wide, bar) = (290.0, 500.0, 7.0);
    let step = bar * subjects.len() as f64 + 8.0;
    let height = 60.0 + step * rows.len() as f64;
    let mut body = String::new();
    legend(&mut body, &subjects, left);
    for power in -3..=6 {
        let x = left + wide * across(2f64.powi(power));
        let colour = if power == 0 { "black" } else { "#dddddd" };
        let label = if power < 0 {
            format!("1/{}", 1 << -power)
        } else {
            format!("{}", 1 << power)
        };
        let _ = writeln!(
            body,
            "<line x1=\"{x}\" y1=\"44\" x2=\"{x}\" y2=\"{height}\" stroke=\"{colour}\"/>\
             <text x=\"{x}\" y=\"38\" text-anchor=\"middle\" {TEXT}>{label}</text>"
        );
    }
    for (n, row) in rows.iter().enumerate() {
        let y = 50.0 + step * n as f64;
        let _ = writeln!(
            body,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\" {TEXT}>{}</text>",
            left - 6.0,
            y + step / 2.0,
            escape(row.name.trim())
        );
        for (s, (name, colour)) in subjects.iter().enumerate() {
            let Some(ratio) = row.ratio(name) else {
                continue;
            };
            let (from, to) = (across(1.0), across(ratio));
            let _ = writeln!(
                body,
                "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{}\" fill=\"{colour}\"/>",
                left + wide * from.min(to),
                y + s as f64 * bar,
                (wide * (to - from).abs()).max(1.0),
                bar - 1.0
            );
        }
    }
    svg(left + wide + 30.0, height, &body)
}

/// Medians of a workload by number of layers.
fn by_depth(report: &Report, workload: &str, subject: &str) -> Vec<(f64, f64)> {
    let mut points: Vec<(f64, f64)> = Vec::new();
    for row in &report.rows {
        let depth = match row.name.strip_prefix(workload) {
            Some("") => Some(4.0),
            Some(rest) => rest
                .strip_prefix(", ")
                .and_then(|r| r.strip_suffix(" layers")?.parse().ok()),
            None => None,
        };
        if let (Some(depth), Some(median)) = (depth, row.median(subject)) {
            points.push((depth, median * 1e3));
        }
    }
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    points
}

fn layers(report: &Report) -> String {
    let subjects: Vec<_> = report
        .subjects
        .iter()
        .map(String::as_str)
        .zip(COLOURS)
        .filter(|(name, _)| *name != "plain")
        .collect();
    let (wide, high) = (300.0, 220.0);
    let mut body = String::new();
    legend(&mut body, &subjects, 60.0);
    for (panel, workload) in ["cold walk after mount", "warm walk with stat"]
        .iter()
        .enumerate()
    {
        let (left, top) = (60.0 + panel as f64 * (wide + 80.0), 50.0);
        let lines: Vec<_> = subjects
            .iter()
            .map(|(name, colour)| (by_depth(report, workload, name), colour))
            .collect();
        let most = lines.iter().flat_map(|(p, _)| p).map(|p| p.1);
        let most = most.fold(1.0, f64::max);
        let x = |depth: f64| left + wide * depth.log2() / 7.0;
        let y = |ms: f64| top + high * (1.0 - ms / most);
        let _ = writeln!(
            body,
            "<text x=\"{left}\" y=\"42\" {TEXT}>{workload}, ms (top: {most:.0}) by layers</text>\
             <rect x=\"{left}\" y=\"{top}\" width=\"{wide}\" height=\"{high}\" fill=\"none\" \
             stroke=\"#dddddd\"/>"
        );
        for depth in [1.0, 4.0, 32.0, 128.0] {
            let _ = writeln!(
                body,
                "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\" {TEXT}>{depth}</text>",
                x(depth),
                top + high + 16.0
            );
        }
        for (points, colour) in lines {
            let path: Vec<_> = points
                .iter()
                .map(|(d, ms)| format!("{:.1},{:.1}", x(*d), y(*ms)))
                .collect();
            let _ = writeln!(
                body,
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
                path.join(" ")
            );
        }
    }
    svg(2.0 * wide + 180.0, high + 90.0, &body)
}
