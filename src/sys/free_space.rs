//! The free space on the file system of a store. Data from outside must fit and leave a reserve, so
//! that it never fills the disk of the system.

use std::os::fd::AsFd;

use rustix::io::Errno;

/// The maximum reserve in bytes. On small file systems the reserve is a twentieth of the size.
const RESERVE: u64 = 256 << 20;
/// The reserve is this fraction of the file system and of its inodes.
const PART: u64 = 20;
/// The maximum reserve in inodes.
const INODES: u64 = 10_000;

/// The free space of a file system without the reserve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FreeSpace {
    /// The number of bytes that may be written.
    pub(crate) bytes: u64,
    /// The number of files that may be made. `None`: the file system does not count them.
    pub(crate) files: Option<u64>,
}

impl FreeSpace {
    /// Returns the free space of the file system of `file`.
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

/// Formats a number of bytes for a message, precise enough to compare two of them.
pub(crate) fn shown(bytes: u64) -> String {
    match bytes {
        0..0x10_0000 => format!("{bytes} bytes"),
        0x10_0000..0x4000_0000 => format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20)),
        _ => format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30)),
    }
}

/// Checks the free space from time to time during writes.
#[derive(Debug)]
pub(crate) struct FreeSpaceWatch {
    left: u64,
}

/// The number of bytes between two checks. A new file counts as this number of bytes.
const STEP: u64 = 16 << 20;
pub(crate) const PER_FILE: u64 = 4096;

impl FreeSpaceWatch {
    /// Creates a watch that checks at its first use.
    pub(crate) fn new() -> Self {
        Self { left: 0 }
    }

    /// Whether there is room for `more` bytes that are about to be written.
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
