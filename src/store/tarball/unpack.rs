//! A layer tar becomes a layer directory, and its tar-split is written while it does.
//! Called by the commands that fill a store.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt as _;

use rustix::io::Errno;

use super::checksum::Checksum;
use super::clean;
use super::error::{Result, TarError};
use super::header::{Entry, Kind, Sparse};
use super::place::Place;
use super::scan::Scan;
use super::split::{PIECE, Writer};
use crate::layer::Dialect;
use crate::store::room::{PER_FILE, Room, Watch};
use crate::store::{Digest, interrupt};

/// Bytes of content read at a time.
const CHUNK: usize = 256 << 10;

/// What is expanded of one layer, at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the uncompressed tar, and of its sparse files with their holes.
    pub bytes: u64,
    /// Entries.
    pub entries: u64,
}

impl Default for Limits {
    /// More than any real layer: 256 GiB, 16 million entries.
    fn default() -> Self {
        Self {
            bytes: 256 << 30,
            entries: 16 << 20,
        }
    }
}

/// What was unpacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unpacked {
    /// The SHA-256 of the tar.
    pub diff_id: Digest,
    /// Bytes of the layer as Docker counts them: of files, each inode once, and of the
    /// targets of symlinks.
    pub size: u64,
    /// Entries of the tar.
    pub entries: u64,
    /// Length of the tar.
    pub bytes: u64,
    /// Xattrs of the tar that could not be set, as `security.capability` without root; worth
    /// a warning.
    pub lost_xattrs: u64,
}

/// Unpacks a layer tar, which is not compressed any more, into `diff`, an empty directory,
/// and writes tar-split (lines, not compressed) to `split`.
///
/// Whiteouts become those of `dialect`: char 0:0 and an opaque xattr where it has them.
/// Overlay markers among the xattrs of the tar are dropped. Without root, files belong to
/// the caller, who can always read them and write to directories, and devices are an error. Nothing outside of `diff` is touched, whatever the
/// tar holds. Memory is bounded, however many entries there are: what does not fit is in files
/// without a name in `diff` until the end. A reserve of the file system stays free. The caller syncs the file system, and removes `diff` after an error.
pub fn unpack(
    tar: impl Read,
    diff: BorrowedFd<'_>,
    dialect: Dialect,
    split: impl Write,
    limits: &Limits,
) -> crate::store::Result<Unpacked> {
    let mut unpacker = Unpacker {
        scan: Scan::new(tar, limits)?,
        place: Place::new(diff, dialect),
        split: Writer::new(split, diff),
        room: Watch::new(),
        buffer: vec![0; CHUNK],
    };
    while let Some(entry) = unpacker.scan.next()? {
        unpacker.entry(&entry)?;
    }
    unpacker.place.finish()?;
    let size = unpacker.place.size();
    let lost_xattrs = unpacker.place.lost();
    let entries = unpacker.scan.entries();
    let (diff_id, bytes) = unpacker.scan.finish(&mut unpacker.split)?;
    unpacker.split.finish()?;
    Ok(Unpacked {
        diff_id,
        size,
        entries,
        bytes,
        lost_xattrs,
    })
}

struct Unpacker<'a, R, W> {
    scan: Scan<'a, R>,
    place: Place<'a>,
    split: Writer<'a, W>,
    room: Watch,
    buffer: Vec<u8>,
}

impl<R: Read, W: Write> Unpacker<'_, R, W> {
    /// Whether to go on with so many more bytes of an entry.
    fn go_on(&mut self, entry: &Entry, bytes: u64) -> Result<()> {
        interrupt::check()?;
        let fail = |errno| TarError::place(&entry.name, "ask for free space for it", errno);
        let root = self.place.root;
        if self.room.allows(root, bytes).map_err(fail)? {
            return Ok(());
        }
        let room = Room::of(root).map_err(fail)?;
        Err(match room.files {
            Some(0) => TarError::place(&entry.name, "create the file", Errno::NOSPC),
            _ => TarError::NoRoom {
                entry: crate::store::error::excerpt(&entry.name),
                needed: bytes,
                free: room.bytes,
            },
        })
    }

    fn entry(&mut self, entry: &Entry) -> Result<()> {
        // What it says of its size is refused before a byte of it is there.
        self.go_on(entry, entry.stored.saturating_add(PER_FILE))?;
        self.split.segments(self.scan.raw())?;
        self.scan.raw().clear();
        let Some(path) = clean(&entry.name) else {
            let what = "its path leads out of the layer; refused";
            return Err(TarError::entry(&entry.name, what));
        };
        let first = self.split.first(&path)?;
        let whiteout = entry.kind != Kind::Global && self.place.whiteout(&path, entry)?;
        if whiteout || entry.kind != Kind::Regular {
            if !whiteout {
                self.place.node(&path, entry)?;
            }
            self.content(entry, None, true)?;
            return self.line(entry, first, 0, None);
        }
        let file = File::from(self.place.create(&path, entry)?);
        let apart = !first || entry.sparse.is_some();
        let crc = self.content(entry, Some(&file), apart)?;
        let size = entry.sparse.as_ref().map_or(entry.stored, |map| map.size);
        self.place.finish_file(entry, &OwnedFd::from(file), size)?;
        let noted = if apart { 0 } else { size };
        self.line(entry, first, noted, (size > 0).then_some(crc))
    }

    /// A path has one line: Docker refuses a second one.
    fn line(&mut self, entry: &Entry, first: bool, size: u64, crc: Option<u64>) -> Result<()> {
        match first {
            true => self.split.file(&entry.name, size, crc),
            false => Ok(()),
        }
    }

    /// Reads the content of an entry into `file` and, `apart` from the files, into
    /// tar-split. The CRC-64 of what the file holds then.
    fn content(&mut self, entry: &Entry, file: Option<&File>, apart: bool) -> Result<u64> {
        let fail = |e: std::io::Error| {
            let errno = Errno::from_io_error(&e).unwrap_or(Errno::IO);
            TarError::place(&entry.name, "write the file", errno)
        };
        let mut crc = Checksum::new();
        let mut cursor = Cursor::new(entry.sparse.as_ref());
        loop {
            let most = cursor.room(&mut crc).min(self.buffer.len() as u64) as usize;
            let read = self.scan.data(&mut self.buffer[..most])?;
            if read == 0 {
                break;
            }
            interrupt::check()?;
            let bytes = &self.buffer[..read];
            crc.update(bytes);
            if let Some(file) = file {
                file.write_all_at(bytes, cursor.offset).map_err(fail)?;
            }
            if apart {
                debug_assert!(read <= PIECE);
                self.split.segment(bytes)?;
            }
            cursor.advance(read as u64);
        }
        if let (Some(map), Some(file)) = (&entry.sparse, file) {
            cursor.zeros(map.size, &mut crc);
            file.set_len(map.size).map_err(fail)?;
        }
        Ok(crc.finish())
    }
}

/// Where the next byte of content belongs in its file.
struct Cursor<'m> {
    offset: u64,
    extents: Option<std::slice::Iter<'m, (u64, u64)>>,
    /// Bytes until the current extent ends.
    left: u64,
}

impl<'m> Cursor<'m> {
    fn new(map: Option<&'m Sparse>) -> Self {
        Self {
            offset: 0,
            left: if map.is_some() { 0 } else { u64::MAX },
            extents: map.map(|map| map.extents.iter()),
        }
    }

    /// How much may be written at `offset`; steps over holes.
    fn room(&mut self, crc: &mut Checksum) -> u64 {
        while self.left == 0 {
            let Some(&(offset, length)) = self.extents.as_mut().and_then(Iterator::next) else {
                return 0;
            };
            self.zeros(offset, crc);
            self.left = length;
        }
        self.left
    }

    fn advance(&mut self, count: u64) {
        self.offset += count;
        self.left = self.left.saturating_sub(count);
    }

    /// Counts a hole up to `end` into the checksum.
    fn zeros(&mut self, end: u64, crc: &mut Checksum) {
        crc.zeros(end.saturating_sub(self.offset));
        self.offset = self.offset.max(end);
    }
}
