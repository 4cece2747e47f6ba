//! The destination of log lines: standard error in the foreground; for a daemon the log of the
//! system, or with `-d` or `UNIONFS_LOG` a file beside the record of the mount. A line about a
//! request ends with its operation, inode and process. `launch` sets it up once per process.
//!
//! `UNIONFS_LOG` contains a filter of tracing-subscriber: `debug`, `unionfs=trace`.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::sync::{Arc, OnceLock};

use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::{DefaultFields, Format, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{EnvFilter, Registry};

use super::output::one_line;
use super::system_log::SystemLog;
use unionfs::fuse;
use unionfs::sys::daemon;

const VARIABLE: &str = "UNIONFS_LOG";

/// What is logged if `UNIONFS_LOG` does not say it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verbosity {
    /// Warnings and errors.
    Normal,
    /// Everything about requests too (`-d`).
    Debug,
}

impl Verbosity {
    pub(super) fn of_flag(debug: bool) -> Self {
        if debug { Self::Debug } else { Self::Normal }
    }
}

/// Whether a daemon writes a log file.
pub(super) fn is_wanted(verbosity: Verbosity) -> bool {
    verbosity == Verbosity::Debug
        || std::env::var_os(VARIABLE).is_some_and(|filter| !filter.is_empty())
}

/// Where a daemon logs to.
enum Destination {
    File(Arc<File>),
    System(SystemLog),
}

/// The destination of this process. The processes that it starts keep the descriptor.
static DESTINATION: OnceLock<Destination> = OnceLock::new();

fn keep_in_helpers(destination: Destination) {
    daemon::keep_in_helpers(match DESTINATION.get_or_init(|| destination) {
        Destination::File(file) => file.as_fd(),
        Destination::System(log) => log.as_fd(),
    });
}

/// Logs to standard error.
pub(super) fn to_stderr(verbosity: Verbosity) {
    start(filter(verbosity), Format::default(), io::stderr);
}

/// Logs to `file`.
pub(super) fn to_file(verbosity: Verbosity, file: File) {
    let file = Arc::new(file);
    keep_in_helpers(Destination::File(Arc::clone(&file)));
    start(filter(verbosity), Format::default(), file);
}

/// Logs warnings and errors to the log of the system, which adds the time. If the system has no
/// log, the lines are lost.
pub(super) fn to_system() {
    if let Some(log) = SystemLog::connect() {
        keep_in_helpers(Destination::System(log.clone()));
        let format = Format::default().without_time().with_level(false);
        start(EnvFilter::new("warn"), format, log);
    }
}

fn filter(verbosity: Verbosity) -> EnvFilter {
    match std::env::var(VARIABLE) {
        Ok(text) if !text.is_empty() => EnvFilter::builder().parse_lossy(text),
        _ => EnvFilter::new(match verbosity {
            Verbosity::Normal => "warn",
            Verbosity::Debug => "debug",
        }),
    }
}

fn start<F, W>(filter: EnvFilter, format: F, writer: W)
where
    F: FormatEvent<Registry, DefaultFields> + Send + Sync + 'static,
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    // This fails only if a user of the library has set another logger up, which is then used.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .event_format(WithRequest(format))
        .with_writer(writer)
        .try_init();
}

/// A format whose lines end with the request during which they were written, if any. Hostile file
/// names cannot begin a line and have no control characters.
struct WithRequest<F>(F);

impl<S, N, F> FormatEvent<S, N> for WithRequest<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut line = String::new();
        self.0
            .format_event(context, Writer::new(&mut line), event)?;
        let line = one_line(line.trim_end_matches('\n'));
        match fuse::current_request() {
            Some(request) => writeln!(writer, "{line} {request}"),
            None => writeln!(writer, "{line}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_name_makes_no_line_and_moves_no_cursor() {
        let kept = Kept::default();
        let writer = kept.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .event_format(WithRequest(Format::default().without_time()))
            .with_writer(move || writer.clone())
            .finish();
        let hostile = "x\n2026-11-28 ERROR forged\x1b[2J\u{9b}m\u{202e}";
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!(name = %hostile, other = hostile, "cannot open {hostile}");
        });
        let text = String::from_utf8(kept.0.lock().unwrap().clone()).unwrap();
        assert!(
            text.starts_with(" WARN") && text.ends_with('\n'),
            "{text:?}"
        );
        let line = &text[..text.len() - 1];
        assert_eq!(one_line(line), line);
    }
}
