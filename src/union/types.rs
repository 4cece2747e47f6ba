//! The values that the union core takes and returns.

use std::os::fd::AsFd;

use rustix::io::Errno;

pub use crate::layer::types::{FileKind, Time};

/// An inode number of the union, which `stat` shows and a transport uses to name a file. It is
/// unique within the mount, and stays the same across copy-up and remount.
pub type Ino = u64;

/// The inode number of the union's root directory.
pub const ROOT_INO: Ino = 1;

/// The credentials of the caller, as the transport reports them. Nothing else is known of a caller:
/// its process ID may have been reused, and the capabilities in /proc may be those of a user
/// namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// fsuid of the caller.
    pub uid: u32,
    /// fsgid of the caller.
    pub gid: u32,
}

/// The attributes of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    /// Inode number in the union.
    pub ino: Ino,
    /// Tells successive files with the same number apart, in file handles.
    pub generation: u32,
    /// File type.
    pub kind: FileKind,
    /// Permission bits, `mode & 0o7777`.
    pub perm: u32,
    /// Number of hard links in the union; 1 for merged directories, as with overlayfs.
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
    /// Last change of data.
    pub mtime: Time,
    /// Last change of status.
    pub ctime: Time,
    /// Birth time, if the backing file system records one.
    pub btime: Option<Time>,
}

/// A time to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// The server's current time.
    Now,
    /// A given time.
    At(Time),
}

/// The attributes that a `setattr` changes; `None` leaves one unchanged.
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
    /// With a size or an owner: drop the set-id bits, which the caller may not keep. A `setattr`
    /// without any attribute implies it.
    pub drops_set_id: bool,
    /// The time is that of cached writes (`writeback`) and was not set by a program.
    pub of_writes: bool,
}

/// `rename` flags, values as in `renameat2(2)`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RenameFlags {
    /// RENAME_NOREPLACE
    pub noreplace: bool,
    /// RENAME_EXCHANGE
    pub exchange: bool,
    /// RENAME_WHITEOUT: fails with EINVAL, as in overlayfs.
    pub whiteout: bool,
}

/// `setxattr` flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XattrFlags {
    /// XATTR_CREATE: fail with EEXIST when the attribute exists.
    pub create: bool,
    /// XATTR_REPLACE: fail with ENODATA when it does not.
    pub replace: bool,
    /// With an access ACL: drop the set-group-ID bit, because the caller is not in the file's group
    /// (FUSE_SETXATTR_ACL_KILL_SGID).
    pub drops_set_gid: bool,
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

/// Counters of a union since it was created.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "fuse", derive(serde::Serialize, serde::Deserialize))]
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
    /// Walks through the whole tree for file handles whose files the kernel had forgotten.
    #[cfg_attr(feature = "fuse", serde(default))]
    pub searches: u64,
    /// Whether names and attributes of the lowers come from a catalog.
    #[cfg_attr(feature = "fuse", serde(default))]
    pub catalogued: bool,
}

/// A change of data that drops the set-id bits of a file.
#[derive(Clone, Copy)]
pub struct SetIdLoss<'c> {
    /// The caller that makes the change.
    pub caller: Caller,
    /// Called with the inode after bits were dropped and before data changes, so that cached
    /// attributes can be invalidated: no process may execute the new data with the old bits.
    pub fell: &'c dyn Fn(Ino),
}

/// The way of data between the caller and a layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Caching {
    /// Through the page cache of the layer's file system.
    #[default]
    Cached,
    /// With O_DIRECT, if the file system of the data supports it.
    Direct,
}

/// What a request changes of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Its data or its size.
    Data,
    /// Its owner, mode, times, xattrs, flags or names.
    Metadata,
}

/// What a sync writes to disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncExtent {
    /// Data and attributes, as fsync(2).
    All,
    /// Data and what is needed to read it, as fdatasync(2).
    Data,
}

impl SyncExtent {
    pub(crate) fn sync(self, fd: impl AsFd) -> Result<(), Errno> {
        match self {
            Self::All => rustix::fs::fsync(fd),
            Self::Data => rustix::fs::fdatasync(fd),
        }
    }
}

/// A position in the data of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// The file.
    pub ino: Ino,
    /// Offset in bytes.
    pub offset: u64,
}

/// The options of a write.
#[derive(Clone, Copy, Debug, Default)]
pub struct Write {
    /// The way of the data.
    pub caching: Caching,
    /// The descriptor has O_APPEND.
    pub append: bool,
    /// The data comes from the kernel's page cache, in whole pages.
    pub pages: bool,
}

/// The flags of a file that chattr(1) changes (`FS_` of linux/fs.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileFlags(pub u32);
