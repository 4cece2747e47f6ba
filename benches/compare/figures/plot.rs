//! The plots of a report as SVG: the ratios of all rows that count, time over the number of layers,
//! throughput over the size of a request. Colours can be told apart without colour vision too
//! (Okabe and Ito), and each column has a marker of its own. Text is as wide as plotters estimates
//! it: nothing here depends on the fonts of the machine.

use plotters::coord::Shift;
use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::report::{Group, KERNEL, Report, Row};

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

const COLOURS: [RGBColor; 8] = [
    RGBColor(0, 0, 0),
    RGBColor(0, 114, 178),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(213, 94, 0),
    RGBColor(120, 120, 120),
];
const FONT: &str = "sans-serif";
const GRID: RGBColor = RGBColor(221, 221, 221);
/// Width of the pictures in pixels.
const WIDE: u32 = 1100;
/// Height of a line of the legend in pixels.
const LEGEND_LINE: u32 = 24;

/// A column with its colour and marker.
#[derive(Clone)]
struct Look<'r> {
    name: &'r str,
    colour: RGBColor,
    marker: usize,
}

/// Returns the looks of the columns that `take` accepts. A column has the same look in all plots.
fn looks(report: &Report, take: impl Fn(&str) -> bool) -> Vec<Look<'_>> {
    let drawn = report.columns.iter().map(|c| c.name.as_str());
    let drawn = drawn.filter(|name| *name == KERNEL || report.is_whole(name) || is_partly(name));
    let looks = drawn.enumerate().map(|(n, name)| Look {
        name,
        colour: COLOURS[n % COLOURS.len()],
        marker: n + n / COLOURS.len(),
    });
    looks.filter(|look| take(look.name)).collect()
}

/// Whether a column that is measured in some rows only is drawn, in the plot of these rows.
fn is_partly(name: &str) -> bool {
    name.ends_with("writeback")
}

/// Draws `picture` in a new picture of this height.
fn svg(title: &str, height: u32, picture: impl FnOnce(&Area<'_>)) -> String {
    let mut out = String::new();
    {
        let root = SVGBackend::with_string(&mut out, (WIDE, height)).into_drawing_area();
        root.fill(&WHITE).unwrap();
        let inside = root.margin(10, 10, 10, 10);
        picture(&inside.titled(title, (FONT, 24)).unwrap());
        root.present().unwrap();
    }
    out
}

fn text(size: u32) -> TextStyle<'static> {
    (FONT, size).into_text_style(&(WIDE, WIDE))
}

/// Draws the marker of a column at a pixel.
fn mark(area: &Area<'_>, look: &Look<'_>, at: (i32, i32)) {
    let (x, y) = at;
    let style = look.colour.filled();
    match look.marker % 4 {
        0 => area.draw(&Circle::new(at, 5, style)),
        1 => area.draw(&Rectangle::new([(x - 5, y - 5), (x + 5, y + 5)], style)),
        2 => area.draw(&TriangleMarker::new(at, 7, style)),
        _ => area.draw(&Cross::new(at, 5, look.colour.stroke_width(3))),
    }
    .unwrap();
}

/// The legend: entries from left to right, in as many lines as they need.
struct Legend {
    /// Width of an entry in pixels.
    entry: u32,
    in_a_line: usize,
    lines: u32,
}

impl Legend {
    fn of(looks: &[Look<'_>]) -> Self {
        let longest = looks.iter().map(|l| l.name.len()).max().unwrap_or(1) as u32;
        let entry = longest * 8 + 40;
        let in_a_line = (WIDE - 40) / entry;
        Self {
            entry,
            in_a_line: in_a_line as usize,
            lines: (looks.len() as u32).div_ceil(in_a_line),
        }
    }

    fn height(&self) -> u32 {
        self.lines * LEGEND_LINE + 8
    }

    /// Draws it at the top of `area`. Returns the rest.
    fn draw<'a>(&self, area: &Area<'a>, looks: &[Look<'_>]) -> Area<'a> {
        let (top, rest) = area.split_vertically(self.height());
        for (n, look) in looks.iter().enumerate() {
            let x = (n % self.in_a_line) as i32 * self.entry as i32 + 20;
            let y = (n / self.in_a_line) as i32 * LEGEND_LINE as i32 + 14;
            mark(&top, look, (x, y));
            let style = text(16).pos(Pos::new(HPos::Left, VPos::Center));
            top.draw(&Text::new(look.name.to_owned(), (x + 14, y), style))
                .unwrap();
        }
        rest
    }
}

/// A line of the plot of ratios.
enum Line<'r> {
    Heading(Group),
    Row(&'r Row),
}

/// Height of a line of the plot of ratios in pixels.
const LINE: u32 = 22;
/// Width of the names of rows in pixels.
const NAMES: u32 = 330;
/// The axis of ratios.
const FROM: f64 = 1.0 / 16.0;
const TO: f64 = 32.0;

/// Draws the ratio of each row that counts, by groups, on a logarithmic axis.
pub(crate) fn ratios(report: &Report) -> String {
    let looks = looks(report, |name| name != KERNEL && report.is_whole(name));
    let mut lines = Vec::new();
    for group in Group::ALL {
        let rows: Vec<_> = report.counted().filter(|r| r.group == group).collect();
        if !rows.is_empty() {
            lines.push(Line::Heading(group));
            lines.extend(rows.into_iter().map(Line::Row));
        }
    }
    let legend = Legend::of(&looks);
    let height = lines.len() as u32 * LINE + legend.height() + 130;
    svg(
        "Time of each workload as a ratio to kernel overlayfs (left is faster)",
        height,
        |area| draw_ratios(&legend.draw(area, &looks), &looks, &lines),
    )
}

fn draw_ratios(area: &Area<'_>, looks: &[Look<'_>], lines: &[Line<'_>]) {
    let mut chart = ChartBuilder::on(area)
        .set_label_area_size(LabelAreaPosition::Left, NAMES)
        .set_label_area_size(LabelAreaPosition::Bottom, 56)
        .margin_right(20)
        .build_cartesian_2d((FROM..TO).log_scale().base(2.0), 0.0..lines.len() as f64)
        .unwrap();
    chart
        .configure_mesh()
        .disable_y_mesh()
        .y_labels(0)
        .disable_y_axis()
        .x_labels(12)
        .max_light_lines(0)
        .bold_line_style(GRID)
        .x_label_style(text(16))
        .x_label_formatter(&|ratio| fraction(*ratio))
        .x_desc("time ÷ time of kernel overlayfs, logarithmic")
        .axis_desc_style(text(16))
        .draw()
        .unwrap();
    let all = lines.len() as f64;
    let one = [(1.0, 0.0), (1.0, all)];
    chart
        .draw_series([PathElement::new(one, BLACK.stroke_width(2))])
        .unwrap();
    // Pixels: names stand left of the plot, and markers keep their size. `backend_coord` counts
    // from the corner of the picture.
    let (base_x, base_y) = area.get_base_pixel();
    let pixel = |ratio: f64, line: f64| {
        let (x, y) = chart.backend_coord(&(ratio, all - line));
        (x - base_x, y - base_y)
    };
    for (n, line) in lines.iter().enumerate() {
        let middle = n as f64 + 0.5;
        let (left, y) = pixel(FROM, middle);
        let name = |style: TextStyle<'static>, name: &str| {
            let style = style.pos(Pos::new(HPos::Right, VPos::Center));
            area.draw(&Text::new(name.to_owned(), (left - 12, y), style))
                .unwrap();
        };
        match line {
            Line::Heading(group) => name(
                (FONT, 17, FontStyle::Bold).into_text_style(&(WIDE, WIDE)),
                group.title(),
            ),
            Line::Row(row) => {
                name(text(16), &row.name);
                let (right, _) = pixel(TO, middle);
                area.draw(&PathElement::new([(left, y), (right, y)], GRID))
                    .unwrap();
                for look in looks {
                    if let Some(ratio) = row.ratio(look.name) {
                        mark(area, look, pixel(ratio.clamp(FROM, TO), middle));
                    }
                }
            }
        }
    }
}

/// Returns a power of two as a number or a fraction.
fn fraction(ratio: f64) -> String {
    if ratio < 1.0 {
        format!("1/{:.0}", 1.0 / ratio)
    } else {
        format!("{ratio:.0}")
    }
}

/// A line chart: one point for each label below, from left to right.
struct Panel {
    title: &'static str,
    below: &'static str,
    beside: &'static str,
    labels: Vec<String>,
    /// Lines in the order of the looks; `None` if there is no figure.
    lines: Vec<Vec<Option<f64>>>,
}

/// Fills the lines of a panel from the rows of its `points` (label and name).
fn lines(
    report: &Report,
    looks: &[Look<'_>],
    points: &[(String, String)],
    figure: impl Fn(&Row, &str) -> Option<f64>,
) -> (Vec<String>, Vec<Vec<Option<f64>>>) {
    let line = |look: &Look<'_>| {
        let figure = |(_, name): &(String, String)| figure(report.row(name)?, look.name);
        points.iter().map(figure).collect()
    };
    let labels = points.iter().map(|(label, _)| label.clone()).collect();
    (labels, looks.iter().map(line).collect())
}

/// Draws milliseconds over the number of layers, on a logarithmic axis.
pub(crate) fn layers(report: &Report) -> String {
    let has = |name: &str, row: &str| report.row(row).is_some_and(|r| r.median(name).is_some());
    let looks = looks(report, |name| has(name, "mount, 128 layers"));
    let panels = [
        ("mount", "Time until the mount answers"),
        ("cold walk after mount", "Walk of a tree after the mount"),
    ]
    .map(|(workload, title)| {
        let points = [1, 4, 32, 128, 500].map(|depth| {
            let name = match depth {
                4 => workload.to_owned(),
                _ => format!("{workload}, {depth} layers"),
            };
            (depth.to_string(), name)
        });
        let (labels, lines) = lines(report, &looks, &points, |row, column| {
            Some(row.median(column)? * 1e3)
        });
        Panel {
            title,
            below: "layers",
            beside: "ms, logarithmic",
            labels,
            lines,
        }
    });
    draw(
        "Time over the number of layers",
        &looks,
        &panels,
        |area, panel| {
            let least = values(panel).fold(f64::INFINITY, f64::min) / 1.5;
            let most = values(panel).fold(0.0, f64::max) * 1.5;
            // Whole powers, so that the axis has labels at both ends.
            let (least, most) = if least < most {
                (
                    10f64.powf(least.log10().floor()),
                    10f64.powf(most.log10().ceil()),
                )
            } else {
                (1.0, 10.0)
            };
            draw_panel(area, panel, &looks, (least..most).log_scale());
        },
    )
}

/// Draws MiB/s over the size of a read or write.
pub(crate) fn throughput(report: &Report) -> String {
    let looks = looks(report, |_| true);
    let panels = [
        ("read", "lower", "Sequential read of a lower, buffered"),
        ("write", "new", "Sequential write of a new file, buffered"),
    ]
    .map(|(way, file, title)| {
        let points = ["4k", "128k", "1m"].map(|block| {
            let label = block.replace('k', " KiB").replace('m', " MiB");
            (label, format!("fio seq{way}-{block}-{file}"))
        });
        let (labels, lines) = lines(report, &looks, &points, |row, column| {
            Some(row.bytes? / row.median(column)? / 1048576.0)
        });
        Panel {
            title,
            below: "size of a request",
            beside: "MiB/s",
            labels,
            lines,
        }
    });
    draw(
        "Throughput over the size of a request",
        &looks,
        &panels,
        |area, panel| {
            let most = values(panel).fold(1.0, f64::max) * 1.1;
            draw_panel(area, panel, &looks, 0.0..most);
        },
    )
}

fn values(panel: &Panel) -> impl Iterator<Item = f64> {
    panel.lines.iter().flatten().flatten().copied()
}

/// Draws panels side by side, with one legend.
fn draw(
    title: &str,
    looks: &[Look<'_>],
    panels: &[Panel],
    one: impl Fn(&Area<'_>, &Panel),
) -> String {
    let legend = Legend::of(looks);
    svg(title, legend.height() + 460, |area| {
        let areas = legend.draw(area, looks).split_evenly((1, panels.len()));
        for (area, panel) in areas.iter().zip(panels) {
            one(area, panel);
        }
    })
}

fn draw_panel<Y>(area: &Area<'_>, panel: &Panel, looks: &[Look<'_>], y: Y)
where
    Y: AsRangedCoord<Value = f64>,
    Y::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    let last = panel.labels.len() as f64 - 1.0;
    let mut chart = ChartBuilder::on(area)
        .caption(panel.title, (FONT, 18))
        .set_label_area_size(LabelAreaPosition::Left, 90)
        .set_label_area_size(LabelAreaPosition::Bottom, 56)
        .margin_right(40)
        .build_cartesian_2d(0.0..last, y)
        .unwrap();
    let label = |at: &f64| {
        if at.fract() == 0.0 {
            panel.labels.get(*at as usize).cloned().unwrap_or_default()
        } else {
            String::new()
        }
    };
    chart
        .configure_mesh()
        .disable_x_mesh()
        .max_light_lines(0)
        .bold_line_style(GRID)
        .x_labels(panel.labels.len())
        .x_label_formatter(&label)
        .y_label_formatter(&|value| format!("{value}"))
        .label_style(text(16))
        .axis_desc_style(text(16))
        .x_desc(panel.below)
        .y_desc(panel.beside)
        .draw()
        .unwrap();
    let (base_x, base_y) = area.get_base_pixel();
    for (line, look) in panel.lines.iter().zip(looks) {
        let points = line.iter().enumerate();
        let points: Vec<_> = points
            .filter_map(|(n, value)| Some((n as f64, (*value)?)))
            .collect();
        for (n, value) in &points {
            let (x, y) = chart.backend_coord(&(*n, *value));
            mark(area, look, (x - base_x, y - base_y));
        }
        chart
            .draw_series(LineSeries::new(points, look.colour.stroke_width(2)))
            .unwrap();
    }
}
