//! The output of commands: tables, JSON, sizes.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write as _};

use anyhow::Context as _;
use unicode_width::{UnicodeWidthChar as _, UnicodeWidthStr as _};

/// Writes lines to stdout. Control characters except newlines are replaced, because names, tags and
/// configurations of images may contain them. A reader that has closed the pipe (`unionfs ps | head
/// -1`) is no error.
pub(super) fn print(text: &str) -> anyhow::Result<()> {
    print_bytes(plain(text, '\n').as_bytes())
}

/// As [`print`], for output that contains no text from outside.
pub(super) fn print_bytes(bytes: &[u8]) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("cannot write to standard output"),
    }
}

/// Prints `value` as indented JSON and a newline.
pub(super) fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(value).context("cannot write JSON")?;
    print_bytes((escaped(&text) + "\n").as_bytes())
}

/// Returns JSON in which no string has a character that could affect a terminal.
/// JSON itself escapes only those below U+0020.
pub(super) fn escaped(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        if c != '\n' && is_unsafe(c) {
            // All of them are in the basic plane. Writing to a String cannot fail.
            let _ = write!(text, "\\u{:04x}", u32::from(c));
        } else {
            text.push(c);
        }
    }
    text
}

/// How a cell may be shortened on a terminal that is too narrow for the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cut {
    No,
    /// The middle is left out: both ends of names and paths matter.
    Middle,
    /// The end is left out.
    End,
}

/// The width to which a column may be shortened.
const NARROWEST: usize = 10;
/// The width to which a column may be shortened while others can be left out.
const READABLE: usize = 14;

/// Columns that are padded to their widest cell, with two spaces between them. On a terminal, cells
/// are shortened until the table fits; a pipe gets whole cells.
pub(super) struct Table {
    rows: Vec<Vec<String>>,
    cuts: Vec<Cut>,
    /// The columns that a narrow terminal does not get, the first one to go first.
    dispensable: Vec<usize>,
}

impl Table {
    pub(super) fn new(head: &[&str]) -> Self {
        Self {
            rows: vec![head.iter().map(|cell| (*cell).to_owned()).collect()],
            cuts: vec![Cut::No; head.len()],
            dispensable: Vec::new(),
        }
    }

    /// Permits to shorten the cells of a column.
    pub(super) fn may_cut(&mut self, column: usize, cut: Cut) {
        if let Some(place) = self.cuts.get_mut(column) {
            *place = cut;
        }
    }

    /// Permits to leave columns out, in this order, before cells become shorter than people can read.
    pub(super) fn may_leave_out(&mut self, columns: impl IntoIterator<Item = usize>) {
        self.dispensable = columns.into_iter().collect();
    }

    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        // A name with a newline must not break the table.
        self.rows
            .push(cells.into_iter().map(|cell| one_line(&cell)).collect());
    }

    /// Returns the lines, for standard output.
    pub(super) fn render(&self) -> String {
        self.render_for(terminal_width())
    }

    /// Returns the lines, of at most this width if cells can be shortened so far.
    fn render_for(&self, limit: Option<usize>) -> String {
        let (widths, left_out) = self.widths(limit);
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (at, (cell, width)) in row.iter().zip(&widths).enumerate() {
                if left_out.contains(&at) {
                    continue;
                }
                let cut = self.cuts.get(at).copied().unwrap_or(Cut::No);
                let cell = shortened(cell, *width, cut);
                let padding = width.saturating_sub(cell.width());
                let _ = write!(line, "{cell}{:padding$}  ", "");
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }

    /// Returns the widths of the columns, and those that are left out.
    fn widths(&self, limit: Option<usize>) -> (Vec<usize>, &[usize]) {
        let mut widths: Vec<usize> = Vec::new();
        for row in &self.rows {
            widths.resize(row.len().max(widths.len()), 0);
            for (cell, width) in row.iter().zip(&mut widths) {
                *width = (*width).max(cell.width());
            }
        }
        let Some(limit) = limit else {
            return (widths, &[]);
        };
        for count in 0..=self.dispensable.len() {
            let left_out = &self.dispensable[..count];
            let is_last = count == self.dispensable.len();
            let narrowest = if is_last { NARROWEST } else { READABLE };
            let mut tried = widths.clone();
            let fits = self.shorten(&mut tried, left_out, narrowest, limit);
            if fits || is_last {
                return (tried, left_out);
            }
        }
        (widths, &[])
    }

    /// Shortens columns, the widest first, until those that are not left out fit. Returns whether they do.
    fn shorten(
        &self,
        widths: &mut [usize],
        left_out: &[usize],
        narrowest: usize,
        limit: usize,
    ) -> bool {
        let is_shown = |at: usize| !left_out.contains(&at);
        let gaps = 2 * (widths.len() - left_out.len()).saturating_sub(1);
        let total = |widths: &[usize]| -> usize {
            let shown = widths.iter().enumerate().filter(|(at, _)| is_shown(*at));
            shown.map(|(_, width)| width).sum::<usize>() + gaps
        };
        while total(widths) > limit {
            let elastic = widths.iter_mut().enumerate().filter(|(at, width)| {
                let cut = self.cuts.get(*at).copied().unwrap_or(Cut::No);
                cut != Cut::No && **width > narrowest && is_shown(*at)
            });
            let Some((_, widest)) = elastic.max_by_key(|(_, width)| **width) else {
                return false;
            };
            *widest -= 1;
        }
        true
    }
}

/// Returns `head` and a text, broken at spaces into lines of at most `width` columns. The text keeps to
/// the right of `head`. Longer words stay whole.
pub(super) fn wrapped(head: &str, text: &str, width: Option<usize>) -> String {
    let indent = head.width();
    let (mut lines, mut used) = (head.to_owned(), indent);
    for word in text.split(' ') {
        let needed = word.width() + usize::from(used > indent);
        if used > indent && width.is_some_and(|width| used + needed > width) {
            let _ = write!(lines, "\n{:indent$}", "");
            used = indent;
        }
        if used > indent {
            lines.push(' ');
            used += 1;
        }
        lines.push_str(word);
        used += word.width();
    }
    lines.push('\n');
    lines
}

/// Returns the width of the terminal that is standard output. `None`: it is no terminal.
pub(super) fn terminal_width() -> Option<usize> {
    if !io::stdout().is_terminal() {
        return None;
    }
    let size = rustix::termios::tcgetwinsize(io::stdout()).ok()?;
    Some(usize::from(size.ws_col)).filter(|width| *width > 0)
}

/// Returns a text of at most this width, with `…` in place of what is left out.
pub(super) fn shortened(text: &str, width: usize, cut: Cut) -> String {
    if text.width() <= width || cut == Cut::No {
        return text.to_owned();
    }
    let kept = width.saturating_sub(1);
    let before = match cut {
        Cut::Middle => kept - kept / 2,
        _ => kept,
    };
    let start = prefix(text.chars(), before);
    let end = prefix(text.chars().rev(), kept - before);
    let end: String = end.chars().rev().collect();
    format!("{start}…{end}")
}

/// Returns the first characters, of at most this width.
fn prefix(chars: impl Iterator<Item = char>, width: usize) -> String {
    let mut left = width;
    chars
        .take_while(|c| {
            let taken = c.width().unwrap_or(0);
            let fits = taken <= left;
            left = left.saturating_sub(taken);
            fits
        })
        .collect()
}

/// Replaces control characters, so that hostile names cannot forge lines or colours.
pub(super) fn one_line(text: &str) -> String {
    plain(text, ' ')
}

/// Replaces all control characters but one.
fn plain(text: &str, but: char) -> String {
    let shown = |c| {
        if c != but && is_unsafe(c) {
            '\u{fffd}'
        } else {
            c
        }
    };
    text.chars().map(shown).collect()
}

/// Whether a character affects other parts of the screen: control characters, characters that
/// change the direction of writing (Unicode's Bidi_Control), and separators of lines and
/// paragraphs.
pub(super) fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
        )
}

/// Formats bytes in decimal units, as `docker images` does: `4.26MB`.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let digits = match value {
        _ if unit == 0 => 0,
        v if v < 9.995 => 2,
        v if v < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.digits$}{}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        let cases = [
            (0, "0B"),
            (999, "999B"),
            (1000, "1.00kB"),
            (4_261_550, "4.26MB"),
            (43_100_000, "43.1MB"),
            (999_499_999, "999MB"),
            (999_500_000, "1.00GB"),
            (u64::MAX, "18.4EB"),
        ];
        for (bytes, text) in cases {
            assert_eq!(size(bytes), text, "{bytes}");
        }
    }

    #[test]
    fn nothing_shown_upsets_a_terminal() {
        let hostile = "a\x1b[2J\u{9b}b\u{7f}\r\u{202e}\u{2028}ä";
        let shown = "a\u{fffd}[2J\u{fffd}b\u{fffd}\u{fffd}\u{fffd}\u{fffd}ä";
        assert_eq!(one_line(hostile), shown);
        assert_eq!(one_line("a\nb"), "a\u{fffd}b");
        assert_eq!(plain("a\nb", '\n'), "a\nb");
        let value = serde_json::json!({ hostile: [hostile] });
        let json = escaped(&serde_json::to_string_pretty(&value).unwrap());
        assert!(!json.chars().any(|c| c != '\n' && is_unsafe(c)), "{json:?}");
        let read: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(read, value);
    }

    #[test]
    fn tables_fit_the_terminal() {
        let mut table = Table::new(&["NAME", "ID", "PATH"]);
        table.may_cut(0, Cut::Middle);
        table.may_cut(2, Cut::End);
        table.row(
            [
                "registry.example.org/team/app:2",
                "1f0c",
                "/var/lib/a/long/path",
            ]
            .map(Into::into),
        );
        table.row(["漢字".repeat(9), "2".into(), String::new()]);
        let wide = table.render_for(None);
        assert!(wide.contains("registry.example.org/team/app:2 ") && wide.contains("/long/path"));
        for limit in [30, 40, 50] {
            let text = table.render_for(Some(limit));
            assert!(
                text.lines().all(|line| line.width() <= limit),
                "{limit}: {text}"
            );
            assert!(text.contains("1f0c") && text.contains('…'), "{text}");
        }
        assert!(table.render_for(Some(40)).contains("app:2"));
        // What cannot be shortened stays whole.
        assert!(table.render_for(Some(5)).contains("1f0c"));
    }

    #[test]
    fn a_narrow_terminal_gets_fewer_columns() {
        let mut table = Table::new(&["NAME", "LAYERS", "UNSHARED", "CREATED"]);
        table.may_cut(0, Cut::Middle);
        table.may_leave_out([2, 1]);
        let name = "registry.example.org/team/app:2";
        table.row([name, "3", "1.98MB", "3 weeks ago"].map(Into::into));
        let heads = |limit| {
            let text = table.render_for(Some(limit));
            assert!(
                text.lines().all(|line| line.width() <= limit),
                "{limit}: {text}"
            );
            let line = text.lines().next().unwrap_or_default();
            line.split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        assert_eq!(heads(50), ["NAME", "LAYERS", "UNSHARED", "CREATED"]);
        assert_eq!(heads(40), ["NAME", "LAYERS", "CREATED"]);
        assert_eq!(heads(30), ["NAME", "CREATED"]);
        assert!(table.render_for(None).contains("1.98MB"));
    }

    #[test]
    fn long_lines_are_broken_at_spaces() {
        let text = "one two three, and a_long_word_that_stays 漢字 x";
        assert_eq!(wrapped("key  ", text, None), format!("key  {text}\n"));
        assert_eq!(
            wrapped("key  ", text, Some(16)),
            "key  one two\n     three, and\n     a_long_word_that_stays\n     漢字 x\n"
        );
        assert_eq!(wrapped("", "a b", Some(1)), "a\nb\n");
    }

    #[test]
    fn tables_align_and_keep_to_their_lines() {
        let mut table = Table::new(&["NAME", "SIZE"]);
        table.row(["a\nb".into(), "1B".into()]);
        table.row(["longer".into(), String::new()]);
        assert_eq!(table.render(), "NAME    SIZE\na\u{fffd}b     1B\nlonger\n");
    }
}
