//! The answers, given by the replies of the crate. The crate does not report whether the kernel
//! took an answer. The kernel fails to take one only when the connection has ended, so counted
//! references then stay counted.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::time::Duration;

use ::fuser::{
    Errno, FileHandle, FopenFlags, Generation, INodeNo, ReplyAttr, ReplyBmap, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLock, ReplyLseek,
    ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr,
};
use zerocopy::IntoBytes as _;

use super::values;
use crate::fuse::buffer::answer_with_read;
use crate::fuse::operations::{
    AddEntry, AttrReply, CreateReply, DataReply, DirectoryReply, EmptyReply, EntryReply, Failure,
    FlagsReply, InodeFlags, KnownAs, OffsetReply, OpenReply, Opened, ReadReply, StatfsReply,
    WriteReply, XattrReply,
};
use crate::fuse::protocol_values::FOREVER;
use crate::union::{self, Attr, EntryRef, StatFs};

macro_rules! failures {
    ($($reply:ty),*) => {
        $(impl Failure for $reply {
            fn error(self, errno: i32) {
                Self::error(self, Errno::from_i32(errno));
            }
        })*
    };
}

failures!(
    ReplyAttr,
    ReplyBmap,
    ReplyCreate,
    ReplyData,
    ReplyDirectory,
    ReplyEmpty,
    ReplyEntry,
    ReplyIoctl,
    ReplyLock,
    ReplyLseek,
    ReplyOpen,
    ReplyPoll,
    ReplyStatfs,
    ReplyWrite
);

impl EmptyReply for ReplyEmpty {
    fn ok(self) {
        Self::ok(self);
    }
}

impl DataReply for ReplyData {
    fn data(self, data: &[u8]) {
        Self::data(self, data);
    }
}

impl ReadReply for ReplyData {
    fn read(self, size: u32, read: impl FnMut(&mut [u8]) -> union::Result<usize>) -> Option<Self> {
        answer_with_read(size, self, read)
    }
}

impl EntryReply for ReplyEntry {
    fn entry(self, entry: EntryRef<'_>, known: KnownAs) {
        let (attr, generation) = (values::attr(entry.attr()), Generation(entry.generation()));
        entry.surrender();
        let (lifetime, forever) = (
            Duration::from_secs(known.lifetime),
            Duration::from_secs(FOREVER),
        );
        self.entry_with_ttls(&lifetime, &forever, &attr, generation);
    }

    fn no_entry(self) {
        let forever = Duration::from_secs(FOREVER);
        Self::entry(self, &forever, &values::NO_FILE, Generation(0));
    }
}

impl AttrReply for ReplyAttr {
    fn attr(self, attr: &Attr, lifetime: u64) {
        Self::attr(self, &Duration::from_secs(lifetime), &values::attr(attr));
    }
}

/// Returns the flags of an answer to an open; `None` for one that would pass a file through, which
/// the handshake did not agree on.
fn open_flags(opened: Opened) -> Option<FopenFlags> {
    let flags = FopenFlags::from_bits_retain(opened.flags);
    (!flags.contains(FopenFlags::FOPEN_PASSTHROUGH)).then_some(flags)
}

impl OpenReply for ReplyOpen {
    fn opened(self, opened: Opened) -> bool {
        let Some(flags) = open_flags(opened) else {
            Failure::error(self, libc::EIO);
            return false;
        };
        Self::opened(self, FileHandle(opened.handle.0), flags);
        true
    }
}

impl CreateReply for ReplyCreate {
    /// The crate has one lifetime for the name and the attributes.
    fn created(self, entry: EntryRef<'_>, opened: Opened, known: KnownAs) -> bool {
        let Some(flags) = open_flags(opened) else {
            Failure::error(self, libc::EIO);
            return false;
        };
        let (attr, generation) = (values::attr(entry.attr()), Generation(entry.generation()));
        entry.surrender();
        let (lifetime, handle) = (
            Duration::from_secs(known.lifetime),
            FileHandle(opened.handle.0),
        );
        Self::created(self, &lifetime, &attr, generation, handle, flags);
        true
    }
}

impl WriteReply for ReplyWrite {
    fn written(self, count: usize) {
        Self::written(self, u32::try_from(count).unwrap_or(u32::MAX));
    }
}

impl StatfsReply for ReplyStatfs {
    fn statfs(self, s: &StatFs) {
        let (inodes, free_inodes) = (s.files, s.ffree);
        Self::statfs(
            self,
            s.blocks,
            s.bfree,
            s.bavail,
            inodes,
            free_inodes,
            s.bsize,
            s.namelen,
            s.frsize,
        );
    }
}

impl OffsetReply for ReplyLseek {
    fn offset(self, offset: u64) {
        match i64::try_from(offset) {
            Ok(offset) => Self::offset(self, offset),
            Err(_) => Failure::error(self, libc::EOVERFLOW),
        }
    }
}

impl EmptyReply for ReplyIoctl {
    fn ok(self) {
        self.ioctl(0, &[]);
    }
}

impl FlagsReply for ReplyIoctl {
    fn flags(self, flags: InodeFlags) {
        match &flags {
            InodeFlags::Flags(flags) => self.ioctl(0, flags.as_bytes()),
            InodeFlags::Xflags(flags) => self.ioctl(0, flags.as_bytes()),
        }
    }
}

/// The answer to GETXATTR or LISTXATTR.
pub(super) struct Value {
    pub(super) reply: ReplyXattr,
    /// The size of the buffer in bytes; 0 asks only for the length.
    pub(super) size: u32,
}

impl Failure for Value {
    fn error(self, errno: i32) {
        self.reply.error(Errno::from_i32(errno));
    }
}

impl XattrReply for Value {
    fn value(self, value: &[u8]) {
        match u32::try_from(value.len()) {
            Ok(len) if self.size == 0 => self.reply.size(len),
            Ok(len) if len <= self.size => self.reply.data(value),
            _ => self.reply.error(Errno::ERANGE),
        }
    }
}

impl DirectoryReply for ReplyDirectory {
    fn list(mut self, list: impl FnOnce(&mut AddEntry<'_>) -> union::Result<()>) {
        let mut added = false;
        let result = list(&mut |item, _| {
            let (ino, kind) = (INodeNo(item.ino), values::kind(item.kind));
            let fits = !self.add(ino, item.offset, kind, OsStr::from_bytes(item.name));
            added |= fits;
            fits
        });
        match result {
            Err(error) if !added => self.fail(&error),
            _ => self.ok(),
        }
    }
}
