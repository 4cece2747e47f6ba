//! Between the union's plain values and fuser's types. Called by `adapter`.

use std::time::{Duration, SystemTime};

use fuser::{FileAttr, FileType, INodeNo, TimeOrNow};

use crate::union::{Attr, Caller, FileKind, RenameFlags, SetTime, Time, XattrFlags};

/// How long the kernel may keep entries, attributes and negative entries: 136 years. The
/// union owns its layers, so what the kernel knows can only be changed by the kernel.
pub(super) const FOREVER: Duration = Duration::from_secs(u32::MAX as u64);

pub(super) fn caller(req: &fuser::Request) -> Caller {
    Caller {
        uid: req.uid(),
        gid: req.gid(),
        pid: req.pid(),
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

pub(super) fn attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino),
        size: attr.size,
        blocks: attr.blocks,
        atime: system_time(attr.atime),
        mtime: system_time(attr.mtime),
        ctime: system_time(attr.ctime),
        crtime: SystemTime::UNIX_EPOCH,
        kind: kind(attr.kind),
        perm: (attr.perm & 0o7777) as u16,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: encode_dev(attr.rdev),
        blksize: attr.blksize,
        flags: 0,
    }
}

/// Attributes of an entry without inode: of a negative entry, where the kernel looks at
/// the inode number 0 only.
pub(super) fn no_attr(kind: FileType) -> FileAttr {
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: SystemTime::UNIX_EPOCH,
        mtime: SystemTime::UNIX_EPOCH,
        ctime: SystemTime::UNIX_EPOCH,
        crtime: SystemTime::UNIX_EPOCH,
        kind,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}

/// Layers may hold any time: what `SystemTime` cannot hold becomes the epoch.
fn system_time(time: Time) -> SystemTime {
    let whole = Duration::from_secs(time.sec.unsigned_abs());
    let base = if time.sec < 0 {
        SystemTime::UNIX_EPOCH.checked_sub(whole)
    } else {
        SystemTime::UNIX_EPOCH.checked_add(whole)
    };
    let nanos = Duration::from_nanos(u64::from(time.nsec.min(999_999_999)));
    base.and_then(|base| base.checked_add(nanos))
        .unwrap_or(SystemTime::UNIX_EPOCH)
}

/// The exact time the kernel sent with a SETATTR.
///
/// fuser 0.18 builds the `SystemTime` for negative seconds `s` and nanoseconds `n` as the
/// epoch *minus* (|s| seconds and n nanoseconds), where `s` seconds *plus* n was meant
/// (its `system_time_from_time`). The distance to the epoch therefore still holds both
/// numbers.
pub(super) fn time_of_request(time: SystemTime) -> Time {
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(after) => Time {
            sec: i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
            nsec: after.subsec_nanos(),
        },
        Err(before) => {
            let distance = before.duration();
            Time {
                sec: 0i64.saturating_sub_unsigned(distance.as_secs()),
                nsec: distance.subsec_nanos(),
            }
        }
    }
}

pub(super) fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(time) => SetTime::At(time_of_request(time)),
    }
}

/// A device number as FUSE carries it: the kernel's `new_encode_dev` (linux/kdev_t.h),
/// 12 bits major and 20 bits minor.
fn encode_dev((major, minor): (u32, u32)) -> u32 {
    (minor & 0xff) | ((major & 0xfff) << 8) | ((minor & 0xf_ff00) << 12)
}

/// The inverse of [`encode_dev`]: (major, minor).
pub(super) fn decode_dev(dev: u32) -> (u32, u32) {
    ((dev >> 8) & 0xfff, (dev & 0xff) | ((dev >> 12) & 0xf_ff00))
}

pub(super) fn rename_flags(flags: fuser::RenameFlags) -> RenameFlags {
    RenameFlags {
        noreplace: flags.contains(fuser::RenameFlags::RENAME_NOREPLACE),
        exchange: flags.contains(fuser::RenameFlags::RENAME_EXCHANGE),
        whiteout: flags.contains(fuser::RenameFlags::RENAME_WHITEOUT),
    }
}

pub(super) fn xattr_flags(flags: i32) -> XattrFlags {
    XattrFlags {
        create: flags & libc::XATTR_CREATE != 0,
        replace: flags & libc::XATTR_REPLACE != 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::UNIX_EPOCH;

    /// What fuser 0.18 makes of a SETATTR's time (release arithmetic).
    fn fuser_request(sec: i64, nsec: u32) -> SystemTime {
        let d = Duration::new(sec.unsigned_abs(), nsec);
        if sec >= 0 {
            UNIX_EPOCH + d
        } else {
            UNIX_EPOCH - d
        }
    }

    #[test]
    fn request_times_are_exact() {
        for (sec, nsec) in [
            (0, 0),
            (0, 1),
            (1_700_000_000, 999_999_999),
            (i64::MAX, 999_999_999),
            (-1, 0),
            (-1, 1),
            (-1, 999_999_999),
            (-2, 500_000_000),
            (i64::MIN + 1, 999_999_999),
            (i64::MIN, 0),
        ] {
            let time = time_of_request(fuser_request(sec, nsec));
            assert_eq!(time, Time { sec, nsec }, "{sec}.{nsec}");
        }
    }

    #[test]
    fn answered_times_are_exact() {
        let at = |sec, nsec| system_time(Time { sec, nsec });
        assert_eq!(at(0, 5), UNIX_EPOCH + Duration::new(0, 5));
        assert_eq!(at(-1, 0), UNIX_EPOCH - Duration::new(1, 0));
        assert_eq!(at(-1, 1), UNIX_EPOCH - Duration::new(0, 999_999_999));
        assert_eq!(
            at(-2, 800_000_000),
            UNIX_EPOCH - Duration::new(1, 200_000_000)
        );
    }

    #[test]
    fn hostile_times_do_not_panic() {
        for sec in [i64::MIN, i64::MIN + 1, i64::MAX - 1, i64::MAX] {
            for nsec in [0, 1, 999_999_999, u32::MAX] {
                let time = system_time(Time { sec, nsec });
                assert_eq!(time < UNIX_EPOCH, sec < 0, "{sec}.{nsec}");
            }
        }
    }

    #[test]
    fn device_numbers() {
        assert_eq!(encode_dev((1, 3)), 0x103);
        assert_eq!(encode_dev((0xabc, 0x12345)), 0x123a_bc45);
        for dev in [
            (0, 0),
            (1, 3),
            (8, 255),
            (8, 256),
            (259, 0xf_ffff),
            (0xfff, 0xf_ffff),
        ] {
            assert_eq!(decode_dev(encode_dev(dev)), dev);
        }
        assert_eq!(encode_dev(decode_dev(u32::MAX)), u32::MAX);
    }

    #[test]
    fn every_kind_keeps_its_type() {
        let base = Attr {
            ino: 7,
            kind: FileKind::Fifo,
            perm: 0o4755,
            nlink: 2,
            uid: 1,
            gid: 2,
            rdev: (1, 3),
            size: 4,
            blocks: 8,
            blksize: 4096,
            atime: Time::default(),
            mtime: Time::default(),
            ctime: Time::default(),
            btime: None,
        };
        for (ours, theirs) in [
            (FileKind::Fifo, FileType::NamedPipe),
            (FileKind::CharDevice, FileType::CharDevice),
            (FileKind::Directory, FileType::Directory),
            (FileKind::BlockDevice, FileType::BlockDevice),
            (FileKind::Regular, FileType::RegularFile),
            (FileKind::Symlink, FileType::Symlink),
            (FileKind::Socket, FileType::Socket),
        ] {
            let converted = attr(&Attr { kind: ours, ..base });
            assert_eq!(converted.kind, theirs);
            assert_eq!((converted.perm, converted.rdev), (0o4755, 0x103));
        }
    }

    #[test]
    fn flags() {
        let all = fuser::RenameFlags::all();
        let ours = rename_flags(all);
        assert!(ours.noreplace && ours.exchange && ours.whiteout);
        assert_eq!(
            rename_flags(fuser::RenameFlags::empty()),
            RenameFlags::default()
        );
        assert_eq!(xattr_flags(0), XattrFlags::default());
        assert!(xattr_flags(1).create && xattr_flags(2).replace);
    }
}
