//! Items that are shown one by one, such as the layers of a pull.

use std::collections::HashMap;
use std::io::IsTerminal as _;
use std::sync::{Mutex, MutexGuard, PoisonError};

use indicatif::ProgressBar;
use serde_json::{Value, json};

use super::display::{Display, LINE, LINE_IDLE, LINE_OF_UNKNOWN, restyle, styled, tick};
use super::item::{Item, Unit};
use super::{ProgressArgs, Verb};
use crate::cli::output;
use unionfs::oci::Digest;
use unionfs::progress::Progress;

/// Items that are shown one by one, also several at the same time.
pub(in crate::cli) struct Items {
    display: Display,
    inner: Mutex<Inner>,
}

struct Inner {
    verb: Verb,
    running: HashMap<Digest, Item>,
    /// Lines of items that wait, or that are done and may be taken up again.
    lines: HashMap<Digest, ProgressBar>,
    /// The items that are shown under the name of another one.
    names: HashMap<Digest, Digest>,
    total: Option<ProgressBar>,
}

impl Items {
    /// Items of work that is part of another command.
    pub(in crate::cli) fn beside(work: Verb) -> Self {
        ProgressArgs::default().items(work)
    }

    /// As [`Self::beside`], but only on a terminal.
    pub(in crate::cli) fn on_terminal(work: Verb) -> Self {
        let args = ProgressArgs {
            quiet: !std::io::stderr().is_terminal(),
            ..ProgressArgs::default()
        };
        args.items(work)
    }

    pub(super) fn with(display: Display, verb: Verb) -> Self {
        Self {
            display,
            inner: Mutex::new(Inner {
                verb,
                running: HashMap::new(),
                lines: HashMap::new(),
                names: HashMap::new(),
                total: None,
            }),
        }
    }

    /// Begins another kind of work on the same items, whose digests are replaced by those that were
    /// shown before: an item keeps its line and its name.
    pub(in crate::cli) fn next(
        &self,
        verb: Verb,
        names: impl IntoIterator<Item = (Digest, Digest)>,
    ) {
        let mut inner = self.inner();
        inner.verb = verb;
        inner.names.extend(names);
        if let Some(total) = inner.total.take() {
            total.finish_and_clear();
        }
    }

    /// Shows a step of the library.
    pub(in crate::cli) fn show(&self, step: Progress<'_, &Digest>) {
        match step {
            Progress::Total { items, size } => self.total(items, size),
            Progress::Waiting { item, size } => {
                let line = self.bar(size);
                self.state(item, "waiting", json!({ "total": size }), line);
            }
            Progress::Verifying { item } => self.state(item, "verifying", json!({}), None),
            Progress::Begin { item, size, have } => {
                let shown = self.shown(item);
                let name = shown.short();
                if have > 0 {
                    let text = output::size(have);
                    self.line(&format!("{name}: continuing after {text}"));
                }
                let line = self.inner().lines.get(&shown).cloned();
                let running = self.item(&name, Some(size).filter(|size| *size > 0), line);
                running.set(have);
                if let Some(total) = &self.inner().total {
                    total.inc(have);
                }
                self.inner().running.insert(*item, running);
            }
            Progress::Advance { item, count } => {
                let inner = self.inner();
                if let Some(running) = inner.running.get(item) {
                    running.add(count);
                }
                if let Some(total) = &inner.total {
                    total.inc(count);
                }
            }
            Progress::Again { item, why, have } => {
                if let Some(running) = self.inner().running.get(item) {
                    running.set(have);
                }
                let (name, text) = (self.shown(item).short(), format!("trying again: {why}"));
                self.line(&format!("{name}: {text}"));
                self.display
                    .event("retry", &name, json!({ "why": why.to_string() }));
            }
            Progress::Elsewhere { item, process } => {
                let who = process.map_or("another process".to_owned(), |process| {
                    format!("process {process}")
                });
                let name = self.shown(item).short();
                self.line(&format!("{name}: waiting for the download of {who}"));
                self.display.event("waiting", &name, json!({ "for": who }));
            }
            Progress::Later { what, why, pause } => {
                let seconds = pause.as_secs_f32();
                self.line(&format!("{what}: trying again in {seconds:.1} s: {why}"));
                self.display
                    .event("retry", what, json!({ "why": why.to_string() }));
            }
            Progress::Done { item } => {
                let running = self.inner().running.remove(item);
                match running {
                    Some(running) => {
                        running.done();
                        if let Some(bar) = running.bar {
                            let shown = self.shown(item);
                            self.inner().lines.insert(shown, bar);
                        }
                    }
                    None => {
                        let (name, done) = (self.shown(item).short(), self.inner().verb.done);
                        self.line(&format!("{name}: {done}"));
                        self.display.event("done", &name, json!({ "what": done }));
                    }
                }
            }
            Progress::Exists { item } => {
                let name = self.shown(item).short();
                self.line(&format!("{name}: exists"));
                self.display.event("exists", &name, json!({}));
            }
            // A later version of the library may report more.
            _ => {}
        }
    }

    /// Returns the digest under which an item is shown.
    fn shown(&self, item: &Digest) -> Digest {
        let inner = self.inner();
        inner.names.get(item).copied().unwrap_or(*item)
    }

    /// Shows the total of several items.
    fn total(&self, items: usize, size: u64) {
        self.display
            .event("total", "", json!({ "items": items, "total": size }));
        if let Display::Bars(bars) = &self.display
            && items > 1
        {
            let bar = styled(ProgressBar::new(size), LINE);
            let bar = bars.add(bar.with_prefix(format!("{:12}", "total")));
            tick(&bar);
            self.inner().total = Some(bar);
        }
    }

    /// Shows an item at which nothing is transferred. `line`: its new line.
    fn state(&self, item: &Digest, state: &'static str, fields: Value, line: Option<ProgressBar>) {
        let shown = self.shown(item);
        let name = shown.short();
        self.display.event(state, &name, fields);
        let mut inner = self.inner();
        if let Some(line) = line {
            line.set_prefix(name);
            inner.lines.entry(shown).or_insert(line);
        }
        if let Some(line) = inner.lines.get(&shown) {
            line.set_message(state);
        }
    }

    /// Returns a line for an item that waits, above the total.
    fn bar(&self, size: u64) -> Option<ProgressBar> {
        let Display::Bars(bars) = &self.display else {
            return None;
        };
        let bar = styled(ProgressBar::new(size), LINE_IDLE);
        Some(match &self.inner().total {
            Some(total) => bars.insert_before(total, bar),
            None => bars.add(bar),
        })
    }

    /// Begins an item. `size`: its bytes, if their number is known.
    pub(in crate::cli) fn begin(&self, name: &str, size: Option<u64>) -> Item {
        self.item(name, size, None)
    }

    fn item(&self, name: &str, size: Option<u64>, line: Option<ProgressBar>) -> Item {
        let verb = self.inner().verb;
        let form = if size.is_some() {
            LINE
        } else {
            LINE_OF_UNKNOWN
        };
        let bar = match (&self.display, line) {
            (Display::Bars(_), Some(bar)) => {
                bar.reset();
                restyle(&bar, form);
                if let Some(size) = size {
                    bar.set_length(size);
                }
                Some(bar)
            }
            (Display::Bars(bars), None) => {
                let bar = match size {
                    Some(size) => ProgressBar::new(size),
                    None => ProgressBar::no_length(),
                };
                Some(bars.add(styled(bar, form).with_prefix(name.to_owned())))
            }
            _ => None,
        };
        if let Some(bar) = &bar {
            bar.set_message(verb.doing);
            tick(bar);
        }
        Item::new(self.display.clone(), name, verb, size, Unit::Bytes, bar)
    }

    fn line(&self, text: &str) {
        self.display.line(text);
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Items {
    fn drop(&mut self) {
        if let Some(total) = self.inner().total.take() {
            total.finish_and_clear();
        }
    }
}
