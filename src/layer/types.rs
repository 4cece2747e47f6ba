//! File types and times.

use std::fmt;

/// A file type; the value is that of `S_IFMT >> 12`.
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
    /// Returns the type in the `S_IFMT` bits of a mode; `None` for an unknown one.
    pub fn from_mode(mode: u32) -> Option<Self> {
        Self::from_dirent((mode >> 12 & 0xf) as u8)
    }

    /// Returns the type in the `d_type` of a directory entry; `None` for DT_UNKNOWN and DT_WHT.
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

    /// Returns the `S_IFMT` bits.
    pub fn mode_bits(self) -> u32 {
        (self as u32) << 12
    }
}

/// A time: seconds since 1970 (negative before) and nanoseconds. Packed, because each inode in memory
/// has four of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(Rust, packed(4))]
pub struct Time {
    /// Seconds, rounded towards minus infinity.
    pub sec: i64,
    /// Nanoseconds, 0 to 999,999,999.
    pub nsec: u32,
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
