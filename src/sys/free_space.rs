//! Space on the file system of a store: what comes in must fit and leave a reserve, so that
//! nothing from outside fills the disk that the system itself is on.

use std::os::fd::AsFd;

use rustix::io::Errno;

/// Bytes that stay free, at most; on small file systems it is a twentieth of it.
const RESERVE: u64 = 256 << 20;
/// Which part of the file system, and of its inodes, stays free.
const PART: u64 = 20;
/// Inodes that stay free, at most.
const INODES: u64 = 10_000;

/// What a file system has left, without the reserve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FreeSpace {
    /// Bytes that may come.
    pub(crate) bytes: u64,
    /// Files that may be made; `None`: it does not count them.
    pub(crate) files: Option<u64>,
}

impl FreeSpace {
    /// Of the file system that `file` is on.
    pub(crate) fn of(file: impl AsFd) -> Result<Self, Errno> {
        let stat = rustix::fs::fstatvfs(file)?;
        let unit = stat.f_frsize.max(1);
        let size = stat.f_blocks.saturating_mul(unit);
        let free = stat.f_bavail.saturating_mul(unit);
        let files = (stat.f_files > 0).then(|| {
            let reserve = INODES.min(stat.f_files / PART);
            stat.f_favail.saturating_sub(reserve)
        });
        Ok(Self {
            bytes: free.saturating_sub(RESERVE.min(size / PART)),
            files,
        })
    }
}

/// A count of bytes for a message, exact enough to compare two.
pub(crate) fn shown(bytes: u64) -> String {
    match bytes {
        0..0x10_0000 => format!("{bytes} bytes"),
        0x10_0000..0x4000_0000 => format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20)),
        _ => format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30)),
    }
}

/// Looks from time to time whether there is still room, while something is written.
#[derive(Debug)]
pub(crate) struct FreeSpaceWatch {
    left: u64,
}

/// Bytes between two looks, and what a new file counts for.
const STEP: u64 = 16 << 20;
pub(crate) const PER_FILE: u64 = 4096;

impl FreeSpaceWatch {
    /// Looks at once.
    pub(crate) fn new() -> Self {
        Self { left: 0 }
    }

    /// So many bytes are about to be written; false: there is no room any more.
    pub(crate) fn allows(&mut self, file: impl AsFd, bytes: u64) -> Result<bool, Errno> {
        if bytes < self.left {
            self.left -= bytes;
            return Ok(true);
        }
        let room = FreeSpace::of(file)?;
        self.left = STEP.min(room.bytes);
        Ok(room.bytes > bytes && room.files != Some(0))
    }
}
