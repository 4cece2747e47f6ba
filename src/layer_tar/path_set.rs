//! The set of paths that a layer has had, as hashes. A small set is in memory; further hashes are
//! in a table in a file without a name. A collision costs space and does no other harm.

use std::collections::HashSet;
use std::fs::File;
use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt as _;

use super::directory_metadata::unnamed_in;

/// The number of paths that are kept in memory.
const FEW: usize = 1 << 19;
/// The slots of the table, a power of two: 256 MiB, of which only the used parts take space.
const SLOTS: u64 = 1 << 25;
/// The limit of paths in the table: a fuller table is slow.
const MOST: u64 = SLOTS / 4 * 3;
/// The bytes of a slot: a hash, 0 if the slot is free.
const SLOT: usize = 8;
/// The number of bytes read at a time.
const BLOCK: usize = 512;

/// The place of the table.
#[derive(Clone, Copy)]
pub(super) enum Room<'d> {
    /// A file without a name on the file system of this directory.
    Beside(BorrowedFd<'d>),
    /// This file, which is overwritten.
    In(&'d File),
}

impl Room<'_> {
    fn file(self) -> io::Result<File> {
        match self {
            Self::Beside(dir) => unnamed_in(dir),
            Self::In(file) => {
                file.set_len(0)?;
                file.try_clone()
            }
        }
    }
}

/// The paths that were added.
pub(super) struct PathSet<'d> {
    room: Room<'d>,
    random: RandomState,
    few: usize,
    memory: HashSet<u64>,
    file: Option<File>,
    count: u64,
}

impl<'d> PathSet<'d> {
    pub(super) fn new(room: Room<'d>) -> Self {
        Self::with_few(room, FEW)
    }

    fn with_few(room: Room<'d>, few: usize) -> Self {
        Self {
            room,
            random: RandomState::new(),
            few,
            memory: HashSet::new(),
            file: None,
            count: 0,
        }
    }

    /// Adds a path; returns whether it is new.
    ///
    /// # Errors
    /// Fails if the table cannot be read or written, or is full.
    pub(super) fn first(&mut self, path: &[u8]) -> io::Result<bool> {
        let hash = self.random.hash_one(path).max(1);
        if self.memory.len() < self.few {
            return Ok(self.memory.insert(hash));
        }
        if self.memory.contains(&hash) {
            return Ok(false);
        }
        let file = match self.file.take() {
            Some(file) => file,
            None => {
                let file = self.room.file()?;
                file.set_len(SLOTS * SLOT as u64)?;
                file
            }
        };
        let first = insert(&file, hash);
        self.file = Some(file);
        let first = first?;
        self.count += u64::from(first);
        if self.count > MOST {
            Err(io::Error::other("more paths than a layer can have here"))
        } else {
            Ok(first)
        }
    }
}

/// Adds a hash to the table; returns false if the table has it.
fn insert(file: &File, hash: u64) -> io::Result<bool> {
    let mut slot = hash & (SLOTS - 1);
    let mut block = [0; BLOCK];
    loop {
        // A block does not extend past the end of the table, and may begin at any slot.
        let at = slot * SLOT as u64;
        let room = usize::try_from(SLOTS * SLOT as u64 - at).unwrap_or(BLOCK);
        let block = &mut block[..room.min(BLOCK)];
        file.read_exact_at(block, at)?;
        for found in block.chunks_exact(SLOT) {
            match found.try_into().map(u64::from_le_bytes) {
                Ok(found) if found == hash => return Ok(false),
                Ok(0) => {
                    file.write_all_at(&hash.to_le_bytes(), slot * SLOT as u64)?;
                    return Ok(true);
                }
                _ => slot = (slot + 1) & (SLOTS - 1),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd as _;

    #[test]
    fn paths_are_known_in_memory_and_in_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let root = File::open(dir.path()).unwrap();
        let mut seen = PathSet::with_few(Room::Beside(root.as_fd()), 10);
        for round in [true, false] {
            for n in 0..2000u32 {
                assert_eq!(seen.first(&n.to_le_bytes()).unwrap(), round, "{n}");
            }
        }
        assert_eq!((seen.memory.len(), seen.count), (10, 1990));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn the_table_goes_on_at_its_beginning() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(SLOTS * SLOT as u64).unwrap();
        let last = SLOTS - 1;
        let same = last | 1 << 40;
        assert!(insert(&file, last).unwrap() && insert(&file, same).unwrap());
        assert!(!insert(&file, last).unwrap() && !insert(&file, same).unwrap());
        let mut slot = [0; SLOT];
        file.read_exact_at(&mut slot, 0).unwrap();
        assert_eq!(u64::from_le_bytes(slot), same);
    }
}
