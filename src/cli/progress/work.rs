//! Work as a whole: one bar on a terminal, lines or events where they are asked for.

use std::sync::{Mutex, MutexGuard, PoisonError};

use indicatif::ProgressBar;

use super::Verb;
use super::display::{Display, LINE, LINE_OF_UNKNOWN, NAMES, styled, tick};
use super::item::{Item, Unit};
use unionfs::oci::Digest;
use unionfs::progress::Progress;

/// All work as one bar on a terminal; as lines or events only if they are asked for.
pub(in crate::cli) struct Work {
    display: Display,
    bar: ProgressBar,
    unit: Unit,
    verb: Verb,
    /// The item that is not done.
    current: Mutex<Option<Item>>,
    parts: Parts,
}

/// What work consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Parts {
    /// Items that the library names.
    Items,
    /// One item.
    One,
}

impl Work {
    pub(super) fn new(display: Display, unit: Unit, verb: Verb, parts: Parts) -> Self {
        let bar = match (&display, unit, parts) {
            (Display::Bars(_), Unit::Names, _) => styled(ProgressBar::new_spinner(), NAMES),
            (Display::Bars(_), Unit::Bytes, Parts::One) => {
                styled(ProgressBar::no_length(), LINE_OF_UNKNOWN)
            }
            (Display::Bars(_), Unit::Bytes, Parts::Items) => styled(ProgressBar::new(0), LINE),
            _ => ProgressBar::hidden(),
        };
        if unit == Unit::Bytes {
            bar.set_message(verb.doing);
            tick(&bar);
        }
        Self {
            display,
            bar,
            unit,
            verb,
            current: Mutex::new(None),
            parts,
        }
    }

    /// Shows a step of the library.
    pub(in crate::cli) fn show(&self, step: Progress<'_, impl Name>) {
        match step {
            Progress::Total { size, .. } => self.bar.set_length(size),
            Progress::Begin { item, size, .. } => {
                if let Some(name) = item.name() {
                    self.end();
                    self.begin(&name, Some(size));
                }
            }
            Progress::Advance { count, .. } => self.advance(count),
            Progress::Done { .. } => {
                if let Some(item) = self.current().take() {
                    item.done();
                }
            }
            // A later version of the library may report more.
            _ => {}
        }
    }

    /// Begins an item.
    pub(super) fn begin(&self, name: &str, size: Option<u64>) {
        self.bar.set_prefix(name.to_owned());
        // The bar shows all work.
        if matches!(self.display, Display::Lines | Display::Json) {
            let item = Item::new(self.display.clone(), name, self.verb, size, self.unit, None);
            *self.current() = Some(item);
        }
    }

    /// Adds to the work that is done.
    pub(in crate::cli) fn advance(&self, count: u64) {
        self.bar.inc(count);
        // Sizes of layers do not have the headers of tars in them.
        let length = self.bar.length();
        if length.is_some_and(|length| length < self.bar.position()) {
            self.bar.set_length(self.bar.position());
        }
        if let Some(item) = &*self.current() {
            item.add(count);
        }
    }

    /// Ends an item of which the library has not said that it is done.
    fn end(&self) {
        if let Some(item) = self.current().take() {
            if self.parts == Parts::One {
                item.done();
            } else {
                item.failed();
            }
        }
    }

    /// Removes the bar.
    pub(in crate::cli) fn done(self) {
        self.end();
        self.bar.finish_and_clear();
    }

    fn current(&self) -> MutexGuard<'_, Option<Item>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// The name of an item in the bar of all work.
pub(in crate::cli) trait Name {
    /// `None`: the bar keeps its text.
    fn name(&self) -> Option<String>;
}

impl Name for &Digest {
    fn name(&self) -> Option<String> {
        Some(self.short())
    }
}

impl Name for () {
    fn name(&self) -> Option<String> {
        None
    }
}
