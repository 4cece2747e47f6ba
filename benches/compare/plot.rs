//! The plots of a report as SVG: ratios of all workloads as bars, time over the number of layers,
//! throughput over the size of a request. Colours can be told apart without colour vision too
//! (Okabe and Ito).

use std::fmt::Write as _;
use std::path::Path;

use crate::layers::DEPTH;
use crate::report::{Report, Row};

const COLOURS: [&str; 6] = [
    "#000000", "#0072b2", "#56b4e9", "#009e73", "#d55e00", "#999999",
];
const TEXT: &str = "font-family=\"sans-serif\" font-size=\"12\"";

/// Writes `ratios.svg`, `layers.svg` and `throughput.svg` into `dir`.
pub(crate) fn write(report: &Report, dir: &Path) {
    std::fs::write(dir.join("ratios.svg"), ratios(report)).unwrap();
    std::fs::write(dir.join("layers.svg"), layers(report)).unwrap();
    std::fs::write(dir.join("throughput.svg"), throughput(report)).unwrap();
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

/// Returns the columns other than kernel overlayfs, with their colours.
fn others(report: &Report) -> Vec<(&str, &str)> {
    let all = report.subjects.iter().map(String::as_str).zip(COLOURS);
    all.filter(|(name, _)| *name != "kernel").collect()
}

fn legend(body: &mut String, subjects: &[(&str, &str)], left: f64) {
    for (n, (name, colour)) in subjects.iter().enumerate() {
        let x = left + n as f64 * 175.0;
        let _ = writeln!(
            body,
            "<rect x=\"{x}\" y=\"8\" width=\"12\" height=\"12\" fill=\"{colour}\"/>\
             <text x=\"{}\" y=\"18\" {TEXT}>{}</text>",
            x + 18.0,
            escape(name)
        );
    }
}

/// Returns the position of a ratio on a logarithmic axis from 1/8 to 64.
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

/// A line chart: one point for each label below, from left to right.
struct Panel {
    title: String,
    labels: Vec<String>,
    /// Lines by subject, in the order of [`mounts`]; `None` if there is no figure.
    lines: Vec<Vec<Option<f64>>>,
}

/// Returns all subjects but the plain directory, with their colours.
fn mounts(report: &Report) -> Vec<(&str, &str)> {
    let all = report.subjects.iter().map(String::as_str).zip(COLOURS);
    all.filter(|(name, _)| *name != "plain").collect()
}

fn panel(
    report: &Report,
    title: &str,
    points: &[(String, String)],
    figure: impl Fn(&Row, &str) -> Option<f64>,
) -> Panel {
    let line = |(subject, _): &(&str, &str)| {
        let figure = |(_, name): &(String, String)| {
            let row = report.rows.iter().find(|r| r.name == *name)?;
            figure(row, subject)
        };
        points.iter().map(figure).collect()
    };
    Panel {
        title: title.to_owned(),
        labels: points.iter().map(|(label, _)| label.clone()).collect(),
        lines: mounts(report).iter().map(line).collect(),
    }
}

/// Draws milliseconds over the number of layers.
fn layers(report: &Report) -> String {
    let panels = ["cold walk after mount", "warm walk with stat"].map(|workload| {
        let points = [1, 4, 32, 128, 500].map(|depth| {
            let name = match depth {
                DEPTH => workload.to_owned(),
                _ => format!("{workload}, {depth} layers"),
            };
            (depth.to_string(), name)
        });
        let title = format!("{workload}, ms by layers");
        panel(report, &title, &points, |row, subject| {
            Some(row.median(subject)? * 1e3)
        })
    });
    draw(report, &panels)
}

/// Draws MiB/s over the size of a read or write.
fn throughput(report: &Report) -> String {
    let panels = [("read", "lower"), ("write", "new")].map(|(way, file)| {
        let points = ["4k", "128k", "1m"]
            .map(|block| (block.to_owned(), format!("fio seq{way}-{block}-{file}")));
        let title = format!("sequential {way}, buffered, MiB/s by block size");
        panel(report, &title, &points, |row, subject| {
            Some(row.bytes? / row.median(subject)? / 1048576.0)
        })
    });
    draw(report, &panels)
}

fn draw(report: &Report, panels: &[Panel]) -> String {
    let subjects = mounts(report);
    let (wide, high) = (400.0, 220.0);
    let mut body = String::new();
    legend(&mut body, &subjects, 60.0);
    for (n, panel) in panels.iter().enumerate() {
        let (left, top) = (60.0 + n as f64 * (wide + 80.0), 50.0);
        let most = panel.lines.iter().flatten().flatten();
        let most = most.fold(1.0, |a: f64, b| a.max(*b));
        let last = (panel.labels.len() - 1) as f64;
        let x = |n: usize| left + wide * n as f64 / last;
        let y = |value: f64| top + high * (1.0 - value / most);
        let _ = writeln!(
            body,
            "<text x=\"{left}\" y=\"42\" {TEXT}>{} (top: {most:.0})</text>\
             <rect x=\"{left}\" y=\"{top}\" width=\"{wide}\" height=\"{high}\" fill=\"none\" \
             stroke=\"#dddddd\"/>",
            escape(&panel.title)
        );
        for (n, label) in panel.labels.iter().enumerate() {
            let _ = writeln!(
                body,
                "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\" {TEXT}>{}</text>",
                x(n),
                top + high + 16.0,
                escape(label)
            );
        }
        for (line, (_, colour)) in panel.lines.iter().zip(&subjects) {
            let points = line.iter().enumerate();
            let path: Vec<_> = points
                .filter_map(|(n, value)| Some(format!("{:.1},{:.1}", x(n), y((*value)?))))
                .collect();
            let _ = writeln!(
                body,
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
                path.join(" ")
            );
        }
    }
    svg(
        panels.len() as f64 * (wide + 80.0) + 100.0,
        high + 90.0,
        &body,
    )
}
