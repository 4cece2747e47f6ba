//! The answers as messages of the protocol. A type around [`Reply`] contains the properties of the
//! request that its answer depends on: the size of the buffer, and the requested form.

use zerocopy::IntoBytes as _;

use super::abi::{
    AttrOut, CreateOut, EntryOut, GetxattrIn, IoctlOut, OpenOut, StatfsOut, StatxOut, WriteOut,
};
use super::reply::{DirBuffer, Reply};
use crate::fuse::buffer::{answer_with_read, with_buffer};
use crate::fuse::operations::{
    AddEntry, AttrReply, CreateReply, DataReply, DirectoryReply, EmptyReply, EntryReply, Failure,
    FlagsReply, InodeFlags, KnownAs, OffsetReply, OpenReply, Opened, ReadReply, StatfsReply,
    StatxReply, WriteReply, XattrReply,
};
use crate::fuse::protocol_values;
use crate::union::{self, Attr, DirItem, EntryRef, StatFs};

impl Failure for Reply {
    fn error(self, errno: i32) {
        Self::error(self, errno);
    }
}

impl EmptyReply for Reply {
    fn ok(self) {
        self.bytes(&[]);
    }
}

impl DataReply for Reply {
    fn data(self, data: &[u8]) {
        self.bytes(data);
    }
}

impl ReadReply for Reply {
    /// Over a ring, this needs no copy.
    fn read(
        self,
        size: u32,
        mut read: impl FnMut(&mut [u8]) -> union::Result<usize>,
    ) -> Option<Self> {
        let reply = self.filled(size, |room| read(room).ok())?;
        answer_with_read(size, reply, read)
    }
}

impl EntryReply for Reply {
    fn entry(self, entry: EntryRef<'_>, known: KnownAs) {
        if self.message(&protocol_values::entry(&entry, known)) {
            entry.surrender();
        }
    }

    /// The answer is inode 0 with a lifetime.
    fn no_entry(self) {
        self.message(&protocol_values::no_entry());
    }
}

impl AttrReply for Reply {
    fn attr(self, attr: &Attr, lifetime: u64) {
        self.message(&AttrOut {
            attr_valid: lifetime,
            attr: protocol_values::attr(attr),
            ..AttrOut::default()
        });
    }
}

impl StatxReply for Reply {
    fn statx(self, attr: &Attr, mask: u32, lifetime: u64) {
        self.message(&StatxOut {
            attr_valid: lifetime,
            stat: protocol_values::statx(attr, mask),
            ..StatxOut::default()
        });
    }
}

impl OpenReply for Reply {
    fn opened(self, opened: Opened) -> bool {
        self.message(&open_out(opened))
    }
}

impl CreateReply for Reply {
    fn created(self, entry: EntryRef<'_>, opened: Opened, known: KnownAs) -> bool {
        let taken = self.message(&CreateOut {
            entry: protocol_values::entry(&entry, known),
            open: open_out(opened),
        });
        if taken {
            entry.surrender();
        }
        taken
    }
}

fn open_out(opened: Opened) -> OpenOut {
    OpenOut {
        fh: opened.handle.0,
        open_flags: opened.flags,
        backing_id: opened.backing,
    }
}

impl WriteReply for Reply {
    fn written(self, count: usize) {
        self.message(&WriteOut {
            size: u32::try_from(count).unwrap_or(u32::MAX),
            padding: 0,
        });
    }
}

impl StatfsReply for Reply {
    fn statfs(self, s: &StatFs) {
        self.message(&StatfsOut {
            blocks: s.blocks,
            bfree: s.bfree,
            bavail: s.bavail,
            files: s.files,
            ffree: s.ffree,
            bsize: s.bsize,
            namelen: s.namelen,
            frsize: s.frsize,
            ..StatfsOut::default()
        });
    }
}

impl OffsetReply for Reply {
    fn offset(self, offset: u64) {
        match i64::try_from(offset) {
            Ok(offset) => {
                self.message(&offset);
            }
            Err(_) => self.error(libc::EOVERFLOW),
        }
    }
}

/// The answer to an IOCTL.
pub(super) struct IoctlReply(pub(super) Reply);

impl Failure for IoctlReply {
    fn error(self, errno: i32) {
        self.0.error(errno);
    }
}

impl EmptyReply for IoctlReply {
    fn ok(self) {
        self.0.message(&IoctlOut::default());
    }
}

impl FlagsReply for IoctlReply {
    fn flags(self, flags: InodeFlags) {
        let head = IoctlOut::default();
        let value = match &flags {
            InodeFlags::Flags(flags) => flags.as_bytes(),
            InodeFlags::Xflags(flags) => flags.as_bytes(),
        };
        self.0.bytes(&[head.as_bytes(), value].concat());
    }
}

/// The answer to COPY_FILE_RANGE_64.
pub(super) struct WideCount(pub(super) Reply);

impl Failure for WideCount {
    fn error(self, errno: i32) {
        self.0.error(errno);
    }
}

impl WriteReply for WideCount {
    fn written(self, count: usize) {
        self.0.message(&(count as u64));
    }
}

/// The answer to GETXATTR or LISTXATTR.
pub(super) struct Value {
    pub(super) reply: Reply,
    /// The size of the buffer in bytes; 0 asks only for the length.
    pub(super) size: u32,
}

impl Failure for Value {
    fn error(self, errno: i32) {
        self.reply.error(errno);
    }
}

impl XattrReply for Value {
    fn value(self, value: &[u8]) {
        match u32::try_from(value.len()) {
            Ok(len) if self.size == 0 => {
                self.reply.message(&GetxattrIn {
                    size: len,
                    padding: 0,
                });
            }
            Ok(len) if len <= self.size => {
                self.reply.bytes(value);
            }
            _ => self.reply.error(libc::ERANGE),
        }
    }
}

/// The answer to READDIR or READDIRPLUS.
pub(super) struct Listing {
    pub(super) reply: Reply,
    /// The size of the buffer in bytes.
    pub(super) size: u32,
    /// Whether entries have attributes.
    pub(super) plus: bool,
}

impl Failure for Listing {
    fn error(self, errno: i32) {
        self.reply.error(errno);
    }
}

impl DirectoryReply for Listing {
    fn list(self, list: impl FnOnce(&mut AddEntry<'_>) -> union::Result<()>) {
        let plus = self.plus;
        with_buffer(self.size, self.reply, |buffer, reply| {
            let mut listing = DirBuffer::new(buffer);
            let result = list(&mut |item, known| {
                if plus {
                    add_plus(&mut listing, item, known)
                } else {
                    add(&mut listing, None, &item)
                }
            });
            match result {
                Err(error) if listing.bytes().is_empty() => reply.fail(&error),
                _ => {
                    reply.bytes(listing.bytes());
                }
            }
            None::<()>
        });
    }
}

fn add(listing: &mut DirBuffer<'_>, entry: Option<&EntryOut>, item: &DirItem<'_, '_>) -> bool {
    listing.add(entry, item.ino, item.offset, item.kind as u32, item.name)
}

/// Returns `false` if the entry did not fit. Its lookup is then returned.
fn add_plus(listing: &mut DirBuffer<'_>, item: DirItem<'_, '_>, known: KnownAs) -> bool {
    let out = match &item.entry {
        Some(entry) => protocol_values::entry(entry, known),
        // The entry has no node, because a node would count as a lookup. The kernel takes only the
        // name.
        None => EntryOut::default(),
    };
    let fits = add(listing, Some(&out), &item);
    if fits && let Some(entry) = item.entry {
        entry.surrender();
    }
    fits
}
