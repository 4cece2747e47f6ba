//! How blobs on their way from or to a registry are shown: a bar each on a terminal, else a line
//! each, on stderr.

use std::collections::HashMap;
use std::io::{IsTerminal as _, Write as _};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::output::{one_line, size};
use unionfs::oci::Digest;
use unionfs::registry::Event;

/// What is shown.
pub(super) struct Blobs {
    quiet: bool,
    /// "downloaded", "pushed": what has happened to a blob.
    done: &'static str,
    bars: Option<MultiProgress>,
    running: Mutex<HashMap<Digest, Running>>,
}

struct Running {
    bytes: u64,
    bar: Option<ProgressBar>,
}

impl Blobs {
    pub(super) fn new(quiet: bool, done: &'static str) -> Self {
        let terminal = !quiet && std::io::stderr().is_terminal();
        Self {
            quiet,
            done,
            bars: terminal.then(MultiProgress::new),
            running: Mutex::default(),
        }
    }

    pub(super) fn show(&self, event: Event<'_>) {
        if self.quiet {
            return;
        }
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Begin { digest, size, have } => {
                if have > 0 {
                    let text = super::output::size(have);
                    self.line(&format!("{}: continuing after {text}", digest.short()));
                }
                let bar = self.bars.as_ref().map(|bars| {
                    let bar = bars.add(bar(&digest.short(), size));
                    bar.set_position(have);
                    bar.enable_steady_tick(Duration::from_millis(100));
                    bar
                });
                running.insert(*digest, Running { bytes: size, bar });
            }
            Event::Bytes { digest, count } => {
                if let Some(Running { bar: Some(bar), .. }) = running.get(digest) {
                    bar.inc(count);
                }
            }
            Event::Again { digest, why, have } => {
                if let Some(Running { bar: Some(bar), .. }) = running.get(digest) {
                    bar.set_position(have);
                }
                self.line(&format!("{}: trying again: {why}", digest.short()));
            }
            Event::Elsewhere { digest, process } => {
                let who = process.map_or("another process".to_owned(), |process| {
                    format!("process {process}")
                });
                self.line(&format!(
                    "{}: waiting for the download of {who}",
                    digest.short()
                ));
            }
            Event::Later { what, why, pause } => {
                let seconds = pause.as_secs_f32();
                self.line(&format!("{what}: trying again in {seconds:.1} s: {why}"));
            }
            Event::Done { digest } => match running.remove(digest) {
                Some(Running { bar: Some(bar), .. }) => bar.finish(),
                Some(Running { bytes, .. }) => {
                    self.line(&format!(
                        "{}: {}, {}",
                        digest.short(),
                        self.done,
                        size(bytes)
                    ));
                }
                None => self.line(&format!("{}: {}", digest.short(), self.done)),
            },
            Event::Exists { diff_id } => self.line(&format!("{}: exists", diff_id.short())),
            // Nothing is shown of what a later version of the library tells.
            _ => {}
        }
    }

    /// Whether or not anybody reads it.
    fn line(&self, text: &str) {
        let text = one_line(text);
        match &self.bars {
            Some(bars) => {
                let _ = bars.println(text);
            }
            None => {
                let _ = writeln!(std::io::stderr(), "{text}");
            }
        }
    }
}

fn bar(what: &str, bytes: u64) -> ProgressBar {
    let bar = ProgressBar::new(bytes).with_message(what.to_owned());
    let form = "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec}";
    match ProgressStyle::with_template(form) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
