//! How layers that come in or go out are shown: a bar each on a terminal, else a line each,
//! on stderr. Called by `load`, `import` and `save`.

use std::io::{IsTerminal as _, Write as _};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::output::size;
use crate::store::archive::Progress;

/// What is shown.
pub(super) struct Transfer {
    quiet: bool,
    terminal: bool,
    /// "loaded", "saved": what has happened to a layer.
    done: &'static str,
    current: Mutex<Option<Current>>,
}

struct Current {
    layer: String,
    bytes: u64,
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
        if self.quiet {
            return;
        }
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        match progress {
            Progress::Layer { diff_id, bytes } => {
                let layer = diff_id.short();
                let bar = self.terminal.then(|| bar(&layer, bytes));
                *current = Some(Current { layer, bytes, bar });
            }
            Progress::Bytes(count) => {
                if let Some(Current { bar: Some(bar), .. }) = current.as_ref() {
                    bar.inc(count);
                }
            }
            Progress::Done => match current.take() {
                Some(Current { bar: Some(bar), .. }) => bar.finish(),
                Some(Current { layer, bytes, .. }) => {
                    line(&format!("{layer}: {}, {}", self.done, size(bytes)));
                }
                None => {}
            },
            Progress::Exists { diff_id } => {
                line(&format!("{}: exists", diff_id.short()));
            }
        }
    }
}

fn bar(layer: &str, bytes: u64) -> ProgressBar {
    let bar = ProgressBar::new(bytes).with_message(layer.to_owned());
    let form = "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec}";
    if let Ok(style) = ProgressStyle::with_template(form) {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

/// Whether or not anybody reads it.
fn line(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
