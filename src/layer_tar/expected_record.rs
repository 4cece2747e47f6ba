//! Encodes a header's description of a path as bytes that can be sorted and written to a file.
//!
//! ```text
//! u8 1 node: u8 kind, attributes, u64 size, u32 u32 device, u8 may be opaque, text link, then text name, text value
//!            of each xattr
//! u8 2 whiteout    u8 3 opaque    u8 4 attributes of a hard link to it    u8 5 maybe a whiteout
//! u8 6 what is below may be gone
//! attributes: u32 mode, u32 uid, u32 gid, i64 seconds, u32 nanoseconds
//! text: u32 length, bytes
//! ```

use super::error::Result;
use super::expected::{Attributes, Node, Want};
use super::header::EntryKind;
use crate::layer::types::Time;

const NODE: u8 = 1;
const RELINKED: u8 = 4;
/// The record of a whiteout.
pub(super) const WHITEOUT: &[u8] = &[2];
/// The record of an opaque directory.
pub(super) const OPAQUE: &[u8] = &[3];
/// The record of what may be a whiteout.
pub(super) const MAYBE_WHITEOUT: &[u8] = &[5];

const KINDS: [EntryKind; 8] = [
    EntryKind::Regular,
    EntryKind::HardLink,
    EntryKind::Symlink,
    EntryKind::CharDevice,
    EntryKind::BlockDevice,
    EntryKind::Directory,
    EntryKind::Fifo,
    EntryKind::Global,
];

fn put(out: &mut Vec<u8>, attributes: &Attributes) {
    for number in [attributes.perm, attributes.uid, attributes.gid] {
        out.extend(number.to_ne_bytes());
    }
    out.extend(attributes.mtime.sec.to_ne_bytes());
    out.extend(attributes.mtime.nsec.to_ne_bytes());
}

fn put_text(out: &mut Vec<u8>, text: &[u8]) {
    // No text of a header is longer than the limit of a record.
    out.extend(u32::try_from(text.len()).unwrap_or(u32::MAX).to_ne_bytes());
    out.extend(text);
}

/// The record of a whiteout under its own name: engines remove what has that name.
pub(super) const MAYBE_GONE_BELOW: &[u8] = &[6];

/// Returns the record of a file in the tar.
pub(super) fn of_node(node: &Node) -> Vec<u8> {
    let kind = KINDS.iter().position(|kind| *kind == node.kind);
    let mut out = vec![NODE, kind.and_then(|at| u8::try_from(at).ok()).unwrap_or(0)];
    put(&mut out, &node.attributes);
    out.extend(node.size.to_ne_bytes());
    out.extend(node.device.0.to_ne_bytes());
    out.extend(node.device.1.to_ne_bytes());
    out.push(u8::from(node.may_be_opaque));
    put_text(&mut out, &node.link);
    for (name, value) in &node.xattrs {
        put_text(&mut out, name);
        put_text(&mut out, value);
    }
    out
}

/// Returns the record of a hard link, for the path of its target.
pub(super) fn of_relinked(attributes: &Attributes) -> Vec<u8> {
    let mut out = vec![RELINKED];
    put(&mut out, attributes);
    out
}

/// Returns a record with its number in the order of the tar, from 1.
pub(super) fn numbered(number: u64, record: &[u8]) -> Vec<u8> {
    [&number.to_ne_bytes()[..], record].concat()
}

/// Returns the arguments of [`numbered`].
///
/// # Errors
/// As [`take`].
pub(super) fn number(value: &[u8]) -> Result<(u64, &[u8])> {
    match value.split_first_chunk() {
        Some((number, record)) => Ok((u64::from_ne_bytes(*number), record)),
        None => Err(super::expected_entries::kept(
            std::io::ErrorKind::InvalidData.into(),
        )),
    }
}

/// Whether the record is that of a file in the tar.
pub(super) fn is_node(record: &[u8]) -> bool {
    record.first() == Some(&NODE)
}

/// Whether the record is that of a hard link to the path.
pub(super) fn is_relinked(record: &[u8]) -> bool {
    record.first() == Some(&RELINKED)
}

/// Adds a record to the expected state of its path.
///
/// # Errors
/// [`Error::Write`] if it is not a record: another process has changed the file.
pub(super) fn take(want: &mut Want, record: &[u8]) -> Result<()> {
    let mut input = Input(record);
    let taken = (|| {
        match input.array()? {
            [NODE] => want.node = Some(input.node()?),
            [RELINKED] => want.relinked = Some(input.attributes()?),
            [tag] if WHITEOUT == [tag] => want.whiteout = true,
            [tag] if OPAQUE == [tag] => want.opaque = true,
            [tag] if MAYBE_WHITEOUT == [tag] => want.maybe_whiteout = true,
            [tag] if MAYBE_GONE_BELOW == [tag] => {}
            _ => return None,
        }
        Some(())
    })();
    taken.ok_or_else(|| super::expected_entries::kept(std::io::ErrorKind::InvalidData.into()))
}

struct Input<'i>(&'i [u8]);

impl<'i> Input<'i> {
    fn take(&mut self, count: usize) -> Option<&'i [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn number(&mut self) -> Option<u32> {
        self.array().map(u32::from_ne_bytes)
    }

    fn text(&mut self) -> Option<&'i [u8]> {
        let length = self.number()?;
        self.take(usize::try_from(length).ok()?)
    }

    fn attributes(&mut self) -> Option<Attributes> {
        Some(Attributes {
            perm: self.number()?,
            uid: self.number()?,
            gid: self.number()?,
            mtime: Time {
                sec: i64::from_ne_bytes(self.array()?),
                nsec: self.number()?,
            },
        })
    }

    fn node(&mut self) -> Option<Node> {
        let [kind] = self.array()?;
        let mut node = Node {
            kind: *KINDS.get(usize::from(kind))?,
            attributes: self.attributes()?,
            size: u64::from_ne_bytes(self.array()?),
            device: (self.number()?, self.number()?),
            may_be_opaque: self.array()? != [0],
            link: self.text()?.into(),
            xattrs: Vec::new(),
        };
        while !self.0.is_empty() {
            let (name, value) = (self.text()?, self.text()?);
            node.xattrs.push((name.to_vec(), value.to_vec()));
        }
        Some(node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_what_was_put_into_it() {
        let attributes = Attributes {
            perm: 0o4755,
            uid: 1,
            gid: u32::MAX,
            mtime: Time { sec: -5, nsec: 7 },
        };
        let node = Node {
            kind: EntryKind::Symlink,
            attributes,
            size: u64::MAX,
            device: (3, 4),
            may_be_opaque: true,
            link: b"to".as_slice().into(),
            xattrs: vec![
                (b"user.a".to_vec(), b"\0".to_vec()),
                (b"user.b".to_vec(), Vec::new()),
            ],
        };
        let mut want = Want::default();
        for record in [
            &of_node(&node)[..],
            WHITEOUT,
            OPAQUE,
            MAYBE_WHITEOUT,
            &of_relinked(&attributes),
        ] {
            take(&mut want, record).unwrap();
        }
        assert_eq!(format!("{:?}", want.node), format!("{:?}", Some(&node)));
        assert!(want.whiteout && want.opaque && want.maybe_whiteout);
        assert_eq!(want.relinked, Some(attributes));
        take(&mut want, &of_node(&node)[..9]).unwrap_err();
        take(&mut want, &[]).unwrap_err();
    }
}
