//! The progress of commands on stderr.
//!
//! [`Items`] shows items one by one: a bar for each of them on a terminal, else a line for each that is
//! done. [`Work`] shows all work as one bar that goes when the work is done, and nothing if stderr is no
//! terminal.

use std::collections::HashMap;
use std::io::{IsTerminal as _, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::output::{one_line, size};
use unionfs::oci::Digest;
use unionfs::progress::{Counted, Progress};

const BYTES: &str = "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec}";
const BYTES_OF_UNKNOWN: &str = "{msg} {spinner} {bytes} {bytes_per_sec}";
const NAMES: &str = "{spinner} {pos} names";

fn styled(bar: ProgressBar, form: &str) -> ProgressBar {
    match ProgressStyle::with_template(form) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// Redraws the bar also while nothing advances.
fn tick(bar: &ProgressBar) {
    bar.enable_steady_tick(Duration::from_millis(100));
}

/// The place of bars and lines.
#[derive(Clone)]
enum Display {
    Nothing,
    Lines,
    Bars(MultiProgress),
}

impl Display {
    /// Writes a line. The command goes on if nobody can read it.
    fn line(&self, text: &str) {
        let text = one_line(text);
        match self {
            Self::Nothing => {}
            Self::Lines => {
                let _ = writeln!(std::io::stderr(), "{text}");
            }
            Self::Bars(bars) => {
                let _ = bars.println(text);
            }
        }
    }
}

/// Items that are shown one by one, also several at the same time.
pub(super) struct Items {
    display: Display,
    /// "loaded", "saved": what has happened to an item that is done.
    done: &'static str,
    running: Mutex<HashMap<Digest, Item>>,
}

impl Items {
    pub(super) fn new(quiet: bool, done: &'static str) -> Self {
        let display = if quiet {
            Display::Nothing
        } else if std::io::stderr().is_terminal() {
            Display::Bars(MultiProgress::new())
        } else {
            Display::Lines
        };
        Self {
            display,
            done,
            running: Mutex::default(),
        }
    }

    /// Shows a step of the library.
    pub(super) fn show(&self, step: Progress<'_, &Digest>) {
        match step {
            Progress::Begin { item, size, have } => {
                let name = item.short();
                if have > 0 {
                    let text = super::output::size(have);
                    self.line(&format!("{name}: continuing after {text}"));
                }
                let running = self.begin(&name, Some(size).filter(|size| *size > 0));
                running.set(have);
                self.running().insert(*item, running);
            }
            Progress::Advance { item, count } => {
                if let Some(running) = self.running().get(item) {
                    running.add(count);
                }
            }
            Progress::Again { item, why, have } => {
                if let Some(running) = self.running().get(item) {
                    running.set(have);
                }
                self.line(&format!("{}: trying again: {why}", item.short()));
            }
            Progress::Elsewhere { item, process } => {
                let who = process.map_or("another process".to_owned(), |process| {
                    format!("process {process}")
                });
                let name = item.short();
                self.line(&format!("{name}: waiting for the download of {who}"));
            }
            Progress::Later { what, why, pause } => {
                let seconds = pause.as_secs_f32();
                self.line(&format!("{what}: trying again in {seconds:.1} s: {why}"));
            }
            Progress::Done { item } => {
                let running = self.running().remove(item);
                match running {
                    Some(running) => running.done(),
                    None => self.line(&format!("{}: {}", item.short(), self.done)),
                }
            }
            Progress::Exists { item } => self.line(&format!("{}: exists", item.short())),
            // A later version of the library may report more.
            _ => {}
        }
    }

    /// Begins an item. `size`: its bytes, if their number is known.
    pub(super) fn begin(&self, name: &str, size: Option<u64>) -> Item {
        let bar = match &self.display {
            Display::Nothing | Display::Lines => None,
            Display::Bars(bars) => {
                let bar = match size {
                    Some(size) => styled(ProgressBar::new(size), BYTES),
                    None => styled(ProgressBar::no_length(), BYTES_OF_UNKNOWN),
                };
                let bar = bars.add(bar.with_message(name.to_owned()));
                tick(&bar);
                Some(bar)
            }
        };
        Item {
            display: self.display.clone(),
            name: name.to_owned(),
            done: self.done,
            size,
            passed: AtomicU64::new(0),
            bar,
        }
    }

    fn line(&self, text: &str) {
        self.display.line(text);
    }

    fn running(&self) -> MutexGuard<'_, HashMap<Digest, Item>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An item that is not done.
pub(super) struct Item {
    display: Display,
    name: String,
    done: &'static str,
    size: Option<u64>,
    passed: AtomicU64,
    bar: Option<ProgressBar>,
}

impl Item {
    /// Adds to the bytes that have passed.
    pub(super) fn add(&self, count: u64) {
        self.passed.fetch_add(count, Ordering::Relaxed);
        if let Some(bar) = &self.bar {
            bar.inc(count);
        }
    }

    /// Sets the bytes that have passed.
    fn set(&self, passed: u64) {
        self.passed.store(passed, Ordering::Relaxed);
        if let Some(bar) = &self.bar {
            bar.set_position(passed);
        }
    }

    /// Shows that the item is done.
    pub(super) fn done(&self) {
        self.done_as(&self.name);
    }

    /// Shows that the item is done and now has another name.
    pub(super) fn done_as(&self, name: &str) {
        match &self.bar {
            Some(bar) => {
                bar.set_message(name.to_owned());
                bar.finish();
            }
            None => {
                let passed = self.passed.load(Ordering::Relaxed);
                let bytes = size(self.size.unwrap_or(passed));
                self.display
                    .line(&format!("{name}: {}, {bytes}", self.done));
            }
        }
    }

    /// Counts the bytes that are written to `out`.
    pub(super) fn counted<W: Write>(&self, out: W) -> Counted<W, impl FnMut(u64) + '_> {
        Counted::new(out, |count| self.add(count))
    }
}

/// The name of an item in the bar of all work.
pub(super) trait Name {
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

/// All work as one bar.
pub(super) struct Work(ProgressBar);

impl Work {
    /// Work that is measured in bytes.
    pub(super) fn in_bytes() -> Self {
        Self::new(|| {
            let bar = styled(ProgressBar::new(0), BYTES);
            tick(&bar);
            bar
        })
    }

    /// Work that is measured in names, of which the total is not known.
    pub(super) fn in_names() -> Self {
        Self::new(|| styled(ProgressBar::new_spinner(), NAMES))
    }

    fn new(bar: impl FnOnce() -> ProgressBar) -> Self {
        if std::io::stderr().is_terminal() {
            Self(bar())
        } else {
            Self(ProgressBar::hidden())
        }
    }

    /// Shows a step of the library.
    pub(super) fn show(&self, step: Progress<'_, impl Name>) {
        match step {
            Progress::Total { size, .. } => self.0.set_length(size),
            Progress::Begin { item, .. } => {
                if let Some(name) = item.name() {
                    self.0.set_message(name);
                }
            }
            Progress::Advance { count, .. } => {
                self.0.inc(count);
                // Sizes of layers do not have the headers of tars in them.
                let length = self.0.length();
                if length.is_some_and(|length| length < self.0.position()) {
                    self.0.set_length(self.0.position());
                }
            }
            // A later version of the library may report more.
            _ => {}
        }
    }

    /// Removes the bar.
    pub(super) fn done(self) {
        self.0.finish_and_clear();
    }
}
