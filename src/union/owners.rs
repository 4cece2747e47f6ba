//! Mapped owners: which user and group IDs a union shows for those that its layers have, and which
//! it writes for those that callers give.
//!
//! All other code of the union works with the IDs of the layers ("disk IDs"). IDs of callers and of
//! answers ("shown IDs") pass through here: owners in attributes, callers of requests, IDs in ACLs
//! and in `security.capability`. The kernel checks permissions with the shown owners
//! (default_permissions). So an ID outside of the mapping is shown as one that no process can have,
//! and the kernel then refuses what it refuses on an idmapped mount: the file cannot be written,
//! changed or removed.
//!
//! A squashed ID is only shown: changes of owners still go to the layer.

use std::borrow::Cow;
use std::fmt;

use rustix::io::Errno;

use super::types::{Caller, SetAttr};
use super::upper::Owner;
use crate::layer::at::Stat;
use crate::layer::types::FileKind;

/// The ID that no process has. The kernel shows it as its overflow ID.
const NO_ID: u32 = u32::MAX;
/// The ID that fuse-overlayfs shows and writes for those outside of a mapping.
const OVERFLOW_ID: u32 = 65534;

/// A range of a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdRange {
    /// The first ID in the layers.
    pub disk: u32,
    /// The first ID in the union.
    pub shown: u32,
    /// The number of IDs.
    pub len: u32,
}

/// The reason why ranges are no mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IdMapError {
    /// A range is empty.
    Empty(IdRange),
    /// A range goes beyond the last ID, 4294967294.
    Overflow(IdRange),
    /// Two ranges have IDs in common.
    Overlap(IdRange, IdRange),
}

impl fmt::Display for IdRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.disk, self.shown, self.len)
    }
}

impl fmt::Display for IdMapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty(range) => write!(f, "the range {range} is empty"),
            Self::Overflow(range) => write!(f, "the range {range} goes beyond the last ID"),
            Self::Overlap(one, other) => {
                write!(f, "the ranges {one} and {other} have IDs in common")
            }
        }
    }
}

impl std::error::Error for IdMapError {}

/// A mapping of user IDs or of group IDs. The default maps nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdMap {
    /// No ranges: each ID is itself.
    ranges: Vec<IdRange>,
    /// The ID that is shown for all owners.
    squash: Option<u32>,
}

impl IdMap {
    /// Makes a mapping. Without ranges each ID is itself.
    ///
    /// # Errors
    /// Ranges that are empty, have IDs in common, or go beyond the last ID.
    pub fn new(ranges: Vec<IdRange>) -> Result<Self, IdMapError> {
        for (at, range) in ranges.iter().enumerate() {
            if range.len == 0 {
                return Err(IdMapError::Empty(*range));
            }
            let fits = |start: u32| start.checked_add(range.len).is_some();
            if !fits(range.disk) || !fits(range.shown) {
                return Err(IdMapError::Overflow(*range));
            }
            let meets = |a: u32, b: u32, other: &IdRange| a < b + other.len && b < a + range.len;
            let clash = ranges[..at].iter().find(|other| {
                meets(range.disk, other.disk, other) || meets(range.shown, other.shown, other)
            });
            if let Some(other) = clash {
                return Err(IdMapError::Overlap(*other, *range));
            }
        }
        Ok(Self {
            ranges,
            squash: None,
        })
    }

    /// Shows this ID for all owners.
    pub fn squash_to(&mut self, id: u32) {
        self.squash = Some(id);
    }

    /// Makes the mapping that shows each of two IDs as the other one.
    pub fn exchange(one: u32, other: u32) -> Self {
        let (low, high) = (one.min(other), one.max(other));
        if low == high || high == NO_ID {
            return Self::default();
        }
        let range = |disk, shown, len| IdRange { disk, shown, len };
        let all = [
            range(0, 0, low),
            range(low, high, 1),
            range(low + 1, low + 1, high - low - 1),
            range(high, low, 1),
            range(high + 1, high + 1, NO_ID - (high + 1)),
        ];
        Self {
            ranges: all.into_iter().filter(|range| range.len > 0).collect(),
            squash: None,
        }
    }

    /// Whether each ID is itself.
    pub fn is_identity(&self) -> bool {
        self.ranges.is_empty() && self.squash.is_none()
    }

    /// Returns the shown ID of a disk ID, without squashing; `None` outside of the ranges.
    pub fn shown_for(&self, disk: u32) -> Option<u32> {
        if self.ranges.is_empty() {
            return Some(disk);
        }
        self.ranges.iter().find_map(|range| {
            let offset = disk.checked_sub(range.disk)?;
            (offset < range.len).then(|| range.shown + offset)
        })
    }

    /// Returns the disk ID of a shown ID; `None` outside of the ranges.
    fn back(&self, shown: u32) -> Option<u32> {
        if shown == NO_ID {
            return None;
        }
        if self.ranges.is_empty() {
            return Some(shown);
        }
        self.ranges.iter().find_map(|range| {
            let offset = shown.checked_sub(range.shown)?;
            (offset < range.len).then(|| range.disk + offset)
        })
    }
}

/// What happens to IDs outside of a mapping.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Outside {
    /// As on an idmapped mount of the kernel: shown as no owner, never written (EOVERFLOW).
    #[default]
    Refused,
    /// As fuse-overlayfs: 65534 is shown and written.
    Overflow,
    /// Shown as root's, never written (EOVERFLOW).
    Root,
}

/// The IDs that the lowers have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LowerIds {
    /// Disk IDs, as the upper.
    #[default]
    Disk,
    /// Shown IDs: the lowers are idmapped mounts with the same mapping.
    Shown,
}

/// The owners that a union shows and writes. The default shows those of the layers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owners {
    /// The mapping of user IDs.
    pub users: IdMap,
    /// The mapping of group IDs.
    pub groups: IdMap,
    /// IDs outside of the mappings.
    pub outside: Outside,
    /// The IDs of the lowers.
    pub lowers: LowerIds,
    /// The user and the group whose symlinks are root's. A symlink cannot have a record: in layers
    /// with records of others, all symlinks belong to the user who made them.
    pub unrecorded: Option<(u32, u32)>,
}

/// Where a file or xattr was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Lower,
    Upper,
}

/// A user and a group as the union shows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shown {
    pub uid: u32,
    pub gid: u32,
}

impl Owners {
    /// Whether the owners of the layers are shown as they are.
    pub fn is_identity(&self) -> bool {
        self.users.is_identity() && self.groups.is_identity()
    }

    /// Whether all files have the same user or the same group in the union. A change of the owner
    /// that the layer refuses is then not an error, because it could not be seen.
    pub(crate) fn is_squashed(&self) -> bool {
        self.users.squash.is_some() || self.groups.squash.is_some()
    }

    /// Returns the result of a chown(2) in a layer. Where owners are squashed, a layer that refuses
    /// is no failure: nobody can see the difference. A server without rights can then serve callers
    /// that give files to others, such as `tar` and `dpkg`.
    pub(crate) fn tolerate(&self, done: Result<(), Errno>) -> Result<(), Errno> {
        match done {
            Err(Errno::PERM | Errno::INVAL) if self.is_squashed() => Ok(()),
            other => other,
        }
    }

    /// Returns the owner that is shown for a file.
    pub(crate) fn shown(&self, side: Side, stat: &Stat) -> Shown {
        let (uid, gid) = self.on_disk(stat);
        if self.is_identity() {
            return Shown { uid, gid };
        }
        let one = |map: &IdMap, id| map.squash.unwrap_or_else(|| self.unsquashed(map, side, id));
        Shown {
            uid: one(&self.users, uid),
            gid: one(&self.groups, gid),
        }
    }

    /// Returns the disk IDs of a file.
    fn on_disk(&self, stat: &Stat) -> (u32, u32) {
        match self.unrecorded {
            Some((uid, gid)) if stat.kind == FileKind::Symlink => {
                let of_root = |id, ours| if id == ours { 0 } else { id };
                (of_root(stat.uid, uid), of_root(stat.gid, gid))
            }
            _ => (stat.uid, stat.gid),
        }
    }

    fn unsquashed(&self, map: &IdMap, side: Side, id: u32) -> u32 {
        let known = if self.has_shown_ids(side) {
            map.back(id).map(|_| id)
        } else {
            map.shown_for(id)
        };
        known.unwrap_or(match self.outside {
            Outside::Refused => NO_ID,
            Outside::Overflow => OVERFLOW_ID,
            Outside::Root => 0,
        })
    }

    fn has_shown_ids(&self, side: Side) -> bool {
        side == Side::Lower && self.lowers == LowerIds::Shown
    }

    /// Returns a caller with disk IDs, for a file that it creates. The user of this server, `own`,
    /// could create the file in the layer as well. Outside of the mappings its files are its own
    /// there: podman makes files of a container in this way, and then gives them to the container.
    ///
    /// # Errors
    /// EOVERFLOW for IDs outside of the mappings.
    pub(crate) fn creator(&self, caller: &Caller, own: Owner) -> Result<Caller, Errno> {
        let is_own = caller.uid == own.uid && self.outside == Outside::Refused;
        let one = |map: &IdMap, id, own_id| match self.disk(map, id) {
            Err(Errno::OVERFLOW) if is_own && id != NO_ID => Ok(own_id),
            other => other,
        };
        Ok(Caller {
            uid: one(&self.users, caller.uid, own.uid)?,
            gid: one(&self.groups, caller.gid, own.gid)?,
        })
    }

    /// Returns a change of attributes with disk IDs.
    ///
    /// # Errors
    /// EOVERFLOW for IDs outside of the mappings.
    pub(crate) fn change(&self, set: &SetAttr) -> Result<SetAttr, Errno> {
        let one = |map, id: Option<u32>| id.map(|id| self.disk(map, id)).transpose();
        Ok(SetAttr {
            uid: one(&self.users, set.uid)?,
            gid: one(&self.groups, set.gid)?,
            ..*set
        })
    }

    /// Returns the attributes of a lower file with the owner that its copy in the upper gets.
    ///
    /// # Errors
    /// EOVERFLOW for IDs outside of the mappings.
    pub(crate) fn copied(&self, stat: &Stat) -> Result<Stat, Errno> {
        let mut copied = *stat;
        if self.has_shown_ids(Side::Lower) {
            copied.uid = self.disk(&self.users, stat.uid)?;
            copied.gid = self.disk(&self.groups, stat.gid)?;
        }
        Ok(copied)
    }

    fn disk(&self, map: &IdMap, shown: u32) -> Result<u32, Errno> {
        match (map.back(shown), self.outside) {
            (Some(disk), _) => Ok(disk),
            (None, Outside::Overflow) if shown != NO_ID => Ok(OVERFLOW_ID),
            (None, _) => Err(Errno::OVERFLOW),
        }
    }

    /// Whether a caller belongs to the group of a file in the upper.
    pub(crate) fn is_in_group(&self, caller: &Caller, stat: &Stat) -> bool {
        self.shown(Side::Upper, stat).gid == caller.gid
    }

    /// Returns the value of an xattr as callers see it.
    ///
    /// # Errors
    /// ENODATA for a capability of a root user outside of the mapping: it has no effect.
    pub(crate) fn shown_xattr(
        &self,
        side: Side,
        name: &[u8],
        value: Vec<u8>,
    ) -> Result<Vec<u8>, Errno> {
        if self.is_identity() {
            return Ok(value);
        }
        let is_shown = self.has_shown_ids(side);
        match Owned::of(name) {
            None => Ok(value),
            // An idmapped mount reports IDs outside of its mapping as no ID.
            Some(Owned::Acl) if is_shown => Ok(self.known_acl(&value)),
            Some(Owned::Capability) if is_shown => Ok(value),
            Some(Owned::Capability) => {
                with_root(&value, |root| self.users.shown_for(root)).ok_or(Errno::NODATA)
            }
            // An entry of an ID outside matches no caller, so leaving it out changes nothing.
            Some(Owned::Acl) => Ok(with_acl_ids(&value, |kind, id| {
                match (self.map(kind).shown_for(id), self.outside) {
                    (None, Outside::Overflow) => Some(OVERFLOW_ID),
                    (known, _) => known,
                }
            })),
        }
    }

    /// Returns the value to store for an xattr that a caller sets.
    ///
    /// # Errors
    /// EINVAL for IDs outside of the mappings, as an idmapped mount gives.
    pub(crate) fn disk_xattr<'v>(
        &self,
        name: &[u8],
        value: &'v [u8],
    ) -> Result<Cow<'v, [u8]>, Errno> {
        if self.is_identity() {
            return Ok(Cow::Borrowed(value));
        }
        match Owned::of(name) {
            None => Ok(Cow::Borrowed(value)),
            Some(Owned::Capability) => {
                let stored = with_root(value, |root| self.users.back(root));
                stored.map(Cow::Owned).ok_or(Errno::INVAL)
            }
            Some(Owned::Acl) => {
                let mut outside = false;
                let stored = with_acl_ids(value, |kind, id| {
                    let disk = self.disk(self.map(kind), id).ok();
                    outside |= disk.is_none();
                    disk
                });
                if outside {
                    Err(Errno::INVAL)
                } else {
                    Ok(Cow::Owned(stored))
                }
            }
        }
    }

    /// Returns the value of an xattr of a lower file as the copy in the upper gets it.
    ///
    /// # Errors
    /// EINVAL for IDs outside of the mappings.
    pub(crate) fn copied_xattr<'v>(
        &self,
        name: &[u8],
        value: &'v [u8],
    ) -> Result<Cow<'v, [u8]>, Errno> {
        match Owned::of(name) {
            Some(Owned::Acl) if self.has_shown_ids(Side::Lower) => {
                let stored = self.disk_xattr(name, &self.known_acl(value))?.into_owned();
                Ok(Cow::Owned(stored))
            }
            Some(Owned::Capability) if self.has_shown_ids(Side::Lower) => {
                self.disk_xattr(name, value)
            }
            _ => Ok(Cow::Borrowed(value)),
        }
    }

    /// Returns an ACL of an idmapped lower without the entries whose IDs are not known.
    fn known_acl(&self, acl: &[u8]) -> Vec<u8> {
        with_acl_ids(acl, |kind, id| self.map(kind).back(id).map(|_| id))
    }

    fn map(&self, kind: IdKind) -> &IdMap {
        match kind {
            IdKind::User => &self.users,
            IdKind::Group => &self.groups,
        }
    }
}

/// The xattrs that contain IDs.
enum Owned {
    Acl,
    Capability,
}

impl Owned {
    fn of(name: &[u8]) -> Option<Self> {
        match name {
            b"system.posix_acl_access" | b"system.posix_acl_default" => Some(Self::Acl),
            b"security.capability" => Some(Self::Capability),
            _ => None,
        }
    }
}

#[derive(Clone, Copy)]
enum IdKind {
    User,
    Group,
}

/// Replaces the IDs in an ACL (linux/posix_acl_xattr.h). Entries without an ID in the result are
/// left out. A malformed ACL stays as it is, for the kernel to refuse.
fn with_acl_ids(acl: &[u8], mut id: impl FnMut(IdKind, u32) -> Option<u32>) -> Vec<u8> {
    const USER: u16 = 0x02;
    const GROUP: u16 = 0x08;
    let Some((version, entries)) = acl.split_at_checked(4) else {
        return acl.to_vec();
    };
    if entries.len() % 8 != 0 {
        return acl.to_vec();
    }
    let mut changed = version.to_vec();
    for entry in entries.chunks_exact(8) {
        let (head, number) = entry.split_at(4);
        let kind = match u16::from_le_bytes([head[0], head[1]]) {
            USER => IdKind::User,
            GROUP => IdKind::Group,
            _ => {
                changed.extend(entry);
                continue;
            }
        };
        let number = number.try_into().map_or(NO_ID, u32::from_le_bytes);
        if let Some(number) = id(kind, number) {
            changed.extend(head);
            changed.extend(number.to_le_bytes());
        }
    }
    changed
}

/// Replaces the user ID of root in a `security.capability` (linux/capability.h): version 2 means
/// root itself, version 3 has the ID. `None` if the result would have none.
fn with_root(value: &[u8], id: impl FnOnce(u32) -> Option<u32>) -> Option<Vec<u8>> {
    const REVISION: u32 = 0xff00_0000;
    const V2: u32 = 0x0200_0000;
    const V3: u32 = 0x0300_0000;
    const V2_LEN: usize = 20;
    let word = |at: usize| Some(u32::from_le_bytes(value.get(at..at + 4)?.try_into().ok()?));
    let head = word(0)?;
    let root = match (head & REVISION, value.len()) {
        (V2, V2_LEN) => id(0)?,
        (V3, 24) => id(word(V2_LEN)?)?,
        // An older or unknown form is that of root itself.
        _ => return (id(0)? == 0).then(|| value.to_vec()),
    };
    let revision = if root == 0 { V2 } else { V3 };
    let mut changed = value[..V2_LEN].to_vec();
    changed[..4].copy_from_slice(&(head & !REVISION | revision).to_le_bytes());
    if root != 0 {
        changed.extend(root.to_le_bytes());
    }
    Some(changed)
}

#[cfg(test)]
#[path = "owners_tests.rs"]
mod tests;
