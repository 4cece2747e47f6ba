//! The target file of each hard link of a tar, for links to links. In memory there is a number for
//! each link; the targets are in a file.

use std::collections::HashMap;
use std::fs::File;
use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::os::unix::fs::FileExt as _;

/// The limit of links that are kept: the content of a hash table with 2^20 places. Links beyond it
/// are treated as links to files, which nearly all of them are.
const MOST: usize = 917_504;
/// The number of bytes that are written at once.
const PIECE: usize = 64 << 10;

/// The hard links so far.
pub(super) struct LinkTargets<'f> {
    file: &'f File,
    hasher: RandomState,
    /// The offset of each link in the file, by a hash of its path.
    places: HashMap<u64, u64>,
    /// Data that is not written yet, and its offset in the file.
    pending: Vec<u8>,
    end: u64,
}

impl<'f> LinkTargets<'f> {
    pub(super) fn new(file: &'f File) -> Self {
        Self {
            file,
            hasher: RandomState::new(),
            places: HashMap::new(),
            pending: Vec::new(),
            end: 0,
        }
    }

    /// Adds a link at `path` to `target`, which is not a link itself.
    pub(super) fn add(&mut self, path: &[u8], target: &[u8]) -> io::Result<()> {
        let hash = self.hasher.hash_one(path);
        if self.places.len() >= MOST && !self.places.contains_key(&hash) {
            return Ok(());
        }
        self.places
            .insert(hash, self.end + self.pending.len() as u64);
        for text in [path, target] {
            let length = u32::try_from(text.len()).unwrap_or(u32::MAX);
            self.pending.extend(length.to_ne_bytes());
            self.pending.extend(text);
        }
        if self.pending.len() > PIECE {
            self.flush()
        } else {
            Ok(())
        }
    }

    /// Removes the link at `path`, which another entry has replaced.
    pub(super) fn forget(&mut self, path: &[u8]) {
        if !self.places.is_empty() {
            self.places.remove(&self.hasher.hash_one(path));
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.write_all_at(&self.pending, self.end)?;
        self.end += self.pending.len() as u64;
        self.pending.clear();
        Ok(())
    }

    /// Returns the file to which a hard link to `path` leads.
    pub(super) fn origin(&mut self, path: Vec<u8>) -> io::Result<Vec<u8>> {
        let Some(&place) = self.places.get(&self.hasher.hash_one(&path)) else {
            return Ok(path);
        };
        self.flush()?;
        let (name, after) = self.text(place)?;
        if name == path {
            Ok(self.text(after)?.0)
        } else {
            // The hash is that of another path.
            Ok(path)
        }
    }

    /// Returns the text at an offset, and the offset of its end.
    fn text(&self, place: u64) -> io::Result<(Vec<u8>, u64)> {
        let mut length = [0; 4];
        self.file.read_exact_at(&mut length, place)?;
        let length = u32::from_ne_bytes(length);
        if place + 4 + u64::from(length) > self.end {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut text = vec![0; length as usize];
        self.file.read_exact_at(&mut text, place + 4)?;
        Ok((text, place + 4 + u64::from(length)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_to_links_are_to_the_file() {
        let file = tempfile::tempfile().unwrap();
        let mut links = LinkTargets::new(&file);
        let origin =
            |links: &mut LinkTargets<'_>, path: &[u8]| links.origin(path.to_vec()).unwrap();
        assert_eq!(origin(&mut links, b"a"), b"a");
        links.add(b"b", b"a").unwrap();
        assert_eq!(origin(&mut links, b"b"), b"a");
        for n in 0..20_000 {
            links.add(format!("l{n}").as_bytes(), b"b").unwrap();
        }
        assert_eq!(origin(&mut links, b"l7"), b"b");
        assert_eq!(origin(&mut links, b"l19999"), b"b");
        links.forget(b"l7");
        assert_eq!(origin(&mut links, b"l7"), b"l7");
    }
}
