//! Properties of the file system of a layer.

use std::collections::HashMap;
use std::ffi::CStr;
use std::os::fd::{AsFd as _, OwnedFd};

use rustix::io::Errno;

use super::at::At;
use super::lower::Layer;
use crate::sys::handle::fs_uuid;

/// Known file systems, by device number.
pub type FileSystems = HashMap<u64, FileSystem>;

/// A file system.
#[derive(Clone, Copy, Debug)]
pub struct FileSystem {
    /// The UUID, if it is known.
    pub uuid: Option<[u8; 16]>,
    /// Whether a file keeps its inode number as long as it lives. Where it does not, another
    /// number is no sign that somebody exchanged the file.
    pub keeps_numbers: bool,
}

impl FileSystem {
    pub(super) fn of(root: &OwnedFd) -> Self {
        /// linux/magic.h, where each is named: MSDOS, EXFAT, FUSE, CIFS, SMB2. They give a file a new
        /// number after it has left the kernel's memory.
        const RENUMBER: [u64; 5] = [0x4d44, 0x2011_bab0, 0x6573_5546, 0xff53_4d42, 0xfe53_4d42];
        let magic = rustix::fs::fstatfs(root).map(|s| s.f_type as u64 & 0xffff_ffff);
        Self {
            uuid: fs_uuid(root),
            keeps_numbers: !magic.is_ok_and(|magic| RENUMBER.contains(&magic)),
        }
    }
}

impl Layer {
    /// Returns the length of the longest name, in bytes.
    pub fn name_max(&self) -> usize {
        let max = rustix::fs::fstatvfs(&self.root).map_or(255, |s| s.f_namemax);
        usize::try_from(max).unwrap_or(255)
    }

    /// Whether its files can carry POSIX ACLs.
    pub fn has_acl(&self) -> bool {
        const DEFAULT: &CStr = c"system.posix_acl_default";
        let root = At::fd(self.root.as_fd());
        !matches!(root.xattr_raw(DEFAULT), Err(Errno::OPNOTSUPP))
    }

    /// Whether its file system stacks others itself, and so has a stack depth: overlayfs, eCryptfs
    /// (linux/magic.h), and FUSE, which has one when it passes data through.
    pub fn is_stacked(&self) -> bool {
        let stacks = |magic| matches!(magic, 0x794c_7630 | 0xf15f | 0x6573_5546);
        rustix::fs::fstatfs(&self.root).is_ok_and(|s| stacks(s.f_type as u64))
    }
}
