//! The plain values that go in and out of the union core. Used by every transport.

use std::fmt;

/// An inode number of the union: what `stat` shows, and the number a transport
/// hands back to name a file. Unique per mount, stable across copy-up and remount.
pub type Ino = u64;

/// The inode number of the union's root directory.
pub const ROOT_INO: Ino = 1;

/// Who asks: the credentials of the calling task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// fsuid of the caller.
    pub uid: u32,
    /// fsgid of the caller.
    pub gid: u32,
    /// Its thread id in our pid namespace, 0 when it has none there.
    pub pid: u32,
}

/// File types; the values of `S_IFMT >> 12`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FileKind {
    /// FIFO
    Fifo = 1,
    /// Character device
    CharDevice = 2,
    /// Directory
    Directory = 4,
    /// Block device
    BlockDevice = 6,
    /// Regular file
    Regular = 8,
    /// Symbolic link
    Symlink = 10,
    /// Unix domain socket
    Socket = 12,
}

impl FileKind {
    /// From the `S_IFMT` bits of a mode; `None` when they name no type.
    pub fn from_mode(mode: u32) -> Option<Self> {
        Self::from_dirent((mode >> 12 & 0xf) as u8)
    }

    /// From a `d_type` byte of a directory entry; `None` for DT_UNKNOWN and DT_WHT.
    pub fn from_dirent(d_type: u8) -> Option<Self> {
        Some(match d_type {
            1 => Self::Fifo,
            2 => Self::CharDevice,
            4 => Self::Directory,
            6 => Self::BlockDevice,
            8 => Self::Regular,
            10 => Self::Symlink,
            12 => Self::Socket,
            _ => return None,
        })
    }

    /// The `S_IFMT` bits.
    pub fn mode_bits(self) -> u32 {
        (self as u32) << 12
    }
}

/// A point in time: seconds since the epoch (negative before 1970) plus nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time {
    /// Whole seconds, rounded towards minus infinity.
    pub sec: i64,
    /// Nanoseconds, 0 to 999,999,999.
    pub nsec: u32,
}

/// The attributes of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    /// Inode number in the union.
    pub ino: Ino,
    /// File type.
    pub kind: FileKind,
    /// Permission bits, `mode & 0o7777`.
    pub perm: u32,
    /// Number of hard links in the union; 1 for merged directories, as overlayfs answers.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number (major, minor) of device nodes.
    pub rdev: (u32, u32),
    /// Size in bytes.
    pub size: u64,
    /// Allocated 512-byte blocks.
    pub blocks: u64,
    /// Preferred I/O size in bytes.
    pub blksize: u32,
    /// Last access.
    pub atime: Time,
    /// Last data change.
    pub mtime: Time,
    /// Last status change.
    pub ctime: Time,
    /// Creation, where the backing file system records it.
    pub btime: Option<Time>,
}

/// One time of a `setattr`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// The server's current time.
    Now,
    /// A given time.
    At(Time),
}

/// What a `setattr` changes; `None` leaves a value alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetAttr {
    /// New permission bits, `mode & 0o7777`.
    pub perm: Option<u32>,
    /// New owner.
    pub uid: Option<u32>,
    /// New group.
    pub gid: Option<u32>,
    /// New size in bytes.
    pub size: Option<u64>,
    /// New access time.
    pub atime: Option<SetTime>,
    /// New modification time.
    pub mtime: Option<SetTime>,
}

/// `rename` flags, values as in `renameat2(2)`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RenameFlags {
    /// RENAME_NOREPLACE
    pub noreplace: bool,
    /// RENAME_EXCHANGE
    pub exchange: bool,
    /// RENAME_WHITEOUT: answered EINVAL, as overlayfs does.
    pub whiteout: bool,
}

/// `setxattr` flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XattrFlags {
    /// XATTR_CREATE: fail with EEXIST when the attribute exists.
    pub create: bool,
    /// XATTR_REPLACE: fail with ENODATA when it does not.
    pub replace: bool,
}

/// Answer of `statfs`, in the units of `statvfs(3)`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StatFs {
    /// Total data blocks in units of `frsize`.
    pub blocks: u64,
    /// Free blocks.
    pub bfree: u64,
    /// Free blocks for unprivileged users.
    pub bavail: u64,
    /// Total inodes.
    pub files: u64,
    /// Free inodes.
    pub ffree: u64,
    /// Optimal transfer size in bytes.
    pub bsize: u32,
    /// Longest file name in bytes.
    pub namelen: u32,
    /// Fragment size in bytes.
    pub frsize: u32,
}

/// Counters of a union since it was created; relaxed, each exact.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Counters {
    /// Inodes in the inode table now.
    pub inodes: u64,
    /// Names in the lookup cache now.
    pub cached_names: u64,
    /// Lookups answered from the lookup cache, positive.
    pub lookup_hits: u64,
    /// Lookups answered from the lookup cache, negative.
    pub lookup_negative_hits: u64,
    /// Lookups that had to ask the layers.
    pub lookup_misses: u64,
    /// Files and directories copied up.
    pub copy_ups: u64,
    /// Bytes of file data copied up (holes not counted).
    pub copy_up_bytes: u64,
    /// Descriptor cache hits.
    pub fd_hits: u64,
    /// Descriptors opened because the cache had none.
    pub fd_misses: u64,
}

impl fmt::Display for FileKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fifo => "fifo",
            Self::CharDevice => "character device",
            Self::Directory => "directory",
            Self::BlockDevice => "block device",
            Self::Regular => "file",
            Self::Symlink => "symbolic link",
            Self::Socket => "socket",
        })
    }
}
