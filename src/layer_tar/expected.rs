//! The state of a path that the headers of a layer's tar demand.

use super::clean;
use super::error::{Error, Result};
use super::header::{Entry, EntryKind};
use super::unpack::is_nothing;
use super::whiteout::is_note;
use crate::layer::at::is_valid_name;
use crate::layer::markers::{WH_OPAQUE, WH_PREFIX, is_marker_xattr, is_opaque_xattr};
use crate::layer::types::Time;
use crate::oci::Digest;

/// The limit of bytes of a path, including the NUL at its end: PATH_MAX.
const MAX_PATH: usize = 4096;
/// The longest xattr value in bytes that is kept as it is; of longer values the digest is kept.
const MAX_VALUE: usize = 64;
/// The limit of bytes that are kept of any xattr's value.
pub(super) const KEPT_VALUE: usize = 80;

/// The attributes in a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Attributes {
    pub(super) perm: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Time,
}

/// A file of a tar.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) kind: EntryKind,
    pub(super) attributes: Attributes,
    /// The bytes of a regular file, including holes.
    pub(super) size: u64,
    pub(super) device: (u32, u32),
    /// A symlink's target, or the cleaned target path of a hard link.
    pub(super) link: Box<[u8]>,
    /// The names of xattrs, each with [`value_of`] its value. Markers of layers are left out.
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Whether an opaque marker is among the xattrs, which Docker sets and this program does not.
    pub(super) may_be_opaque: bool,
}

/// Returns the kept form of an xattr's value: the value, or its digest if it is long.
pub(super) fn value_of(value: &[u8]) -> Vec<u8> {
    match value.len() {
        0..=MAX_VALUE => value.to_vec(),
        _ => Digest::of(value).to_string().into_bytes(),
    }
}

/// The expected state of a path. Without a node and a whiteout it is only an opaque directory.
#[derive(Debug, Default)]
pub(super) struct Want {
    /// The cleaned path.
    pub(super) path: Vec<u8>,
    pub(super) node: Option<Node>,
    /// Whether the tar also has a whiteout of it.
    pub(super) whiteout: bool,
    /// Whether it is an opaque directory.
    pub(super) opaque: bool,
    /// Whether there may be a whiteout of it: engines make one of a reserved name of AUFS
    /// (`.wh..wh.plnk`: of `.wh.plnk`), while this program does not.
    pub(super) maybe_whiteout: bool,
    /// Whether engines may have removed it again: the tar has a whiteout later whose own name is that of
    /// a directory above.
    pub(super) maybe_gone: bool,
    /// The attributes of the last hard link to it: Docker sets those, this program keeps the file's
    /// own.
    pub(super) relinked: Option<Attributes>,
}

impl Want {
    /// Whether the tar has the path, or a whiteout of it.
    pub(super) fn is_named(&self) -> bool {
        self.node.is_some() || self.whiteout
    }

    /// Whether it is below that path.
    pub(super) fn is_below(&self, path: &[u8]) -> bool {
        let rest = self.path.strip_prefix(path);
        rest.is_some_and(|rest| rest.starts_with(b"/") || (path.is_empty() && !rest.is_empty()))
    }
}

/// The subject of an entry, with the cleaned path.
pub(super) enum Subject {
    File(Vec<u8>),
    /// A whiteout; the path that it hides.
    Whiteout(Vec<u8>),
    /// An opaque marker; its directory.
    Opaque(Vec<u8>),
    /// A reserved name of AUFS; the path that it would hide.
    Note(Vec<u8>),
    /// An entry that is not unpacked.
    Nothing,
}

impl Subject {
    /// # Errors
    /// [`Error::Entry`] for a path that no file can have.
    pub(super) fn of(entry: &Entry) -> Result<Self> {
        let Some(path) = clean(&entry.name).filter(|_| entry.kind != EntryKind::Global) else {
            return Ok(Self::Nothing);
        };
        if path.contains(&0) || path.len() >= MAX_PATH {
            let what = "no file can have such a path: it has a NUL, or 4096 bytes or more";
            return Err(Error::entry(&entry.name, what));
        }
        let slash = path.iter().rposition(|&b| b == b'/');
        let (parent, last) = match slash {
            Some(slash) => (&path[..slash], &path[slash + 1..]),
            None => (&b""[..], &path[..]),
        };
        if is_nothing(entry, &path) {
            return Ok(Self::Nothing);
        }
        if last == WH_OPAQUE {
            return Ok(Self::Opaque(parent.to_vec()));
        }
        let hidden = last.strip_prefix(WH_PREFIX);
        let hidden = hidden.filter(|name| is_valid_name(name));
        let hidden = hidden.map(|hidden| match parent {
            b"" => hidden.to_vec(),
            parent => [parent, hidden].join(&b'/'),
        });
        Ok(match hidden {
            Some(hidden) if is_note(last) => Self::Note(hidden),
            Some(hidden) => Self::Whiteout(hidden),
            None => Self::File(path),
        })
    }
}

/// Returns the attributes of an entry.
pub(super) fn attributes_of(entry: &Entry) -> Attributes {
    Attributes {
        perm: entry.perm,
        uid: entry.uid,
        gid: entry.gid,
        mtime: entry.mtime,
    }
}

/// Returns the cleaned target path of a hard link.
///
/// # Errors
/// As [`Subject::of`].
pub(super) fn target_of(entry: &Entry) -> Result<Vec<u8>> {
    let target = clean(&entry.link).unwrap_or_default();
    match target.len() {
        0..MAX_PATH => Ok(target),
        _ => Err(Error::entry(
            &entry.name,
            "it links to a path of 4096 bytes or more",
        )),
    }
}

impl Node {
    /// Returns the node of an entry. `target` is the target of a hard link.
    ///
    /// # Errors
    /// As [`Subject::of`].
    pub(super) fn of(entry: Entry, target: Option<Vec<u8>>) -> Result<Self> {
        let attributes = attributes_of(&entry);
        let link = match (target, entry.kind) {
            (Some(target), _) => target,
            (None, EntryKind::Symlink) if entry.link.len() >= MAX_PATH => {
                return Err(Error::entry(
                    &entry.name,
                    "its target has 4096 bytes or more",
                ));
            }
            (None, EntryKind::Symlink) => entry.link,
            (None, _) => Vec::new(),
        };
        let may_be_opaque = entry.xattrs.iter().any(|(name, _)| is_opaque_xattr(name));
        let xattrs = entry.xattrs.into_iter();
        let xattrs = xattrs.filter(|(name, _)| !is_marker_xattr(name));
        Ok(Self {
            kind: entry.kind,
            attributes,
            size: entry.sparse.map_or(entry.stored, |map| map.size),
            device: entry.device,
            link: link.into_boxed_slice(),
            xattrs: xattrs
                .map(|(name, value)| (name, value_of(&value)))
                .collect(),
            may_be_opaque,
        })
    }

    /// Whether it is a device that is a whiteout, like `.wh.NAME`.
    pub(super) fn is_whiteout(&self) -> bool {
        self.kind == EntryKind::CharDevice && self.device == (0, 0)
    }
}
