//! Owners, modes and devices that are recorded in an xattr beside the file, where a server cannot
//! give files their real ones: the stores of plain users, network file systems, one single user ID.
//!
//! The value is that of containers/storage and of fuse-overlayfs (`xattr_permissions`):
//! `UID:GID:MODE[:TYPE]`, MODE in octal. A device, FIFO or socket is an empty regular file with a
//! TYPE: `char-MAJOR-MINOR`, `block-MAJOR-MINOR`, `pipe`, `socket`.
//!
//! fuse-overlayfs 1.10 writes an older name (`OldUser`) in every upper, and 2.0 reads only the newer
//! one. A new upper therefore has both, with the same value. Where they differ, one of these programs
//! has changed the file: its value is the one that does not have our form of the mode.
//!
//! Invariants: the root directory of a layer says whether its files have records, and under which
//! name. A change keeps all other fields. The real mode of a recorded file lets its owner use it,
//! gives no other user the right to write, and has no set-id bits. Symlinks cannot have `user.*`
//! xattrs; they have their real owner (`union::Owners::unrecorded` says whose are root's).
//!
//! Every user may set `user.*` on a file that he may write. Where root of the machine mounts, such
//! a record counts only on files that belong to root and that nobody else may write.

use std::ffi::CStr;

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use super::at::{At, Stat};
use super::types::FileKind;
use crate::sys::process::is_root_of_machine;

/// The xattr that has the records of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `security.fuseoverlayfs.override_stat`, which needs CAP_SYS_ADMIN (`xattr_permissions=1`).
    Privileged,
    /// `user.containers.override_stat` (`xattr_permissions=2`).
    Containers,
    /// `user.fuseoverlayfs.override_stat`, written by fuse-overlayfs 1.10.
    OldUser,
    /// `Containers` and `OldUser`.
    BothUser,
}

/// What happens to records in a layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Records {
    /// They are ordinary xattrs.
    #[default]
    Ignored,
    /// The root directory of the layer decides.
    Learnt,
    /// As `Learnt`; a writable layer without records gets them.
    Made(Form),
    /// All files of this opened layer have records.
    Kept(Form),
}

const PRIVILEGED: &CStr = c"security.fuseoverlayfs.override_stat";
const CONTAINERS: &CStr = c"user.containers.override_stat";
const OLD_USER: &CStr = c"user.fuseoverlayfs.override_stat";

/// The prefix of xattrs that stand for those that a plain user may not set.
pub(super) const OVERRIDE: &[u8] = b"user.containers.override_";

/// The permission bits that real files never get: set-id, sticky, and writing by others.
const NEVER: u32 = 0o7022;
/// The permission bits that real files always have, so that their owner can use them.
const ALWAYS: u32 = 0o700;

impl Form {
    /// Returns the names of the xattrs, the newer first.
    fn names(self) -> &'static [&'static CStr] {
        match self {
            Self::Privileged => &[PRIVILEGED],
            Self::Containers => &[CONTAINERS],
            Self::OldUser => &[OLD_USER],
            Self::BothUser => &[CONTAINERS, OLD_USER],
        }
    }

    /// Returns the form of a layer from its root directory; `None` if its files have no records.
    ///
    /// # Errors
    /// Those of listxattr(2).
    pub fn of_layer(root: At<'_>) -> Result<Option<Self>, Errno> {
        let list = root.list_xattrs()?;
        let has = |name: &CStr| {
            list.split(|&b| b == 0)
                .any(|found| found == name.to_bytes())
        };
        if has(PRIVILEGED) {
            return Ok(Some(Self::Privileged));
        }
        Ok(match (has(CONTAINERS), has(OLD_USER)) {
            (true, true) => Some(Self::BothUser),
            (true, false) => Some(Self::Containers),
            (false, true) => Some(Self::OldUser),
            (false, false) => None,
        })
    }

    /// Returns the form for an upper in which nothing has records yet.
    #[must_use]
    pub fn of_empty_upper(self) -> Self {
        match self {
            Self::Containers => Self::BothUser,
            other => other,
        }
    }

    fn is_user(self) -> bool {
        self != Self::Privileged
    }
}

/// Whether an xattr of a recorded layer is a record, which is not shown.
pub(super) fn is_record(name: &[u8]) -> bool {
    let known = [PRIVILEGED, CONTAINERS, OLD_USER];
    known.iter().any(|record| record.to_bytes() == name)
}

/// Whether the name of an xattr is used for records in a plain user's store.
pub fn is_reserved(name: &[u8]) -> bool {
    is_record(name) || name.starts_with(OVERRIDE)
}

/// The content of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Record {
    uid: u32,
    gid: u32,
    perm: u32,
    /// The type of a regular file that stands for another one, and its device number.
    node: Option<(FileKind, (u32, u32))>,
}

impl Record {
    /// Parses a value. Type bits in the mode are ignored, as 1.10 writes them.
    fn parse(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?;
        let mut fields = text.trim_end_matches('\0').splitn(4, ':');
        let number = |text: &str| -> Option<u32> { text.parse().ok() };
        let (uid, gid) = (number(fields.next()?)?, number(fields.next()?)?);
        let perm = u32::from_str_radix(fields.next()?, 8).ok()? & 0o7777;
        let node = match fields.next() {
            None => None,
            Some(kind) => parse_kind(kind)?,
        };
        (uid != u32::MAX && gid != u32::MAX).then_some(Self {
            uid,
            gid,
            perm,
            node,
        })
    }

    fn text(&self) -> String {
        let Self {
            uid,
            gid,
            perm,
            node,
        } = self;
        let kind = match node {
            Some((FileKind::CharDevice, (major, minor))) => format!(":char-{major}-{minor}"),
            Some((FileKind::BlockDevice, (major, minor))) => format!(":block-{major}-{minor}"),
            Some((FileKind::Fifo, _)) => ":pipe".to_owned(),
            Some((FileKind::Socket, _)) => ":socket".to_owned(),
            _ => String::new(),
        };
        format!("{uid}:{gid}:0{perm:o}{kind}")
    }

    fn of(stat: &Stat) -> Self {
        let node = match stat.kind {
            FileKind::Regular | FileKind::Directory | FileKind::Symlink => None,
            kind => Some((kind, stat.rdev)),
        };
        Self {
            uid: stat.uid,
            gid: stat.gid,
            perm: stat.perm,
            node,
        }
    }
}

/// Parses a TYPE. The outer `None` is an error, the inner one a type that needs no stand-in.
fn parse_kind(text: &str) -> Option<Option<(FileKind, (u32, u32))>> {
    let device = |kind, rest: &str| {
        let rest = rest.strip_prefix('-').unwrap_or(rest);
        let (major, minor) = rest.split_once(['-', ':'])?;
        let numbers = (major.parse().ok()?, minor.parse().ok()?);
        // A whiteout has no record.
        (numbers != (0, 0)).then_some(Some((kind, numbers)))
    };
    if let Some(rest) = text.strip_prefix("char") {
        device(FileKind::CharDevice, rest)
    } else if let Some(rest) = text.strip_prefix("block") {
        device(FileKind::BlockDevice, rest)
    } else if text.starts_with("pipe") {
        Some(Some((FileKind::Fifo, (0, 0))))
    } else if text.starts_with("socket") {
        Some(Some((FileKind::Socket, (0, 0))))
    } else {
        let plain = ["file", "dir", "symlink"];
        let known = plain.iter().any(|kind| text.starts_with(kind));
        known.then_some(None)
    }
}

/// Whether a value has our form of the mode: with a zero before it. fuse-overlayfs 1.10 writes type
/// bits there, and 2.0 no zero.
fn is_ours(value: &[u8]) -> bool {
    let mode = value.split(|&b| b == b':').nth(2).unwrap_or_default();
    mode.len() > 1 && mode[0] == b'0'
}

/// Whether a record on a file with these real attributes counts.
fn is_believed(form: Form, real: &Stat) -> bool {
    let only_roots = real.uid == 0 && real.perm & 0o022 == 0;
    !form.is_user() || only_roots || !is_root_of_machine()
}

/// Whether a file of this type can have the xattr.
fn can_have(form: Form, kind: FileKind) -> bool {
    !form.is_user() || matches!(kind, FileKind::Regular | FileKind::Directory)
}

impl At<'_> {
    /// Replaces the real attributes of the file by the recorded ones.
    ///
    /// # Errors
    /// EINVAL for a record that is none; those of getxattr(2).
    pub(super) fn with_record(&self, form: Form, real: Stat) -> Result<Stat, Errno> {
        if !can_have(form, real.kind) || !is_believed(form, &real) {
            return Ok(real);
        }
        let Some(value) = self.record_value(form)? else {
            return Ok(real);
        };
        let record = Record::parse(&value).ok_or(Errno::INVAL)?;
        let mut stat = Stat {
            uid: record.uid,
            gid: record.gid,
            perm: record.perm,
            ..real
        };
        if let (Some((kind, rdev)), FileKind::Regular) = (record.node, real.kind) {
            (stat.kind, stat.rdev, stat.size) = (kind, rdev, 0);
        }
        Ok(stat)
    }

    fn record_value(&self, form: Form) -> Result<Option<Vec<u8>>, Errno> {
        let mut newest: Option<Vec<u8>> = None;
        for name in form.names() {
            match self.xattr(name) {
                Ok(Some(value)) if newest.as_deref().is_none_or(is_ours) => {
                    // Of two values of ours, that of the newer name is the right one.
                    if newest.is_none() || !is_ours(&value) {
                        newest = Some(value);
                    }
                }
                // A file that its owner may not read was not written by us.
                Ok(_) | Err(Errno::ACCESS) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(newest)
    }

    /// Records an owner. As with chown(2), set-id bits are lost. A symlink that cannot have a record
    /// gets the real owner if possible.
    ///
    /// # Errors
    /// Those of setxattr(2).
    pub(super) fn record_owner(
        &self,
        form: Form,
        uid: Option<u32>,
        gid: Option<u32>,
    ) -> Result<(), Errno> {
        let stat = self.stat()?;
        if !can_have(form, self.real_stat()?.kind) {
            return match self.chown_really(uid, gid) {
                Err(Errno::PERM | Errno::INVAL) => Ok(()),
                other => other,
            };
        }
        let mut record = Record::of(&stat);
        record.uid = uid.unwrap_or(record.uid);
        record.gid = gid.unwrap_or(record.gid);
        if stat.kind != FileKind::Directory {
            record.perm = after_chown(record.perm);
        }
        self.write(form, &record)
    }

    /// Records permission bits; the real ones follow as far as they may.
    ///
    /// # Errors
    /// Those of setxattr(2) and chmod(2).
    pub(super) fn record_perm(&self, form: Form, perm: u32) -> Result<(), Errno> {
        let stat = self.stat()?;
        if !can_have(form, self.real_stat()?.kind) {
            return self.chmod_really(perm & !NEVER | ALWAYS);
        }
        let mut record = Record::of(&stat);
        record.perm = perm & 0o7777;
        self.chmod_really(perm & !NEVER | ALWAYS)?;
        self.write(form, &record)
    }

    /// Records what the real file is, for a file that was just made.
    ///
    /// # Errors
    /// Those of setxattr(2).
    pub(super) fn record_new(&self, form: Form, perm: u32) -> Result<(), Errno> {
        let real = self.real_stat()?;
        if !can_have(form, real.kind) {
            return Ok(());
        }
        let mut record = Record::of(&real);
        record.perm = perm & 0o7777;
        self.write(form, &record)
    }

    /// Makes a device, FIFO or socket as an empty file with a record.
    ///
    /// # Errors
    /// EEXIST; those of setxattr(2).
    pub(super) fn record_node(
        &self,
        form: Form,
        kind: FileKind,
        perm: u32,
        rdev: (u32, u32),
    ) -> Result<(), Errno> {
        self.mknod_really(FileKind::Regular, ALWAYS, (0, 0))?;
        let mut record = Record::of(&self.real_stat()?);
        record.perm = perm & 0o7777;
        if kind == FileKind::Regular {
            self.chmod_really(perm & !NEVER | ALWAYS)?;
        } else {
            record.node = Some((kind, rdev));
        }
        self.write(form, &record)
    }

    fn write(&self, form: Form, record: &Record) -> Result<(), Errno> {
        let text = record.text();
        let write = |name: &&CStr| self.set_xattr(name, text.as_bytes(), XattrFlags::empty());
        form.names().iter().try_for_each(write)
    }

    /// Records owner and mode of a file that was just made, which its user may write. A file system
    /// without xattrs has no records.
    ///
    /// # Errors
    /// Those of setxattr(2), but for EPERM and EOPNOTSUPP.
    pub fn record(&self, uid: u32, gid: u32, perm: u32) -> Result<(), Errno> {
        let record = Record {
            uid,
            gid,
            perm: perm & 0o7777,
            node: None,
        };
        match self.write(Form::Containers, &record) {
            Err(Errno::PERM | Errno::OPNOTSUPP) => Ok(()),
            other => other,
        }
    }

    /// Returns the record of the file as containers/storage names it.
    ///
    /// # Errors
    /// Those of getxattr(2).
    pub fn containers_record(&self) -> Result<Option<Vec<u8>>, Errno> {
        self.xattr(CONTAINERS)
    }

    /// Returns whether a record has this owner and these permission bits.
    pub fn is_recorded_as(uid: u32, gid: u32, perm: u32) -> impl Fn(&[u8]) -> bool {
        move |record| {
            let record = Record::parse(record);
            record.is_some_and(|r| (r.uid, r.gid, r.perm) == (uid, gid, perm & 0o7777))
        }
    }

    /// Begins the records of an empty upper: its root directory gets the record of that of the top
    /// lower. Nothing happens if the lower has none or the upper has one.
    ///
    /// # Errors
    /// Those of getxattr(2) and setxattr(2).
    pub fn begin_records_of(&self, lower: At<'_>) -> Result<(), Errno> {
        if Form::of_layer(*self)?.is_some() {
            return Ok(());
        }
        let Some(value) = lower.xattr(CONTAINERS)? else {
            return Ok(());
        };
        self.set_xattr(CONTAINERS, &value, XattrFlags::empty())
    }

    /// Marks the root directory of a writable layer: its files have records from now on. Returns their
    /// form: a file system that is itself such a union keeps the older name for itself (EPERM).
    ///
    /// # Errors
    /// Those of setxattr(2).
    pub fn begin_records(&self, form: Form) -> Result<Form, Errno> {
        let real = self.real_stat()?;
        // It may have the record of the layer below.
        let stat = match Form::of_layer(*self)? {
            Some(known) => self.with_record(known, real)?,
            None => real,
        };
        let record = Record::of(&stat);
        match self.write(form, &record) {
            Err(Errno::PERM) if form == Form::BothUser => {
                self.write(Form::Containers, &record)?;
                Ok(Form::Containers)
            }
            other => other.map(|()| form),
        }
    }
}

/// Returns the permission bits of a file that is no directory after chown(2): without set-user-ID, and
/// without set-group-ID if the group may execute it (`setattr_should_drop_suidgid` of Linux' fs/attr.c).
fn after_chown(perm: u32) -> u32 {
    const SET_UID: u32 = 0o4000;
    const SET_GID: u32 = 0o2000;
    const GROUP_EXEC: u32 = 0o010;
    match perm & GROUP_EXEC {
        0 => perm & !SET_UID,
        _ => perm & !(SET_UID | SET_GID),
    }
}

/// Returns the real mode for a directory that is made with these permission bits.
pub(super) fn real_perm(perm: u32) -> u32 {
    perm & !NEVER | ALWAYS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn set_id_bits_are_lost_as_in_the_kernel() {
        for (before, after) in [
            (0o6755, 0o755),
            (0o6745, 0o2745),
            (0o1755, 0o1755),
            (0o4600, 0o600),
        ] {
            assert_eq!(after_chown(before), after, "{before:o}");
        }
    }

    #[test]
    fn values_of_the_three_writers_differ() {
        for ours in ["1:2:0644", "1:2:00", "1:2:04755:file"] {
            assert!(is_ours(ours.as_bytes()), "{ours}");
        }
        for other in ["1:2:100644", "1:2:644", "1:2:0", "", "1:2"] {
            assert!(!is_ours(other.as_bytes()), "{other}");
        }
    }

    #[test]
    fn values_of_all_writers() {
        let parse = |text: &str| Record::parse(text.as_bytes()).map(|record| record.text());
        for (text, again) in [
            ("1000:1001:0644", "1000:1001:0644"),
            ("0:0:00", "0:0:00"),
            ("0:0:104755", "0:0:04755"),
            ("0:0:40755", "0:0:0755"),
            ("5:6:1777:dir", "5:6:01777"),
            ("5:6:0644:file", "5:6:0644"),
            ("0:0:777:symlink", "0:0:0777"),
            ("0:5:0666:char-1-3", "0:5:0666:char-1-3"),
            ("0:5:0666:char1:3", "0:5:0666:char-1-3"),
            ("0:6:0660:block-8-0", "0:6:0660:block-8-0"),
            ("0:0:0644:pipe", "0:0:0644:pipe"),
            ("0:0:0644:socket", "0:0:0644:socket"),
        ] {
            assert_eq!(parse(text).as_deref(), Some(again), "{text}");
        }
        for text in [
            "",
            "0",
            "0:0",
            "0:0:9",
            "a:0:0",
            "0:0:0:what",
            "0:0:0:char",
            "0:0:0:char-0-0",
            "0:0:0:char-1",
            "4294967295:0:0",
            "0:-1:0",
            "0:0:0:block-1-x",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
        assert_eq!(Record::parse(b"\xff:0:0"), None);
    }
}
