//! Reads a tar as a stream of entries. Every byte that is not content is kept for tar-split, and
//! all bytes are hashed.

use std::collections::BTreeMap;
use std::io::Read;

use super::error::{Error, Result};
use super::hash::Hasher;
use super::header::{
    BLOCK, Declared, Entry, EntryKind, Sparse, checksum_fits, decimal, number, pax_records,
    pax_time, text, view,
};
use super::sparse::{self, MapInData, Records};
use super::tar_split::{PIECE, TarSplitWriter};
use super::unpack::Limits;
use crate::layer::types::Time;
use crate::oci::Digest;

/// The size limit of a PAX header or a long name in bytes, as in Go.
const MAX_EXTENSION: u64 = 1 << 20;
/// The limit of bytes of one entry besides its content.
const MAX_RAW: usize = 20 << 20;

/// The limit of bytes of the names of one file's xattrs: XATTR_LIST_MAX, which no file exceeds.
const MAX_XATTR_NAMES: usize = 64 << 10;

const XATTR: &[u8] = b"SCHILY.xattr.";
const CAPABILITY: &[u8] = b"security.capability";
const SPARSE: &[u8] = b"GNU.sparse.";

/// Reads a tar.
pub(super) struct TarReader<'l, R> {
    input: R,
    /// The hasher; `None` if only the headers are read.
    hasher: Option<Hasher>,
    offset: u64,
    entries: u64,
    /// The bytes of sparse files so far, including holes.
    sparse: u64,
    limits: &'l Limits,
    /// Bytes since the last entry that are not content.
    raw: Vec<u8>,
    /// The bytes of the current entry's content that are not read yet, and of the padding after it.
    left: u64,
    pad: usize,
}

/// The values of extended headers for the next entry.
#[derive(Default)]
struct Extended {
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<i64>,
    uid: Option<i64>,
    gid: Option<i64>,
    mtime: Option<Time>,
    atime: Option<Time>,
    ctime: Option<Time>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The bytes of the xattrs' names; a repeated name counts again.
    xattr_names: usize,
    sparse: Records,
}

impl Extended {
    /// Adds the records of a PAX header; `None` if they are malformed.
    fn add(&mut self, bytes: &[u8]) -> Option<()> {
        for (key, value) in pax_records(bytes)? {
            let set = !value.is_empty();
            let given = |value: &[u8]| set.then(|| value.to_vec());
            let number = |value| {
                if set {
                    decimal(value).map(Some)
                } else {
                    Some(None)
                }
            };
            let time = |value| {
                if set {
                    pax_time(value).map(Some)
                } else {
                    Some(None)
                }
            };
            match key {
                b"path" => self.name = given(value),
                b"linkpath" => self.link = given(value),
                b"size" => self.size = number(value)?,
                b"uid" => self.uid = number(value)?,
                b"gid" => self.gid = number(value)?,
                b"mtime" => self.mtime = time(value)?,
                b"atime" => self.atime = time(value)?,
                // Without effect on files: a malformed one is no error.
                b"ctime" => self.ctime = pax_time(value),
                _ => self.other(key, value)?,
            }
        }
        Some(())
    }

    fn other(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        if let Some(name) = key.strip_prefix(XATTR) {
            self.xattr_names += name.len() + 1;
            if self.xattr_names > MAX_XATTR_NAMES {
                return None;
            }
            if name == CAPABILITY && value.is_empty() {
                // The kernel would store an empty value but never return it.
                self.xattrs.remove(name);
            } else {
                self.xattrs.insert(name.to_vec(), value.to_vec());
            }
        } else if let Some(key) = key.strip_prefix(SPARSE) {
            self.sparse.add(key, value)?;
        }
        Some(())
    }
}

impl<'l, R: Read> TarReader<'l, R> {
    pub(super) fn new(input: R, limits: &'l Limits) -> Result<Self> {
        Ok(Self {
            hasher: Some(Hasher::new()?),
            ..Self::headers(input, limits)
        })
    }

    /// As `new`, but nothing is hashed.
    pub(super) fn headers(input: R, limits: &'l Limits) -> Self {
        Self {
            input,
            hasher: None,
            offset: 0,
            entries: 0,
            sparse: 0,
            limits,
            raw: Vec::new(),
            left: 0,
            pad: 0,
        }
    }

    fn bad(&self, what: &'static str) -> Error {
        Error::Stream {
            offset: self.offset,
            what,
        }
    }

    /// Returns the number of entries so far.
    pub(super) fn entries(&self) -> u64 {
        self.entries
    }

    /// Fills `buffer`, or reads to the end of the stream.
    fn fill(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let mut done = 0;
        while done < buffer.len() {
            match self.input.read(&mut buffer[done..]) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(source) => {
                    let offset = self.offset + done as u64;
                    return Err(Error::Read { offset, source });
                }
            }
        }
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&buffer[..done])?;
        }
        self.offset = self.offset.saturating_add(done as u64);
        if self.offset > self.limits.bytes {
            let limit = self.limits.bytes;
            return Err(Error::Limit {
                what: "bytes",
                limit,
            });
        }
        Ok(done)
    }

    /// Reads `count` bytes that are not content, or to the end of the stream, and keeps them.
    fn keep(&mut self, count: usize) -> Result<usize> {
        if self.raw.len() + count > MAX_RAW {
            return Err(self.bad("a header with more extensions than any real one"));
        }
        let start = self.raw.len();
        let mut raw = std::mem::take(&mut self.raw);
        raw.resize(start + count, 0);
        let read = self.fill(&mut raw[start..]);
        self.raw = raw;
        let read = read?;
        self.raw.truncate(start + read);
        Ok(read)
    }

    /// Returns the next header block; `None` at the end of the stream.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>> {
        match self.keep(BLOCK)? {
            0 => Ok(None),
            BLOCK => {
                let block = self.raw.last_chunk::<BLOCK>();
                Ok(block.copied())
            }
            _ => Err(self.bad("the tar ends within a header")),
        }
    }

    /// Returns the bytes before the entry that `next` returned, for tar-split.
    pub(super) fn raw(&mut self) -> &mut Vec<u8> {
        &mut self.raw
    }

    /// Returns the next entry; `None` at the end of the archive. The content of the previous entry
    /// must have been read.
    pub(super) fn next(&mut self) -> Result<Option<Entry>> {
        let pad = std::mem::take(&mut self.pad);
        self.keep(pad)?;
        let mut extended = Extended::default();
        loop {
            let Some(block) = self.block()? else {
                return Ok(None);
            };
            if block == [0; BLOCK] {
                return match self.block()? {
                    None => Ok(None),
                    Some(block) if block == [0; BLOCK] => Ok(None),
                    Some(_) => Err(self.bad("data after an end mark")),
                };
            }
            if !checksum_fits(&block) {
                return Err(self.bad("not a tar header: its checksum is wrong"));
            }
            match view(&block).entry_type().as_byte() {
                b'x' => {
                    let bytes = self.extension(&block)?;
                    let added = extended.add(&bytes);
                    added.ok_or_else(|| {
                        self.bad("a malformed PAX header, or more xattrs than any file")
                    })?;
                }
                b'L' => extended.long_name = Some(text(&self.extension(&block)?).to_vec()),
                b'K' => extended.long_link = Some(text(&self.extension(&block)?).to_vec()),
                b'g' => {
                    self.extension(&block)?;
                    self.count()?;
                    return self
                        .entry(&block, EntryKind::Global, Extended::default())
                        .map(Some);
                }
                letter => {
                    self.count()?;
                    let kind = kind(letter).ok_or_else(|| {
                        let name = view(&block).path_bytes();
                        let what = format!("unknown type {:?}", char::from(letter));
                        Error::entry(&name, format!("{what}; not an image layer"))
                    })?;
                    return self.entry(&block, kind, extended).map(Some);
                }
            }
        }
    }

    fn count(&mut self) -> Result<()> {
        self.entries += 1;
        if self.entries > self.limits.entries {
            let limit = self.limits.entries;
            return Err(Error::Limit {
                what: "entries",
                limit,
            });
        }
        Ok(())
    }

    /// Reads the content of an extension header.
    fn extension(&mut self, block: &[u8; BLOCK]) -> Result<Vec<u8>> {
        let size = number(&view(block).as_old().size);
        let size = size.and_then(|size| u64::try_from(size).ok());
        let size = size.filter(|&size| size <= MAX_EXTENSION);
        let size = size.ok_or_else(|| self.bad("an extended header of more than 1 MiB"))?;
        let (count, padded) = (size as usize, size.next_multiple_of(BLOCK as u64) as usize);
        let start = self.raw.len();
        if self.keep(padded)? < padded {
            return Err(self.bad("the tar ends within an extended header"));
        }
        Ok(self.raw[start..start + count].to_vec())
    }

    fn entry(&mut self, block: &[u8; BLOCK], kind: EntryKind, extended: Extended) -> Result<Entry> {
        let head = view(block);
        let old = head.as_old();
        let name = (extended.sparse.name().map(<[u8]>::to_vec))
            .or(extended.name)
            .or(extended.long_name)
            .unwrap_or_else(|| head.path_bytes().into_owned());
        let bad = |what: &str| Error::entry(&name, format!("{what}; not a valid layer"));
        let field = |pax: Option<i64>, field: &[u8], what| {
            let value = pax.or_else(|| number(field));
            value.ok_or_else(|| bad(what))
        };
        let id = |pax, bytes: &[u8], what| {
            let id = u32::try_from(field(pax, bytes, what)?).ok();
            id.filter(|&id| id != u32::MAX).ok_or_else(|| bad(what))
        };
        let size = field(extended.size, &old.size, "its size is not a number")?;
        let size = u64::try_from(size).map_err(|_| bad("its size is negative"))?;
        // In ancient tars, directories are files whose names end with a slash.
        let v7_dir = old.linkflag == [0] && name.ends_with(b"/");
        let kind = if v7_dir { EntryKind::Directory } else { kind };
        let mtime = field(None, &old.mtime, "its time is not a number")?;
        let mtime = extended.mtime.unwrap_or(Time {
            sec: mtime,
            nsec: 0,
        });
        let declared = Declared::of_block(block);
        let mut device = (0, 0);
        if matches!(kind, EntryKind::CharDevice | EntryKind::BlockDevice) {
            let what = "its device number is not a number";
            device.0 = id(None, &block[329..337], what)?;
            device.1 = id(None, &block[337..345], what)?;
        }
        let mut entry = Entry {
            kind,
            link: (extended.link)
                .or(extended.long_link)
                .unwrap_or_else(|| text(&old.linkname).to_vec()),
            stored: if kind == EntryKind::Regular { size } else { 0 },
            perm: (field(None, &old.mode, "its mode is not a number")? & 0o7777) as u32,
            uid: id(extended.uid, &old.uid, "its owner is not a user ID")?,
            gid: id(extended.gid, &old.gid, "its group is not a group ID")?,
            mtime,
            atime: extended.atime.unwrap_or(mtime).max(mtime),
            device,
            xattrs: extended.xattrs.into_iter().collect(),
            sparse: None,
            declared: Declared {
                size,
                atime: extended.atime.or(declared.atime),
                ctime: extended.ctime.or(declared.ctime),
                ..declared
            },
            name,
        };
        self.pad = (entry.stored.next_multiple_of(BLOCK as u64) - entry.stored) as usize;
        self.sparse(block, &extended.sparse, &mut entry)?;
        self.left = entry.stored;
        Ok(entry)
    }

    /// Reads the map of a sparse file, which may need further blocks of the stream.
    fn sparse(&mut self, block: &[u8; BLOCK], pax: &Records, entry: &mut Entry) -> Result<()> {
        let old = view(block).entry_type().is_gnu_sparse();
        if entry.kind != EntryKind::Regular || !(old || pax.any()) {
            return Ok(());
        }
        let name = entry.name.clone();
        let bad = || Error::entry(&name, "malformed map of a sparse file; not a valid layer");
        let map = if old {
            self.old_sparse(block)?
        } else if pax.map_in_data() {
            let mut map = MapInData::default();
            loop {
                entry.stored = entry.stored.checked_sub(BLOCK as u64).ok_or_else(bad)?;
                let block = self.block()?.ok_or_else(bad)?;
                if map.block(&block).ok_or_else(bad)? {
                    break pax.map(Some(map.numbers()));
                }
            }
        } else {
            pax.map(None)
        };
        let map = map.filter(|map| map.is_valid(entry.stored));
        let map = map.ok_or_else(bad)?;
        self.sparse = self.sparse.saturating_add(map.size);
        if self.sparse > self.limits.bytes {
            let limit = self.limits.bytes;
            return Err(Error::Limit {
                what: "bytes",
                limit,
            });
        }
        entry.sparse = Some(map);
        Ok(())
    }

    fn old_sparse(&mut self, block: &[u8; BLOCK]) -> Result<Option<Sparse>> {
        let Some(size) = number(&block[sparse::OLD_GNU_SIZE]).and_then(|n| u64::try_from(n).ok())
        else {
            return Ok(None);
        };
        let extents = Vec::new();
        let mut map = Sparse { size, extents };
        let mut read = sparse::old_gnu(&block[sparse::OLD_GNU_MAP], 4, &mut map);
        let mut more = block[sparse::OLD_GNU_EXTENDED] != 0;
        while more && read.is_some() {
            let Some(block) = self.block()? else {
                return Ok(None);
            };
            read = sparse::old_gnu(&block, sparse::MORE_COUNT, &mut map);
            more = block[sparse::MORE_EXTENDED] != 0;
        }
        Ok(read.map(|()| map))
    }

    /// Reads content of the current entry; returns 0 at its end.
    pub(super) fn data(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX);
        let count = most.min(buffer.len());
        let read = self.fill(&mut buffer[..count])?;
        if read < count {
            return Err(self.bad("the tar ends within a file: it is truncated"));
        }
        self.left -= read as u64;
        Ok(read)
    }

    /// Skips the content of the current entry. `skip` skips at most that many bytes of the input
    /// and returns how many.
    pub(super) fn skip(
        &mut self,
        skip: impl Fn(&mut R, u64) -> std::io::Result<u64>,
    ) -> Result<()> {
        while self.left > 0 {
            let passed = skip(&mut self.input, self.left).map_err(|source| Error::Read {
                offset: self.offset,
                source,
            })?;
            if passed == 0 {
                return Err(self.bad("the tar ends within a file: it is truncated"));
            }
            self.left = self.left.saturating_sub(passed);
            self.offset = self.offset.saturating_add(passed);
        }
        Ok(())
    }

    /// Reads bytes after the archive; returns 0 at the end of the stream.
    #[cfg(feature = "registry")]
    pub(super) fn rest(&mut self, buffer: &mut [u8]) -> Result<usize> {
        self.fill(buffer)
    }

    /// Reads the bytes after the archive into tar-split; returns the digest and length of the
    /// stream. These bytes may be as many as the stream's limit allows: `go_on` is called before
    /// each piece.
    pub(super) fn finish(
        mut self,
        split: &mut TarSplitWriter<'_, impl std::io::Write>,
        mut go_on: impl FnMut(u64) -> Result<()>,
    ) -> Result<(Digest, u64)> {
        split.segments(&self.raw)?;
        let mut buffer = vec![0; PIECE];
        loop {
            let read = self.fill(&mut buffer)?;
            go_on(read as u64)?;
            if read > 0 {
                split.segment(&buffer[..read])?;
            }
            if read < PIECE {
                break;
            }
        }
        // Docker's tar-split ends with an empty piece.
        split.segment(b"")?;
        let bytes = self.offset;
        let hasher = match self.hasher {
            Some(hasher) => hasher,
            None => Hasher::new()?,
        };
        Ok((hasher.finish()?, bytes))
    }
}

fn kind(letter: u8) -> Option<EntryKind> {
    Some(match letter {
        // '7' is a contiguous file, which is treated as a regular file; 'S' is a sparse file.
        0 | b'0' | b'7' | b'S' => EntryKind::Regular,
        b'1' => EntryKind::HardLink,
        b'2' => EntryKind::Symlink,
        b'3' => EntryKind::CharDevice,
        b'4' => EntryKind::BlockDevice,
        b'5' => EntryKind::Directory,
        b'6' => EntryKind::Fifo,
        _ => return None,
    })
}
