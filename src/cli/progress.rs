//! The progress of commands on stderr, as `--progress` says.
//!
//! [`Items`] shows items one by one: on a terminal a line for each of them that is redrawn, with a
//! verb, a bar, the bytes and their rate, and a line for the total; else a line for each step that
//! is done, or an object of JSON for each event. [`Work`] shows all work as one bar that goes when
//! the work is done, and nothing if stderr is no terminal.

use std::collections::HashMap;
use std::fmt;
use std::io::{IsTerminal as _, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use clap::ValueEnum as _;
use indicatif::{MultiProgress, ProgressBar, ProgressState, ProgressStyle};
use serde_json::{Map, Value, json};

use super::output::{escaped, one_line, size};
use unionfs::oci::Digest;
use unionfs::progress::{Counted, Progress};

const LINE: &str = "{prefix} {msg:11} {wide_bar} {at}/{of} {rate}";
const LINE_OF_UNKNOWN: &str = "{prefix} {msg:11} {spinner} {at} {rate}";
const LINE_IDLE: &str = "{prefix} {msg}";
const NAMES: &str = "{spinner} {pos} names";

/// The help of `--progress` for commands that show [`Work`].
pub(super) const ON_TERMINAL: &str = "Show progress on stderr: tty (a redrawn line), plain (a line for \
    each step), json (an object in a line for each event), quiet [default: tty on a terminal, else quiet]";

/// The options that decide how progress is shown.
#[derive(Debug, Default, clap::Args)]
pub(super) struct ProgressArgs {
    /// Show progress on stderr: auto (tty on a terminal, else plain), tty (redrawn lines), plain (a
    /// line for each step), json (an object in a line for each event), quiet
    #[arg(long, value_name = "HOW", value_enum, hide_possible_values = true)]
    progress: Option<How>,
    /// Do not show progress, as --progress=quiet
    #[arg(long, short = 'q', conflicts_with = "progress")]
    quiet: bool,
}

/// How progress is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum How {
    Auto,
    Tty,
    Plain,
    Json,
    Quiet,
}

/// What happens to items: a word for the time of it, one for afterwards.
#[derive(Clone, Copy, Debug)]
pub(super) struct Verb {
    pub(super) doing: &'static str,
    pub(super) done: &'static str,
}

pub(super) const fn verb(doing: &'static str, done: &'static str) -> Verb {
    Verb { doing, done }
}

impl ProgressArgs {
    /// Returns a display of items.
    pub(super) fn items(&self, verb: Verb) -> Items {
        Items::with(self.display(), verb)
    }

    /// As [`Self::items`], for a command that may print JSON: then only an explicit option shows
    /// progress.
    pub(super) fn items_beside(&self, json: Json, verb: Verb) -> Items {
        match (json, self.progress) {
            (Json::Printed, None) => Items::with(Display::Nothing, verb),
            _ => self.items(verb),
        }
    }

    /// Returns a display of work whose items the library names. Without the option it shows something
    /// only on a terminal ([`ON_TERMINAL`]).
    pub(super) fn work(&self, unit: Unit, verb: Verb) -> Work {
        Work::new(self.display_of_work(), unit, verb, false)
    }

    /// As [`Self::work`], for work that is one item.
    pub(super) fn work_on(&self, name: &str, unit: Unit, verb: Verb) -> Work {
        let work = Work::new(self.display_of_work(), unit, verb, true);
        work.begin(name, None);
        work
    }

    fn display_of_work(&self) -> Display {
        match self.progress {
            None if !std::io::stderr().is_terminal() => Display::Nothing,
            _ => self.display(),
        }
    }

    /// Returns the option for another process of this program, if one was given.
    pub(super) fn word(&self) -> Option<String> {
        let how = self.progress.and_then(|how| how.to_possible_value());
        match how {
            _ if self.quiet => Some("--quiet".to_owned()),
            how => how.map(|how| format!("--progress={}", how.get_name())),
        }
    }

    fn display(&self) -> Display {
        let is_terminal = std::io::stderr().is_terminal();
        match self.progress.unwrap_or(How::Auto) {
            _ if self.quiet => Display::Nothing,
            How::Quiet => Display::Nothing,
            How::Json => Display::Json,
            // What is no terminal cannot be redrawn.
            How::Auto | How::Tty if is_terminal => Display::Bars(MultiProgress::new()),
            How::Auto | How::Tty | How::Plain => Display::Lines,
        }
    }
}

/// Whether a command prints its result as JSON.
#[derive(Clone, Copy, Debug)]
pub(super) enum Json {
    Printed,
    NotPrinted,
}

impl Json {
    pub(super) fn of(printed: bool) -> Self {
        if printed {
            Self::Printed
        } else {
            Self::NotPrinted
        }
    }
}

fn styled(bar: ProgressBar, form: &str) -> ProgressBar {
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

fn restyle(bar: &ProgressBar, form: &str) {
    bar.set_style(styled(ProgressBar::hidden(), form).style());
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
    Json,
    Bars(MultiProgress),
}

impl Display {
    /// Writes a line. The command goes on if nobody can read it.
    fn line(&self, text: &str) {
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
    fn event(&self, state: &str, name: &str, fields: Value) {
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

/// Items that are shown one by one, also several at the same time.
pub(super) struct Items {
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
    pub(super) fn beside(work: Verb) -> Self {
        ProgressArgs::default().items(work)
    }

    /// As [`Self::beside`], but only on a terminal.
    pub(super) fn on_terminal(work: Verb) -> Self {
        let args = ProgressArgs {
            quiet: !std::io::stderr().is_terminal(),
            ..ProgressArgs::default()
        };
        args.items(work)
    }

    fn with(display: Display, verb: Verb) -> Self {
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
    pub(super) fn next(&self, verb: Verb, names: impl IntoIterator<Item = (Digest, Digest)>) {
        let mut inner = self.inner();
        inner.verb = verb;
        inner.names.extend(names);
        if let Some(total) = inner.total.take() {
            total.finish_and_clear();
        }
    }

    /// Shows a step of the library.
    pub(super) fn show(&self, step: Progress<'_, &Digest>) {
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
                    let text = super::output::size(have);
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
    pub(super) fn begin(&self, name: &str, size: Option<u64>) -> Item {
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

/// The time between two events of JSON that say how far an item is.
const PAUSE: Duration = Duration::from_millis(500);

/// An item that is not done.
pub(super) struct Item {
    display: Display,
    name: String,
    verb: Verb,
    size: Option<u64>,
    unit: Unit,
    passed: AtomicU64,
    /// The time of the last event.
    told: Mutex<Instant>,
    bar: Option<ProgressBar>,
}

impl Item {
    fn new(
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
    pub(super) fn add(&self, count: u64) {
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
    fn failed(&self) {
        self.display.event("failed", &self.name, json!({}));
        self.display.line(&format!("{}: failed", self.name));
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

/// What work is measured in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
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

/// All work as one bar on a terminal; as lines or events only if they are asked for.
pub(super) struct Work {
    display: Display,
    bar: ProgressBar,
    unit: Unit,
    verb: Verb,
    /// The item that is not done.
    current: Mutex<Option<Item>>,
    /// Whether all work is one item.
    is_one: bool,
}

impl Work {
    fn new(display: Display, unit: Unit, verb: Verb, is_one: bool) -> Self {
        let bar = match (&display, unit, is_one) {
            (Display::Bars(_), Unit::Names, _) => styled(ProgressBar::new_spinner(), NAMES),
            (Display::Bars(_), Unit::Bytes, true) => {
                styled(ProgressBar::no_length(), LINE_OF_UNKNOWN)
            }
            (Display::Bars(_), Unit::Bytes, false) => styled(ProgressBar::new(0), LINE),
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
            is_one,
        }
    }

    /// Shows a step of the library.
    pub(super) fn show(&self, step: Progress<'_, impl Name>) {
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
    fn begin(&self, name: &str, size: Option<u64>) {
        self.bar.set_prefix(name.to_owned());
        // The bar shows all work.
        if matches!(self.display, Display::Lines | Display::Json) {
            let item = Item::new(self.display.clone(), name, self.verb, size, self.unit, None);
            *self.current() = Some(item);
        }
    }

    /// Adds to the work that is done.
    pub(super) fn advance(&self, count: u64) {
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
            if self.is_one {
                item.done();
            } else {
                item.failed();
            }
        }
    }

    /// Removes the bar.
    pub(super) fn done(self) {
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
