//! Converts between the values of the union and those of the crate.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ::fuser::{FileAttr, FileType, INodeNo, TimeOrNow};

use crate::fuse::protocol_values;
use crate::union::{Attr, FileKind, SetAttr, SetTime, Time};

/// An absent name, which the kernel may cache: inode 0. The other fields have no meaning.
pub(super) const NO_FILE: FileAttr = FileAttr {
    ino: INodeNo(0),
    size: 0,
    blocks: 0,
    atime: UNIX_EPOCH,
    mtime: UNIX_EPOCH,
    ctime: UNIX_EPOCH,
    crtime: UNIX_EPOCH,
    kind: FileType::RegularFile,
    perm: 0,
    nlink: 0,
    uid: 0,
    gid: 0,
    rdev: 0,
    blksize: 0,
    flags: 0,
};

pub(super) fn attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino),
        size: attr.size,
        blocks: attr.blocks,
        atime: time(attr.atime),
        mtime: time(attr.mtime),
        ctime: time(attr.ctime),
        kind: kind(attr.kind),
        perm: (attr.perm & 0o7777) as u16,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: protocol_values::encode_dev(attr.rdev),
        blksize: attr.blksize,
        ..NO_FILE
    }
}

pub(super) fn kind(kind: FileKind) -> FileType {
    match kind {
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::Directory => FileType::Directory,
        FileKind::BlockDevice => FileType::BlockDevice,
        FileKind::Regular => FileType::RegularFile,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Socket => FileType::Socket,
    }
}

/// Converts a time. Every time that the kernel has is one of [`SystemTime`], which counts in the
/// same way.
fn time(time: Time) -> SystemTime {
    let seconds = Duration::from_secs(time.sec.unsigned_abs());
    let second = match time.sec {
        0.. => UNIX_EPOCH.checked_add(seconds),
        _ => UNIX_EPOCH.checked_sub(seconds),
    };
    let rest = Duration::from_nanos(protocol_values::nsec(time).into());
    second
        .and_then(|second| second.checked_add(rest))
        .unwrap_or(UNIX_EPOCH)
}

/// Corrects a time of the crate: for a time before 1970 the crate subtracts the nanoseconds instead
/// of adding them (fuser 0.18, `system_time_from_time`).
fn asked_time(time: SystemTime) -> Time {
    let (sec, rest) = match time.duration_since(UNIX_EPOCH) {
        Ok(since) => (i64::try_from(since.as_secs()).ok(), since),
        Err(before) => {
            let before = before.duration();
            (0_i64.checked_sub_unsigned(before.as_secs()), before)
        }
    };
    Time {
        sec: sec.unwrap_or(i64::MAX),
        nsec: rest.subsec_nanos(),
    }
}

fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(time) => SetTime::At(asked_time(time)),
    }
}

/// The attributes of a SETATTR.
pub(super) struct Asked {
    pub(super) mode: Option<u32>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) size: Option<u64>,
    pub(super) atime: Option<TimeOrNow>,
    pub(super) mtime: Option<TimeOrNow>,
    pub(super) ctime: Option<SystemTime>,
}

pub(super) fn set_attr(asked: &Asked) -> SetAttr {
    let others = [asked.mode, asked.uid, asked.gid]
        .iter()
        .any(Option::is_some)
        || asked.size.is_some()
        || asked.atime.is_some();
    let at = matches!(asked.mtime, Some(TimeOrNow::SpecificTime(_)));
    SetAttr {
        perm: asked.mode.map(|mode| mode & 0o7777),
        uid: asked.uid,
        gid: asked.gid,
        size: asked.size,
        atime: asked.atime.map(set_time),
        mtime: asked.mtime.map(set_time),
        // The handshake does not agree on this flag: the kernel sends the mode instead.
        drops_set_id: false,
        of_writes: at && asked.ctime.is_some() && !others,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMES: [(i64, u32); 8] = [
        (0, 0),
        (0, 999_999_999),
        (1 << 40, 1),
        (i64::MAX, 999_999_999),
        (-1, 0),
        (-1, 999_999_999),
        (-2, 500_000_000),
        (i64::MIN, 0),
    ];

    #[test]
    fn answered_times_are_exact() {
        for (sec, nsec) in TIMES {
            let since = time(Time { sec, nsec });
            let exact = match since.duration_since(UNIX_EPOCH) {
                Ok(after) => i128::try_from(after.as_nanos()).unwrap(),
                Err(before) => -i128::try_from(before.duration().as_nanos()).unwrap(),
            };
            let expected = i128::from(sec) * 1_000_000_000 + i128::from(nsec);
            assert_eq!(exact, expected, "{sec} {nsec}");
        }
        // Layers may contain any value in a time.
        let odd = time(Time {
            sec: 5,
            nsec: u32::MAX,
        });
        assert_eq!(odd, UNIX_EPOCH + Duration::new(5, 999_999_999));
    }

    #[test]
    fn asked_times_are_exact() {
        for (sec, nsec) in TIMES {
            // fuser 0.18 does the same.
            let at = Duration::new(sec.unsigned_abs(), nsec);
            let made = match sec {
                0.. => UNIX_EPOCH + at,
                _ => UNIX_EPOCH - at,
            };
            assert_eq!(asked_time(made), Time { sec, nsec });
        }
    }

    #[test]
    fn times_of_collected_writes() {
        let at = Some(TimeOrNow::SpecificTime(UNIX_EPOCH));
        let asked = |mode, mtime, ctime| Asked {
            mode,
            uid: None,
            gid: None,
            size: None,
            atime: None,
            mtime,
            ctime,
        };
        let ctime = Some(UNIX_EPOCH);
        assert!(set_attr(&asked(None, at, ctime)).of_writes);
        assert!(!set_attr(&asked(None, at, None)).of_writes);
        assert!(!set_attr(&asked(None, Some(TimeOrNow::Now), ctime)).of_writes);
        assert!(!set_attr(&asked(Some(0o644), at, ctime)).of_writes);
    }
}
