//! Compresses a layer's tar as zstd:chunked: zstd whose table of contents says where the content of
//! each file is, so that podman and CRI-O fetch only the files that they do not have.
//!
//! ```text
//! frame: headers │ frame: content of a file │ … │ frame: end of the tar
//! skippable frame: table of contents (zstd of JSON)
//! skippable frame: tar-split (zstd of its lines)
//! skippable frame: footer, 64 bytes
//! ```
//! Format: containers/storage, docs/containers-storage-zstd-chunked.md and pkg/chunked. Readers of
//! zstd ignore the skippable frames and get the exact tar. The positions and the digest of the
//! table are also annotations of the layer in the manifest; readers trust only these.
//!
//! Readers take a layer's files either from the table or from the tar, and compare both. A layer
//! which the table cannot describe therefore has none, and is plain zstd: one with two entries of a
//! path, with global headers, sparse files, names that are not UTF-8, or times before 1970.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek as _, Write};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use zstd::stream::raw::{Encoder, Operation as _, OutBuffer};

use super::checksum::Checksum;
use super::clean;
use super::error::{Error, Result};
use super::header::{BLOCK, Entry, EntryKind};
use super::path_set::Room;
use super::tar_reader::TarReader;
use super::tar_split::{PIECE, TarSplitWriter};
use super::unpack::Limits;
use super::whiteout;
use crate::layer::types::Time;
use crate::oci::Digest;

/// The magic number of a skippable frame (RFC 8878, section 3.1.2).
const SKIPPABLE: [u8; 4] = [0x50, 0x2a, 0x4d, 0x18];
/// The bytes of a skippable frame before its content.
const SKIPPABLE_HEADER: u64 = 8;
/// The last bytes of the footer.
const FOOTER_MAGIC: [u8; 8] = *b"GNUlInUx";
/// The type of the table of contents that is written here.
const TABLE_TYPE: u64 = 1;
/// The size limit of a table of contents in bytes, beyond which readers ignore it.
const MAX_TABLE: u64 = 150 << 20;
/// The first second that has no date of four digits.
const YEAR_10000: i64 = 253_402_300_800;

/// Files without a name for what is not in memory meanwhile.
pub(crate) struct Scratch {
    /// The paths of the layer.
    pub(crate) paths: File,
    /// The table of contents.
    pub(crate) table: File,
    /// The tar-split.
    pub(crate) split: File,
}

/// The annotations of a layer which has a table of contents.
pub(crate) type Annotations = BTreeMap<String, String>;

/// Compresses `tar` into `out`. Returns the annotations, none if the layer has no table. Equal tars
/// give equal bytes.
///
/// # Errors
/// [`Error::Stream`], [`Error::Entry`] and [`Error::Read`] for input that is not a layer tar;
/// [`Error::Write`] for `out` and the scratch files.
pub(crate) fn compress(
    tar: impl Read,
    out: &mut impl Write,
    level: i32,
    scratch: &Scratch,
) -> Result<Annotations> {
    let limits = Limits::default();
    let mut scan = TarReader::headers(tar, &limits);
    let mut frames = Frames::new(out, level)?;
    let mut table = Some(Table::new(scratch, level)?);
    let mut buffer = vec![0; PIECE];
    while let Some(entry) = scan.next()? {
        if !table
            .as_ref()
            .is_some_and(|_| may_be_described(&entry, scan.raw()))
        {
            table = None;
        }
        let path = clean(&entry.name);
        if let (Some(table), Some(path)) = (&mut table, &path) {
            table.split.segments(scan.raw())?;
            table.is_whole &= table.split.first(path)?;
        }
        frames.write(scan.raw())?;
        scan.raw().clear();
        let content = content(&mut scan, &entry, &mut frames, &mut buffer)?;
        if let Some(known) = &mut table {
            let crc = content.as_ref().map(|content| content.crc);
            known.split.file(&entry.name, entry.stored, crc)?;
            known.entry(&entry, content.as_ref())?;
        }
    }
    if let Some(table) = &mut table {
        table.split.segments(scan.raw())?;
    }
    frames.write(scan.raw())?;
    loop {
        let read = scan.rest(&mut buffer)?;
        let bytes = buffer.get(..read).unwrap_or_default();
        if bytes.is_empty() {
            break;
        }
        frames.write(bytes)?;
        if let Some(table) = &mut table {
            table.split.segment(bytes)?;
        }
    }
    frames.end()?;
    match table {
        Some(table) => table.append(&mut frames, scratch),
        None => Ok(Annotations::new()),
    }
}

/// Whether a table can describe an entry. `raw` are the bytes of its header.
fn may_be_described(entry: &Entry, raw: &[u8]) -> bool {
    let is_text = |bytes: &[u8]| std::str::from_utf8(bytes).is_ok();
    let is_contiguous = raw
        .last_chunk::<BLOCK>()
        .is_none_or(|block| block[156] == b'7');
    let times = [
        Some(entry.mtime),
        entry.declared.atime,
        entry.declared.ctime,
    ];
    let path = clean(&entry.name);
    let is_marker = path.as_ref().is_none_or(|path| whiteout::is_marker(path));
    !is_contiguous
        && entry.kind != EntryKind::Global
        && entry.sparse.is_none()
        && is_text(&entry.name)
        && is_text(&entry.link)
        && entry.xattrs.iter().all(|(name, _)| is_text(name))
        && times.iter().flatten().all(|time| (0..YEAR_10000).contains(&{ time.sec }))
        // Readers ignore the content of a whiteout, which would be lost.
        && !(is_marker && entry.stored > 0)
}

/// The content of a file: its position in the blob, and its checksums.
struct Content {
    from: u64,
    to: u64,
    digest: Digest,
    crc: u64,
}

/// Compresses the content of an entry in a frame of its own; `None` if it has none.
fn content<R: Read>(
    scan: &mut TarReader<'_, R>,
    entry: &Entry,
    frames: &mut Frames<'_, impl Write>,
    buffer: &mut [u8],
) -> Result<Option<Content>> {
    if entry.stored == 0 {
        return Ok(None);
    }
    frames.end()?;
    let from = frames.written;
    let mut hash = Sha256::new();
    let mut crc = Checksum::new();
    loop {
        let read = scan.data(buffer)?;
        let bytes = buffer.get(..read).unwrap_or_default();
        if bytes.is_empty() {
            break;
        }
        hash.update(bytes);
        crc.update(bytes);
        frames.write(bytes)?;
    }
    frames.end()?;
    Ok(Some(Content {
        from,
        to: frames.written,
        digest: Digest::from_hash(hash),
        crc: crc.finish(),
    }))
}

/// Writes zstd frames one after the other.
struct Frames<'o, W> {
    out: &'o mut W,
    encoder: Encoder<'static>,
    buffer: Vec<u8>,
    /// The bytes written so far.
    written: u64,
    /// The bytes that the current frame has taken.
    taken: u64,
}

impl<'o, W: Write> Frames<'o, W> {
    fn new(out: &'o mut W, level: i32) -> Result<Self> {
        Ok(Self {
            out,
            encoder: Encoder::new(level).map_err(Error::writing_tar)?,
            buffer: vec![0; 128 << 10],
            written: 0,
            taken: 0,
        })
    }

    fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        self.taken += bytes.len() as u64;
        while !bytes.is_empty() {
            let step = self.encoder.run_on_buffers(bytes, &mut self.buffer);
            let step = step.map_err(Error::writing_tar)?;
            bytes = bytes.get(step.bytes_read..).unwrap_or_default();
            self.put(step.bytes_written)?;
        }
        Ok(())
    }

    /// Ends the current frame, if it has taken any bytes.
    fn end(&mut self) -> Result<()> {
        if self.taken == 0 {
            return Ok(());
        }
        loop {
            let mut out = OutBuffer::around(self.buffer.as_mut_slice());
            let left = self.encoder.finish(&mut out, true);
            let count = out.pos();
            self.put(count)?;
            if left.map_err(Error::writing_tar)? == 0 {
                break;
            }
        }
        self.taken = 0;
        self.encoder.reinit().map_err(Error::writing_tar)
    }

    fn put(&mut self, count: usize) -> Result<()> {
        let bytes = self.buffer.get(..count).unwrap_or_default();
        self.out.write_all(bytes).map_err(Error::writing_tar)?;
        self.written += count as u64;
        Ok(())
    }

    /// Writes a skippable frame with the content of a file from its beginning.
    fn skippable(&mut self, length: u32, mut content: impl Read) -> Result<()> {
        let mut copy = || {
            self.out.write_all(&SKIPPABLE)?;
            self.out.write_all(&length.to_le_bytes())?;
            io::copy(&mut content, self.out)
        };
        self.written += copy().map_err(Error::writing_tar)? + SKIPPABLE_HEADER;
        Ok(())
    }
}

/// The table of contents, and the tar-split, as they are written.
struct Table<'s> {
    json: Packed<'s>,
    split: TarSplitWriter<'s, Packed<'s>>,
    is_first: bool,
    /// Whether no path had two entries.
    is_whole: bool,
}

/// A line of the table; the names are those of the format.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Line<'e> {
    #[serde(rename = "type")]
    kind: &'static str,
    name: &'e str,
    #[serde(rename = "linkName", skip_serializing_if = "str::is_empty")]
    link: &'e str,
    #[serde(skip_serializing_if = "is_zero")]
    mode: i64,
    #[serde(skip_serializing_if = "is_zero")]
    size: i64,
    #[serde(skip_serializing_if = "is_zero")]
    uid: i64,
    #[serde(skip_serializing_if = "is_zero")]
    gid: i64,
    #[serde(rename = "modtime")]
    mtime: String,
    #[serde(rename = "accesstime", skip_serializing_if = "Option::is_none")]
    atime: Option<String>,
    #[serde(rename = "changetime", skip_serializing_if = "Option::is_none")]
    ctime: Option<String>,
    #[serde(skip_serializing_if = "is_zero")]
    dev_major: i64,
    #[serde(skip_serializing_if = "is_zero")]
    dev_minor: i64,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    xattrs: BTreeMap<&'e str, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<Digest>,
    #[serde(skip_serializing_if = "is_zero")]
    offset: i64,
    #[serde(skip_serializing_if = "is_zero")]
    end_offset: i64,
}

fn is_zero(number: &i64) -> bool {
    *number == 0
}

impl<'s> Table<'s> {
    fn new(scratch: &'s Scratch, level: i32) -> Result<Self> {
        let mut json = Packed::new(&scratch.table, level).map_err(failed)?;
        json.write_all(b"{\"version\":1,\"entries\":[")
            .map_err(failed)?;
        let split = Packed::new(&scratch.split, level).map_err(failed)?;
        Ok(Self {
            json,
            split: TarSplitWriter::new(split, Room::In(&scratch.paths)),
            is_first: true,
            is_whole: true,
        })
    }

    fn entry(&mut self, entry: &Entry, content: Option<&Content>) -> Result<()> {
        let text = |bytes| std::str::from_utf8(bytes).unwrap_or_default();
        let shown = |content: u64| i64::try_from(content).unwrap_or(i64::MAX);
        let declared = &entry.declared;
        let line = Line {
            kind: match entry.kind {
                EntryKind::Regular | EntryKind::Global => "reg",
                EntryKind::HardLink => "hardlink",
                EntryKind::Symlink => "symlink",
                EntryKind::CharDevice => "char",
                EntryKind::BlockDevice => "block",
                EntryKind::Directory => "dir",
                EntryKind::Fifo => "fifo",
            },
            name: text(&entry.name),
            link: text(&entry.link),
            mode: declared.mode,
            size: shown(declared.size),
            uid: entry.uid.into(),
            gid: entry.gid.into(),
            mtime: date(entry.mtime),
            atime: declared.atime.map(date),
            ctime: declared.ctime.map(date),
            dev_major: declared.device.0,
            dev_minor: declared.device.1,
            xattrs: (entry.xattrs.iter())
                .map(|(name, value)| (text(name), BASE64.encode(value)))
                .collect(),
            digest: content.map(|content| content.digest),
            offset: content.map_or(0, |content| shown(content.from)),
            end_offset: content.map_or(0, |content| shown(content.to)),
        };
        if !std::mem::take(&mut self.is_first) {
            self.json.write_all(b",").map_err(failed)?;
        }
        let written = serde_json::to_writer(&mut self.json, &line);
        written.map_err(|error| failed(error.into()))
    }

    /// Writes the table and the tar-split behind the tar; returns the annotations. Writes nothing
    /// if readers would not use the table.
    fn append(self, frames: &mut Frames<'_, impl Write>, scratch: &Scratch) -> Result<Annotations> {
        let mut json = self.json;
        let mut split = self.split;
        // Docker's tar-split ends with an empty piece.
        split.segment(b"")?;
        let split = split.into_output().end().map_err(failed)?;
        let rest = format!("],\"tarSplitDigest\":\"{}\"}}", split.digest);
        json.write_all(rest.as_bytes()).map_err(failed)?;
        let table = json.end().map_err(failed)?;
        let small = |packed: &Size| packed.packed.max(packed.unpacked) <= MAX_TABLE;
        let (Ok(table_size), Ok(split_size)) =
            (u32::try_from(table.packed), u32::try_from(split.packed))
        else {
            return Ok(Annotations::new());
        };
        if !self.is_whole || !small(&table) {
            return Ok(Annotations::new());
        }
        let table_at = frames.written + SKIPPABLE_HEADER;
        frames.skippable(table_size, start(&scratch.table)?)?;
        let split_at = frames.written + SKIPPABLE_HEADER;
        frames.skippable(split_size, start(&scratch.split)?)?;
        let numbers = [
            table_at,
            table.packed,
            table.unpacked,
            TABLE_TYPE,
            split_at,
            split.packed,
            split.unpacked,
        ];
        let mut footer = numbers.map(u64::to_le_bytes).concat();
        footer.extend_from_slice(&FOOTER_MAGIC);
        frames.skippable(footer.len() as u32, footer.as_slice())?;
        let [
            table_at,
            packed,
            unpacked,
            kind,
            split_at,
            split_packed,
            split_unpacked,
        ] = numbers;
        let position = format!("{table_at}:{packed}:{unpacked}:{kind}");
        let digest = table.digest.to_string();
        let split = format!("{split_at}:{split_packed}:{split_unpacked}");
        let key = |name| format!("io.github.containers.zstd-chunked.{name}");
        let old_key = |name| format!("io.containers.zstd-chunked.{name}");
        Ok(Annotations::from([
            (key("manifest-checksum"), digest.clone()),
            (key("manifest-position"), position.clone()),
            (key("tarsplit-position"), split),
            (old_key("manifest-checksum"), digest),
            (old_key("manifest-position"), position),
        ]))
    }
}

/// Returns a date as in RFC 3339. The time has been checked (`may_be_described`).
fn date(time: Time) -> String {
    let since = std::time::Duration::new(time.sec.max(0).cast_unsigned(), time.nsec);
    humantime::format_rfc3339(std::time::UNIX_EPOCH + since).to_string()
}

/// Returns the file, read from its beginning.
fn start(mut file: &File) -> Result<&File> {
    file.rewind().map_err(failed)?;
    Ok(file)
}

fn failed(source: io::Error) -> Error {
    Error::Write {
        what: "table of contents",
        source,
    }
}

/// Compresses into a scratch file.
struct Packed<'f> {
    encoder: zstd::Encoder<'static, Hashed<'f>>,
    unpacked: u64,
}

/// The lengths of what was compressed, and the digest of the compressed bytes.
struct Size {
    packed: u64,
    unpacked: u64,
    digest: Digest,
}

impl<'f> Packed<'f> {
    fn new(file: &'f File, level: i32) -> io::Result<Self> {
        let hashed = Hashed {
            file,
            hash: Sha256::new(),
            length: 0,
        };
        Ok(Self {
            encoder: zstd::Encoder::new(hashed, level)?,
            unpacked: 0,
        })
    }

    fn end(self) -> io::Result<Size> {
        let hashed = self.encoder.finish()?;
        Ok(Size {
            packed: hashed.length,
            unpacked: self.unpacked,
            digest: Digest::from_hash(hashed.hash),
        })
    }
}

impl Write for Packed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.encoder.write(bytes)?;
        self.unpacked += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A scratch file whose bytes are hashed.
struct Hashed<'f> {
    file: &'f File,
    hash: Sha256,
    length: u64,
}

impl Write for Hashed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.file.write(bytes)?;
        self.hash.update(bytes.get(..count).unwrap_or_default());
        self.length += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
