//! Device nodes where only regular files can be made: an empty file, with type and numbers in an
//! xattr, as containers/storage stores them (`user.containers.override_stat`,
//! "UID:GID:MODE:char-MAJOR-MINOR").
//!
//! The tar can be rebuilt, since its headers are in tar-split. A mount shows the device
//! ([`crate::layer::recorded`]).

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use super::expected::Node;
use super::header::{Entry, EntryKind};
use crate::layer::at::{At, Stat};
use crate::layer::types::FileKind;

const XATTR: &std::ffi::CStr = c"user.containers.override_stat";

/// A device in the form of the xattr.
struct Device {
    kind: EntryKind,
    numbers: (u32, u32),
    owner: (u32, u32),
    perm: u32,
}

impl Device {
    fn note(&self) -> String {
        let kind = match self.kind {
            EntryKind::BlockDevice => "block",
            _ => "char",
        };
        let ((major, minor), (uid, gid), perm) = (self.numbers, self.owner, self.perm);
        format!("{uid}:{gid}:0{perm:o}:{kind}-{major}-{minor}")
    }
}

/// Sets the xattr of the file. If the file system has no xattrs, only tar-split describes the
/// device.
pub(super) fn set(at: At<'_>, entry: &Entry) -> Result<(), Errno> {
    let device = Device {
        kind: entry.kind,
        numbers: entry.device,
        owner: (entry.uid, entry.gid),
        perm: entry.perm,
    };
    match at.set_xattr(XATTR, device.note().as_bytes(), XattrFlags::empty()) {
        Err(Errno::OPNOTSUPP | Errno::PERM) => Ok(()),
        other => other,
    }
}

/// Whether the file stands for that device.
pub(super) fn is_for(at: At<'_>, stat: &Stat, node: &Node) -> bool {
    let is_device = matches!(node.kind, EntryKind::CharDevice | EntryKind::BlockDevice);
    if !is_device || stat.kind != FileKind::Regular || stat.size > 0 {
        return false;
    }
    let device = Device {
        kind: node.kind,
        numbers: node.device,
        owner: (node.attributes.uid, node.attributes.gid),
        perm: node.attributes.perm,
    };
    match at.xattr_raw(XATTR) {
        Ok(note) => note == device.note().as_bytes(),
        Err(errno) => errno == Errno::OPNOTSUPP,
    }
}
