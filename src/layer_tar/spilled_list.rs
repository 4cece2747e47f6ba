//! A list of byte strings that wait to be processed, in any order: the first ones in memory, the
//! rest in a file.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use super::external_sort::MOST;

/// The limit of bytes in memory, and of bytes read and written at once; only a single longer string
/// may exceed it.
const MEMORY: usize = 256 << 10;
/// The bytes of the length before each string.
const HEAD: usize = 4;

/// A list of byte strings.
pub(super) struct SpilledList<'f> {
    file: &'f File,
    /// The strings in memory, one after the other, and the end of each.
    bytes: Vec<u8>,
    ends: Vec<usize>,
    /// Strings that are not written yet.
    full: Vec<u8>,
    written: u64,
    read: u64,
}

impl<'f> SpilledList<'f> {
    /// Makes an empty list. `file` is overwritten.
    pub(super) fn new(file: &'f File) -> Self {
        Self {
            file,
            bytes: Vec::new(),
            ends: Vec::new(),
            full: Vec::new(),
            written: 0,
            read: 0,
        }
    }

    /// # Errors
    /// Those of writing; [`io::ErrorKind::FileTooLarge`] for more than the file may hold.
    pub(super) fn push(&mut self, text: &[u8]) -> io::Result<()> {
        if self.bytes.len() + size_of::<usize>() * self.ends.len() < MEMORY {
            self.bytes.extend(text);
            self.ends.push(self.bytes.len());
            return Ok(());
        }
        let length = u32::try_from(text.len()).map_err(|_| io::ErrorKind::FileTooLarge)?;
        self.full.extend(length.to_ne_bytes());
        self.full.extend(text);
        if self.full.len() < MEMORY {
            Ok(())
        } else {
            self.write()
        }
    }

    fn write(&mut self) -> io::Result<()> {
        if self.written + self.full.len() as u64 > MOST {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.file.write_all_at(&self.full, self.written)?;
        self.written += self.full.len() as u64;
        self.full.clear();
        Ok(())
    }

    /// Removes a string and returns it.
    ///
    /// # Errors
    /// Those of writing and reading.
    pub(super) fn pop(&mut self) -> io::Result<Option<Vec<u8>>> {
        if self.ends.is_empty() {
            self.refill()?;
        }
        if self.ends.pop().is_none() {
            return Ok(None);
        }
        let start = self.ends.last().copied().unwrap_or(0);
        Ok(Some(self.bytes.split_off(start)))
    }

    fn refill(&mut self) -> io::Result<()> {
        self.write()?;
        while self.bytes.len() < MEMORY / 2 && self.read < self.written {
            let mut length = [0; HEAD];
            self.file.read_exact_at(&mut length, self.read)?;
            let start = self.bytes.len();
            let length = u32::from_ne_bytes(length) as usize;
            self.bytes.resize(start + length, 0);
            let place = self.bytes.get_mut(start..).unwrap_or_default();
            self.file.read_exact_at(place, self.read + HEAD as u64)?;
            self.ends.push(self.bytes.len());
            self.read += (HEAD + length) as u64;
        }
        if self.read == self.written {
            (self.read, self.written) = (0, 0);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn everything_comes_out_once() {
        let file = tempfile::tempfile().unwrap();
        let mut list = SpilledList::new(&file);
        assert_eq!(list.pop().unwrap(), None);
        let mut inside = HashSet::new();
        // More than fits into memory, and again when the file has been read completely.
        for round in 0..2u32 {
            for n in 0..100_000u32 {
                let text = [&round.to_be_bytes()[..], &n.to_be_bytes(), b"name"].concat();
                list.push(&text).unwrap();
                inside.insert(text);
                if n % 3 == 0 {
                    assert!(inside.remove(&list.pop().unwrap().unwrap()));
                }
            }
            list.push(b"").unwrap();
            inside.insert(Vec::new());
            while let Some(text) = list.pop().unwrap() {
                assert!(inside.remove(&text));
            }
            assert!(inside.is_empty());
        }
    }
}
