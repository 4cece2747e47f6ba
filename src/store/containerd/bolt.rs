//! Reads bolt files, in which containerd keeps its metadata, also while another process writes to
//! them.
//!
//! A file is a tree of buckets. A bucket is a B+ tree of pages. Its leaves contain keys with values
//! or with further buckets, which have a root page or, when small, are stored in the leaf itself.
//! Pages 0 and 1 are the meta pages. Each has the root bucket of one transaction and a checksum;
//! the one with the higher transaction number is valid. (go.etcd.io/bbolt: page.go, bucket.go,
//! db.go. All numbers are in the byte order of the machine that wrote the file; little-endian
//! here.)
//!
//! A writer changes no page that the last transaction needs before the next one is committed. So
//! data is consistent if the transaction is still the last one after the read, and is read again
//! otherwise: [`read`] takes no lock and does not disturb the writer.
//!
//! All of the file is hostile. Pages must lie within the file, elements within their page; depth
//! and the number of bytes that are read are limited.

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;

/// Bytes of a page's header, and of an element.
const HEADER: usize = 16;
/// Bytes of a bucket's header in a leaf, before the page of a small one.
const BUCKET: usize = 16;
/// Bytes of a meta page that the checksum covers, after the header.
const SUMMED: usize = 56;
const MAGIC: u32 = 0xED0C_DAED;
const VERSION: u32 = 2;
const BRANCH: u16 = 1;
const LEAF: u16 = 2;
const META: u16 = 4;
/// The flag of a leaf element that is a bucket.
const IS_BUCKET: u32 = 1;
/// The offsets of the second meta page if the first is damaged: page sizes of all machines.
const PAGE_SIZES: [u64; 5] = [4096, 8192, 16384, 32768, 65536];
/// The limit of levels of one bucket's tree. A tree of four levels holds a billion keys.
const MAX_DEPTH: usize = 16;
/// The limit of bytes that one look at a file reads, as a multiple of the file's size, since a page
/// is read again for each key that is looked up in it. The limit is never more than `MAX_BYTES`.
const TIMES: u64 = 16;
const MAX_BYTES: u64 = 1 << 30;
/// The limit of reads of a file that changes meanwhile.
const TRIES: usize = 20;

/// A failure to read a file.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    /// A system call failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The file is not a bolt file, or is damaged.
    #[error("page {page}: {what}")]
    Damaged {
        /// The damaged page.
        page: u64,
        /// The damage.
        what: &'static str,
    },
    /// The file has changed during each of many attempts.
    #[error("it changes all the time")]
    Busy,
}

/// Calls `look` with the last transaction of a file, and again if there is a newer one afterwards.
///
/// # Errors
/// [`Fault`], and those of `look`, if the file has not changed meanwhile.
pub(crate) fn read<T, E: From<Fault>>(
    file: &File,
    look: impl Fn(&Transaction<'_>) -> Result<T, E>,
) -> Result<T, E> {
    for _ in 0..TRIES {
        let transaction = match Transaction::last(file) {
            Ok(transaction) => transaction,
            // Both meta pages may look damaged for a moment: each is written in place.
            Err(fault) if fault.is_damage() => Transaction::last(file)?,
            Err(fault) => return Err(fault.into()),
        };
        let result = look(&transaction);
        if Transaction::last(file)?.number == transaction.number {
            return result;
        }
    }
    Err(Fault::Busy.into())
}

impl Fault {
    fn is_damage(&self) -> bool {
        matches!(self, Self::Damaged { .. })
    }
}

fn damaged(page: u64, what: &'static str) -> Fault {
    Fault::Damaged { page, what }
}

/// One transaction of a file.
pub(crate) struct Transaction<'f> {
    file: &'f File,
    page_size: u64,
    /// The number of pages in the file.
    pages: u64,
    root: u64,
    number: u64,
    /// The number of bytes that may still be read or copied.
    left: Cell<u64>,
}

/// A bucket.
#[derive(Clone, Debug)]
pub(crate) enum Bucket {
    /// The root page of a bucket.
    At(u64),
    /// The page of a small bucket.
    Inline(Vec<u8>),
}

/// The content of a key of a bucket.
#[derive(Debug)]
pub(crate) enum Entry<'p> {
    Value(&'p [u8]),
    Bucket(Bucket),
}

impl Entry<'_> {
    /// Returns the number of bytes of a value, or of a copied bucket.
    fn len(&self) -> usize {
        match self {
            Self::Value(bytes) => bytes.len(),
            Self::Bucket(Bucket::Inline(bytes)) => bytes.len(),
            Self::Bucket(Bucket::At(_)) => 0,
        }
    }
}

/// A callback for each key of a bucket and its content.
type Each<'e, E> = dyn FnMut(&[u8], Entry<'_>) -> Result<(), E> + 'e;

/// One page, with its overflow pages.
struct Page {
    number: u64,
    bytes: Vec<u8>,
}

impl<'f> Transaction<'f> {
    fn last(file: &'f File) -> Result<Self, Fault> {
        let length = file.metadata()?.len();
        let first = Self::at(file, length, 0);
        let sizes = match &first {
            Ok(first) => vec![first.page_size],
            Err(_) => PAGE_SIZES.to_vec(),
        };
        let second = sizes
            .iter()
            .find_map(|size| Self::at(file, length, *size).ok());
        match (first, second) {
            (Ok(first), Some(second)) if second.number > first.number => Ok(second),
            (Ok(first), _) => Ok(first),
            (Err(_), Some(second)) => Ok(second),
            (Err(fault), None) => Err(fault),
        }
    }

    /// Returns the transaction of the meta page at an offset.
    fn at(file: &'f File, length: u64, offset: u64) -> Result<Self, Fault> {
        let mut bytes = [0; HEADER + SUMMED + 8];
        let page = u64::from(offset > 0);
        match file.read_exact_at(&mut bytes, offset) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(damaged(page, "the file ends within it"));
            }
            result => result?,
        }
        let meta = &bytes[HEADER..];
        let (magic, version) = (u32_at(meta, 0), u32_at(meta, 4));
        if u16_at(&bytes, 8) != META || (magic, version) != (MAGIC, VERSION) {
            return Err(damaged(page, "it is not a meta page of bolt's version 2"));
        }
        if fnv_1a(&meta[..SUMMED]) != u64_at(meta, SUMMED) {
            return Err(damaged(page, "its checksum is wrong"));
        }
        let page_size = u64::from(u32_at(meta, 8));
        if !PAGE_SIZES.contains(&page_size) {
            return Err(damaged(page, "its page size is impossible"));
        }
        Ok(Self {
            file,
            page_size,
            // Pages beyond this number may be newer.
            pages: u64_at(meta, 40).min(length / page_size),
            root: u64_at(meta, 16),
            number: u64_at(meta, 48),
            left: Cell::new(length.saturating_mul(TIMES).min(MAX_BYTES)),
        })
    }

    /// Returns the root bucket, which contains all others.
    pub(crate) fn root(&self) -> Bucket {
        Bucket::At(self.root)
    }

    /// Returns the bucket below `bucket` by these keys; `None` if one does not exist.
    pub(crate) fn bucket(&self, bucket: &Bucket, keys: &[&[u8]]) -> Result<Option<Bucket>, Fault> {
        let mut found = bucket.clone();
        for key in keys {
            let next = self.find(&found, key, |entry| match entry {
                Entry::Bucket(bucket) => Some(bucket),
                Entry::Value(_) => None,
            })?;
            match next.flatten() {
                Some(next) => found = next,
                None => return Ok(None),
            }
        }
        Ok(Some(found))
    }

    /// Returns the value of a key; `None` if there is no such key, or it is a bucket.
    pub(crate) fn value(&self, bucket: &Bucket, key: &[u8]) -> Result<Option<Vec<u8>>, Fault> {
        let found = self.find(bucket, key, |entry| match entry {
            Entry::Value(value) => Some(value.to_vec()),
            Entry::Bucket(_) => None,
        })?;
        Ok(found.flatten())
    }

    /// Calls `each` with every key of a bucket and its content, in order.
    pub(crate) fn each<E: From<Fault>>(
        &self,
        bucket: &Bucket,
        each: &mut Each<'_, E>,
    ) -> Result<(), E> {
        let root = self.page_of(bucket)?;
        self.walk(&root, 0, each)
    }

    fn walk<E: From<Fault>>(
        &self,
        page: &Page,
        depth: usize,
        each: &mut Each<'_, E>,
    ) -> Result<(), E> {
        if depth > MAX_DEPTH {
            return Err(damaged(page.number, "too many pages lead to it").into());
        }
        let is_branch = page.is_branch()?;
        for at in 0..page.count() {
            if is_branch {
                let (_, child) = page.child(at)?;
                self.walk(&self.page(child)?, depth + 1, each)?;
            } else {
                let (key, entry) = page.entry(at)?;
                // Elements may overlap, so that copies of a page's buckets are more than the page.
                self.charge(page.number, key.len() + entry.len())?;
                each(key, entry)?;
            }
        }
        Ok(())
    }

    fn find<T>(
        &self,
        bucket: &Bucket,
        key: &[u8],
        take: impl FnOnce(Entry<'_>) -> T,
    ) -> Result<Option<T>, Fault> {
        let mut page = self.page_of(bucket)?;
        let mut depth = 0;
        while page.is_branch()? {
            if depth == MAX_DEPTH {
                return Err(damaged(page.number, "too many pages lead to it"));
            }
            // The last child that does not begin after the key.
            let mut next = None;
            for at in 0..page.count() {
                let (first, child) = page.child(at)?;
                if at > 0 && first > key {
                    break;
                }
                next = Some(child);
            }
            let Some(child) = next else {
                return Ok(None);
            };
            page = self.page(child)?;
            depth += 1;
        }
        for at in 0..page.count() {
            if page.key(at)? == key {
                let (_, entry) = page.entry(at)?;
                self.charge(page.number, key.len() + entry.len())?;
                return Ok(Some(take(entry)));
            }
        }
        Ok(None)
    }

    fn page_of(&self, bucket: &Bucket) -> Result<Page, Fault> {
        match bucket {
            Bucket::At(number) => self.page(*number),
            Bucket::Inline(bytes) => Ok(Page {
                number: 0,
                bytes: bytes.clone(),
            }),
        }
    }

    fn page(&self, number: u64) -> Result<Page, Fault> {
        let mut header = [0; HEADER];
        self.read_page(number, 1, &mut header)?;
        let size = (u64::from(u32_at(&header, 12)) + 1).saturating_mul(self.page_size);
        let size = usize::try_from(size).ok();
        let size = size.filter(|size| *size as u64 <= self.left.get());
        let size = size.ok_or_else(|| damaged(number, "the file has more data than any store"))?;
        let mut bytes = Vec::new();
        let room = bytes.try_reserve_exact(size);
        room.map_err(|_| Fault::Io(io::ErrorKind::OutOfMemory.into()))?;
        bytes.resize(size, 0);
        self.read_page(number, size as u64 / self.page_size, &mut bytes)?;
        if u64_at(&bytes, 0) != number {
            return Err(damaged(number, "it has the number of another page"));
        }
        Ok(Page { number, bytes })
    }

    /// Counts bytes that are read or copied.
    fn charge(&self, page: u64, bytes: usize) -> Result<(), Fault> {
        let left = self.left.get().checked_sub(bytes as u64);
        let left = left.ok_or_else(|| damaged(page, "the file has more data than any store"))?;
        self.left.set(left);
        Ok(())
    }

    /// Reads from the beginning of a page with overflow pages, `count` pages in all.
    fn read_page(&self, number: u64, count: u64, bytes: &mut [u8]) -> Result<(), Fault> {
        let end = number.checked_add(count);
        // Pages 0 and 1 are meta pages.
        if number < 2 || end.is_none_or(|end| end > self.pages) {
            return Err(damaged(number, "it is outside of the file"));
        }
        self.charge(number, bytes.len())?;
        match self.file.read_exact_at(bytes, number * self.page_size) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(damaged(number, "the file ends within it"))
            }
            result => Ok(result?),
        }
    }
}

impl Page {
    fn is_branch(&self) -> Result<bool, Fault> {
        if self.bytes.len() >= HEADER {
            match u16_at(&self.bytes, 8) {
                BRANCH => Ok(true),
                LEAF => Ok(false),
                _ => Err(damaged(self.number, "it is neither branch nor leaf")),
            }
        } else {
            Err(damaged(self.number, "it has no header"))
        }
    }

    fn count(&self) -> usize {
        usize::from(u16_at(&self.bytes, 10))
    }

    /// Returns the offset of an element in the page.
    fn element(&self, at: usize) -> Result<usize, Fault> {
        let place = HEADER + at * HEADER;
        if place + HEADER <= self.bytes.len() {
            Ok(place)
        } else {
            Err(self.outside())
        }
    }

    fn outside(&self) -> Fault {
        damaged(self.number, "an element is outside of it")
    }

    fn bytes(&self, range: Range<u64>) -> Result<&[u8], Fault> {
        let range = usize::try_from(range.start)
            .ok()
            .zip(usize::try_from(range.end).ok());
        let bytes = range.and_then(|(start, end)| self.bytes.get(start..end));
        bytes.ok_or_else(|| self.outside())
    }

    /// Returns the first key and the page of a branch's element.
    fn child(&self, at: usize) -> Result<(&[u8], u64), Fault> {
        let place = self.element(at)?;
        let start = place as u64 + u64::from(u32_at(&self.bytes, place));
        let end = start + u64::from(u32_at(&self.bytes, place + 4));
        Ok((self.bytes(start..end)?, u64_at(&self.bytes, place + 8)))
    }

    /// Returns the key of a leaf's element.
    fn key(&self, at: usize) -> Result<&[u8], Fault> {
        let place = self.element(at)?;
        let start = place as u64 + u64::from(u32_at(&self.bytes, place + 4));
        self.bytes(start..start + u64::from(u32_at(&self.bytes, place + 8)))
    }

    /// Returns the key of a leaf's element, and its content, of which a bucket is a copy.
    fn entry(&self, at: usize) -> Result<(&[u8], Entry<'_>), Fault> {
        let place = self.element(at)?;
        let field = |n: usize| u64::from(u32_at(&self.bytes, place + 4 * n));
        let start = place as u64 + field(1);
        let middle = start + field(2);
        let end = middle + field(3);
        let (key, value) = (self.bytes(start..middle)?, self.bytes(middle..end)?);
        if field(0) as u32 & IS_BUCKET == 0 {
            return Ok((key, Entry::Value(value)));
        }
        if value.len() < BUCKET {
            return Err(self.outside());
        }
        let bucket = match u64_at(value, 0) {
            0 => Bucket::Inline(value[BUCKET..].to_vec()),
            root => Bucket::At(root),
        };
        Ok((key, Entry::Bucket(bucket)))
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, at))
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[at..at + N]);
    array
}

/// FNV-1a of 64 bits.
fn fnv_1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests;
