//! Writes a catalog: appends records to the file as they are created, then the smaller tables, and
//! the header last.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::os::unix::fs::FileExt as _;

use sha2::{Digest as _, Sha256};
use zerocopy::little_endian::U32;
use zerocopy::{FromZeros as _, IntoBytes};

use super::format::{self, Class, Data, Dir, Header, LayerRecord, Record, Table};
use super::view::header_sum;

/// A catalog being written.
pub(super) struct Writer<'f> {
    file: &'f File,
    out: BufWriter<&'f File>,
    sum: Sha256,
    layers: Vec<LayerRecord>,
    notes: Vec<u8>,
    records: u32,
    classes: Vec<Class>,
    class_numbers: HashMap<[u8; size_of::<Class>()], u32>,
    dirs: Vec<Dir>,
    parts: Vec<U32>,
    data: Vec<Data>,
    strings: Vec<u8>,
}

/// A range of `strings`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Text {
    pub(super) offset: u32,
    pub(super) len: u32,
}

/// Returns the error for more than 4 billion records. No catalog is written then.
fn too_large() -> io::Error {
    io::Error::from(io::ErrorKind::FileTooLarge)
}

fn number(count: usize) -> io::Result<u32> {
    u32::try_from(count)
        .ok()
        .filter(|n| *n != format::NONE)
        .ok_or_else(too_large)
}

impl<'f> Writer<'f> {
    /// Starts a catalog in an empty file.
    pub(super) fn new(file: &'f File, layers: Vec<LayerRecord>, notes: &[u8]) -> io::Result<Self> {
        let header = vec![0; size_of::<Header>() + layers.as_bytes().len() + notes.len()];
        let mut out = BufWriter::with_capacity(1 << 18, file);
        out.write_all(&header)?;
        Ok(Self {
            file,
            out,
            sum: Sha256::new(),
            layers,
            notes: notes.to_vec(),
            records: 0,
            classes: Vec::new(),
            class_numbers: HashMap::new(),
            dirs: Vec::new(),
            parts: Vec::new(),
            data: Vec::new(),
            strings: Vec::new(),
        })
    }

    /// Returns the number of the next record.
    pub(super) fn next_record(&self) -> u32 {
        self.records
    }

    pub(super) fn record(&mut self, record: &Record) -> io::Result<u32> {
        self.sum.update(record.as_bytes());
        self.out.write_all(record.as_bytes())?;
        let index = self.records;
        self.records = number(index as usize + 1)?;
        Ok(index)
    }

    pub(super) fn class(&mut self, class: Class) -> io::Result<U32> {
        let mut key = [0; size_of::<Class>()];
        key.copy_from_slice(class.as_bytes());
        if let Some(known) = self.class_numbers.get(&key) {
            return Ok(U32::new(*known));
        }
        let index = number(self.classes.len())?;
        self.classes.push(class);
        self.class_numbers.insert(key, index);
        Ok(U32::new(index))
    }

    pub(super) fn text(&mut self, bytes: &[u8]) -> io::Result<Text> {
        let offset = number(self.strings.len())?;
        let len = number(bytes.len())?;
        self.strings.extend_from_slice(bytes);
        Ok(Text { offset, len })
    }

    /// Reserves the number of a directory whose entries are written later.
    pub(super) fn reserve_dir(&mut self) -> io::Result<u32> {
        let index = number(self.dirs.len())?;
        self.dirs.push(Dir::new_zeroed());
        Ok(index)
    }

    /// Adds the parts of a directory, and returns the position of the first.
    pub(super) fn parts(&mut self, parts: &[u32]) -> io::Result<u32> {
        let first = number(self.parts.len())?;
        self.parts.extend(parts.iter().copied().map(U32::new));
        Ok(first)
    }

    /// Returns a reserved directory for filling it in.
    pub(super) fn dir(&mut self, index: u32) -> &mut Dir {
        &mut self.dirs[index as usize]
    }

    pub(super) fn data(&mut self, data: Data) -> io::Result<u32> {
        let index = number(self.data.len())?;
        self.data.push(data);
        Ok(index)
    }

    fn rest(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.sum.update(bytes);
        self.out.write_all(bytes)
    }

    /// Writes the remaining tables and the header. Only then is the file a catalog. It is not
    /// synced.
    pub(super) fn finish(mut self, chain: [u8; 32], store: &[u8], driver: &[u8]) -> io::Result<()> {
        let (store, driver) = (self.text(store)?, self.text(driver)?);
        // The bytes after the header that `header_sum` covers.
        let covered = [self.layers.as_bytes(), &self.notes].concat();
        let header_len = size_of::<Header>() + covered.len();
        let mut header = Header::new_zeroed();
        let mut end = size_of::<Header>() as u64;
        let mut table = |count: usize, bytes: usize| {
            let table = Table {
                offset: end.into(),
                count: (count as u64).into(),
            };
            end += bytes as u64;
            table
        };
        header.layers = table(self.layers.len(), self.layers.as_bytes().len());
        header.notes = table(self.notes.len(), self.notes.len());
        let records = self.records as usize;
        header.records = table(records, records * size_of::<Record>());
        header.dirs = table(self.dirs.len(), self.dirs.as_bytes().len());
        header.parts = table(self.parts.len(), self.parts.as_bytes().len());
        header.classes = table(self.classes.len(), self.classes.as_bytes().len());
        header.data = table(self.data.len(), self.data.as_bytes().len());
        header.strings = table(self.strings.len(), self.strings.len());
        let (dirs, parts) = (
            std::mem::take(&mut self.dirs),
            std::mem::take(&mut self.parts),
        );
        self.rest(dirs.as_bytes())?;
        self.rest(parts.as_bytes())?;
        let (classes, data) = (
            std::mem::take(&mut self.classes),
            std::mem::take(&mut self.data),
        );
        self.rest(classes.as_bytes())?;
        self.rest(data.as_bytes())?;
        let strings = std::mem::take(&mut self.strings);
        self.rest(&strings)?;
        self.out.flush()?;
        header.magic = format::MAGIC;
        header.version = format::VERSION.into();
        header.header_len = number(header_len)?.into();
        header.file_len = end.into();
        header.chain = chain;
        (header.store, header.store_len) = (store.offset.into(), store.len.into());
        (header.driver, header.driver_len) = (driver.offset.into(), driver.len.into());
        header.body_sum = self.sum.finalize().into();
        header.header_sum = header_sum(header, &covered);
        self.file.write_all_at(header.as_bytes(), 0)?;
        self.file.write_all_at(&covered, size_of::<Header>() as u64)
    }
}
