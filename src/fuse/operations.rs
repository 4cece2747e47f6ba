//! The requests of a transport to the file system, and the answers: one method for each operation
//! of FUSE, one trait for each form of answer. The adapter implements [`Operations`] over a union.
//! The transports (`wire`: /dev/fuse and io_uring; `fuser`: the crate of that name) call it and
//! implement the answers. Neither side knows the other, and no bytes of the protocol pass here.
//!
//! Operations with a default are answered by it as by a file system that lacks them. After ENOSYS
//! the kernel does not send most of them again.
//!
//! Any thread gives an answer exactly once. If an answer is dropped, the caller gets an I/O error.

use super::counters::Op;
use crate::sys::fileattr::FsxAttr;
use crate::union::{
    self, Attr, Caching, DirItem, EntryRef, RenameFlags, SetAttr, StatFs, SyncExtent, Write,
    XattrFlags,
};

/// The number of an inode; 1 is the root of the mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ino(pub(super) u64);

/// The number by which the kernel knows a file (`nodeid`): that of its inode, but for a few files
/// ([`Successors`](super::successors::Successors)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Node(pub(super) u64);

/// How the kernel knows an inode from an answer on.
#[derive(Clone, Copy, Debug)]
pub(super) struct KnownAs {
    /// Its number.
    pub(super) node: Node,
    /// How long the kernel may keep the attributes, in seconds.
    pub(super) lifetime: u64,
}

/// The handle that answered an open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Handle(pub(super) u64);

/// Returns the extent of a sync whose flag for fdatasync(2) is this.
pub(super) fn sync_extent(datasync: bool) -> SyncExtent {
    if datasync {
        SyncExtent::Data
    } else {
        SyncExtent::All
    }
}

/// What a change of a file's data does to its set-id bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum SetIdBits {
    /// They stay.
    Kept,
    /// They are dropped.
    Dropped,
}

impl SetIdBits {
    pub(super) fn dropped_if(condition: bool) -> Self {
        if condition { Self::Dropped } else { Self::Kept }
    }
}

/// `O_` flags of an open file, and the kernel's own (`FMODE_EXEC`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OpenFlags(pub(super) u32);

impl OpenFlags {
    /// Whether the file is truncated.
    pub(super) fn truncates(self) -> bool {
        self.has(libc::O_TRUNC)
    }

    /// Whether data bypasses the page cache.
    pub(super) fn caching(self) -> Caching {
        if self.has(libc::O_DIRECT) {
            Caching::Direct
        } else {
            Caching::Cached
        }
    }

    /// Whether each write goes to the end of the file.
    pub(super) fn appends(self) -> bool {
        self.has(libc::O_APPEND)
    }

    fn has(self, flag: libc::c_int) -> bool {
        self.0 & flag.cast_unsigned() != 0
    }
}

/// A position in a file, in bytes, or in a directory, where it has no other meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Offset(pub(super) u64);

/// The caller of a request, as the kernel reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Context {
    /// The fsuid of the caller.
    pub(super) uid: u32,
    /// The fsgid of the caller.
    pub(super) gid: u32,
    /// The thread ID of the caller; 0 if it has none in our namespace. Another thread may have it
    /// by now, so no right of a caller is derived from its files in /proc.
    pub(super) pid: u32,
}

/// The mode and umask of a new file. The union applies the umask, unless a default ACL of the
/// directory replaces it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NewMode {
    pub(super) mode: u32,
    pub(super) umask: u32,
}

/// A range of a file to allocate or free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Allocation {
    pub(super) offset: Offset,
    /// The length in bytes.
    pub(super) length: u64,
    /// `FALLOC_FL_` flags.
    pub(super) mode: u32,
}

/// Data to copy from one file to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CopyRange {
    pub(super) from: Ino,
    pub(super) from_offset: Offset,
    pub(super) to: Ino,
    pub(super) to_offset: Offset,
    /// The length in bytes.
    pub(super) length: u64,
    /// No flags are defined.
    pub(super) flags: u64,
}

/// The name of a directory entry with its directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Name<'a> {
    pub(super) parent: Ino,
    /// Any bytes except NUL and slash.
    pub(super) name: &'a [u8],
}

/// Data to write.
#[derive(Clone, Copy, Debug)]
pub(super) struct WriteData<'a> {
    pub(super) offset: Offset,
    pub(super) data: &'a [u8],
    pub(super) how: Write,
    /// Whether the file loses its set-id bits, because the caller lacks CAP_FSETID.
    pub(super) set_id: SetIdBits,
}

/// An extended attribute to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Xattr<'a> {
    pub(super) name: &'a [u8],
    pub(super) value: &'a [u8],
}

/// The form of a request for the flags of chattr(1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FlagsForm {
    /// `FS_IOC_GETFLAGS`: 4 bytes.
    Flags,
    /// `FS_IOC_FSGETXATTR`.
    Xflags,
}

/// Flags of chattr(1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum InodeFlags {
    /// The form of `FS_IOC_GETFLAGS` and `FS_IOC_SETFLAGS`.
    Flags(u32),
    /// The form of `FS_IOC_FSGETXATTR` and `FS_IOC_FSSETXATTR`.
    Xflags(FsxAttr),
}

/// The answer to an open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Opened {
    pub(super) handle: Handle,
    /// `FOPEN_` flags.
    pub(super) flags: u32,
    /// The number of the registered file that the kernel reads and writes itself, with its flag.
    pub(super) backing: i32,
}

/// The failure of an operation, which every answer can be.
pub(super) trait Failure: Sized + Send + 'static {
    /// Fails with a positive errno.
    fn error(self, errno: i32);

    /// Fails with the error of the union, and logs it once: errors that the user caused at debug
    /// level, faults of the server or the disk for the administrator.
    ///
    /// ENOSYS becomes EOPNOTSUPP. A file system of a layer can answer it. To the kernel it would mean that
    /// the server has no such operation: the kernel would send none of that kind any more for any file
    /// of the mount. After GETXATTR it would enforce no ACL.
    fn fail(self, error: &union::Error) {
        let errno = match error.errno() {
            libc::ENOSYS => libc::EOPNOTSUPP,
            errno => errno,
        };
        match errno {
            libc::EIO
            | libc::EUCLEAN
            | libc::EMFILE
            | libc::ENFILE
            | libc::ENOMEM
            | libc::ESTALE => tracing::warn!("{error}"),
            _ => tracing::debug!("{error}"),
        }
        self.error(errno);
    }
}

/// Success without a value.
pub(super) trait EmptyReply: Failure {
    fn ok(self);

    /// Answers with the result of the union.
    fn result(self, result: union::Result<()>) {
        match result {
            Ok(()) => self.ok(),
            Err(error) => self.fail(&error),
        }
    }
}

/// A reply with bytes of any length.
pub(super) trait DataReply: Failure {
    fn data(self, data: &[u8]);
}

/// A reply with data of a file.
pub(super) trait ReadReply: Failure {
    /// Answers with the data that `read` writes into a buffer of `size` bytes, which starts at a
    /// page boundary. `read` may be called again with another buffer after a failure. If it fails
    /// with EAGAIN, the reply is returned unanswered.
    fn read(self, size: u32, read: impl FnMut(&mut [u8]) -> union::Result<usize>) -> Option<Self>;
}

/// A reply with a directory entry.
pub(super) trait EntryReply: Failure {
    /// From now on the kernel holds a lookup on the entry.
    fn entry(self, entry: EntryRef<'_>, known: KnownAs);
    /// Answers that the name does not exist. The kernel may cache that.
    fn no_entry(self);

    /// Answers with the result of the union. `known` says how the kernel knows the inode that was
    /// found.
    fn result(self, result: union::Result<EntryRef<'_>>, known: impl Fn(u64) -> KnownAs) {
        match result {
            Ok(entry) => {
                let known = known(entry.attr().ino);
                self.entry(entry, known);
            }
            Err(error) => self.fail(&error),
        }
    }
}

/// A reply with attributes.
pub(super) trait AttrReply: Failure {
    /// Answers with attributes, which the kernel may keep for `lifetime` seconds.
    fn attr(self, attr: &Attr, lifetime: u64);

    /// Answers with the result of the union.
    fn result(self, result: union::Result<Attr>, lifetime: u64) {
        match result {
            Ok(attr) => self.attr(&attr, lifetime),
            Err(error) => self.fail(&error),
        }
    }
}

/// A reply with attributes in the form of statx(2).
pub(super) trait StatxReply: Failure {
    /// Answers with the attributes. `mask` has the requested `STATX_` bits. `lifetime`: see
    /// [`AttrReply::attr`].
    fn statx(self, attr: &Attr, mask: u32, lifetime: u64);
}

/// A reply with an open file.
pub(super) trait OpenReply: Failure {
    /// Answers the open. Returns whether the kernel took the answer; if not, it sends no RELEASE.
    fn opened(self, opened: Opened) -> bool;
}

/// A reply with a new file, which is open.
pub(super) trait CreateReply: Failure {
    /// As [`EntryReply::entry`] and [`OpenReply::opened`].
    fn created(self, entry: EntryRef<'_>, opened: Opened, known: KnownAs) -> bool;
}

/// A reply with the number of bytes that were written or copied.
pub(super) trait WriteReply: Failure {
    fn written(self, count: usize);

    /// Answers with the result of the union.
    fn result(self, result: union::Result<usize>) {
        match result {
            Ok(count) => self.written(count),
            Err(error) => self.fail(&error),
        }
    }
}

/// A reply with the space and the inodes of the file system.
pub(super) trait StatfsReply: Failure {
    fn statfs(self, statfs: &StatFs);
}

/// A reply with an extended attribute, or the names of all of them.
pub(super) trait XattrReply: Failure {
    /// Answers with the requested length or value, or with ERANGE if the value is too long.
    fn value(self, value: &[u8]);

    /// Answers with the result of the union.
    fn result(self, result: union::Result<Vec<u8>>) {
        match result {
            Ok(value) => self.value(&value),
            Err(error) => self.fail(&error),
        }
    }
}

/// A reply with a position in a file.
pub(super) trait OffsetReply: Failure {
    /// Answers with the position, or with EOVERFLOW if the caller's `off_t` cannot hold it.
    fn offset(self, offset: u64);
}

/// A reply with flags of chattr(1).
pub(super) trait FlagsReply: Failure {
    fn flags(self, flags: InodeFlags);
}

/// A reply with a part of a directory listing.
pub(super) trait DirectoryReply: Failure {
    /// Calls `list` with a function that adds an entry. The function returns `false` if the entry did
    /// not fit; its lookup is then not counted. An error of `list` becomes the answer
    /// only if no entry was added, because added entries must reach the kernel. The request for the
    /// next part meets the error again.
    fn list(self, list: impl FnOnce(&mut AddEntry<'_>) -> union::Result<()>);
}

/// Adds an entry to a listing.
pub(super) type AddEntry<'l> = dyn FnMut(DirItem<'_, '_>, KnownAs) -> bool + 'l;

/// Notifications to the kernel, which the transport sends over its connection.
pub(super) trait Notices: Send + Sync + 'static {
    /// Makes the kernel ask for the attributes of `ino` again, even if they are still valid. Its
    /// cached pages stay. The kernel also drops an answer with attributes that is under way.
    fn attributes_changed(&self, ino: u64);
}

/// A file system. Several threads call its methods at the same time.
pub(super) trait Operations: Send + Sync + 'static {
    /// Counts an operation that begins, or an inode that is forgotten.
    fn count(&self, operation: Op);

    /// Returns the inode that the kernel knows by a number.
    fn inode(&self, node: Node) -> Ino {
        Ino(node.0)
    }

    /// Returns some regular files that the kernel probably knows.
    fn known_files(&self) -> Vec<u64> {
        Vec::new()
    }

    /// Runs work for a user on a thread that may wait; without such a thread, on this thread.
    fn elsewhere(&self, _user: u32, work: Box<dyn FnOnce() + Send>) {
        work();
    }

    /// LOOKUP. The name `..` means the parent of the directory, which the kernel may have forgotten.
    /// Callers with file handles need it.
    fn lookup(&self, name: Name<'_>, reply: impl EntryReply);

    /// LOOKUP of the name `.`: a file by its number. Callers with file handles need it.
    fn lookup_node(&self, node: Node, reply: impl EntryReply);

    /// FORGET: the kernel returns `count` lookups. It has no answer.
    fn forget(&self, ino: Ino, count: u64);

    /// GETATTR.
    fn getattr(&self, ino: Ino, reply: impl AttrReply);

    /// STATX, for fields that GETATTR does not have.
    fn statx(&self, _ino: Ino, _mask: u32, reply: impl StatxReply) {
        reply.error(libc::ENOSYS);
    }

    /// SETATTR.
    fn setattr(&self, context: Context, node: Node, change: SetAttr, reply: impl AttrReply);

    /// READLINK.
    fn readlink(&self, ino: Ino, reply: impl DataReply);

    /// SYMLINK.
    fn symlink(&self, context: Context, name: Name<'_>, target: &[u8], reply: impl EntryReply);

    /// MKNOD; `rdev` is major and minor.
    fn mknod(
        &self,
        context: Context,
        name: Name<'_>,
        new: NewMode,
        rdev: (u32, u32),
        reply: impl EntryReply,
    );

    /// MKDIR.
    fn mkdir(&self, context: Context, name: Name<'_>, new: NewMode, reply: impl EntryReply);

    /// UNLINK.
    fn unlink(&self, name: Name<'_>, reply: impl EmptyReply);

    /// RMDIR.
    fn rmdir(&self, name: Name<'_>, reply: impl EmptyReply);

    /// RENAME.
    fn rename(&self, old: Name<'_>, new: Name<'_>, flags: RenameFlags, reply: impl EmptyReply);

    /// LINK.
    fn link(&self, ino: Ino, name: Name<'_>, reply: impl EntryReply);

    /// OPEN. `set_id`: what truncating does to the set-id bits of the file.
    fn open(
        &self,
        _context: Context,
        _node: Node,
        _flags: OpenFlags,
        _set_id: SetIdBits,
        reply: impl OpenReply,
    ) {
        reply.error(libc::ENOSYS);
    }

    /// CREATE.
    fn create(
        &self,
        _context: Context,
        _name: Name<'_>,
        _new: NewMode,
        _flags: OpenFlags,
        reply: impl CreateReply,
    ) {
        reply.error(libc::ENOSYS);
    }

    /// TMPFILE: creates an open file without a name in the directory.
    fn tmpfile(
        &self,
        _context: Context,
        _parent: Ino,
        _new: NewMode,
        _flags: OpenFlags,
        reply: impl CreateReply,
    ) {
        reply.error(libc::ENOSYS);
    }

    /// READ.
    fn read(&self, ino: Ino, offset: Offset, size: u32, caching: Caching, reply: impl ReadReply);

    /// WRITE.
    fn write(&self, context: Context, ino: Ino, write: WriteData<'_>, reply: impl WriteReply);

    /// FLUSH, at each close(2).
    fn flush(&self, _ino: Ino, reply: impl EmptyReply) {
        reply.error(libc::ENOSYS);
    }

    /// RELEASE, after the last close(2).
    fn release(&self, _node: Node, _handle: Handle, reply: impl EmptyReply) {
        reply.ok();
    }

    /// FSYNC.
    fn fsync(&self, ino: Ino, extent: SyncExtent, reply: impl EmptyReply);

    /// OPENDIR.
    fn opendir(&self, _ino: Ino, reply: impl OpenReply) {
        reply.error(libc::ENOSYS);
    }

    /// READDIR.
    fn readdir(&self, ino: Ino, offset: Offset, reply: impl DirectoryReply);

    /// READDIRPLUS: with the attributes.
    fn readdirplus(&self, ino: Ino, offset: Offset, reply: impl DirectoryReply);

    /// RELEASEDIR.
    fn releasedir(&self, _ino: Ino, reply: impl EmptyReply) {
        reply.ok();
    }

    /// FSYNCDIR.
    fn fsyncdir(&self, ino: Ino, extent: SyncExtent, reply: impl EmptyReply);

    /// STATFS.
    fn statfs(&self, reply: impl StatfsReply);

    /// SYNCFS: syncs all written data.
    fn syncfs(&self, reply: impl EmptyReply) {
        reply.error(libc::ENOSYS);
    }

    /// SETXATTR. `kill_sgid`: whether an ACL drops the set-group-ID bit of the file; `None` if the
    /// kernel does not tell it.
    fn setxattr(
        &self,
        context: Context,
        ino: Ino,
        xattr: Xattr<'_>,
        flags: XattrFlags,
        kill_sgid: Option<bool>,
        reply: impl EmptyReply,
    );

    /// GETXATTR.
    fn getxattr(&self, ino: Ino, name: &[u8], reply: impl XattrReply);

    /// LISTXATTR.
    fn listxattr(&self, context: Context, ino: Ino, reply: impl XattrReply);

    /// REMOVEXATTR.
    fn removexattr(&self, ino: Ino, name: &[u8], reply: impl EmptyReply);

    /// ACCESS. With `default_permissions` the kernel does not ask.
    fn access(&self, _ino: Ino, reply: impl EmptyReply) {
        reply.error(libc::ENOSYS);
    }

    /// GETLK. By default the kernel keeps locks itself.
    fn getlk(&self, _ino: Ino, reply: impl Failure) {
        reply.error(libc::ENOSYS);
    }

    /// SETLK and SETLKW.
    fn setlk(&self, _ino: Ino, reply: impl EmptyReply) {
        reply.error(libc::ENOSYS);
    }

    /// BMAP, for file systems on a disk.
    fn bmap(&self, _ino: Ino, reply: impl Failure) {
        reply.error(libc::ENOSYS);
    }

    /// The IOCTLs that return the flags of a file.
    fn flags(&self, _ino: Ino, _form: FlagsForm, reply: impl FlagsReply) {
        reply.error(libc::ENOTTY);
    }

    /// The IOCTLs that change the flags of a file.
    fn set_flags(&self, _ino: Ino, _flags: InodeFlags, reply: impl EmptyReply) {
        reply.error(libc::ENOTTY);
    }

    /// Other IOCTLs.
    fn ioctl(&self, _ino: Ino, reply: impl Failure) {
        reply.error(libc::ENOTTY);
    }

    /// POLL.
    fn poll(&self, _ino: Ino, reply: impl Failure) {
        reply.error(libc::ENOSYS);
    }

    /// INTERRUPT of a running request. It has no effect here: work that waits for a disk cannot be
    /// interrupted.
    fn interrupt(&self, reply: impl Failure) {
        reply.error(libc::ENOSYS);
    }

    /// FALLOCATE.
    fn fallocate(&self, context: Context, ino: Ino, range: Allocation, reply: impl EmptyReply);

    /// LSEEK with SEEK_DATA or SEEK_HOLE; the kernel answers the others.
    fn lseek(&self, _ino: Ino, _offset: Offset, _whence: u32, reply: impl OffsetReply) {
        reply.error(libc::ENOSYS);
    }

    /// COPY_FILE_RANGE.
    fn copy_file_range(&self, context: Context, range: CopyRange, reply: impl WriteReply);

    /// DESTROY, at the end of some mounts.
    fn destroy(&self, reply: impl EmptyReply) {
        reply.ok();
    }
}
