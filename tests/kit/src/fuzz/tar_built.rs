//! Tars that are built from random bytes: entries of every kind under names that collide, lead
//! through symlinks and out of the layer.

use arbitrary::{Result, Unstructured};
use tar::{EntryType, Header};

const BLOCK: usize = 512;

/// The components of names. There are few, so that entries collide; `b`, `c` are often symlinks.
const PARTS: [&[u8]; 20] = [
    b"a",
    b"a",
    b"b",
    b"b",
    b"c",
    b"d",
    b"..",
    b"..",
    b".",
    b"",
    b"canary",
    b".wh.a",
    b".wh.b",
    b".wh.",
    b".wh...",
    b".wh..wh..opq",
    b".wh..wh.plnk",
    b".wh..wh..wh.a",
    b"\xff",
    b"n\nn",
];

const KINDS: [u8; 12] = [
    b'0', b'0', b'1', b'2', b'2', b'5', b'5', b'3', b'6', b'S', b'g', b'7',
];

const XATTRS: [&str; 8] = [
    "user.a",
    "trusted.a",
    "trusted.overlay.opaque",
    "user.overlay.redirect",
    "system.posix_acl_default",
    "system.posix_acl_access",
    "security.capability",
    "",
];

/// Builds the tar that `bytes` stand for.
pub fn tar(bytes: &[u8]) -> Vec<u8> {
    let mut from = Unstructured::new(bytes);
    let mut tar = Tar::default();
    while !from.is_empty() && tar.0.len() < 64 << 10 && tar.random(&mut from).is_ok() {}
    tar.end()
}

#[derive(Default)]
struct Tar(Vec<u8>);

/// The fields of a header besides its name and kind.
#[derive(Default)]
struct Fields {
    mode: u32,
    uid: u32,
    mtime: u64,
    device: (u32, u32),
}

impl Tar {
    fn random(&mut self, from: &mut Unstructured<'_>) -> Result<()> {
        let kind = *from.choose(&KINDS)?;
        let (name, link) = (path(from)?, path(from)?);
        let fields = Fields {
            mode: u32::from(from.arbitrary::<u16>()?),
            uid: *from.choose(&[0, 0, 1000, 70_000, 2_097_151])?,
            mtime: *from.choose(&[0, 1, 1_500_000_000, 0o77_777_777_777])?,
            device: *from.choose(&[(0, 0), (0, 0), (1, 3), (7, 0o777_7777)])?,
        };
        let length = from.int_in_range(0..=700)? * usize::from(*from.choose(&[0u8, 1, 1])?);
        let mut data = vec![b'x'; length];
        let mut records = records(from)?;
        match from.int_in_range(0..=9)? {
            0 => records.extend(record(b"path", &name)),
            1 => self.long(b'L', &name),
            2 => records.extend(record(b"linkpath", &link)),
            3 => self.long(b'K', &link),
            4 => sparse(from, &mut records, &mut data)?,
            _ => {}
        }
        if !records.is_empty() {
            self.entry(b'x', b"pax", b"", &Fields::default(), &records);
        }
        self.entry(kind, &name, &link, &fields, &data);
        Ok(())
    }

    fn long(&mut self, kind: u8, text: &[u8]) {
        self.entry(kind, b"././@LongLink", b"", &Fields::default(), text);
    }

    fn entry(&mut self, kind: u8, name: &[u8], link: &[u8], fields: &Fields, data: &[u8]) {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::new(kind));
        header.set_mode(fields.mode);
        header.set_uid(u64::from(fields.uid));
        header.set_gid(u64::from(fields.uid));
        header.set_mtime(fields.mtime);
        header.set_size(data.len() as u64);
        let _ = header.set_device_major(fields.device.0);
        let _ = header.set_device_minor(fields.device.1);
        let old = header.as_old_mut();
        for (field, text) in [(&mut old.name, name), (&mut old.linkname, link)] {
            let length = text.len().min(field.len());
            field[..length].copy_from_slice(&text[..length]);
        }
        if kind == b'S' {
            // One extent contains all stored data, after a hole.
            let extent = format!("{:011o}\0{:011o}\0", 512, data.len());
            header.as_mut_bytes()[386..410].copy_from_slice(extent.as_bytes());
            let size = format!("{:011o}\0", 512 + data.len());
            header.as_mut_bytes()[483..495].copy_from_slice(size.as_bytes());
        }
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        if !matches!(kind, b'1'..=b'6') {
            self.0.extend_from_slice(data);
            self.0.resize(self.0.len().next_multiple_of(BLOCK), 0);
        }
    }

    fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 2 * BLOCK, 0);
        self.0
    }
}

fn path(from: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let mut path = Vec::new();
    for _ in 0..from.int_in_range(1..=4)? {
        let part: &[u8] = match from.int_in_range(0..=40)? {
            0 => &[b'l'; 255],
            1 => &[b'l'; 256],
            _ => from.choose(&PARTS)?,
        };
        path.extend_from_slice(part);
        path.push(b'/');
    }
    if from.ratio(7u8, 8u8)? {
        path.pop();
    }
    if from.ratio(1u8, 8u8)? {
        path.insert(0, b'/');
    }
    Ok(path)
}

/// Returns PAX records about time, owner and xattrs.
fn records(from: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let mut records = Vec::new();
    for _ in 0..from.int_in_range(0..=12u8)?.saturating_sub(9) {
        let (key, value) = match from.int_in_range(0..=5)? {
            0 => (
                "mtime",
                *from.choose(&["-1.5", "1.999999999", "", "1e9", "99999999999999"])?,
            ),
            1 => (
                "uid",
                *from.choose(&["0", "4294967294", "4294967295", "-1", ""])?,
            ),
            2 => (
                "size",
                *from.choose(&["0", "1", "700", "9223372036854775807", ""])?,
            ),
            3 => ("atime", *from.choose(&["-9223372036854775808", "0", "1"])?),
            4 => (
                "path",
                *from.choose(&["", "a", "../canary", "/canary", "b/../../canary"])?,
            ),
            _ => {
                let key = format!("SCHILY.xattr.{}", from.choose(&XATTRS)?);
                let length = from.int_in_range(0..=40)?;
                records.extend(record(key.as_bytes(), from.bytes(length)?));
                continue;
            }
        };
        records.extend(record(key.as_bytes(), value.as_bytes()));
    }
    Ok(records)
}

/// Makes a file sparse in one of the PAX forms.
fn sparse(from: &mut Unstructured<'_>, records: &mut Vec<u8>, data: &mut Vec<u8>) -> Result<()> {
    let mut numbers = Vec::new();
    let (mut end, mut left) = (0u64, data.len() as u64);
    for _ in 0..from.int_in_range(1..=4)? {
        let length = from.int_in_range(0..=left)?;
        numbers.extend([end + u64::from(from.arbitrary::<u8>()?), length]);
        end = numbers[numbers.len() - 2] + length;
        left -= length;
    }
    data.truncate(data.len() - left as usize);
    let size = end + *from.choose(&[0u64, 0, 0, 10, 1 << 20, u64::MAX >> 2])?;
    let text: Vec<String> = numbers.iter().map(u64::to_string).collect();
    let mut add = |key: &str, value: &str| {
        records.extend(record(
            format!("GNU.sparse.{key}").as_bytes(),
            value.as_bytes(),
        ));
    };
    match from.int_in_range(0..=2)? {
        0 => {
            add("size", &size.to_string());
            for pair in text.chunks(2) {
                add("offset", &pair[0]);
                add("numbytes", &pair[1]);
            }
        }
        1 => {
            add("size", &size.to_string());
            add("map", &text.join(","));
        }
        _ => {
            add("major", "1");
            add("minor", "0");
            add("realsize", &size.to_string());
            let map = format!("{}\n{}\n", numbers.len() / 2, text.join("\n"));
            let mut map = map.into_bytes();
            map.resize(map.len().next_multiple_of(BLOCK), 0);
            data.splice(0..0, map);
        }
    }
    Ok(())
}

fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    [format!("{length} ").as_bytes(), key, b"=", value, b"\n"].concat()
}

/// A sample entry: kind, name, link, content.
type Sample<'a> = (u8, &'a [u8], &'a [u8], &'a [u8]);

/// Returns tars like real ones.
pub fn samples() -> Vec<Vec<u8>> {
    let fields = |mode| Fields {
        mode,
        uid: 0,
        mtime: 1_500_000_000,
        device: (0, 0),
    };
    let entries: [&[Sample]; 5] = [
        &[
            (b'5', b"a/", b"", b""),
            (b'0', b"a/f", b"", b"content"),
            (b'1', b"a/g", b"a/f", b""),
            (b'2', b"b", b"/a", b""),
            (b'0', b"b/h", b"", b""),
            (b'6', b"fifo", b"", b""),
        ],
        &[
            (b'0', b".wh.a", b"", b""),
            (b'0', b"d/.wh..wh..opq", b"", b""),
            (b'5', b"a", b"", b""),
        ],
        &[
            (b'g', b"pax", b"", b"9 a=bcde\n"),
            (b'L', b"././@LongLink", b"", &[b'n'; 120]),
            (b'0', b"n", b"", b"1"),
        ],
        &[
            (b'x', b"pax", b"", b"13 path=a/\xff\n19 mtime=1500000.25\n"),
            (b'0', b"n", b"", b"2"),
            (b'K', b"l", b"", b"../canary"),
            (b'2', b"s", b"", b""),
        ],
        &[(b'S', b"sparse", b"", b"data"), (b'3', b"dev", b"", b"")],
    ];
    let mut tars = Vec::new();
    for entries in entries {
        let mut tar = Tar::default();
        for (kind, name, link, data) in entries {
            let mode = if *kind == b'5' { 0o755 } else { 0o644 };
            tar.entry(*kind, name, link, &fields(mode), data);
        }
        tars.push(tar.end());
    }
    let mut tar = Tar::default();
    let records = [
        record(b"GNU.sparse.major", b"1"),
        record(b"GNU.sparse.realsize", b"100"),
        record(b"GNU.sparse.name", b"sparse"),
        record(b"SCHILY.xattr.user.a", b"value"),
    ];
    tar.entry(b'x', b"pax", b"", &fields(0), &records.concat());
    let mut data = b"1\n10\n4\n".to_vec();
    data.resize(BLOCK, 0);
    data.extend(b"data");
    tar.entry(b'0', b"n", b"", &fields(0o600), &data);
    tars.push(tar.end());
    tars
}
