//! The place of bars, lines and events: standard error.

use std::fmt;
use std::io::Write as _;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressState, ProgressStyle};
use serde_json::{Map, Value, json};

use crate::cli::output::{escaped, one_line, size};

pub(super) const LINE: &str = "{prefix} {msg:11} {wide_bar} {at}/{of} {rate}";
pub(super) const LINE_OF_UNKNOWN: &str = "{prefix} {msg:11} {spinner} {at} {rate}";
pub(super) const LINE_IDLE: &str = "{prefix} {msg}";
pub(super) const NAMES: &str = "{spinner} {pos} names";

pub(super) fn styled(bar: ProgressBar, form: &str) -> ProgressBar {
    // The same units as in tables; those of the crate differ.
    let at = |state: &ProgressState, out: &mut dyn fmt::Write| {
        let _ = out.write_str(&size(state.pos()));
    };
    let of = |state: &ProgressState, out: &mut dyn fmt::Write| {
        let _ = out.write_str(&size(state.len().unwrap_or(state.pos())));
    };
    let rate = |state: &ProgressState, out: &mut dyn fmt::Write| {
        let _ = write!(out, "{}/s", size(state.per_sec() as u64));
    };
    match ProgressStyle::with_template(form) {
        Ok(style) => bar.with_style(
            (style.with_key("at", at))
                .with_key("of", of)
                .with_key("rate", rate),
        ),
        Err(_) => bar,
    }
}

pub(super) fn restyle(bar: &ProgressBar, form: &str) {
    bar.set_style(styled(ProgressBar::hidden(), form).style());
}

/// Redraws the bar also while nothing advances.
pub(super) fn tick(bar: &ProgressBar) {
    bar.enable_steady_tick(Duration::from_millis(100));
}

/// The place of bars and lines.
#[derive(Clone)]
pub(super) enum Display {
    Nothing,
    Lines,
    Json,
    Bars(MultiProgress),
}

impl Display {
    /// Writes a line. The command goes on if nobody can read it.
    pub(super) fn line(&self, text: &str) {
        let text = one_line(text);
        match self {
            Self::Nothing | Self::Json => {}
            Self::Lines => {
                let _ = writeln!(std::io::stderr(), "{text}");
            }
            Self::Bars(bars) => {
                let _ = bars.println(text);
            }
        }
    }

    /// Writes an event as JSON. `fields` is an object.
    pub(super) fn event(&self, state: &str, name: &str, fields: Value) {
        if !matches!(self, Self::Json) {
            return;
        }
        let mut event = Map::new();
        event.insert("state".into(), json!(state));
        event.insert("name".into(), json!(name));
        if let Value::Object(fields) = fields {
            event.extend(fields);
        }
        let text = escaped(&Value::Object(event).to_string());
        let _ = writeln!(std::io::stderr(), "{text}");
    }
}
