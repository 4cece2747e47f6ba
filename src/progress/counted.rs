//! A reader or writer that reports the number of bytes that pass through it.
//!
//! ```
//! use std::io::Write as _;
//! use unionfs::progress::Counted;
//!
//! let mut bytes = 0;
//! Counted::new(std::io::sink(), |count| bytes += count).write_all(b"five!")?;
//! assert_eq!(bytes, 5);
//! # Ok::<(), std::io::Error>(())
//! ```

use std::io::{self, Read, Write};

/// A stream whose bytes are counted.
#[derive(Debug)]
pub struct Counted<S, F> {
    stream: S,
    passed: F,
}

impl<S, F: FnMut(u64)> Counted<S, F> {
    /// Wraps a stream. `passed` is called with the number of bytes of each read or write.
    pub fn new(stream: S, passed: F) -> Self {
        Self { stream, passed }
    }
}

impl<S: Read, F: FnMut(u64)> Read for Counted<S, F> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let read = self.stream.read(bytes)?;
        (self.passed)(read as u64);
        Ok(read)
    }
}

impl<S: Write, F: FnMut(u64)> Write for Counted<S, F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.stream.write(bytes)?;
        (self.passed)(written as u64);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}
