//! One counter for each FUSE operation, so that tests and users can see the number of messages that
//! a workload costs.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! operations {
    ($($variant:ident $name:literal,)*) => {
        /// The operations, named as in linux/fuse.h without the prefix `FUSE_`. FORGET counts
        /// inodes: each one of a BATCH_FORGET, too. RENAME, SETLK and COPY_FILE_RANGE count
        /// their variants (RENAME2, SETLKW, COPY_FILE_RANGE_64).
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum Op { $($variant,)* }

        const NAMES: &[&str] = &[$($name,)*];
    };
}

operations! {
    Init "INIT",
    Destroy "DESTROY",
    Lookup "LOOKUP",
    Forget "FORGET",
    GetAttr "GETATTR",
    SetAttr "SETATTR",
    ReadLink "READLINK",
    MkNod "MKNOD",
    MkDir "MKDIR",
    Unlink "UNLINK",
    RmDir "RMDIR",
    SymLink "SYMLINK",
    Rename "RENAME",
    Link "LINK",
    Open "OPEN",
    Read "READ",
    Write "WRITE",
    Flush "FLUSH",
    Release "RELEASE",
    Fsync "FSYNC",
    OpenDir "OPENDIR",
    ReadDir "READDIR",
    ReadDirPlus "READDIRPLUS",
    ReleaseDir "RELEASEDIR",
    FsyncDir "FSYNCDIR",
    StatFs "STATFS",
    SetXattr "SETXATTR",
    GetXattr "GETXATTR",
    ListXattr "LISTXATTR",
    RemoveXattr "REMOVEXATTR",
    Access "ACCESS",
    Create "CREATE",
    GetLk "GETLK",
    SetLk "SETLK",
    Bmap "BMAP",
    Ioctl "IOCTL",
    Poll "POLL",
    Fallocate "FALLOCATE",
    Lseek "LSEEK",
    CopyFileRange "COPY_FILE_RANGE",
    StatX "STATX",
    TmpFile "TMPFILE",
    SyncFs "SYNCFS",
    Interrupt "INTERRUPT",
}

impl Op {
    pub(super) fn name(self) -> &'static str {
        NAMES.get(self as usize).copied().unwrap_or("?")
    }
}

/// A counter on a separate cache line, so that workers on different CPUs count different operations
/// without contention.
#[derive(Default)]
#[repr(align(64))]
struct Slot(AtomicU64);

/// Requests received since the mount, by operation.
pub(super) struct Counters([Slot; NAMES.len()]);

impl Default for Counters {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Slot::default()))
    }
}

impl Counters {
    /// Counts one request.
    pub(super) fn count(&self, op: Op) {
        if let Some(slot) = self.0.get(op as usize) {
            slot.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Returns the operations that came at least once, with their numbers.
    pub(super) fn snapshot(&self) -> BTreeMap<&'static str, u64> {
        NAMES
            .iter()
            .zip(&self.0)
            .map(|(name, slot)| (*name, slot.0.load(Ordering::Relaxed)))
            .filter(|(_, count)| *count > 0)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_by_name() {
        let counters = Counters::default();
        assert!(counters.snapshot().is_empty());
        counters.count(Op::Lookup);
        counters.count(Op::CopyFileRange);
        counters.count(Op::CopyFileRange);
        let expected = [("LOOKUP", 1), ("COPY_FILE_RANGE", 2)];
        assert_eq!(counters.snapshot(), expected.into());
        assert_eq!(Op::Init.name(), "INIT");
        assert_eq!(Op::CopyFileRange.name(), "COPY_FILE_RANGE");
    }
}
