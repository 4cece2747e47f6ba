//! Reads a catalog, whose bytes may be hostile: every access is checked against the bounds of the
//! tables, and a reference that could form a cycle is an error, so that every walk ends.

use std::collections::HashSet;
use std::ops::Range;

use sha2::{Digest as _, Sha256};
use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::format::{self, Class, Data, Dir, Header, LayerRecord, NONE, Record, Table};
use crate::layer::at::{Stat, is_valid_name};
use crate::layer::markers::Protection;
use crate::layer::types::{FileKind, Time};

/// The reason why a file is not used as a catalog.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is too short, or has another format.
    #[error("it is not a catalog")]
    NoCatalog,
    /// It has another version of the format.
    #[error("it has format {0}, not {version}", version = format::VERSION)]
    Version(u32),
    /// Its length differs from the one in the header.
    #[error("it is not complete")]
    Length,
    /// Its header is damaged.
    #[error("its header is damaged")]
    Header,
}

/// A number in the catalog refers to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is damaged")]
pub struct Damaged;

type Result<T> = std::result::Result<T, Damaged>;

/// The catalog in `bytes`.
#[derive(Debug)]
pub struct View<B> {
    bytes: B,
    header: Header,
}

/// A merged directory of a catalog.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirRef {
    index: u32,
    dir: Dir,
}

impl DirRef {
    /// Returns the number of the directory.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Whether its entries must be read from the layers.
    pub fn is_unlisted(&self) -> bool {
        self.dir.flags.get() & format::UNLISTED != 0
    }

    /// Returns the record numbers of its entries.
    pub fn entries(&self) -> Range<u32> {
        let first = self.dir.first.get();
        first..first.saturating_add(self.dir.count.get())
    }

    /// Returns the number of layers that have the directory.
    pub fn part_count(&self) -> usize {
        self.dir.part_count.get() as usize
    }
}

/// Identifies the data of a file, as it was when the catalog was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Inode number.
    pub ino: u64,
    /// Size in bytes.
    pub size: u64,
    /// Last change of data.
    pub mtime: Time,
    /// Last change of the inode.
    pub ctime: Time,
}

impl From<&Stat> for Identity {
    fn from(stat: &Stat) -> Self {
        Self {
            ino: stat.ino,
            size: stat.size,
            mtime: stat.mtime,
            ctime: stat.ctime,
        }
    }
}

impl<B: AsRef<[u8]>> View<B> {
    /// Checks the header of a catalog. The body is checked as it is read; [`View::verify`] checks
    /// all of it.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn parse(bytes: B) -> std::result::Result<Self, Refusal> {
        let all = bytes.as_ref();
        let (header, _) = Header::read_from_prefix(all).map_err(|_| Refusal::NoCatalog)?;
        if header.magic != format::MAGIC {
            return Err(Refusal::NoCatalog);
        }
        if header.version.get() != format::VERSION {
            return Err(Refusal::Version(header.version.get()));
        }
        if header.file_len.get() != all.len() as u64 {
            return Err(Refusal::Length);
        }
        let covered = header.header_len.get() as usize;
        let covered = all.get(size_of::<Header>()..covered);
        let covered = covered.ok_or(Refusal::Header)?;
        if header_sum(header, covered) != header.header_sum || !tables_fit(&header) {
            return Err(Refusal::Header);
        }
        Ok(Self { bytes, header })
    }

    /// Whether the body has the checksum in the header; reads all of it.
    pub fn verify(&self) -> bool {
        let body = self.all().get(self.header.header_len.get() as usize..);
        body.is_some_and(|body| Sha256::digest(body)[..] == self.header.body_sum)
    }

    /// Follows every reference once and returns the number of names. It does not check the values;
    /// [`View::verify`] does.
    ///
    /// # Errors
    /// [`Damaged`] for a reference to nothing.
    pub fn walk(&self) -> Result<u64> {
        let mut todo = vec![self.root()?];
        let mut seen = HashSet::new();
        let mut climbed = HashSet::new();
        let mut names = 0;
        while let Some(dir) = todo.pop() {
            if !seen.insert(dir.index) {
                return Err(Damaged);
            }
            // Otherwise each of many directories might claim all records as its entries.
            names += u64::from(dir.dir.count.get());
            if names > self.header.records.count.get() {
                return Err(Damaged);
            }
            for position in 0..dir.part_count() {
                self.climb(self.part(&dir, position)?, &mut climbed)?;
            }
            for index in dir.entries() {
                let record = self.record(index)?;
                self.name(&record)?;
                let (layer, kind) = self.place(&record)?;
                self.layer(layer)?;
                let flags = record.flags.get();
                if flags & format::LIVE != 0 {
                    continue;
                }
                self.climb(index, &mut climbed)?;
                self.stat(&record, 0)?;
                if flags & format::MERGED != 0 {
                    todo.push(self.dir(&dir, &record)?);
                } else if flags & format::METACOPY != 0 {
                    self.climb(self.data(&record)?.0, &mut climbed)?;
                } else if kind == Some(FileKind::Symlink) {
                    self.target(&record)?;
                }
            }
        }
        Ok(names)
    }

    /// Follows the parents of a record up to the root of its layer, or to a record in `climbed`.
    fn climb(&self, index: u32, climbed: &mut HashSet<u32>) -> Result<()> {
        let mut next = Some(index);
        while let Some(index) = next.filter(|&index| climbed.insert(index)) {
            let record = self.record(index)?;
            let (layer, _) = self.place(&record)?;
            next = self.parent(index, &record)?;
            match next {
                Some(_) => self.name(&record).map(drop)?,
                None => self.layer(layer).map(drop)?,
            }
        }
        Ok(())
    }

    fn all(&self) -> &[u8] {
        self.bytes.as_ref()
    }

    /// Returns the length of the file in bytes.
    pub fn file_len(&self) -> u64 {
        self.header.file_len.get()
    }

    /// Returns the chain ID of the layers: the bytes of the digest, or zero if they have none.
    pub fn chain(&self) -> [u8; 32] {
        self.header.chain
    }

    /// Returns the root of the store and its driver; both are empty for layers outside of a store.
    ///
    /// # Errors
    /// [`Damaged`].
    pub fn store(&self) -> Result<(&[u8], &[u8])> {
        let header = &self.header;
        Ok((
            self.string(header.store.get(), header.store_len.get())?,
            self.string(header.driver.get(), header.driver_len.get())?,
        ))
    }

    /// Returns the store's notes about the layers, if `header_sum` covers them.
    ///
    /// # Errors
    /// [`Damaged`].
    pub fn notes(&self) -> Result<&[u8]> {
        let table = self.header.notes;
        let end = table.offset.get().checked_add(table.count.get());
        let end = end.filter(|&end| end <= self.header.header_len.get().into());
        let place = |n: u64| usize::try_from(n).map_err(|_| Damaged);
        let range = place(table.offset.get())?..place(end.ok_or(Damaged)?)?;
        self.all().get(range).ok_or(Damaged)
    }

    /// Returns the number of layers, data-only layers included.
    pub fn layer_count(&self) -> u64 {
        self.header.layers.count.get()
    }

    /// Returns the number of names in all merged directories, and the number of directories.
    pub fn counts(&self) -> (u64, u64) {
        (
            self.header.records.count.get(),
            self.header.dirs.count.get(),
        )
    }

    fn at<T>(&self, table: Table, index: u32) -> Result<T>
    where
        T: FromBytes + KnownLayout + Immutable + Unaligned,
    {
        let index = u64::from(index);
        if index >= table.count.get() {
            return Err(Damaged);
        }
        let size = size_of::<T>() as u64;
        let start = index.checked_mul(size).ok_or(Damaged)?;
        let start = start.checked_add(table.offset.get()).ok_or(Damaged)?;
        let start = usize::try_from(start).map_err(|_| Damaged)?;
        let bytes = self.all().get(start..).ok_or(Damaged)?;
        let (record, _) = T::read_from_prefix(bytes).map_err(|_| Damaged)?;
        Ok(record)
    }

    /// Returns a layer.
    ///
    /// # Errors
    /// [`Damaged`], as for all that follow.
    pub fn layer(&self, index: u32) -> Result<LayerRecord> {
        self.at(self.header.layers, index)
    }

    /// Returns a record.
    ///
    /// # Errors
    /// [`Damaged`] if a number or an offset leads out of the file.
    pub fn record(&self, index: u32) -> Result<Record> {
        self.at(self.header.records, index)
    }

    fn string(&self, offset: u32, len: u32) -> Result<&[u8]> {
        let table = self.header.strings;
        let end = u64::from(offset) + u64::from(len);
        if end > table.count.get() {
            return Err(Damaged);
        }
        let base = table.offset.get();
        let start = base.checked_add(offset.into()).ok_or(Damaged)?;
        let start = usize::try_from(start).map_err(|_| Damaged)?;
        let stop = start.checked_add(len as usize).ok_or(Damaged)?;
        self.all().get(start..stop).ok_or(Damaged)
    }

    /// Returns the name of a record: one component of a path.
    ///
    /// # Errors
    /// [`Damaged`] if a number or an offset leads out of the file.
    pub fn name(&self, record: &Record) -> Result<&[u8]> {
        let name = self.string(record.name.get(), record.name_len.get().into())?;
        if is_valid_name(name) && name.len() <= 255 {
            Ok(name)
        } else {
            Err(Damaged)
        }
    }

    /// Returns the target of a symlink.
    ///
    /// # Errors
    /// [`Damaged`] if a number or an offset leads out of the file.
    pub fn target(&self, record: &Record) -> Result<&[u8]> {
        self.string(record.aux.get(), record.target_len.get().into())
    }

    /// Returns the record number of the directory that contains a record; `None` for the root of a
    /// layer.
    ///
    /// # Errors
    /// [`Damaged`] if a number or an offset leads out of the file.
    pub fn parent(&self, index: u32, record: &Record) -> Result<Option<u32>> {
        match record.parent.get() {
            NONE => Ok(None),
            parent if parent < index => Ok(Some(parent)),
            _ => Err(Damaged),
        }
    }

    /// Returns the layer of a record, and its type if that is known.
    ///
    /// # Errors
    /// [`Damaged`] if a number or an offset leads out of the file.
    pub fn place(&self, record: &Record) -> Result<(u32, Option<FileKind>)> {
        let class: Class = self.at(self.header.classes, record.class.get())?;
        Ok((class.layer.get(), FileKind::from_mode(class.mode.get())))
    }

    /// Returns the attributes in a record that is not [`format::LIVE`]; `dev` is the device of its
    /// layer.
    ///
    /// # Errors
    /// [`Damaged`] if a number or an offset leads out of the file.
    pub fn stat(&self, record: &Record, dev: u64) -> Result<Stat> {
        let class: Class = self.at(self.header.classes, record.class.get())?;
        let born = record.flags.get() & format::BORN != 0;
        Ok(Stat {
            dev,
            ino: record.ino.get(),
            kind: FileKind::from_mode(class.mode.get()).ok_or(Damaged)?,
            perm: class.mode.get() & 0o7777,
            // Protected files have no records.
            protection: Protection::NONE,
            nlink: record.nlink.get(),
            uid: class.uid.get(),
            gid: class.gid.get(),
            rdev: (class.major.get(), class.minor.get()),
            size: record.size.get(),
            blocks: record.blocks.get().into(),
            blksize: class.blksize.get(),
            atime: time(record.atime.get()),
            mtime: time(record.mtime.get()),
            ctime: time(record.ctime.get()),
            btime: born.then(|| time(record.btime.get())),
        })
    }

    /// Returns directory, name and identity of a metacopy's data.
    ///
    /// # Errors
    /// [`Damaged`] if a number or an offset leads out of the file.
    pub fn data(&self, record: &Record) -> Result<(u32, &[u8], Identity)> {
        let data: Data = self.at(self.header.data, record.aux.get())?;
        let name = self.string(data.name.get(), data.name_len.get())?;
        if !is_valid_name(name) {
            return Err(Damaged);
        }
        let identity = Identity {
            ino: data.ino.get(),
            size: data.size.get(),
            mtime: time(data.mtime.get()),
            ctime: time(data.ctime.get()),
        };
        Ok((data.dir.get(), name, identity))
    }

    /// Returns the root directory.
    ///
    /// # Errors
    /// [`Damaged`] if a number or an offset leads out of the file.
    pub fn root(&self) -> Result<DirRef> {
        self.dir_at(0)
    }

    /// Returns a directory after checking that all its entries and parts exist.
    fn dir_at(&self, index: u32) -> Result<DirRef> {
        let dir: Dir = self.at(self.header.dirs, index)?;
        let header = &self.header;
        let within = |first: U32, count: U32, table: Table| {
            u64::from(first.get()) + u64::from(count.get()) <= table.count.get()
        };
        // Each layer has the directory at most once.
        let whole = within(dir.first, dir.count, header.records)
            && within(dir.part, dir.part_count, header.parts)
            && u64::from(dir.part_count.get()) <= header.layers.count.get();
        if whole {
            Ok(DirRef { index, dir })
        } else {
            Err(Damaged)
        }
    }

    /// Returns the merged directory of an entry of `parent`.
    ///
    /// # Errors
    /// [`Damaged`] if a number or an offset leads out of the file.
    pub fn dir(&self, parent: &DirRef, record: &Record) -> Result<DirRef> {
        let index = record.aux.get();
        // Numbers grow on the way down, so there are no cycles.
        if index <= parent.index || record.flags.get() & format::MERGED == 0 {
            return Err(Damaged);
        }
        self.dir_at(index)
    }

    /// Returns the record number of a directory of a layer, top first.
    ///
    /// # Errors
    /// [`Damaged`] if a number or an offset leads out of the file.
    pub fn part(&self, dir: &DirRef, position: usize) -> Result<u32> {
        let position = u32::try_from(position).map_err(|_| Damaged)?;
        if position >= dir.dir.part_count.get() {
            return Err(Damaged);
        }
        let index = dir.dir.part.get().checked_add(position).ok_or(Damaged)?;
        let part: U32 = self.at(self.header.parts, index)?;
        Ok(part.get())
    }

    /// Returns the entry with a name.
    ///
    /// # Errors
    /// [`Damaged`] if a number or an offset leads out of the file.
    pub fn find(&self, dir: &DirRef, name: &[u8]) -> Result<Option<(u32, Record)>> {
        let Range { mut start, mut end } = dir.entries();
        while start < end {
            let middle = start + (end - start) / 2;
            let record = self.record(middle)?;
            match self.name(&record)?.cmp(name) {
                std::cmp::Ordering::Less => start = middle + 1,
                std::cmp::Ordering::Greater => end = middle,
                std::cmp::Ordering::Equal => return Ok(Some((middle, record))),
            }
        }
        Ok(None)
    }
}

/// Whether all tables lie within the file.
fn tables_fit(header: &Header) -> bool {
    let tables = [
        (header.layers, size_of::<LayerRecord>()),
        (header.notes, 1),
        (header.records, size_of::<Record>()),
        (header.dirs, size_of::<Dir>()),
        (header.parts, size_of::<U32>()),
        (header.classes, size_of::<Class>()),
        (header.data, size_of::<Data>()),
        (header.strings, 1),
    ];
    tables.iter().all(|(table, size)| {
        let bytes = table.count.get().checked_mul(*size as u64);
        let end = bytes.and_then(|bytes| bytes.checked_add(table.offset.get()));
        end.is_some_and(|end| end <= header.file_len.get())
    })
}

/// Computes the checksum of a header, and of the layers and notes after it.
pub fn header_sum(mut header: Header, covered: &[u8]) -> [u8; 32] {
    header.header_sum = [0; 32];
    let mut sum = Sha256::new();
    sum.update(header.as_bytes());
    sum.update(covered);
    sum.finalize().into()
}

const SECOND: i64 = 1_000_000_000;

fn time(nanoseconds: i64) -> Time {
    Time {
        sec: nanoseconds.div_euclid(SECOND),
        nsec: u32::try_from(nanoseconds.rem_euclid(SECOND)).unwrap_or(0),
    }
}

/// Converts to nanoseconds since 1970; `None` outside of 1677 to 2262.
pub fn nanoseconds(time: Time) -> Option<i64> {
    time.sec
        .checked_mul(SECOND)?
        .checked_add(i64::from(time.nsec))
        .filter(|_| i64::from(time.nsec) < SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn times_come_back(sec in -9_000_000_000i64..9_000_000_000, nsec in 0u32..1_000_000_000) {
            let this = Time { sec, nsec };
            prop_assert_eq!(nanoseconds(this).map(time), Some(this));
        }

        #[test]
        fn any_bytes_are_no_catalog(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            prop_assert!(View::parse(bytes).is_err());
        }
    }

    #[test]
    fn times_too_far_away_are_refused() {
        for sec in [i64::MAX, i64::MIN, 10_000_000_000, -10_000_000_000] {
            assert_eq!(nanoseconds(Time { sec, nsec: 0 }), None);
        }
        // Some file systems return such times.
        assert_eq!(
            nanoseconds(Time {
                sec: 0,
                nsec: 1_000_000_000
            }),
            None
        );
    }
}
