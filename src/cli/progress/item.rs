//! An item that is not done: how far it is, on its bar or in events.

use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use serde_json::json;

use super::Verb;
use super::display::Display;
use crate::cli::output::size;
use unionfs::progress::Counted;

/// The time between two events of JSON that say how far an item is.
const PAUSE: Duration = Duration::from_millis(500);

/// An item that is not done.
pub(in crate::cli) struct Item {
    display: Display,
    name: String,
    verb: Verb,
    size: Option<u64>,
    unit: Unit,
    passed: AtomicU64,
    /// The time of the last event.
    told: Mutex<Instant>,
    pub(super) bar: Option<ProgressBar>,
}

impl Item {
    pub(super) fn new(
        display: Display,
        name: &str,
        verb: Verb,
        size: Option<u64>,
        unit: Unit,
        bar: Option<ProgressBar>,
    ) -> Self {
        display.event(verb.doing, name, json!({ "total": size }));
        Self {
            display,
            name: name.to_owned(),
            verb,
            size,
            unit,
            passed: AtomicU64::new(0),
            told: Mutex::new(Instant::now()),
            bar,
        }
    }

    /// Adds to the bytes that have passed.
    pub(in crate::cli) fn add(&self, count: u64) {
        self.passed.fetch_add(count, Ordering::Relaxed);
        if let Some(bar) = &self.bar {
            bar.inc(count);
        }
        if matches!(self.display, Display::Json) {
            self.tell();
        }
    }

    /// Writes an event, unless the last one is new.
    fn tell(&self) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.elapsed() < PAUSE {
            return;
        }
        *told = Instant::now();
        let passed = self.passed.load(Ordering::Relaxed);
        let fields = json!({ self.unit.field(): passed, "total": self.size });
        self.display.event(self.verb.doing, &self.name, fields);
    }

    /// Sets the bytes that have passed.
    pub(super) fn set(&self, passed: u64) {
        self.passed.store(passed, Ordering::Relaxed);
        if let Some(bar) = &self.bar {
            bar.set_position(passed);
        }
    }

    /// Shows that the item is done.
    pub(in crate::cli) fn done(&self) {
        self.done_as(&self.name);
    }

    /// Shows that the item is done and now has another name.
    pub(in crate::cli) fn done_as(&self, name: &str) {
        let passed = self.passed.load(Ordering::Relaxed);
        let count = self.size.unwrap_or(passed);
        let fields = json!({ "what": self.verb.done, self.unit.field(): count });
        self.display.event("done", name, fields);
        match &self.bar {
            Some(bar) => {
                bar.set_prefix(name.to_owned());
                bar.set_message(self.verb.done);
                bar.finish();
            }
            None => {
                let amount = self.unit.text(count);
                self.display
                    .line(&format!("{name}: {}, {amount}", self.verb.done));
            }
        }
    }

    /// Shows that the work on an item has failed.
    pub(super) fn failed(&self) {
        self.display.event("failed", &self.name, json!({}));
        self.display.line(&format!("{}: failed", self.name));
    }

    /// Counts the bytes that are written to `out`.
    pub(in crate::cli) fn counted<W: Write>(&self, out: W) -> Counted<W, impl FnMut(u64) + '_> {
        Counted::new(out, |count| self.add(count))
    }
}

/// What work is measured in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cli) enum Unit {
    Bytes,
    Names,
}

impl Unit {
    /// The name of the field in events of JSON.
    fn field(self) -> &'static str {
        match self {
            Self::Bytes => "bytes",
            Self::Names => "names",
        }
    }

    fn text(self, count: u64) -> String {
        match self {
            Self::Bytes => size(count),
            Self::Names => format!("{count} names"),
        }
    }
}
