//! Converts between the values of the union and those of the protocol.

use super::operations::KnownAs;
use super::wire::abi::{
    self, FATTR_ATIME, FATTR_ATIME_NOW, FATTR_CTIME, FATTR_FH, FATTR_GID, FATTR_KILL_SUIDGID,
    FATTR_MODE, FATTR_MTIME, FATTR_MTIME_NOW, FATTR_SIZE, FATTR_UID, SetattrIn, SxTime,
};
use crate::union::{Attr, EntryRef, RenameFlags, SetAttr, SetTime, Time, XattrFlags};

/// How long the kernel may keep entries, attributes and negative entries, in seconds: 136 years.
/// The union owns its layers, so only the kernel can change what it knows.
pub(super) const FOREVER: u64 = u32::MAX as u64;

/// Converts attributes. The kernel takes the seconds as signed again.
pub(super) fn attr(attr: &Attr) -> abi::Attr {
    abi::Attr {
        ino: attr.ino,
        size: attr.size,
        blocks: attr.blocks,
        atime: attr.atime.sec.cast_unsigned(),
        mtime: attr.mtime.sec.cast_unsigned(),
        ctime: attr.ctime.sec.cast_unsigned(),
        atimensec: nsec(attr.atime),
        mtimensec: nsec(attr.mtime),
        ctimensec: nsec(attr.ctime),
        mode: attr.kind.mode_bits() | attr.perm & 0o7777,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: encode_dev(attr.rdev),
        blksize: attr.blksize,
        flags: 0,
    }
}

/// Returns the nanoseconds of a time, limited to the valid range. Layers may contain any value.
pub(super) fn nsec(time: Time) -> u32 {
    time.nsec.min(999_999_999)
}

/// Converts to the basic attributes, which the kernel always requires, and the time of birth if it
/// was requested and is known.
pub(super) fn statx(attr: &Attr, mask: u32) -> abi::Statx {
    let time = |time: Time| SxTime {
        sec: time.sec,
        nsec: nsec(time),
        reserved: 0,
    };
    let btime = attr.btime.filter(|_| mask & libc::STATX_BTIME != 0);
    let birth = btime.map_or(0, |_| libc::STATX_BTIME);
    abi::Statx {
        mask: libc::STATX_BASIC_STATS | birth,
        blksize: attr.blksize,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        mode: (attr.kind.mode_bits() | attr.perm & 0o7777) as u16,
        ino: attr.ino,
        size: attr.size,
        blocks: attr.blocks,
        atime: time(attr.atime),
        btime: time(btime.unwrap_or_default()),
        ctime: time(attr.ctime),
        mtime: time(attr.mtime),
        rdev_major: attr.rdev.0,
        rdev_minor: attr.rdev.1,
        ..abi::Statx::default()
    }
}

/// Converts an entry.
pub(super) fn entry(entry: &EntryRef<'_>, known: KnownAs) -> abi::EntryOut {
    abi::EntryOut {
        nodeid: known.node.0,
        generation: entry.generation(),
        attr: attr(entry.attr()),
        attr_valid: known.lifetime,
        ..no_entry()
    }
}

/// Returns an absent name, which the kernel may cache: node 0.
pub(super) fn no_entry() -> abi::EntryOut {
    abi::EntryOut {
        entry_valid: FOREVER,
        attr_valid: FOREVER,
        ..abi::EntryOut::default()
    }
}

pub(super) fn set_attr(set: &SetattrIn) -> SetAttr {
    let has = |flag| set.valid & flag != 0;
    let time = |flag, now, sec: u64, nsec| match (has(now), has(flag)) {
        (true, _) => Some(SetTime::Now),
        (false, true) => Some(SetTime::At(Time {
            sec: sec.cast_signed(),
            nsec,
        })),
        (false, false) => None,
    };
    SetAttr {
        perm: has(FATTR_MODE).then_some(set.mode & 0o7777),
        uid: has(FATTR_UID).then_some(set.uid),
        gid: has(FATTR_GID).then_some(set.gid),
        size: has(FATTR_SIZE).then_some(set.size),
        atime: time(FATTR_ATIME, FATTR_ATIME_NOW, set.atime, set.atimensec),
        mtime: time(FATTR_MTIME, FATTR_MTIME_NOW, set.mtime, set.mtimensec),
        drops_set_id: has(FATTR_KILL_SUIDGID),
        of_writes: set.valid & !FATTR_FH == FATTR_MTIME | FATTR_CTIME,
    }
}

/// Encodes a device number for FUSE: the kernel's `new_encode_dev` (linux/kdev_t.h), 12 bits major
/// and 20 bits minor.
pub(super) fn encode_dev((major, minor): (u32, u32)) -> u32 {
    (minor & 0xff) | ((major & 0xfff) << 8) | ((minor & 0xf_ff00) << 12)
}

/// The inverse of [`encode_dev`]: (major, minor).
pub(super) fn decode_dev(dev: u32) -> (u32, u32) {
    ((dev >> 8) & 0xfff, (dev & 0xff) | ((dev >> 12) & 0xf_ff00))
}

/// Parses the flags. `None` if there are unknown ones.
pub(super) fn rename_flags(flags: u32) -> Option<RenameFlags> {
    let known = libc::RENAME_NOREPLACE | libc::RENAME_EXCHANGE | libc::RENAME_WHITEOUT;
    (flags & !known == 0).then_some(RenameFlags {
        noreplace: flags & libc::RENAME_NOREPLACE != 0,
        exchange: flags & libc::RENAME_EXCHANGE != 0,
        whiteout: flags & libc::RENAME_WHITEOUT != 0,
    })
}

pub(super) fn xattr_flags(flags: u32) -> XattrFlags {
    let flags = flags.cast_signed();
    XattrFlags {
        create: flags & libc::XATTR_CREATE != 0,
        replace: flags & libc::XATTR_REPLACE != 0,
        // Another field of the message contains this.
        drops_set_gid: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::union::FileKind;

    fn some_attr(kind: FileKind) -> Attr {
        let at = |sec, nsec| Time { sec, nsec };
        Attr {
            ino: 7,
            generation: 0,
            kind,
            perm: 0o4755,
            nlink: 2,
            uid: 1,
            gid: 2,
            rdev: (1, 3),
            size: 4,
            blocks: 8,
            blksize: 4096,
            atime: at(-1, 999_999_999),
            mtime: at(i64::MIN, u32::MAX),
            ctime: at(1 << 40, 1),
            btime: Some(at(-5, 6)),
        }
    }

    #[test]
    fn requested_times_are_exact() {
        let set = SetattrIn {
            valid: FATTR_ATIME | FATTR_MTIME | FATTR_MTIME_NOW,
            atime: (-2i64).cast_unsigned(),
            atimensec: 500_000_000,
            ..SetattrIn::default()
        };
        let expected = SetAttr {
            atime: Some(SetTime::At(Time {
                sec: -2,
                nsec: 500_000_000,
            })),
            mtime: Some(SetTime::Now),
            ..SetAttr::default()
        };
        assert_eq!(set_attr(&set), expected);
        assert_eq!(set_attr(&SetattrIn::default()), SetAttr::default());
    }

    #[test]
    fn answered_times_are_exact() {
        let out = attr(&some_attr(FileKind::Regular));
        assert_eq!((out.atime, out.atimensec), (u64::MAX, 999_999_999));
        assert_eq!((out.mtime, out.mtimensec), (1 << 63, 999_999_999));
        assert_eq!((out.ctime, out.ctimensec), (1 << 40, 1));
    }

    #[test]
    fn birth_is_told_when_asked_for_and_known() {
        let known = some_attr(FileKind::Regular);
        let out = statx(&known, libc::STATX_BASIC_STATS | libc::STATX_BTIME);
        assert_eq!(out.mask, libc::STATX_BASIC_STATS | libc::STATX_BTIME);
        assert_eq!((out.btime.sec, out.btime.nsec), (-5, 6));
        let basic = libc::STATX_BASIC_STATS;
        assert_eq!(statx(&known, basic).mask, basic);
        let unknown = Attr {
            btime: None,
            ..known
        };
        assert_eq!(statx(&unknown, libc::STATX_BTIME).mask, basic);
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
        for (kind, bits) in [
            (FileKind::Fifo, libc::S_IFIFO),
            (FileKind::CharDevice, libc::S_IFCHR),
            (FileKind::Directory, libc::S_IFDIR),
            (FileKind::BlockDevice, libc::S_IFBLK),
            (FileKind::Regular, libc::S_IFREG),
            (FileKind::Symlink, libc::S_IFLNK),
            (FileKind::Socket, libc::S_IFSOCK),
        ] {
            let attrs = some_attr(kind);
            let out = attr(&attrs);
            assert_eq!((out.mode, out.rdev), (bits | 0o4755, 0x103));
            assert_eq!(u32::from(statx(&attrs, 0).mode), out.mode);
        }
    }

    #[test]
    fn flags() {
        let all = rename_flags(7).unwrap();
        assert!(all.noreplace && all.exchange && all.whiteout);
        assert_eq!(rename_flags(0), Some(RenameFlags::default()));
        assert_eq!(rename_flags(8), None);
        assert_eq!(xattr_flags(0), XattrFlags::default());
        assert!(xattr_flags(1).create && xattr_flags(2).replace);
    }
}
