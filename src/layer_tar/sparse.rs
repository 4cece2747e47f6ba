//! The maps of sparse files in their four forms.
//!
//! Source: GNU tar's manual, "Storing Sparse Files": the old GNU format (in the header and the
//! blocks after it) and PAX 0.0, 0.1 (in records) and 1.0 (before the data).

use super::header::{BLOCK, Sparse, decimal, number, text};

/// The limit of extents in a map: 16 MiB of memory.
const MAX_EXTENTS: usize = 1 << 20;

/// The keys of PAX records about sparse files.
#[derive(Clone, Debug, Default)]
pub(super) struct Records {
    major: Option<i64>,
    name: Option<Vec<u8>>,
    size: Option<i64>,
    /// Alternating offsets and lengths.
    numbers: Vec<u64>,
}

impl Records {
    /// Adds a record `GNU.sparse.<key>`; `None` if its value is malformed.
    pub(super) fn add(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        let unsigned = |value: &[u8]| u64::try_from(decimal(value)?).ok();
        match key {
            b"major" => self.major = Some(decimal(value)?),
            b"name" => self.name = Some(value.to_vec()),
            b"size" | b"realsize" => self.size = Some(decimal(value)?),
            b"offset" | b"numbytes" => self.numbers.push(unsigned(value)?),
            b"map" => {
                self.numbers.clear();
                for part in value.split(|&b| b == b',').filter(|part| !part.is_empty()) {
                    self.numbers.push(unsigned(part)?);
                }
            }
            _ => {}
        }
        Some(())
    }

    /// Returns the file's real name.
    pub(super) fn name(&self) -> Option<&[u8]> {
        self.name.as_deref()
    }

    /// Whether the map is before the data.
    pub(super) fn map_in_data(&self) -> bool {
        self.major == Some(1)
    }

    /// Whether these records make a file sparse.
    pub(super) fn any(&self) -> bool {
        self.major.is_some() || self.size.is_some() || !self.numbers.is_empty()
    }

    /// Returns the map, with the numbers `in_data` if the map is before the data.
    pub(super) fn map(&self, in_data: Option<&[u64]>) -> Option<Sparse> {
        let size = u64::try_from(self.size?).ok()?;
        let numbers = in_data.unwrap_or(&self.numbers);
        let (pairs, []) = numbers.as_chunks::<2>() else {
            return None;
        };
        let extents = pairs.iter().map(|&[offset, length]| (offset, length));
        Some(Sparse {
            size,
            extents: extents.collect(),
        })
    }
}

/// The map before the data, read block by block: a count, then offset and length of each extent,
/// one decimal number a line.
#[derive(Debug, Default)]
pub(super) struct MapInData {
    numbers: Vec<u64>,
    partial: Vec<u8>,
}

impl MapInData {
    /// Adds a block; `Some(true)` if the map is complete, `None` if it is malformed.
    pub(super) fn block(&mut self, block: &[u8]) -> Option<bool> {
        for &b in block {
            if self.complete() {
                break;
            }
            match b {
                b'\n' => {
                    let number = u64::try_from(decimal(&self.partial)?).ok()?;
                    self.partial.clear();
                    self.numbers.push(number);
                    if self.numbers[0] > MAX_EXTENTS as u64 {
                        return None;
                    }
                }
                b'0'..=b'9' if self.partial.len() < 20 => self.partial.push(b),
                _ => return None,
            }
        }
        Some(self.complete())
    }

    fn complete(&self) -> bool {
        match self.numbers.split_first() {
            Some((&count, rest)) => rest.len() as u64 == count.saturating_mul(2),
            None => false,
        }
    }

    /// Returns the offsets and lengths.
    pub(super) fn numbers(&self) -> &[u64] {
        self.numbers.get(1..).unwrap_or_default()
    }
}

/// Reads the extents in a block of the old GNU format, from `at` on; an empty extent ends them.
pub(super) fn old_gnu(block: &[u8], count: usize, sparse: &mut Sparse) -> Option<()> {
    for field in block.chunks_exact(24).take(count) {
        if text(field).is_empty() {
            break;
        }
        let offset = u64::try_from(number(&field[..12])?).ok()?;
        let length = u64::try_from(number(&field[12..])?).ok()?;
        sparse.extents.push((offset, length));
        if sparse.extents.len() > MAX_EXTENTS {
            return None;
        }
    }
    Some(())
}

/// The positions of the parts of an old GNU header.
pub(super) const OLD_GNU_MAP: std::ops::Range<usize> = 386..386 + 4 * 24;
pub(super) const OLD_GNU_EXTENDED: usize = 482;
pub(super) const OLD_GNU_SIZE: std::ops::Range<usize> = 483..495;
/// The positions in a block that continues the map.
pub(super) const MORE_COUNT: usize = 21;
pub(super) const MORE_EXTENDED: usize = MORE_COUNT * 24;
const _: () = assert!(MORE_EXTENDED < BLOCK);

impl Sparse {
    /// Whether the extents are in order, within the file, and as long as the stored data.
    pub(super) fn is_valid(&self, stored: u64) -> bool {
        let mut end = 0u64;
        let mut sum = 0u64;
        for &(offset, length) in &self.extents {
            let Some(next) = offset.checked_add(length) else {
                return false;
            };
            if offset < end || next > self.size {
                return false;
            }
            end = next;
            sum += length;
        }
        sum == stored && i64::try_from(self.size).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_must_fit_the_data() {
        let map = |size, extents: &[(u64, u64)]| Sparse {
            size,
            extents: extents.to_vec(),
        };
        assert!(map(10, &[(2, 3), (5, 1), (10, 0)]).is_valid(4));
        assert!(!map(10, &[(2, 3)]).is_valid(4));
        assert!(!map(10, &[(2, 3), (4, 1)]).is_valid(4));
        assert!(!map(4, &[(2, 3)]).is_valid(3));
        assert!(!map(4, &[(u64::MAX, 3)]).is_valid(3));
    }

    #[test]
    fn a_map_in_the_data() {
        let mut map = MapInData::default();
        assert_eq!(map.block(b"2\n0\n51"), Some(false));
        assert_eq!(map.block(b"2\n1024\n7\n\0\0\0"), Some(true));
        assert_eq!(map.numbers(), [0, 512, 1024, 7]);
        for bad in [&b"x"[..], b"\n", b"9999999\n", b"1\n-1\n"] {
            assert_eq!(MapInData::default().block(bad), None, "{bad:?}");
        }
        let mut records = Records::default();
        records.add(b"map", b"0,512,1024,7").unwrap();
        records.add(b"size", b"4096").unwrap();
        assert_eq!(records.map(None), records.map(Some(map.numbers())));
        records.add(b"numbytes", b"1").unwrap();
        assert_eq!(records.map(None), None);
    }
}
