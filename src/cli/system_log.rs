//! The log of the system (syslogd, or the journal in its place), reached by the datagram socket
//! /dev/log with messages in the form of syslog(3): `<PRIORITY>unionfs[PID]: TEXT`, facility
//! daemon.
//!
//! The socket is opened before a sandbox is entered, from which no path leads to it. No function
//! here waits or fails: if the log is full or gone, lines are lost. Users of a mount can cause
//! lines, so there is a limit: a [`BURST`], and then one line a second.

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

/// The socket of syslog(3) (paths.h: _PATH_LOG).
const SOCKET: &str = "/dev/log";
/// LOG_DAEMON of syslog.h.
const FACILITY: u8 = 3 << 3;
/// LOG_ERR, LOG_WARNING, LOG_INFO, LOG_DEBUG of syslog.h.
const ERROR: u8 = 3;
const WARNING: u8 = 4;
const INFO: u8 = 6;
const DEBUG: u8 = 7;
/// The number of lines that are sent without a pause.
const BURST: u32 = 100;
/// The time after which one more line may be sent.
const INTERVAL: Duration = Duration::from_secs(1);
/// The maximum length of a line in bytes; the rest is cut off. Every syslogd accepts this (RFC
/// 5424, 6.1).
const MAX_LINE: usize = 2048;

/// A connection to the log. Clones share it.
#[derive(Clone)]
pub(super) struct SystemLog(Arc<Shared>);

struct Shared {
    socket: UnixDatagram,
    allowance: Mutex<Allowance>,
}

impl SystemLog {
    /// Connects to the log. `None`: this system has no log, or one that takes no datagrams.
    pub(super) fn connect() -> Option<Self> {
        let connected = || -> io::Result<UnixDatagram> {
            let socket = UnixDatagram::unbound()?;
            socket.connect(SOCKET)?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        };
        Some(Self(Arc::new(Shared {
            socket: connected().ok()?,
            allowance: Mutex::new(Allowance::new(Instant::now())),
        })))
    }
}

impl AsFd for SystemLog {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.socket.as_fd()
    }
}

impl<'a> MakeWriter<'a> for SystemLog {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        self.line(WARNING)
    }

    fn make_writer_for(&'a self, meta: &Metadata<'_>) -> Line {
        self.line(match *meta.level() {
            Level::ERROR => ERROR,
            Level::WARN => WARNING,
            Level::INFO => INFO,
            _ => DEBUG,
        })
    }
}

impl SystemLog {
    fn line(&self, severity: u8) -> Line {
        Line {
            log: self.clone(),
            severity,
        }
    }
}

/// A writer of lines with one severity.
pub(super) struct Line {
    log: SystemLog,
    severity: u8,
}

impl Write for Line {
    /// Sends a whole line. If the log takes nothing now, the line is lost.
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        let shared = &self.log.0;
        if let Some(lost) = shared.allowance.lock().take(Instant::now()) {
            let message = message(self.severity, lost, text);
            let _ = shared.socket.send(&message);
        }
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Formats a line as a message. It may contain file names, so control characters are replaced.
fn message(severity: u8, lost: u32, text: &[u8]) -> Vec<u8> {
    let pid = std::process::id();
    let mut message = format!("<{}>unionfs[{pid}]: ", FACILITY | severity).into_bytes();
    if lost > 0 {
        message.extend_from_slice(format!("({lost} lines before this are left out) ").as_bytes());
    }
    let text = text.trim_ascii();
    let shown = text
        .iter()
        .map(|byte| if byte.is_ascii_control() { b'?' } else { *byte });
    message.extend(shown.take(MAX_LINE.saturating_sub(message.len())));
    message
}

/// The number of lines that may be sent now.
#[derive(Debug)]
struct Allowance {
    left: u32,
    /// The time of the last increase.
    since: Instant,
    /// The number of lines that were left out.
    lost: u32,
}

impl Allowance {
    fn new(now: Instant) -> Self {
        Self {
            left: BURST,
            since: now,
            lost: 0,
        }
    }

    /// Whether a line may be sent, and how many were left out before it.
    fn take(&mut self, now: Instant) -> Option<u32> {
        let gained = now.saturating_duration_since(self.since).as_secs() / INTERVAL.as_secs();
        let gained = u32::try_from(gained).unwrap_or(u32::MAX);
        if gained > 0 {
            self.left = self.left.saturating_add(gained).min(BURST);
            self.since = now;
        }
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                Some(std::mem::take(&mut self.lost))
            }
            None => {
                self.lost = self.lost.saturating_add(1);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_line_of_bounded_length() {
        let start = format!("<28>unionfs[{}]: ", std::process::id());
        let shown = |lost, text: &[u8]| String::from_utf8(message(WARNING, lost, text)).unwrap();
        assert_eq!(shown(0, b"a\x1b[2Jb\nc\n"), format!("{start}a?[2Jb?c"));
        let lost = shown(3, b"x");
        assert_eq!(lost, format!("{start}(3 lines before this are left out) x"));
        assert_eq!(message(ERROR, 0, &[b'x'; 100_000]).len(), MAX_LINE);
    }

    #[test]
    fn a_flood_of_lines_is_cut_and_counted() {
        let start = Instant::now();
        let mut allowance = Allowance::new(start);
        let sent = (0..1000).filter(|_| allowance.take(start).is_some());
        assert_eq!(sent.count(), 100);
        let later = start + Duration::from_secs(2);
        assert_eq!(allowance.take(later), Some(900));
        assert_eq!(allowance.take(later), Some(0));
        assert_eq!(allowance.take(later), None);
        assert_eq!(allowance.take(later + Duration::from_secs(3600)), Some(1));
    }
}
