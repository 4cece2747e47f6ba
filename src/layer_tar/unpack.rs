//! Unpacks a layer tar into a layer directory, and writes its tar-split at the same time.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt as _;

use rustix::io::Errno;

use super::checksum::Checksum;
use super::clean;
use super::error::{Error, Result};
use super::extractor::Extractor;
use super::header::{Entry, EntryKind, Sparse};
use super::path_set::Room;
use super::tar_reader::TarReader;
use super::tar_split::{PIECE, TarSplitWriter};
use super::whiteout;
use crate::layer::Dialect;
use crate::oci::Digest;
use crate::oci::text::excerpt;
use crate::sys::free_space::{FreeSpace, FreeSpaceWatch, PER_FILE};
use crate::sys::interrupt;

/// The number of bytes of content read at a time.
const CHUNK: usize = 256 << 10;

/// The limit of bytes of a path (PATH_MAX of linux/limits.h, less a NUL).
const LONGEST: usize = 4095;

/// The limits of what is expanded of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The bytes of the uncompressed tar, and of its sparse files with their holes.
    pub bytes: u64,
    /// The number of entries.
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

/// The result of unpacking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Unpacked {
    /// The SHA-256 of the tar.
    pub diff_id: Digest,
    /// The bytes of the layer as Docker counts them: of files, each inode once, and of the targets
    /// of symlinks.
    pub size: u64,
    /// The number of entries of the tar.
    pub entries: u64,
    /// The length of the tar in bytes.
    pub bytes: u64,
    /// The number of xattrs of the tar that could not be set, for example `security.capability`
    /// without root; worth a warning.
    pub lost_xattrs: u64,
    /// The number of device nodes that are kept as empty files, since only root can make device
    /// nodes; worth a warning.
    pub kept_devices: u64,
}

/// Unpacks an uncompressed layer tar into `diff`, an empty directory, and writes tar-split (lines,
/// not compressed) to `split`.
///
/// Whiteouts become those of `dialect`: char 0:0 and an opaque xattr if it has them. Overlay
/// markers among the xattrs of the tar are dropped. Without root, files belong to the caller, who
/// can always read them and write to directories, and a device is an empty file with an xattr that
/// describes it. Nothing outside of `diff` is changed by any tar. Memory is bounded for any number
/// of entries: data that does not fit is in files without a name in `diff` until the end. A reserve
/// of the file system stays free. The caller syncs the file system, and removes `diff` after an
/// error.
///
/// # Errors
/// [`Error::Read`], [`Error::Stream`] and [`Error::Entry`] for input that is not the tar of a
/// layer; [`Error::Limit`] for more than `limits` allow; [`Error::NoRoom`] and [`Error::Place`] if
/// a file cannot be made in `diff`; [`Error::Write`] for `split` and for temporary files;
/// [`Error::Interrupted`] after a signal.
pub fn unpack(
    tar: impl Read,
    diff: BorrowedFd<'_>,
    dialect: Dialect,
    split: impl Write,
    limits: &Limits,
) -> Result<Unpacked> {
    let split = TarSplitWriter::new(split, Room::Beside(diff));
    let mut unpacker = Unpacker::new(tar, diff, split, limits)?;
    let place = Extractor::new(diff, dialect);
    place.begin()?;
    unpacker.place = Some(place);
    while let Some(entry) = unpacker.scan.next()? {
        unpacker.entry(&entry)?;
    }
    let (mut size, mut lost_xattrs, mut kept_devices) = (0, 0, 0);
    if let Some(place) = &mut unpacker.place {
        place.finish()?;
        (size, lost_xattrs) = (place.size(), place.lost());
        kept_devices = place.stand_ins();
    }
    let entries = unpacker.scan.entries();
    let (diff_id, bytes) = unpacker.finish()?;
    Ok(Unpacked {
        diff_id,
        size,
        entries,
        bytes,
        lost_xattrs,
        kept_devices,
    })
}

/// Writes the tar-split (lines, not compressed) of a layer tar that has been unpacked already.
/// Returns the digest of the tar. Data that does not fit into memory is written to `scratch`, which
/// is overwritten.
///
/// # Errors
/// As [`unpack`], except for those of making files.
pub fn write_split(
    tar: impl Read,
    scratch: &File,
    split: impl Write,
    limits: &Limits,
) -> Result<Digest> {
    let split = TarSplitWriter::new(split, Room::In(scratch));
    let mut unpacker = Unpacker::new(tar, scratch.as_fd(), split, limits)?;
    while let Some(entry) = unpacker.scan.next()? {
        unpacker.entry(&entry)?;
    }
    Ok(unpacker.finish()?.0)
}

/// Whether an entry has the name of the layer's root (`.`, `dir/..`, or none) and is not a directory:
/// Docker, podman and containerd ignore it. They refuse one that is called `/`.
pub(super) fn is_nothing(entry: &Entry, path: &[u8]) -> bool {
    path.is_empty() && entry.kind != EntryKind::Directory && !entry.name.starts_with(b"/")
}

/// Checks that there is space for `bytes` more bytes on the file system of `root`, and that no
/// signal has come. `what` is the name of the entry, for messages.
fn go_on(room: &mut FreeSpaceWatch, root: BorrowedFd<'_>, what: &[u8], bytes: u64) -> Result<()> {
    interrupt::check()?;
    let fail = |errno| Error::place(what, "ask for free space for it", errno);
    if room.allows(root, bytes).map_err(fail)? {
        return Ok(());
    }
    let room = FreeSpace::of(root).map_err(fail)?;
    Err(match room.files {
        Some(0) => Error::place(what, "create the file", Errno::NOSPC),
        _ => Error::NoRoom {
            entry: excerpt(what),
            needed: bytes,
            free: room.bytes,
        },
    })
}

struct Unpacker<'a, R, W> {
    scan: TarReader<'a, R>,
    /// Makes the files; `None` if no files are made.
    place: Option<Extractor<'a>>,
    /// A file or directory of the file system that is written to.
    root: BorrowedFd<'a>,
    split: TarSplitWriter<'a, W>,
    room: FreeSpaceWatch,
    buffer: Vec<u8>,
}

impl<'a, R: Read, W: Write> Unpacker<'a, R, W> {
    fn new(
        tar: R,
        root: BorrowedFd<'a>,
        split: TarSplitWriter<'a, W>,
        limits: &'a Limits,
    ) -> Result<Self> {
        Ok(Self {
            scan: TarReader::new(tar, limits)?,
            place: None,
            root,
            split,
            room: FreeSpaceWatch::new(),
            buffer: vec![0; CHUNK],
        })
    }

    /// Reads the end of the tar; returns its digest and length.
    fn finish(mut self) -> Result<(Digest, u64)> {
        let (room, root) = (&mut self.room, self.root);
        let go_on = |bytes| go_on(room, root, b"the end of the archive", bytes);
        let end = self.scan.finish(&mut self.split, go_on)?;
        self.split.finish()?;
        Ok(end)
    }

    /// Checks that the work can go on with `bytes` more bytes of an entry.
    fn go_on(&mut self, entry: &Entry, bytes: u64) -> Result<()> {
        go_on(&mut self.room, self.root, &entry.name, bytes)
    }

    fn entry(&mut self, entry: &Entry) -> Result<()> {
        // An entry whose declared size does not fit is rejected before any of it is written.
        self.go_on(entry, entry.stored.saturating_add(PER_FILE))?;
        self.split.segments(self.scan.raw())?;
        self.scan.raw().clear();
        let Some(path) = clean(&entry.name) else {
            let what = "its path leads out of the layer; refused";
            return Err(Error::entry(&entry.name, what));
        };
        if path.len() > LONGEST {
            let what = "its path is longer than any program can name; refused";
            return Err(Error::entry(&entry.name, what));
        }
        let first = self.split.first(&path)?;
        if !first || entry.sparse.is_some() {
            // The content is also kept in tar-split.
            self.go_on(entry, entry.stored.saturating_mul(2))?;
        }
        let is_no_file = match &mut self.place {
            _ if entry.kind == EntryKind::Global => false,
            _ if is_nothing(entry, &path) => true,
            Some(place) => place.whiteout(&path, entry)?,
            None => whiteout::is_marker(&path),
        };
        if is_no_file || entry.kind != EntryKind::Regular {
            if let (Some(place), false) = (&mut self.place, is_no_file) {
                place.node(&path, entry)?;
            }
            self.content(entry, None, TarContent::InTarSplit)?;
            return self.line(entry, first.then_some(0), None);
        }
        let made = self.place.as_mut().map(|place| place.create(&path, entry));
        let file = made.transpose()?.map(File::from);
        let content = if !first || entry.sparse.is_some() {
            TarContent::InTarSplit
        } else {
            TarContent::OfFile
        };
        let crc = self.content(entry, file.as_ref(), content)?;
        let size = entry.sparse.as_ref().map_or(entry.stored, |map| map.size);
        if let (Some(place), Some(file)) = (&mut self.place, file) {
            place.finish_file(entry, &OwnedFd::from(file), size)?;
        }
        let noted = match content {
            TarContent::InTarSplit => 0,
            TarContent::OfFile => size,
        };
        self.line(entry, first.then_some(noted), (size > 0).then_some(crc))
    }

    /// Writes the line of a path, with the size that it has there. A path has only one line:
    /// Docker rejects a second one (`None`).
    fn line(&mut self, entry: &Entry, size: Option<u64>, crc: Option<u64>) -> Result<()> {
        match size {
            Some(size) => self.split.file(&entry.name, size, crc),
            None => Ok(()),
        }
    }

    /// Reads the content of an entry into `file`. Returns the CRC-64 of the file's content.
    fn content(&mut self, entry: &Entry, file: Option<&File>, kept: TarContent) -> Result<u64> {
        let fail = |e: std::io::Error| {
            let errno = Errno::from_io_error(&e).unwrap_or(Errno::IO);
            Error::place(&entry.name, "write the file", errno)
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
            if kept == TarContent::InTarSplit {
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

/// Where the tar is made again from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum TarContent {
    /// From the file of the layer.
    OfFile,
    /// From a copy in tar-split: the file has another content, or there is none.
    InTarSplit,
}

/// The position in a file of the next byte of content.
struct Cursor<'m> {
    offset: u64,
    extents: Option<std::slice::Iter<'m, (u64, u64)>>,
    /// The bytes until the end of the current extent.
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

    /// Returns the number of bytes that may be written at `offset`; skips holes.
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

    /// Adds a hole up to `end` to the checksum.
    fn zeros(&mut self, end: u64, crc: &mut Checksum) {
        crc.zeros(end.saturating_sub(self.offset));
        self.offset = self.offset.max(end);
    }
}
