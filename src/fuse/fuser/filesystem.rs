//! Converts the calls of the crate to operations. The crate has no call for some messages (STATX,
//! TMPFILE, SYNCFS, COPY_FILE_RANGE_64, INTERRUPT) and answers ENOSYS to them itself. Calls without
//! a method here are those that the handshake does not agree on.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::SystemTime;

use ::fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, FileHandle, INodeNo, IoctlFlags, KernelConfig,
    LockOwner, OpenFlags, PollEvents, PollFlags, PollNotifier, RenameFlags, ReplyAttr, ReplyBmap,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLock,
    ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow,
    WriteFlags,
};

use super::Filesystem;
use super::answers::Value;
use super::values::{self, Asked};
use crate::fuse::counters::Op;
use crate::fuse::flag_ioctls::{self, FlagIoctl};
use crate::fuse::operations::{
    self, Allocation, Context, CopyRange, Failure, Handle, Ino, Name, NewMode, Node, Offset,
    Operations, SetIdBits, WriteData, Xattr,
};
use crate::fuse::{protocol_values, request_scope};
use crate::union::{Caching, Write};

impl<T: Operations> Filesystem<T> {
    /// Begins an operation. A panic in one must not end the mount for other callers: if its reply
    /// is dropped, the crate answers EIO.
    fn begin(
        &self,
        request: &Request,
        operation: Op,
        ino: INodeNo,
        job: impl FnOnce(&T, Context, Ino),
    ) {
        let context = Context {
            uid: request.uid(),
            gid: request.gid(),
            pid: request.pid(),
        };
        let _scope = request_scope::begin(ino.0, context);
        let handled = catch_unwind(AssertUnwindSafe(|| {
            if let Some(operations) = self.shared.operations.get() {
                operations.count(operation);
                job(operations, context, Ino(ino.0));
            }
        }));
        if handled.is_err() {
            tracing::error!(?operation, "request panicked");
        }
    }

    fn checks_flags(&self) -> bool {
        self.shared.checks_flags.get().copied().unwrap_or_default()
    }
}

fn named(parent: INodeNo, name: &OsStr) -> Name<'_> {
    Name {
        parent: Ino(parent.0),
        name: name.as_bytes(),
    }
}

fn flags(flags: OpenFlags) -> operations::OpenFlags {
    operations::OpenFlags(flags.0.cast_unsigned())
}

impl<T: Operations> ::fuser::Filesystem for Filesystem<T> {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        self.agree(config)
    }

    fn lookup(&self, r: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.begin(r, Op::Lookup, parent, |fs, _, _| match name.as_bytes() {
            b"." => fs.lookup_node(Node(parent.0), reply),
            _ => fs.lookup(named(parent, name), reply),
        });
    }

    /// The crate splits a BATCH_FORGET into single calls.
    fn forget(&self, r: &Request, ino: INodeNo, count: u64) {
        self.begin(r, Op::Forget, ino, |fs, _, ino| fs.forget(ino, count));
    }

    fn getattr(&self, r: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.begin(r, Op::GetAttr, ino, |fs, _, ino| fs.getattr(ino, reply));
    }

    fn setattr(
        &self,
        r: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        ctime: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let change = values::set_attr(&Asked {
            mode,
            uid,
            gid,
            size,
            atime,
            mtime,
            ctime,
        });
        self.begin(r, Op::SetAttr, ino, |fs, context, ino| {
            fs.setattr(context, Node(ino.0), change, reply);
        });
    }

    fn readlink(&self, r: &Request, ino: INodeNo, reply: ReplyData) {
        self.begin(r, Op::ReadLink, ino, |fs, _, ino| fs.readlink(ino, reply));
    }

    fn mknod(
        &self,
        r: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        self.begin(r, Op::MkNod, parent, |fs, context, _| {
            let (new, rdev) = (NewMode { mode, umask }, protocol_values::decode_dev(rdev));
            fs.mknod(context, named(parent, name), new, rdev, reply);
        });
    }

    fn mkdir(
        &self,
        r: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        self.begin(r, Op::MkDir, parent, |fs, context, _| {
            fs.mkdir(context, named(parent, name), NewMode { mode, umask }, reply);
        });
    }

    fn unlink(&self, r: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.begin(r, Op::Unlink, parent, |fs, _, _| {
            fs.unlink(named(parent, name), reply);
        });
    }

    fn rmdir(&self, r: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.begin(r, Op::RmDir, parent, |fs, _, _| {
            fs.rmdir(named(parent, name), reply);
        });
    }

    fn symlink(
        &self,
        r: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        self.begin(r, Op::SymLink, parent, |fs, context, _| {
            let target = target.as_os_str().as_bytes();
            fs.symlink(context, named(parent, name), target, reply);
        });
    }

    fn rename(
        &self,
        r: &Request,
        parent: INodeNo,
        name: &OsStr,
        to: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        self.begin(
            r,
            Op::Rename,
            parent,
            |fs, _, _| match protocol_values::rename_flags(flags.bits()) {
                Some(flags) => fs.rename(named(parent, name), named(to, new_name), flags, reply),
                None => Failure::error(reply, libc::EINVAL),
            },
        );
    }

    fn link(&self, r: &Request, ino: INodeNo, to: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.begin(r, Op::Link, ino, |fs, _, ino| {
            fs.link(ino, named(to, name), reply);
        });
    }

    /// The crate drops OPEN_KILL_SUIDGID, which the kernel sends only if the handshake agreed that
    /// an open truncates.
    fn open(&self, r: &Request, ino: INodeNo, how: OpenFlags, reply: ReplyOpen) {
        self.begin(r, Op::Open, ino, |fs, context, ino| {
            fs.open(context, Node(ino.0), flags(how), SetIdBits::Kept, reply);
        });
    }

    fn read(
        &self,
        r: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        how: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.begin(r, Op::Read, ino, |fs, _, ino| {
            fs.read(ino, Offset(offset), size, flags(how).caching(), reply);
        });
    }

    fn write(
        &self,
        r: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        write: WriteFlags,
        how: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let pages = write.contains(WriteFlags::FUSE_WRITE_CACHE);
        let write = WriteData {
            offset: Offset(offset),
            data,
            how: Write {
                // Writes of cached pages never bypass the cache.
                caching: if pages {
                    Caching::Cached
                } else {
                    flags(how).caching()
                },
                append: flags(how).appends(),
                pages,
            },
            set_id: SetIdBits::dropped_if(write.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID)),
        };
        self.begin(r, Op::Write, ino, |fs, context, ino| {
            fs.write(context, ino, write, reply);
        });
    }

    fn flush(&self, r: &Request, ino: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        self.begin(r, Op::Flush, ino, |fs, _, ino| fs.flush(ino, reply));
    }

    fn release(
        &self,
        r: &Request,
        ino: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.begin(r, Op::Release, ino, |fs, _, ino| {
            fs.release(Node(ino.0), Handle(handle.0), reply);
        });
    }

    fn fsync(&self, r: &Request, ino: INodeNo, _: FileHandle, data_only: bool, reply: ReplyEmpty) {
        self.begin(r, Op::Fsync, ino, |fs, _, ino| {
            fs.fsync(ino, operations::sync_extent(data_only), reply);
        });
    }

    fn opendir(&self, r: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        self.begin(r, Op::OpenDir, ino, |fs, _, ino| fs.opendir(ino, reply));
    }

    fn readdir(
        &self,
        r: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        reply: ReplyDirectory,
    ) {
        self.begin(r, Op::ReadDir, ino, |fs, _, ino| {
            fs.readdir(ino, Offset(offset), reply);
        });
    }

    fn releasedir(
        &self,
        r: &Request,
        ino: INodeNo,
        _: FileHandle,
        _: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.begin(r, Op::ReleaseDir, ino, |fs, _, ino| {
            fs.releasedir(ino, reply);
        });
    }

    fn fsyncdir(
        &self,
        r: &Request,
        ino: INodeNo,
        _: FileHandle,
        data_only: bool,
        reply: ReplyEmpty,
    ) {
        self.begin(r, Op::FsyncDir, ino, |fs, _, ino| {
            fs.fsyncdir(ino, operations::sync_extent(data_only), reply);
        });
    }

    fn statfs(&self, r: &Request, ino: INodeNo, reply: ReplyStatfs) {
        self.begin(r, Op::StatFs, ino, |fs, _, _| fs.statfs(reply));
    }

    fn setxattr(
        &self,
        r: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _: u32,
        reply: ReplyEmpty,
    ) {
        self.begin(r, Op::SetXattr, ino, |fs, context, ino| {
            let name = name.as_bytes();
            let flags = protocol_values::xattr_flags(flags.cast_unsigned());
            fs.setxattr(context, ino, Xattr { name, value }, flags, None, reply);
        });
    }

    fn getxattr(&self, r: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        self.begin(r, Op::GetXattr, ino, |fs, _, ino| {
            fs.getxattr(ino, name.as_bytes(), Value { reply, size });
        });
    }

    fn listxattr(&self, r: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.begin(r, Op::ListXattr, ino, |fs, context, ino| {
            fs.listxattr(context, ino, Value { reply, size });
        });
    }

    fn removexattr(&self, r: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.begin(r, Op::RemoveXattr, ino, |fs, _, ino| {
            fs.removexattr(ino, name.as_bytes(), reply);
        });
    }

    fn access(&self, r: &Request, ino: INodeNo, _: AccessFlags, reply: ReplyEmpty) {
        self.begin(r, Op::Access, ino, |fs, _, ino| fs.access(ino, reply));
    }

    fn create(
        &self,
        r: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        how: i32,
        reply: ReplyCreate,
    ) {
        self.begin(r, Op::Create, parent, |fs, context, _| {
            let (new, how) = (NewMode { mode, umask }, flags(OpenFlags(how)));
            fs.create(context, named(parent, name), new, how, reply);
        });
    }

    fn getlk(
        &self,
        r: &Request,
        ino: INodeNo,
        _: FileHandle,
        _: LockOwner,
        _: u64,
        _: u64,
        _: i32,
        _: u32,
        reply: ReplyLock,
    ) {
        self.begin(r, Op::GetLk, ino, |fs, _, ino| fs.getlk(ino, reply));
    }

    fn setlk(
        &self,
        r: &Request,
        ino: INodeNo,
        _: FileHandle,
        _: LockOwner,
        _: u64,
        _: u64,
        _: i32,
        _: u32,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.begin(r, Op::SetLk, ino, |fs, _, ino| fs.setlk(ino, reply));
    }

    fn bmap(&self, r: &Request, ino: INodeNo, _: u32, _: u64, reply: ReplyBmap) {
        self.begin(r, Op::Bmap, ino, |fs, _, ino| fs.bmap(ino, reply));
    }

    fn ioctl(
        &self,
        r: &Request,
        ino: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        cmd: u32,
        data: &[u8],
        out_size: u32,
        reply: ReplyIoctl,
    ) {
        let of_flags = flag_ioctls::parse(cmd, data, out_size).filter(|_| self.checks_flags());
        self.begin(r, Op::Ioctl, ino, |fs, _, ino| match of_flags {
            Some(FlagIoctl::Get(form)) => fs.flags(ino, form, reply),
            Some(FlagIoctl::Set(flags)) => fs.set_flags(ino, flags, reply),
            None => fs.ioctl(ino, reply),
        });
    }

    fn poll(
        &self,
        r: &Request,
        ino: INodeNo,
        _: FileHandle,
        _: PollNotifier,
        _: PollEvents,
        _: PollFlags,
        reply: ReplyPoll,
    ) {
        self.begin(r, Op::Poll, ino, |fs, _, ino| fs.poll(ino, reply));
    }

    fn fallocate(
        &self,
        r: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        self.begin(r, Op::Fallocate, ino, |fs, context, ino| {
            let range = Allocation {
                offset: Offset(offset),
                length,
                mode: mode.cast_unsigned(),
            };
            fs.fallocate(context, ino, range, reply);
        });
    }

    fn lseek(
        &self,
        r: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        self.begin(r, Op::Lseek, ino, |fs, _, ino| {
            let offset = Offset(offset.cast_unsigned());
            fs.lseek(ino, offset, whence.cast_unsigned(), reply);
        });
    }

    fn copy_file_range(
        &self,
        r: &Request,
        from: INodeNo,
        _: FileHandle,
        from_offset: u64,
        to: INodeNo,
        _: FileHandle,
        to_offset: u64,
        length: u64,
        flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        self.begin(r, Op::CopyFileRange, from, |fs, context, from| {
            let range = CopyRange {
                from,
                from_offset: Offset(from_offset),
                to: Ino(to.0),
                to_offset: Offset(to_offset),
                length,
                flags: flags.bits(),
            };
            fs.copy_file_range(context, range, reply);
        });
    }
}
