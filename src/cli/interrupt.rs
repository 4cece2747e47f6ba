//! SIGINT, SIGTERM and SIGHUP for the commands that move images. Unfinished work is removed first.
//! Then the signal ends the process, as its caller expects. A second signal does not wait. The next
//! command that takes images in removes what is left then.

use std::io::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use unionfs::sys::interrupt;

/// The last message to the user, whatever ends the command.
type Note = Box<dyn Fn() -> Option<String> + Send>;

static NOTE: Mutex<Option<Note>> = Mutex::new(None);
static ENDED: AtomicBool = AtomicBool::new(false);

/// Handles signals from now on. A signal that the caller ignores, as nohup(1) does, stays ignored.
pub(super) fn watch() {
    let ignored = ignored();
    let wanted = [SIGINT, SIGTERM, SIGHUP];
    let wanted = wanted.iter().filter(|n| ignored >> (**n - 1) & 1 == 0);
    let started = Signals::new(wanted).and_then(|mut signals| {
        std::thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || {
                for signal in signals.forever() {
                    let again = interrupt::signal().is_some();
                    if !interrupt::raise(signal) || again {
                        end(signal);
                    }
                }
            })
    });
    if let Err(error) = started {
        tracing::warn!(%error, "signals are not waited for: one leaves to prune what is half done");
    }
}

/// Returns the signals that this process ignores, by bit.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0)
}

/// Sets the message for a command that fails or is interrupted.
pub(super) fn note(text: impl Fn() -> Option<String> + Send + 'static) {
    *NOTE.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(text));
}

/// Appends that message to a line for the user.
pub(super) fn with_note(line: &str) -> String {
    let note = NOTE.lock().unwrap_or_else(PoisonError::into_inner).take();
    match note.and_then(|note| note()) {
        Some(note) => format!("{line}; {note}"),
        None => line.to_owned(),
    }
}

/// Ends the process by the signal. Everything has been removed, or a second signal came.
pub(super) fn end(signal: i32) -> ! {
    if ENDED.swap(true, Ordering::SeqCst) {
        // Another thread does it already.
        loop {
            std::thread::park();
        }
    }
    let line = with_note("interrupted");
    // A failure to write does not matter.
    let _ = writeln!(std::io::stderr(), "unionfs: {line}");
    let _ = signal_hook::low_level::emulate_default_handler(signal);
    std::process::exit(128 + signal)
}
