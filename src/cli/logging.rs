//! Where log lines go: stderr in the foreground, a file beside the mount's record for a
//! daemon, nowhere unless asked for. Called once per process, by `launch`.
//!
//! `UNIONFS_LOG` holds a filter as tracing-subscriber has it: `debug`, `unionfs=trace`.

use std::fs::File;
use std::io;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

const VARIABLE: &str = "UNIONFS_LOG";

/// Whether a daemon is to write a log file.
pub(super) fn is_wanted(debug: bool) -> bool {
    debug || std::env::var_os(VARIABLE).is_some_and(|filter| !filter.is_empty())
}

/// Logs to stderr; without a filter, warnings and errors only.
pub(super) fn to_stderr(debug: bool) {
    start(debug, io::stderr);
}

/// Logs to `file`.
pub(super) fn to_file(debug: bool, file: File) {
    start(debug, std::sync::Mutex::new(file));
}

fn start<W>(debug: bool, writer: W)
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let default = if debug { "debug" } else { "warn" };
    let filter = match std::env::var(VARIABLE) {
        Ok(text) if !text.is_empty() => EnvFilter::builder().parse_lossy(text),
        _ => EnvFilter::new(default),
    };
    // Fails only where a library user has set another logger up: that one is used.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_writer(writer)
        .try_init();
}
