//! The parts of a tar header: numbers, PAX records, times.
//!
//! Sources: POSIX pax (ustar, extended headers), GNU tar's manual ("Basic Tar Format", base-256
//! numbers). The parser is as lenient as Go's archive/tar, with which Docker reads layers.

use crate::layer::types::Time;

/// Bytes of a tar block.
pub(super) const BLOCK: usize = 512;

/// The type of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EntryKind {
    Regular,
    HardLink,
    Symlink,
    CharDevice,
    BlockDevice,
    Directory,
    Fifo,
    /// A PAX global header: recorded, without effect, as in Docker.
    Global,
}

/// One entry of a tar.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) name: Vec<u8>,
    pub(super) kind: EntryKind,
    pub(super) link: Vec<u8>,
    /// The bytes of content that follow in the tar.
    pub(super) stored: u64,
    pub(super) perm: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Time,
    pub(super) atime: Time,
    pub(super) device: (u32, u32),
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) sparse: Option<Sparse>,
    #[cfg_attr(
        not(feature = "registry"),
        expect(dead_code, reason = "only zstd:chunked reads it")
    )]
    pub(super) declared: Declared,
}

/// The fields of a header as they are, for readers that compare them.
#[derive(Clone, Copy, Debug, Default)]
#[cfg_attr(
    not(feature = "registry"),
    expect(dead_code, reason = "only zstd:chunked reads them all")
)]
pub(super) struct Declared {
    /// The mode with all its bits.
    pub(super) mode: i64,
    /// The size, also of entries that have no content.
    pub(super) size: u64,
    pub(super) atime: Option<Time>,
    pub(super) ctime: Option<Time>,
    /// The device number, also of entries that are no devices.
    pub(super) device: (i64, i64),
}

impl Declared {
    /// Reads the fields of a header block that no extension holds. Ancient tars have no times of
    /// access and no device numbers, and only GNU tar has times without extensions.
    pub(super) fn of_block(block: &[u8; BLOCK]) -> Self {
        let field = |range: std::ops::Range<usize>| number(&block[range]).unwrap_or(0);
        let time = |range: std::ops::Range<usize>| {
            let is_set = block[257..265] == *b"ustar  \0" && block[range.start] != 0;
            is_set.then(|| Time {
                sec: field(range),
                nsec: 0,
            })
        };
        let is_ancient = block[257..262] != *b"ustar";
        Self {
            mode: field(100..108),
            size: 0,
            atime: time(345..357),
            ctime: time(357..369),
            device: if is_ancient {
                (0, 0)
            } else {
                (field(329..337), field(337..345))
            },
        }
    }
}

/// The places of a sparse file's data.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Sparse {
    /// The length of the file.
    pub(super) size: u64,
    /// The offset and length of each extent, in order.
    pub(super) extents: Vec<(u64, u64)>,
}

/// Returns the header block with the fields of the crate `tar`, which accepts a block of any bytes.
pub(super) fn view(block: &[u8; BLOCK]) -> &tar::Header {
    tar::Header::from_byte_slice(block)
}

/// Whether the checksum is right: the sum of all bytes, with the field itself as spaces. Ancient
/// tars sum signed bytes.
pub(super) fn checksum_fits(block: &[u8; BLOCK]) -> bool {
    let spaced = |i: usize, b: u8| if (148..156).contains(&i) { b' ' } else { b };
    let bytes = || block.iter().enumerate().map(|(i, &b)| spaced(i, b));
    let unsigned: i64 = bytes().map(i64::from).sum();
    let signed: i64 = bytes().map(|b| i64::from(b.cast_signed())).sum();
    let noted = number(&block[148..156]);
    noted == Some(unsigned) || noted == Some(signed)
}

/// Parses a numeric field: octal digits between spaces and NULs (0 if there are none), or base-256
/// with the top bit set. `None` for anything else and for numbers that do not fit into an i64.
pub(super) fn number(field: &[u8]) -> Option<i64> {
    let first = *field.first()?;
    if first & 0x80 != 0 {
        // Two's complement, without the marker bit.
        let sign: i128 = if first & 0x40 != 0 { -1 } else { 0 };
        let start = (sign << 7) | i128::from(first & 0x7f);
        let value = field[1..].iter().try_fold(start, |value, &b| {
            let value = (value << 8) | i128::from(b);
            i64::try_from(value).is_ok().then_some(value)
        })?;
        return i64::try_from(value).ok();
    }
    let digits = field.trim_ascii_start();
    let end = digits.iter().position(|b| matches!(b, 0 | b' '));
    let digits = &digits[..end.unwrap_or(digits.len())];
    if digits.is_empty() {
        return Some(0);
    }
    i64::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()
}

/// Returns the bytes up to the first NUL.
pub(super) fn text(bytes: &[u8]) -> &[u8] {
    bytes.split(|&b| b == 0).next().unwrap_or_default()
}

/// Returns the records of a PAX extended header, in order; an empty value unsets a key. `None` if
/// it is malformed.
pub(super) fn pax_records(mut bytes: &[u8]) -> Option<Vec<(&[u8], &[u8])>> {
    let mut records = Vec::new();
    while !bytes.is_empty() {
        let space = bytes.iter().position(|&b| b == b' ')?;
        let length: usize = std::str::from_utf8(&bytes[..space]).ok()?.parse().ok()?;
        let record = bytes.get(space + 1..length)?;
        let (b'\n', record) = record.split_last()? else {
            return None;
        };
        let equals = record.iter().position(|&b| b == b'=')?;
        let (key, value) = (&record[..equals], &record[equals + 1..]);
        if key.is_empty() {
            return None;
        }
        records.push((key, value));
        bytes = &bytes[length..];
    }
    Some(records)
}

/// Parses a decimal number of a PAX record.
pub(super) fn decimal(value: &[u8]) -> Option<i64> {
    std::str::from_utf8(value).ok()?.parse().ok()
}

/// Parses a time of a PAX record: seconds with a fraction, which is truncated to nanoseconds.
pub(super) fn pax_time(value: &[u8]) -> Option<Time> {
    let text = std::str::from_utf8(value).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let sec: i64 = match whole {
        "" | "-" => 0,
        whole => whole.parse().ok()?,
    };
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let nsec = fraction
        .bytes()
        .chain(std::iter::repeat(b'0'))
        .take(9)
        .fold(0u32, |n, b| n * 10 + u32::from(b - b'0'));
    match (text.starts_with('-'), nsec) {
        (true, 1..) => Some(Time {
            sec: sec.checked_sub(1)?,
            nsec: 1_000_000_000 - nsec,
        }),
        _ => Some(Time { sec, nsec }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_every_form() {
        let cases: [(&[u8], Option<i64>); 9] = [
            (b"0000644\0", Some(0o644)),
            (b"  644 \0\0", Some(0o644)),
            (b"\0\0\0\0", Some(0)),
            (b"", None),
            (b"9\0", None),
            (b"\x80\0\0\0\0\0\0\x01\0", Some(256)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff", Some(-1)),
            (b"\x80\xff\xff\xff\xff\xff\xff\xff\xff", None),
            (
                b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe",
                Some(-2),
            ),
        ];
        for (field, expected) in cases {
            assert_eq!(number(field), expected, "{field:?}");
        }
    }

    #[test]
    fn pax_records_and_times() {
        let records = pax_records(b"9 path=a\n11 b=1=2\n3\n7 c=\n");
        assert_eq!(records, None);
        let records = pax_records(b"9 path=a\n8 b=1=2\n5 c=\n").unwrap();
        let expected: [(&[u8], &[u8]); 3] = [(b"path", b"a"), (b"b", b"1=2"), (b"c", b"")];
        assert_eq!(records, expected);
        for bad in [&b"0 \n"[..], b"99 a=b\n", b"x", b"5 abc\n", b"4 =\n"] {
            assert_eq!(pax_records(bad), None, "{bad:?}");
        }
        let time = |sec, nsec| Some(Time { sec, nsec });
        assert_eq!(pax_time(b"12.5"), time(12, 500_000_000));
        assert_eq!(pax_time(b"12.0123456789"), time(12, 12_345_678));
        assert_eq!(pax_time(b"-1.25"), time(-2, 750_000_000));
        assert_eq!(pax_time(b"-0.5"), time(-1, 500_000_000));
        assert_eq!(pax_time(b"7"), time(7, 0));
        assert_eq!(pax_time(b"1.x"), None);
    }
}
