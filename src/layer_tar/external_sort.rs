//! Sorts more records than fit into memory: pieces of them are sorted and written to a file, and
//! merged while they are read. Records with the same key keep their order.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;

/// The limit of bytes of records in memory; only a single larger record may exceed it.
const MEMORY: usize = 8 << 20;
/// The size limit of a file, in bytes.
pub(super) const MOST: u64 = 3 << 30;
/// The bytes of all pieces that are read ahead. The key of each piece's next record is in memory
/// besides.
const AHEAD: usize = 4 << 20;
/// The bytes before a record in a file: the lengths of key and value.
const HEAD: usize = 8;

/// Collects records and sorts them.
pub(super) struct ExternalSort<'f> {
    file: &'f File,
    bytes: Vec<u8>,
    records: Vec<Record>,
    pieces: Vec<(u64, u64)>,
    end: u64,
}

/// The position of a record in memory.
#[derive(Clone, Copy)]
struct Record {
    start: usize,
    key: u32,
    value: u32,
}

impl Record {
    fn key(self, bytes: &[u8]) -> &[u8] {
        bytes
            .get(self.start..self.start + self.key as usize)
            .unwrap_or_default()
    }

    fn value(self, bytes: &[u8]) -> &[u8] {
        let start = self.start + self.key as usize;
        bytes
            .get(start..start + self.value as usize)
            .unwrap_or_default()
    }
}

impl<'f> ExternalSort<'f> {
    /// Makes an empty sorter. `file` is overwritten.
    pub(super) fn new(file: &'f File) -> Self {
        Self {
            file,
            bytes: Vec::new(),
            records: Vec::new(),
            pieces: Vec::new(),
            end: 0,
        }
    }

    /// Adds a record.
    ///
    /// # Errors
    /// Those of writing; [`io::ErrorKind::FileTooLarge`] for more than the file may hold.
    pub(super) fn push(&mut self, key: &[u8], value: &[u8]) -> io::Result<()> {
        let length = |bytes: &[u8]| {
            u32::try_from(bytes.len()).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))
        };
        self.records.push(Record {
            start: self.bytes.len(),
            key: length(key)?,
            value: length(value)?,
        });
        self.bytes.extend(key);
        self.bytes.extend(value);
        let kept = self.bytes.len() + self.records.len() * size_of::<Record>();
        if kept > MEMORY { self.spill() } else { Ok(()) }
    }

    fn sort(&mut self) {
        let bytes = &self.bytes;
        self.records.sort_by(|a, b| a.key(bytes).cmp(b.key(bytes)));
    }

    fn spill(&mut self) -> io::Result<()> {
        self.sort();
        let start = self.end;
        let mut out = io::BufWriter::with_capacity(
            256 << 10,
            At {
                file: self.file,
                at: start,
            },
        );
        for record in self.records.drain(..) {
            out.write_all(&record.key.to_ne_bytes())?;
            out.write_all(&record.value.to_ne_bytes())?;
            out.write_all(record.key(&self.bytes))?;
            out.write_all(record.value(&self.bytes))?;
        }
        self.end = out.into_inner().map_err(io::IntoInnerError::into_error)?.at;
        self.bytes.clear();
        self.pieces.push((start, self.end));
        if self.end > MOST {
            Err(io::ErrorKind::FileTooLarge.into())
        } else {
            Ok(())
        }
    }

    /// Ends the collection; returns the sorted records.
    ///
    /// # Errors
    /// Those of writing and reading.
    pub(super) fn finish(mut self) -> io::Result<Sorted<'f>> {
        if self.pieces.is_empty() {
            self.sort();
        } else if !self.records.is_empty() {
            self.spill()?;
            self.bytes = Vec::new();
            self.records = Vec::new();
        }
        let mut sorted = Sorted {
            file: self.file,
            bytes: self.bytes,
            records: self.records,
            at: 0,
            pieces: self.pieces,
            readers: Vec::new(),
            next: BinaryHeap::new(),
        };
        sorted.again()?;
        Ok(sorted)
    }
}

/// Writes at a position of a file.
struct At<'f> {
    file: &'f File,
    at: u64,
}

impl io::Write for At<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let written = self.file.write_at(buf, self.at)?;
        self.at += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Returns records in the order of their keys.
pub(super) struct Sorted<'f> {
    file: &'f File,
    bytes: Vec<u8>,
    records: Vec<Record>,
    at: usize,
    pieces: Vec<(u64, u64)>,
    readers: Vec<Reader>,
    /// The key of the next record of each piece, and the number of the piece.
    next: BinaryHeap<Reverse<(Vec<u8>, usize)>>,
}

/// Reads a piece.
struct Reader {
    at: u64,
    end: u64,
    buffer: Vec<u8>,
    used: usize,
    /// The length in bytes of the value whose key was read last.
    value: usize,
}

impl Reader {
    /// Reads the next `count` bytes; `ahead` is the number of bytes read at once.
    fn take(&mut self, file: &File, count: usize, ahead: usize) -> io::Result<Vec<u8>> {
        let have = self.buffer.len() - self.used;
        let left = self.end - self.at;
        if have < count && (count - have) as u64 > left {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if have < count && count >= ahead {
            // Read directly into the result, so that the buffer stays small.
            let mut taken = self.buffer.split_off(self.used);
            self.buffer = Vec::new();
            self.used = 0;
            taken.resize(count, 0);
            let place = taken.get_mut(have..).unwrap_or_default();
            file.read_exact_at(place, self.at)?;
            self.at += (count - have) as u64;
            return Ok(taken);
        }
        if have < count {
            self.buffer.drain(..self.used);
            self.used = 0;
            let left = usize::try_from(left).unwrap_or(usize::MAX);
            self.buffer.resize(left.saturating_add(have).min(ahead), 0);
            let place = self.buffer.get_mut(have..).unwrap_or_default();
            file.read_exact_at(place, self.at)?;
            self.at += place.len() as u64;
        }
        let taken = self.buffer.get(self.used..self.used + count);
        let taken = taken.ok_or(io::ErrorKind::UnexpectedEof)?.to_vec();
        self.used += count;
        Ok(taken)
    }

    /// Reads the key of the next record.
    fn key(&mut self, file: &File, ahead: usize) -> io::Result<Option<Vec<u8>>> {
        if self.at == self.end && self.used == self.buffer.len() {
            return Ok(None);
        }
        let head = self.take(file, HEAD, ahead)?;
        let length = |at: usize| {
            let four = head.get(at..at + 4).and_then(|four| four.try_into().ok());
            four.map_or(0, u32::from_ne_bytes) as usize
        };
        self.value = length(4);
        self.take(file, length(0), ahead).map(Some)
    }

    /// Reads the value of the record whose key was read last.
    fn value(&mut self, file: &File, ahead: usize) -> io::Result<Vec<u8>> {
        self.take(file, self.value, ahead)
    }
}

impl Sorted<'_> {
    /// Starts from the first record again.
    ///
    /// # Errors
    /// Those of reading.
    pub(super) fn again(&mut self) -> io::Result<()> {
        self.at = 0;
        self.next.clear();
        self.readers = self
            .pieces
            .iter()
            .map(|&(at, end)| Reader {
                at,
                end,
                buffer: Vec::new(),
                used: 0,
                value: 0,
            })
            .collect();
        let ahead = self.ahead();
        for (number, reader) in self.readers.iter_mut().enumerate() {
            let key = reader.key(self.file, ahead)?;
            self.next.extend(key.map(|key| Reverse((key, number))));
        }
        Ok(())
    }

    fn ahead(&self) -> usize {
        (AHEAD / self.pieces.len().max(1)).max(HEAD)
    }

    /// Returns the key and value of the next record.
    ///
    /// # Errors
    /// Those of reading.
    pub(super) fn next(&mut self) -> io::Result<Option<(Vec<u8>, Vec<u8>)>> {
        if self.pieces.is_empty() {
            let record = self.records.get(self.at);
            self.at += 1;
            return Ok(record.map(|record| {
                (
                    record.key(&self.bytes).to_vec(),
                    record.value(&self.bytes).to_vec(),
                )
            }));
        }
        let ahead = self.ahead();
        let Some(Reverse((key, number))) = self.next.pop() else {
            return Ok(None);
        };
        let Some(reader) = self.readers.get_mut(number) else {
            return Ok(None);
        };
        let value = reader.value(self.file, ahead)?;
        let following = reader.key(self.file, ahead)?;
        self.next
            .extend(following.map(|key| Reverse((key, number))));
        Ok(Some((key, value)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sorted(count: u32, value: usize) {
        let file = tempfile::tempfile().unwrap();
        let mut sorter = ExternalSort::new(&file);
        // Each key three times; 7919 is a prime.
        let key = |n: u32| (n.wrapping_mul(7919) % count).to_be_bytes();
        for n in 0..3 * count {
            let mut text = n.to_be_bytes().to_vec();
            text.resize(4 + value, 7);
            sorter.push(&key(n), &text).unwrap();
        }
        let mut sorted = sorter.finish().unwrap();
        for _ in 0..2 {
            let mut last: Option<(Vec<u8>, Vec<u8>)> = None;
            let mut seen = 0;
            while let Some((key, text)) = sorted.next().unwrap() {
                let now = (key, text[..4].to_vec());
                assert!(last.is_none_or(|last| last < now), "{now:?}");
                assert_eq!(text.len(), 4 + value);
                last = Some(now);
                seen += 1;
            }
            assert_eq!(seen, 3 * count);
            sorted.again().unwrap();
        }
    }

    #[test]
    fn records_come_in_the_order_of_keys_and_then_as_they_came() {
        sorted(1000, 10);
        // More than fits into memory.
        sorted(100_003, 100);
        sorted(7, 3 << 20);
    }
}
