//! A lower limit of a registry's transfer rate. A limit of silence is not enough: a registry that
//! sends a byte now and then never exceeds it.

use std::io::{self, Read};
use std::time::{Duration, Instant};

/// The time limits. Docker and podman have no lower limit of the rate, and curl leaves it to the
/// user. These are constants that any line meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Patience {
    /// The longest time without a byte, in either direction. After it the connection counts as
    /// dead.
    pub silence: Duration,
    /// The time for a connection, including TLS.
    pub connect: Duration,
    /// The time from a request to the end of the response's headers.
    pub answer: Duration,
    /// The same after an upload, which registries need more time to process.
    pub upload: Duration,
    /// The waiting time in which …
    pub window: Duration,
    /// … at least this number of bytes must pass.
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

/// Counts the bytes that pass, and the time spent waiting for them.
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

    /// Adds bytes that were received or sent after waiting for some time.
    ///
    /// # Errors
    /// `TimedOut` if the rate is too low.
    pub(super) fn passed(&mut self, bytes: u64, waited: Duration) -> io::Result<()> {
        let Patience { window, least, .. } = self.patience;
        self.bytes = self.bytes.saturating_add(bytes);
        self.waited = self.waited.saturating_add(waited);
        if self.waited < window {
            return Ok(());
        }
        // A piece that took several windows must have as many bytes for each.
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

/// Reads with this lower limit of the rate.
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
        // Large pieces, as in uploads.
        let mut pace = Pace::new(patience);
        pace.passed(128 << 10, 30 * patience.window).unwrap();
        pace.passed(128 << 10, 40 * patience.window).unwrap_err();
    }
}
