//! The messages of the FUSE protocol in memory, with the names of Linux
//! `include/uapi/linux/fuse.h`. They have native byte order.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The major version of the protocol. It has been 7 since Linux 2.6.14.
pub(crate) const MAJOR: u32 = 7;
/// The newest known minor version: Linux 6.18.
pub(crate) const MINOR: u32 = 45;
/// The oldest supported minor version: Linux 5.4.
pub(crate) const MIN_MINOR: u32 = 31;

macro_rules! constants {
    ($type:ty: $($name:ident = $value:expr,)*) => {
        $(#[allow(missing_docs)] pub(crate) const $name: $type = $value;)*
    };
}

/// Flags of INIT, named without the prefix `FUSE_`.
pub(crate) mod init {
    constants! { u32:
        ASYNC_READ = 1 << 0,
        ATOMIC_O_TRUNC = 1 << 3,
        EXPORT_SUPPORT = 1 << 4,
        BIG_WRITES = 1 << 5,
        DONT_MASK = 1 << 6,
        DO_READDIRPLUS = 1 << 13,
        ASYNC_DIO = 1 << 15,
        WRITEBACK_CACHE = 1 << 16,
        NO_OPEN_SUPPORT = 1 << 17,
        PARALLEL_DIROPS = 1 << 18,
        POSIX_ACL = 1 << 20,
        MAX_PAGES = 1 << 22,
        CACHE_SYMLINKS = 1 << 23,
        NO_OPENDIR_SUPPORT = 1 << 24,
        EXPLICIT_INVAL_DATA = 1 << 25,
        HANDLE_KILLPRIV_V2 = 1 << 28,
        SETXATTR_EXT = 1 << 29,
        INIT_EXT = 1 << 30,
    }
}

/// Flags of INIT from bit 32 on (`flags2`), without the prefix `FUSE_`.
pub(crate) mod init2 {
    constants! { u32:
        OVER_IO_URING = 1 << 9,
        ALLOW_IDMAP = 1 << 8,
        PASSTHROUGH = 1 << 5,
    }
}

/// Opcodes, named without the prefix `FUSE_`.
pub(crate) mod op {
    constants! { u32:
        LOOKUP = 1,
        FORGET = 2,
        GETATTR = 3,
        SETATTR = 4,
        READLINK = 5,
        SYMLINK = 6,
        MKNOD = 8,
        MKDIR = 9,
        UNLINK = 10,
        RMDIR = 11,
        RENAME = 12,
        LINK = 13,
        OPEN = 14,
        READ = 15,
        WRITE = 16,
        STATFS = 17,
        RELEASE = 18,
        FSYNC = 20,
        SETXATTR = 21,
        GETXATTR = 22,
        LISTXATTR = 23,
        REMOVEXATTR = 24,
        FLUSH = 25,
        INIT = 26,
        OPENDIR = 27,
        READDIR = 28,
        RELEASEDIR = 29,
        FSYNCDIR = 30,
        GETLK = 31,
        SETLK = 32,
        SETLKW = 33,
        ACCESS = 34,
        CREATE = 35,
        INTERRUPT = 36,
        BMAP = 37,
        DESTROY = 38,
        IOCTL = 39,
        POLL = 40,
        NOTIFY_REPLY = 41,
        BATCH_FORGET = 42,
        FALLOCATE = 43,
        READDIRPLUS = 44,
        RENAME2 = 45,
        LSEEK = 46,
        COPY_FILE_RANGE = 47,
        SYNCFS = 50,
        TMPFILE = 51,
        STATX = 52,
        COPY_FILE_RANGE_64 = 53,
    }
}

constants! { u32:
    FATTR_MODE = 1 << 0,
    FATTR_UID = 1 << 1,
    FATTR_GID = 1 << 2,
    FATTR_SIZE = 1 << 3,
    FATTR_ATIME = 1 << 4,
    FATTR_MTIME = 1 << 5,
    FATTR_FH = 1 << 6,
    FATTR_ATIME_NOW = 1 << 7,
    FATTR_MTIME_NOW = 1 << 8,
    FATTR_CTIME = 1 << 10,
    FATTR_KILL_SUIDGID = 1 << 11,
    OPEN_KILL_SUIDGID = 1 << 0,
    FOPEN_DIRECT_IO = 1 << 0,
    FOPEN_KEEP_CACHE = 1 << 1,
    FOPEN_CACHE_DIR = 1 << 3,
    FOPEN_PASSTHROUGH = 1 << 7,
    WRITE_CACHE = 1 << 0,
    WRITE_KILL_SUIDGID = 1 << 2,
    SETXATTR_ACL_KILL_SGID = 1 << 0,
    FSYNC_FDATASYNC = 1 << 0,
}

/// `enum fuse_notify_code`.
pub(crate) const NOTIFY_INVAL_INODE: i32 = 2;
/// `enum fuse_notify_code`.
pub(crate) const NOTIFY_RETRIEVE: i32 = 5;
/// FUSE_ROOT_ID.
pub(crate) const ROOT: u64 = 1;

macro_rules! message {
    ($($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty,)* })*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, KnownLayout, Immutable)]
            #[repr(C)]
            #[allow(missing_docs)]
            pub(crate) struct $name { $(pub(crate) $field: $type,)* }
        )*
    };
}

message! {
    /// The header of every request.
    InHeader {
        len: u32, opcode: u32, unique: u64, nodeid: u64,
        uid: u32, gid: u32, pid: u32, total_extlen: u16, padding: u16,
    }
    /// The header of every reply.
    OutHeader { len: u32, error: i32, unique: u64, }
    /// The body after an [`OutHeader`] of request 0 whose error is [`NOTIFY_INVAL_INODE`].
    NotifyInvalInodeOut { ino: u64, off: i64, len: i64, }
    /// The body after an [`OutHeader`] of request 0 whose error is [`NOTIFY_RETRIEVE`].
    NotifyRetrieveOut { notify_unique: u64, nodeid: u64, offset: u64, size: u32, padding: u32, }
    /// `fuse_init_in` up to 7.35; with INIT_EXT further flags follow.
    InitIn { major: u32, minor: u32, max_readahead: u32, flags: u32, }
    InitOut {
        major: u32, minor: u32, max_readahead: u32, flags: u32,
        max_background: u16, congestion_threshold: u16, max_write: u32,
        time_gran: u32, max_pages: u16, map_alignment: u16, flags2: u32,
        max_stack_depth: u32, unused: [u32; 6],
    }
    Attr {
        ino: u64, size: u64, blocks: u64, atime: u64, mtime: u64, ctime: u64,
        atimensec: u32, mtimensec: u32, ctimensec: u32, mode: u32,
        nlink: u32, uid: u32, gid: u32, rdev: u32, blksize: u32, flags: u32,
    }
    EntryOut {
        nodeid: u64, generation: u64, entry_valid: u64, attr_valid: u64,
        entry_valid_nsec: u32, attr_valid_nsec: u32, attr: Attr,
    }
    AttrOut { attr_valid: u64, attr_valid_nsec: u32, dummy: u32, attr: Attr, }
    StatxIn {
        getattr_flags: u32, reserved: u32, fh: u64, sx_flags: u32, sx_mask: u32,
    }
    SxTime { sec: i64, nsec: u32, reserved: u32, }
    Statx {
        mask: u32, blksize: u32, attributes: u64, nlink: u32, uid: u32, gid: u32,
        mode: u16, spare0: u16, ino: u64, size: u64, blocks: u64, attributes_mask: u64,
        atime: SxTime, btime: SxTime, ctime: SxTime, mtime: SxTime,
        rdev_major: u32, rdev_minor: u32, dev_major: u32, dev_minor: u32, spare2: [u64; 14],
    }
    StatxOut {
        attr_valid: u64, attr_valid_nsec: u32, flags: u32, spare: [u64; 2], stat: Statx,
    }
    SetattrIn {
        valid: u32, padding: u32, fh: u64, size: u64, lock_owner: u64,
        atime: u64, mtime: u64, ctime: u64, atimensec: u32, mtimensec: u32, ctimensec: u32,
        mode: u32, unused4: u32, uid: u32, gid: u32, unused5: u32,
    }
    ForgetOne { nodeid: u64, nlookup: u64, }
    BatchForgetIn { count: u32, dummy: u32, }
    MknodIn { mode: u32, rdev: u32, umask: u32, padding: u32, }
    MkdirIn { mode: u32, umask: u32, }
    Rename2In { newdir: u64, flags: u32, padding: u32, }
    OpenIn { flags: u32, open_flags: u32, }
    /// Also the body of TMPFILE.
    CreateIn { flags: u32, mode: u32, umask: u32, open_flags: u32, }
    OpenOut { fh: u64, open_flags: u32, backing_id: i32, }
    ReleaseIn { fh: u64, flags: u32, release_flags: u32, lock_owner: u64, }
    /// The answer to CREATE and TMPFILE.
    CreateOut { entry: EntryOut, open: OpenOut, }
    ReadIn {
        fh: u64, offset: u64, size: u32, read_flags: u32, lock_owner: u64, flags: u32,
        padding: u32,
    }
    WriteIn {
        fh: u64, offset: u64, size: u32, write_flags: u32, lock_owner: u64, flags: u32,
        padding: u32,
    }
    WriteOut { size: u32, padding: u32, }
    StatfsOut {
        blocks: u64, bfree: u64, bavail: u64, files: u64, ffree: u64,
        bsize: u32, namelen: u32, frsize: u32, padding: u32, spare: [u32; 6],
    }
    FsyncIn { fh: u64, fsync_flags: u32, padding: u32, }
    SetxattrIn { size: u32, flags: u32, setxattr_flags: u32, padding: u32, }
    /// Without SETXATTR_EXT (before Linux 5.13).
    ShortSetxattrIn { size: u32, flags: u32, }
    /// Also the body of LISTXATTR, and the answer of both to size 0.
    GetxattrIn { size: u32, padding: u32, }
    FallocateIn { fh: u64, offset: u64, length: u64, mode: u32, padding: u32, }
    /// `in_size` bytes follow.
    IoctlIn { fh: u64, flags: u32, cmd: u32, arg: u64, in_size: u32, out_size: u32, }
    IoctlOut { result: i32, flags: u32, in_iovs: u32, out_iovs: u32, }
    LseekIn { fh: u64, offset: u64, whence: u32, padding: u32, }
    CopyFileRangeIn {
        fh_in: u64, off_in: u64, nodeid_out: u64, fh_out: u64, off_out: u64, len: u64,
        flags: u64,
    }
    Dirent { ino: u64, off: u64, namelen: u32, kind: u32, }
    /// Over io_uring, it follows the headers of request and operation (128 bytes each).
    UringEntInOut { flags: u64, commit_id: u64, payload_sz: u32, padding: u32, reserved: u64, }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sizes of linux/fuse.h. One field too many would shift all fields after it.
    #[test]
    fn sizes_are_the_kernels() {
        assert_eq!(size_of::<InHeader>(), 40);
        assert_eq!(size_of::<OutHeader>(), 16);
        assert_eq!(size_of::<InitOut>(), 64);
        assert_eq!(size_of::<Attr>(), 88);
        assert_eq!(size_of::<EntryOut>(), 128);
        assert_eq!(size_of::<AttrOut>(), 104);
        assert_eq!(size_of::<StatxIn>(), 24);
        assert_eq!(size_of::<Statx>(), 256);
        assert_eq!(size_of::<StatxOut>(), 288);
        assert_eq!(size_of::<SetattrIn>(), 88);
        assert_eq!(size_of::<CreateOut>(), 144);
        assert_eq!(size_of::<OpenIn>(), 8);
        assert_eq!(size_of::<ReleaseIn>(), 24);
        assert_eq!(size_of::<ReadIn>(), 40);
        assert_eq!(size_of::<WriteIn>(), 40);
        assert_eq!(size_of::<SetxattrIn>(), 16);
        assert_eq!(size_of::<ShortSetxattrIn>(), 8);
        assert_eq!(size_of::<StatfsOut>(), 80);
        assert_eq!(size_of::<FallocateIn>(), 32);
        assert_eq!(size_of::<IoctlIn>(), 32);
        assert_eq!(size_of::<IoctlOut>(), 16);
        assert_eq!(size_of::<LseekIn>(), 24);
        assert_eq!(size_of::<CopyFileRangeIn>(), 56);
        assert_eq!(size_of::<Dirent>(), 24);
        assert_eq!(size_of::<NotifyRetrieveOut>(), 32);
        assert_eq!(256 + size_of::<UringEntInOut>(), 288);
    }
}
