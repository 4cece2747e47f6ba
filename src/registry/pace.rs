//! How slow a registry may be: a lowest rate, since one that sends a byte now and then never trips
//! a limit of silence.

use std::io::{self, Read};
use std::time::{Duration, Instant};

/// The slowest that is waited for, as Docker and podman have no such limit and curl leaves it to
/// the user: constants that any line meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Patience {
    /// No byte for so long, in either direction: the connection is dead.
    pub silence: Duration,
    /// For a connection, TLS included.
    pub connect: Duration,
    /// From a request to the end of the answer's headers.
    pub answer: Duration,
    /// The same after an upload, about which registries think a while.
    pub upload: Duration,
    /// In so much time of waiting …
    pub window: Duration,
    /// … at least so many bytes must pass.
    pub least: u64,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            silence: Duration::from_secs(30),
            connect: Duration::from_secs(30),
            answer: Duration::from_secs(60),
            upload: Duration::from_secs(300),
            window: Duration::from_secs(30),
            least: 4096,
        }
    }
}

/// Counts what passes, in the time that was spent waiting for it.
pub(super) struct Pace {
    patience: Patience,
    waited: Duration,
    bytes: u64,
}

impl Pace {
    pub(super) fn new(patience: Patience) -> Self {
        Self {
            patience,
            waited: Duration::ZERO,
            bytes: 0,
        }
    }

    /// So many bytes came after waiting so long.
    ///
    /// # Errors
    /// `TimedOut` for what is too slow.
    pub(super) fn passed(&mut self, bytes: u64, waited: Duration) -> io::Result<()> {
        let Patience { window, least, .. } = self.patience;
        self.bytes = self.bytes.saturating_add(bytes);
        self.waited = self.waited.saturating_add(waited);
        if self.waited < window {
            return Ok(());
        }
        // A piece that took many windows must have as much for each.
        let windows = self.waited.as_secs_f64() / window.as_secs_f64().max(f64::MIN_POSITIVE);
        if (self.bytes as f64) < least as f64 * windows.floor() {
            let what = format!(
                "only {} bytes in {:.0?}, which is taken for a stall",
                self.bytes, self.waited
            );
            return Err(io::Error::new(io::ErrorKind::TimedOut, what));
        }
        (self.bytes, self.waited) = (0, Duration::ZERO);
        Ok(())
    }
}

/// Reads no slower than that.
pub(super) struct Paced<R> {
    inner: R,
    pace: Pace,
}

impl<R: Read> Paced<R> {
    pub(super) fn new(inner: R, patience: Patience) -> Self {
        Self {
            inner,
            pace: Pace::new(patience),
        }
    }
}

impl<R: Read> Read for Paced<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let since = Instant::now();
        let got = self.inner.read(buf)?;
        if got > 0 {
            self.pace.passed(got as u64, since.elapsed())?;
        }
        Ok(got)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_drips_is_a_stall_and_what_is_slow_is_not() {
        let patience = Patience::default();
        let mut pace = Pace::new(patience);
        let five = Duration::from_secs(5);
        let drips = (0..20).position(|_| pace.passed(1, five).is_err());
        assert_eq!(drips, Some(5), "after 30 s");
        let mut pace = Pace::new(patience);
        assert!((0..1000).all(|_| pace.passed(1024, five).is_ok()));
        let mut pace = Pace::new(patience);
        pace.passed(4096, patience.window).unwrap();
        pace.passed(1, patience.window).unwrap_err();
        // Large pieces, as uploads have them.
        let mut pace = Pace::new(patience);
        pace.passed(128 << 10, 30 * patience.window).unwrap();
        pace.passed(128 << 10, 40 * patience.window).unwrap_err();
    }
}
