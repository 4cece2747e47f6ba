//! Writes a tar, entry by entry.
//!
//! Format: ustar headers (POSIX.1-2017, pax, "ustar Interchange Format"). A pax extended header
//! comes before a header whose fields are too small: for paths and link targets over 100 bytes,
//! sizes from 8 GiB, owners over 2,097,151, times before 1970 or with nanoseconds, and xattrs as
//! `SCHILY.xattr.NAME` (OCI image specification, layer.md). Values in pax records are raw bytes,
//! which every tar accepts, although POSIX demands UTF-8. The same entries give the same bytes.

use std::io::{self, Write};

use crate::layer::types::{FileKind, Time};

const BLOCK: usize = 512;
/// The size of the field for a name. A full field needs no NUL.
const NAME: usize = 100;
/// The largest numbers of 7 and 11 octal digits.
const MAX_7: u64 = 0o7_777_777;
const MAX_11: u64 = 0o77_777_777_777;

/// The type of an entry, with the data of the type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content<'a> {
    /// A file with that many bytes, which are written by [`TarWriter::data`].
    Regular(u64),
    /// A further name of the file that was packed under this one.
    HardLink(&'a [u8]),
    /// A symlink with this target.
    Symlink(&'a [u8]),
    /// A directory.
    Directory,
    /// A FIFO.
    Fifo,
    /// A device: type, major, minor.
    Device(FileKind, u32, u32),
}

/// An entry of a tar.
#[derive(Clone, Debug)]
pub struct Item<'a> {
    /// The path from the tree's root, without a slash at either end; empty for the root.
    pub path: &'a [u8],
    /// The type.
    pub content: Content<'a>,
    /// `mode & 0o7777`.
    pub perm: u32,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// The modification time.
    pub mtime: Time,
    /// Names and values, in the order in which they are written.
    pub xattrs: &'a [(Vec<u8>, Vec<u8>)],
}

impl<'a> Item<'a> {
    /// Returns an empty file of root, as whiteouts are.
    pub fn empty(path: &'a [u8]) -> Self {
        Self {
            path,
            content: Content::Regular(0),
            perm: 0,
            uid: 0,
            gid: 0,
            mtime: Time::default(),
            xattrs: &[],
        }
    }
}

/// Writes a tar.
#[derive(Debug)]
pub struct TarWriter<W> {
    out: W,
    /// The bytes of the current file that are still missing.
    left: u64,
    /// The number of zeros to write after them.
    padding: usize,
}

impl<W: Write> TarWriter<W> {
    /// Begins a tar.
    pub fn new(out: W) -> Self {
        Self {
            out,
            left: 0,
            padding: 0,
        }
    }

    /// Writes an entry's header. EINVAL while data of the one before is missing.
    ///
    /// # Errors
    /// EINVAL while data of the entry before is missing, else those of the writer.
    pub fn entry(&mut self, item: &Item<'_>) -> io::Result<()> {
        if self.left > 0 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let name = match (item.path, item.content) {
            (b"", _) => b"./".to_vec(),
            (path, Content::Directory) => [path, b"/"].concat(),
            (path, _) => path.to_vec(),
        };
        let records = extended(item, &name);
        if !records.is_empty() {
            let mut header = header(b"PaxHeaders/0", b'x', records.len() as u64);
            checksum(&mut header);
            self.out.write_all(&header)?;
            self.out.write_all(&records)?;
            self.pad(records.len() as u64)?;
        }
        let (kind, size) = match item.content {
            Content::Regular(size) => (b'0', size),
            Content::HardLink(_) => (b'1', 0),
            Content::Symlink(_) => (b'2', 0),
            Content::Device(FileKind::BlockDevice, ..) => (b'4', 0),
            Content::Device(..) => (b'3', 0),
            Content::Directory => (b'5', 0),
            Content::Fifo => (b'6', 0),
        };
        let mut header = header(&name, kind, size);
        fill(&mut header, item);
        checksum(&mut header);
        self.out.write_all(&header)?;
        self.left = size;
        self.padding = padding(size);
        Ok(())
    }

    /// Writes some of the data of the current file; EINVAL for more than the file has.
    ///
    /// # Errors
    /// EINVAL for more data than the entry has, else those of the writer.
    pub fn data(&mut self, bytes: &[u8]) -> io::Result<()> {
        let rest = self.left.checked_sub(bytes.len() as u64);
        self.left = rest.ok_or(io::ErrorKind::InvalidInput)?;
        self.out.write_all(bytes)?;
        if self.left == 0 {
            let padding = std::mem::take(&mut self.padding);
            self.out.write_all(&[0; BLOCK][..padding])?;
        }
        Ok(())
    }

    /// Ends the tar with two empty blocks and returns the underlying writer.
    ///
    /// # Errors
    /// EINVAL while data of the last entry is missing, else those of the writer.
    pub fn finish(mut self) -> io::Result<W> {
        if self.left > 0 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.out.write_all(&[0; 2 * BLOCK])?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn pad(&mut self, size: u64) -> io::Result<()> {
        self.out.write_all(&[0; BLOCK][..padding(size)])
    }
}

fn padding(size: u64) -> usize {
    // The result is less than a block, so it fits.
    (size.wrapping_neg() % BLOCK as u64) as usize
}

/// Returns the records of the pax extended header; empty if everything fits into the ustar header.
fn extended(item: &Item<'_>, name: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    if name.len() > NAME {
        record(&mut out, b"path", name);
    }
    if let Some(target) = target(item)
        && target.len() > NAME
    {
        record(&mut out, b"linkpath", target);
    }
    let number = |value: u64| value.to_string().into_bytes();
    if let Content::Regular(size) = item.content
        && size > MAX_11
    {
        record(&mut out, b"size", &number(size));
    }
    for (key, id) in [(&b"uid"[..], item.uid), (b"gid", item.gid)] {
        if u64::from(id) > MAX_7 {
            record(&mut out, key, &number(id.into()));
        }
    }
    let Time { sec, nsec } = item.mtime;
    if nsec != 0 || header_time(item.mtime).is_none() {
        record(&mut out, b"mtime", decimal(sec, nsec).as_bytes());
    }
    for (key, value) in item.xattrs {
        record(&mut out, &[b"SCHILY.xattr.", &key[..]].concat(), value);
    }
    out
}

/// Returns the seconds that a ustar header can hold; `None` if the time does not fit.
fn header_time(time: Time) -> Option<u64> {
    u64::try_from(time.sec).ok().filter(|sec| *sec <= MAX_11)
}

/// Formats a time as a decimal number: -0.25 is second -1 and 750,000,000 nanoseconds.
fn decimal(sec: i64, nsec: u32) -> String {
    let text = match (sec < 0, nsec) {
        (_, 0) => return sec.to_string(),
        (false, _) => format!("{sec}.{nsec:09}"),
        (true, _) => format!("-{}.{:09}", (sec + 1).unsigned_abs(), 1_000_000_000 - nsec),
    };
    text.trim_end_matches('0').to_owned()
}

/// Writes `LENGTH KEY=VALUE\n`, where the length includes itself.
fn record(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + digits(rest);
    if digits(length) > digits(rest) {
        length += 1;
    }
    out.extend(length.to_string().into_bytes());
    out.push(b' ');
    out.extend(key);
    out.push(b'=');
    out.extend(value);
    out.push(b'\n');
}

fn digits(number: usize) -> usize {
    number.to_string().len()
}

fn target<'a>(item: &Item<'a>) -> Option<&'a [u8]> {
    match item.content {
        Content::HardLink(target) | Content::Symlink(target) => Some(target),
        _ => None,
    }
}

/// Returns a header with name, type and size, which are truncated to the fields.
fn header(name: &[u8], kind: u8, size: u64) -> [u8; BLOCK] {
    let mut header = [0; BLOCK];
    put(&mut header[..NAME], name);
    for (field, width) in [(100, 8), (108, 8), (116, 8)] {
        octal(&mut header[field..field + width], 0);
    }
    octal(&mut header[124..136], size.min(MAX_11));
    octal(&mut header[136..148], 0);
    header[156] = kind;
    header[257..265].copy_from_slice(b"ustar\x0000");
    header
}

fn fill(header: &mut [u8; BLOCK], item: &Item<'_>) {
    octal(&mut header[100..108], u64::from(item.perm & 0o7777));
    octal(&mut header[108..116], u64::from(item.uid).min(MAX_7));
    octal(&mut header[116..124], u64::from(item.gid).min(MAX_7));
    octal(&mut header[136..148], header_time(item.mtime).unwrap_or(0));
    if let Some(target) = target(item) {
        put(&mut header[157..257], target);
    }
    if let Content::Device(_, major, minor) = item.content {
        octal(&mut header[329..337], major.into());
        octal(&mut header[337..345], minor.into());
    }
}

/// Writes as much of `text` as fits.
fn put(field: &mut [u8], text: &[u8]) {
    for (to, from) in field.iter_mut().zip(text) {
        *to = *from;
    }
}

/// Writes octal digits and a NUL.
fn octal(field: &mut [u8], value: u64) {
    let width = field.len() - 1;
    put(field, format!("{value:0width$o}\0").as_bytes());
}

/// Writes the sum of all bytes, with the field of the sum itself as blanks.
fn checksum(header: &mut [u8; BLOCK]) {
    header[148..156].fill(b' ');
    let sum: u64 = header.iter().map(|b| u64::from(*b)).sum();
    put(&mut header[148..156], format!("{sum:06o}\0 ").as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;

    #[test]
    fn another_reader_finds_everything() {
        let long = [&b"d/"[..], &[b'n'; 200], b"\xff"].concat();
        let xattrs = [(b"user.a".to_vec(), b"\x00=".to_vec())];
        let mtime = Time {
            sec: -2,
            nsec: 250_000_000,
        };
        let item = Item {
            path: &long,
            content: Content::Regular(5),
            perm: 0o4755,
            uid: 2_000_000_000,
            gid: 7,
            mtime,
            xattrs: &xattrs,
        };
        let mut packer = TarWriter::new(Vec::new());
        packer.entry(&item).unwrap();
        assert!(packer.entry(&item).is_err(), "data is missing");
        packer.data(b"he").unwrap();
        assert!(packer.data(b"llo!").is_err(), "more than there is");
        let mut packer = TarWriter::new(Vec::new());
        packer.entry(&item).unwrap();
        packer.data(b"he").unwrap();
        packer.data(b"llo").unwrap();
        let link = Item {
            content: Content::HardLink(&long),
            xattrs: &[],
            ..Item::empty(b"h")
        };
        packer.entry(&link).unwrap();
        let device = Item {
            content: Content::Device(FileKind::CharDevice, 1, 300),
            ..Item::empty(b"c")
        };
        packer.entry(&device).unwrap();
        let bytes = packer.finish().unwrap();
        assert_eq!(bytes.len() % BLOCK, 0);

        let mut archive = tar::Archive::new(&bytes[..]);
        let mut entries = archive.entries().unwrap();
        let mut file = entries.next().unwrap().unwrap();
        assert_eq!(&*file.path_bytes(), &long[..]);
        assert_eq!(file.header().uid().unwrap(), 2_000_000_000);
        let records: Vec<_> = file
            .pax_extensions()
            .unwrap()
            .unwrap()
            .map(Result::unwrap)
            .collect();
        let value = |key: &[u8]| {
            let found = records.iter().find(|r| r.key_bytes() == key);
            found.map(|r| r.value_bytes().to_vec())
        };
        assert_eq!(value(b"uid").unwrap(), b"2000000000");
        assert_eq!(value(b"mtime").unwrap(), b"-1.75");
        let mut data = Vec::new();
        file.read_to_end(&mut data).unwrap();
        assert_eq!(data, b"hello");
        let link = entries.next().unwrap().unwrap();
        assert_eq!(&*link.link_name_bytes().unwrap(), &long[..]);
        let device = entries.next().unwrap().unwrap();
        assert_eq!(device.header().device_minor().unwrap(), Some(300));
        assert!(entries.next().is_none());
    }

    #[test]
    fn record_lengths_count_themselves() {
        for size in [1, 3, 4, 5, 90, 91, 92, 93, 94, 95, 989, 990, 991, 992, 993] {
            let mut out = Vec::new();
            record(&mut out, b"k", &vec![b'v'; size]);
            let space = out.iter().position(|b| *b == b' ').unwrap();
            let stated: usize = std::str::from_utf8(&out[..space]).unwrap().parse().unwrap();
            assert_eq!(stated, out.len(), "{size}");
        }
    }

    #[test]
    fn times_are_decimal() {
        assert_eq!(decimal(-1, 750_000_000), "-0.25");
        assert_eq!(decimal(3, 1), "3.000000001");
        assert_eq!(decimal(-5, 0), "-5");
        assert_eq!(decimal(i64::MIN, 1), "-9223372036854775807.999999999");
    }
}
