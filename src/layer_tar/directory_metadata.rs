//! Attributes of directories that are set when their content is complete: modes, times, default
//! ACLs. The last entry of a path is valid. Memory is bounded for any number of directories: the
//! rest of the attributes is in a file without a name in the layer's own directory, in sorted runs
//! that are merged at the end.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt as _;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::error::{Error, Result};
use crate::layer::types::Time;

/// The approximate number of bytes in memory before a run is written.
const MEMORY: usize = 16 << 20;
/// The bytes that are counted for a directory besides its path and ACL.
const EACH: usize = 160;
/// The bytes of a run that are read at a time; there is a run for each [`MEMORY`].
const WINDOW: usize = 16 << 10;
/// The size limit of a record: a path and an ACL of 1 MiB each, as headers are bounded.
const MAX_RECORD: usize = 4 << 20;

/// The attributes of one directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct DirectoryMetadata {
    pub(super) perm: u32,
    pub(super) atime: Time,
    pub(super) mtime: Time,
    /// The default ACL, if it has one.
    pub(super) acl: Option<Vec<u8>>,
}

/// Directories with their attributes, by their cleaned paths.
pub(super) struct DeferredDirectories<'d> {
    /// The layer's directory, on whose file system the runs are.
    root: BorrowedFd<'d>,
    memory: usize,
    held: usize,
    newest: BTreeMap<Vec<u8>, DirectoryMetadata>,
    file: Option<File>,
    /// The range of each run in the file, oldest first.
    runs: Vec<(u64, u64)>,
}

impl<'d> DeferredDirectories<'d> {
    pub(super) fn new(root: BorrowedFd<'d>) -> Self {
        Self::with_memory(root, MEMORY)
    }

    fn with_memory(root: BorrowedFd<'d>, memory: usize) -> Self {
        Self {
            root,
            memory,
            held: 0,
            newest: BTreeMap::new(),
            file: None,
            runs: Vec::new(),
        }
    }

    /// Stores the attributes of a directory, in place of earlier ones.
    pub(super) fn insert(&mut self, path: &[u8], late: DirectoryMetadata) -> Result<()> {
        let size =
            |late: &DirectoryMetadata| EACH + path.len() + late.acl.as_ref().map_or(0, Vec::len);
        self.held += size(&late);
        if let Some(old) = self.newest.insert(path.to_vec(), late) {
            self.held = self.held.saturating_sub(size(&old));
        }
        if self.held > self.memory {
            self.spill().map_err(failed)
        } else {
            Ok(())
        }
    }

    /// Writes the attributes in memory as a run, the last path first.
    fn spill(&mut self) -> io::Result<()> {
        let file = match self.file.take() {
            Some(file) => file,
            None => unnamed_in(self.root)?,
        };
        let start = self.runs.last().map_or(0, |(_, end)| *end);
        let mut end = start;
        let mut buffer = Vec::with_capacity(2 * WINDOW);
        for (path, late) in std::mem::take(&mut self.newest).iter().rev() {
            encode(path, late, &mut buffer);
            if buffer.len() >= WINDOW {
                file.write_all_at(&buffer, end)?;
                end += buffer.len() as u64;
                buffer.clear();
            }
        }
        file.write_all_at(&buffer, end)?;
        end += buffer.len() as u64;
        self.runs.push((start, end));
        self.file = Some(file);
        self.held = 0;
        Ok(())
    }

    /// Calls `each` once for every directory, inner directories first.
    pub(super) fn drain(
        &mut self,
        mut each: impl FnMut(&[u8], &DirectoryMetadata) -> Result<()>,
    ) -> Result<()> {
        if !self.runs.is_empty() && !self.newest.is_empty() {
            self.spill().map_err(failed)?;
        }
        // The paths in a directory follow the directory's path.
        for (path, late) in std::mem::take(&mut self.newest).iter().rev() {
            each(path, late)?;
        }
        let Some(file) = self.file.take() else {
            return Ok(());
        };
        let runs = std::mem::take(&mut self.runs);
        let mut runs: Vec<Run> = runs
            .into_iter()
            .map(|(at, end)| Run::new(at, end))
            .collect();
        // The current path of each run. Of equal paths, the one of the newest run comes last.
        let mut next = BTreeMap::new();
        for (number, run) in runs.iter_mut().enumerate() {
            if let Some((path, late)) = run.next(&file).map_err(failed)? {
                next.insert((path, number), late);
            }
        }
        let mut done: Option<Vec<u8>> = None;
        while let Some(((path, number), late)) = next.pop_last() {
            if done.as_ref() != Some(&path) {
                each(&path, &late)?;
                done = Some(path);
            }
            if let Some(run) = runs.get_mut(number)
                && let Some((path, late)) = run.next(&file).map_err(failed)?
            {
                next.insert((path, number), late);
            }
        }
        Ok(())
    }
}

fn failed(source: io::Error) -> Error {
    Error::Write {
        what: "notes on directories",
        source,
    }
}

/// Returns a file in that directory without a name.
pub(super) fn unnamed_in(dir: BorrowedFd<'_>) -> io::Result<File> {
    let mode = Mode::from_raw_mode(0o600);
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    match rustix::fs::openat(dir, c".", flags | OFlags::TMPFILE, mode) {
        Ok(fd) => return Ok(File::from(fd)),
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => (),
        Err(errno) => return Err(errno.into()),
    }
    // The file system does not support O_TMPFILE: the name is removed at once.
    let name = c".wh..wh.unionfs-unpack";
    let flags = flags | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
    let fd = rustix::fs::openat(dir, name, flags, mode)?;
    rustix::fs::unlinkat(dir, name, rustix::fs::AtFlags::empty())?;
    Ok(File::from(fd))
}

fn encode(path: &[u8], late: &DirectoryMetadata, out: &mut Vec<u8>) {
    let acl = late.acl.as_deref();
    let len = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    out.extend(len(path).to_le_bytes());
    out.extend(acl.map_or(u32::MAX, len).to_le_bytes());
    out.extend(late.perm.to_le_bytes());
    for time in [late.atime, late.mtime] {
        out.extend(time.sec.to_le_bytes());
        out.extend(time.nsec.to_le_bytes());
    }
    out.extend(path);
    out.extend(acl.unwrap_or_default());
}

/// The bytes of a record before its path.
const HEAD: usize = 3 * 4 + 2 * 12;

/// Returns a record and its length in bytes; `None` if there are too few bytes.
fn decode(bytes: &[u8]) -> Option<((Vec<u8>, DirectoryMetadata), usize)> {
    let (head, rest) = bytes.split_at_checked(HEAD)?;
    let u32_at = |at: usize| -> Option<u32> {
        Some(u32::from_le_bytes(head.get(at..at + 4)?.try_into().ok()?))
    };
    let time_at = |at: usize| -> Option<Time> {
        let sec = i64::from_le_bytes(head.get(at..at + 8)?.try_into().ok()?);
        let nsec = u32_at(at + 8)?;
        Some(Time { sec, nsec })
    };
    let (path, rest) = rest.split_at_checked(u32_at(0)? as usize)?;
    let acl = match u32_at(4)? {
        u32::MAX => None,
        len => Some(rest.get(..len as usize)?.to_vec()),
    };
    let took = HEAD + path.len() + acl.as_ref().map_or(0, Vec::len);
    let late = DirectoryMetadata {
        perm: u32_at(8)?,
        atime: time_at(12)?,
        mtime: time_at(24)?,
        acl,
    };
    Some(((path.to_vec(), late), took))
}

/// A run that is being read.
struct Run {
    at: u64,
    end: u64,
    buffer: Vec<u8>,
    used: usize,
}

impl Run {
    fn new(at: u64, end: u64) -> Self {
        Self {
            at,
            end,
            buffer: Vec::new(),
            used: 0,
        }
    }

    fn next(&mut self, file: &File) -> io::Result<Option<(Vec<u8>, DirectoryMetadata)>> {
        loop {
            let unread = self.buffer.get(self.used..).unwrap_or_default();
            if let Some((record, took)) = decode(unread) {
                self.used += took;
                return Ok(Some(record));
            }
            self.buffer.drain(..self.used);
            self.used = 0;
            let left = usize::try_from(self.end - self.at).unwrap_or(usize::MAX);
            if left == 0 && self.buffer.is_empty() {
                return Ok(None);
            }
            if left == 0 || self.buffer.len() > MAX_RECORD {
                return Err(io::ErrorKind::InvalidData.into());
            }
            let old = self.buffer.len();
            let more = left.min(WINDOW.max(old));
            self.buffer.resize(old + more, 0);
            file.read_exact_at(&mut self.buffer[old..], self.at)?;
            self.at += more as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::fd::AsFd as _;

    proptest! {
        #[test]
        fn runs_give_what_memory_would(
            entries in prop::collection::vec(
                ("[ab/]{0,3}", any::<u32>(), prop::option::of(0usize..40_000)), 0..60),
            memory in prop::sample::select(vec![0usize, 400, 50_000, 1 << 30]),
        ) {
            let dir = tempfile::tempdir().unwrap();
            let root = File::open(dir.path()).unwrap();
            let mut directories = DeferredDirectories::with_memory(root.as_fd(), memory);
            let mut expected = BTreeMap::new();
            for (path, perm, acl) in entries {
                let late = DirectoryMetadata {
                    perm,
                    atime: Time { sec: -1, nsec: perm },
                    mtime: Time { sec: i64::from(perm), nsec: 7 },
                    acl: acl.map(|len| vec![3; len]),
                };
                directories.insert(path.as_bytes(), late.clone()).unwrap();
                expected.insert(path.into_bytes(), late);
            }
            prop_assert!(directories.held <= memory);
            let mut found = Vec::new();
            directories.drain(|path, late| {
                found.push((path.to_vec(), late.clone()));
                Ok(())
            }).unwrap();
            let expected: Vec<_> = expected.into_iter().rev().collect();
            prop_assert_eq!(found, expected);
            prop_assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        }
    }
}
