//! Reads the headers of a layer's tar from tar-split alone; the content of files is skipped.

use std::io::{self, BufRead, Read};

use super::error::{Error, Result};
use super::header::Entry;
use super::tar_reader::TarReader;
use super::tar_split::{TarSplitLine, TarSplitReader};
use super::unpack::Limits;

/// Calls `take` with every header.
///
/// # Errors
/// Those of the tar-split, of the headers and of `take`.
pub(super) fn each(split: impl BufRead, mut take: impl FnMut(Entry) -> Result<()>) -> Result<()> {
    let limits = Limits {
        bytes: u64::MAX,
        ..Limits::default()
    };
    let headers = Headers {
        lines: TarSplitReader::new(split),
        segment: io::Cursor::default(),
        zeros: 0,
    };
    let mut reader = TarReader::headers(headers, &limits);
    while let Some(entry) = reader.next()? {
        reader.raw().clear();
        reader.skip(Headers::skip)?;
        take(entry)?;
    }
    Ok(())
}

/// The tar that tar-split describes, with zeros in place of the content of files.
struct Headers<R> {
    lines: TarSplitReader<R>,
    segment: io::Cursor<Vec<u8>>,
    zeros: u64,
}

impl<R: BufRead> Headers<R> {
    /// Reads the next line if the current one is used up; false at the end.
    fn fill(&mut self) -> io::Result<bool> {
        while self.zeros == 0 && self.segment.position() >= self.segment.get_ref().len() as u64 {
            match self.lines.next_line() {
                Ok(None) => return Ok(false),
                Ok(Some(TarSplitLine::Segment(bytes))) => self.segment = io::Cursor::new(bytes),
                Ok(Some(TarSplitLine::File { size, .. })) => self.zeros = size,
                Err(error) => return Err(invalid(error)),
            }
        }
        Ok(true)
    }

    /// Skips at most `most` bytes of the current line. Returns the number of bytes skipped; 0 at
    /// the end.
    fn skip(&mut self, most: u64) -> io::Result<u64> {
        if !self.fill()? {
            return Ok(0);
        }
        if self.zeros > 0 {
            let count = most.min(self.zeros);
            self.zeros -= count;
            return Ok(count);
        }
        let at = self.segment.position();
        let count = most.min(self.segment.get_ref().len() as u64 - at);
        self.segment.set_position(at + count);
        Ok(count)
    }
}

impl<R: BufRead> Read for Headers<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() || !self.fill()? {
            return Ok(0);
        }
        if self.zeros == 0 {
            return self.segment.read(buf);
        }
        let zeros = usize::try_from(self.zeros).unwrap_or(usize::MAX);
        let count = buf.len().min(zeros);
        buf[..count].fill(0);
        self.zeros -= count as u64;
        Ok(count)
    }
}

fn invalid(error: Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
