//! How layers that come in or go out are shown: a bar each on a terminal, else a line each, on
//! stderr.

use std::io::{IsTerminal as _, Write};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::output::{one_line, size};
use unionfs::archive::Progress;

/// What is shown.
pub(super) struct Transfer {
    quiet: bool,
    terminal: bool,
    /// "loaded", "saved": what has happened to a layer.
    done: &'static str,
    current: Mutex<Option<Current>>,
}

struct Current {
    what: String,
    bytes: Option<u64>,
    passed: u64,
    bar: Option<ProgressBar>,
}

impl Transfer {
    pub(super) fn new(quiet: bool, done: &'static str) -> Self {
        Self {
            quiet,
            terminal: std::io::stderr().is_terminal(),
            done,
            current: Mutex::new(None),
        }
    }

    pub(super) fn show(&self, progress: Progress<'_>) {
        match progress {
            Progress::Layer { diff_id, bytes } => self.begin(&diff_id.short(), Some(bytes)),
            Progress::Bytes(count) => self.add(count),
            Progress::Done => self.done(None),
            Progress::Exists { diff_id } if !self.quiet => {
                line(&format!("{}: exists", diff_id.short()));
            }
            // Nothing is shown of what a later version of the library tells.
            _ => {}
        }
    }

    /// Something begins; `bytes`: how many it has, where that is known.
    pub(super) fn begin(&self, what: &str, bytes: Option<u64>) {
        if self.quiet {
            return;
        }
        let bar = self.terminal.then(|| bar(what, bytes));
        *self.current() = Some(Current {
            what: what.to_owned(),
            bytes,
            passed: 0,
            bar,
        });
    }

    /// So many more bytes went by.
    pub(super) fn add(&self, count: u64) {
        if let Some(current) = self.current().as_mut() {
            current.passed += count;
            if let Some(bar) = &current.bar {
                bar.inc(count);
            }
        }
    }

    /// It is done; `what`: what it turned out to be.
    pub(super) fn done(&self, what: Option<&str>) {
        let Some(current) = self.current().take() else {
            return;
        };
        let what = what.unwrap_or(&current.what);
        match current.bar {
            Some(bar) => {
                bar.set_message(what.to_owned());
                bar.finish();
            }
            None => {
                let bytes = size(current.bytes.unwrap_or(current.passed));
                line(&format!("{what}: {}, {bytes}", self.done));
            }
        }
    }

    /// Counts what is written.
    pub(super) fn counted<W: Write>(&self, out: W) -> Counted<'_, W> {
        Counted {
            out,
            transfer: self,
        }
    }

    fn current(&self) -> std::sync::MutexGuard<'_, Option<Current>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// See [`Transfer::counted`].
pub(super) struct Counted<'t, W> {
    out: W,
    transfer: &'t Transfer,
}

impl<W: Write> Write for Counted<'_, W> {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        let written = self.out.write(buf)?;
        self.transfer.add(written as u64);
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()
    }
}

fn bar(what: &str, bytes: Option<u64>) -> ProgressBar {
    let (bar, form) = match bytes {
        Some(bytes) => (
            ProgressBar::new(bytes),
            "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec}",
        ),
        None => (
            ProgressBar::no_length(),
            "{msg} {spinner} {bytes} {bytes_per_sec}",
        ),
    };
    let bar = bar.with_message(what.to_owned());
    if let Ok(style) = ProgressStyle::with_template(form) {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

/// Whether or not anybody reads it.
fn line(text: &str) {
    let _ = writeln!(std::io::stderr(), "{}", one_line(text));
}
