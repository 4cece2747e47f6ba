//! The handlers: count, call the union, reply once. Called by fuser's worker threads.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, FopenFlags, INodeNo,
    InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags, PollNotifier,
    ReplyAttr, ReplyBmap, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty,
    ReplyEntry, ReplyIoctl, ReplyLock, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite,
    ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use super::{Adapter, MAX_BACKGROUND, MAX_COPY, MAX_IO, SLOW_COPY, wanted, with_buffer};
use crate::fuse::convert::{self, caller};
use crate::fuse::counters::Op;
use crate::fuse::reply::{self, Reply};
use crate::union::{SetAttr, Union, Write};

/// Whether the program opened the file with O_DIRECT (or set it since).
fn is_direct(flags: OpenFlags) -> bool {
    flags.0 & libc::O_DIRECT != 0
}

/// Operations the union does not offer: arguments (ignored), reply, counter and errno. Once
/// answered ENOSYS, the kernel does not send them again but does without.
macro_rules! refused {
    ($($name:ident($($arg:ty),*), $reply:ty => $op:ident $errno:ident;)*) => {
        $(fn $name(&self, _: &Request, $(_: $arg,)* reply: $reply) {
            self.count(Op::$op);
            reply.refuse(Errno::$errno);
        })*
    };
}

impl fuser::Filesystem for Adapter {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        self.count(Op::Init);
        let offered = config.capabilities();
        let flags = wanted(self.union.has_acl()) & offered;
        // Cannot fail: all of it is offered, and the sizes are within fuser's limits; only
        // the readahead does where the kernel offers less, which then stays.
        let _ = config.add_capabilities(flags);
        let _ = config.set_max_readahead(MAX_IO);
        let _ = config.set_max_write(MAX_IO);
        let _ = config.set_max_background(MAX_BACKGROUND);
        let _ = config.set_time_granularity(Duration::from_nanos(1));
        self.no_open = flags.contains(InitFlags::FUSE_NO_OPEN_SUPPORT);
        self.no_opendir = flags.contains(InitFlags::FUSE_NO_OPENDIR_SUPPORT);
        Ok(())
    }

    fn destroy(&mut self) {
        self.count(Op::Destroy);
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.lookup_name(parent, name, reply);
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        self.count(Op::Forget);
        self.union.forget(ino.0, nlookup);
    }

    // `fuser::ForgetOne` cannot be named outside fuser: BATCH_FORGET arrives as one
    // `forget` per inode through the default implementation.

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        self.count(Op::GetAttr);
        reply::attr(reply, Op::GetAttr, ino.0, self.union.getattr(ino.0));
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        self.count(Op::SetAttr);
        let set = SetAttr {
            perm: mode.map(|mode| mode & 0o7777),
            uid,
            gid,
            size,
            atime: atime.map(convert::set_time),
            mtime: mtime.map(convert::set_time),
        };
        let caller = caller(req);
        self.modify(ino, move |union| {
            let result = union.setattr(&caller, ino.0, &set);
            reply::attr(reply, Op::SetAttr, ino.0, result);
        });
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        self.count(Op::ReadLink);
        match self.union.readlink(ino.0) {
            Ok(target) => reply.data(&target),
            Err(error) => reply.fail(Op::ReadLink, ino.0, &error),
        }
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        self.make_node(req, parent, name, (mode, umask, rdev), reply);
    }

    fn mkdir(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        self.make_dir(req, parent, name, (mode, umask), reply);
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.count(Op::Unlink);
        let result = self.union.unlink(parent.0, name.as_bytes());
        reply::empty(reply, Op::Unlink, parent.0, result);
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.count(Op::RmDir);
        let result = self.union.rmdir(parent.0, name.as_bytes());
        reply::empty(reply, Op::RmDir, parent.0, result);
    }

    fn symlink(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        self.make_symlink(req, parent, name, target, reply);
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: fuser::RenameFlags,
        reply: ReplyEmpty,
    ) {
        self.rename_name((parent, name), (newparent, newname), flags, reply);
    }

    fn link(
        &self,
        _req: &Request,
        ino: INodeNo,
        newparent: INodeNo,
        newname: &OsStr,
        reply: ReplyEntry,
    ) {
        self.link_name(ino, newparent, newname, reply);
    }

    fn open(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.count(Op::Open);
        if self.no_open {
            reply.refuse(Errno::ENOSYS);
        } else {
            reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
        }
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.count(Op::Read);
        if i64::try_from(offset).is_err() {
            return reply.refuse(Errno::EINVAL);
        }
        with_buffer(size, |buffer| {
            match self.union.read(ino.0, offset, buffer, is_direct(flags)) {
                Ok(count) => reply.data(buffer.get(..count).unwrap_or_default()),
                Err(error) => reply.fail(Op::Read, ino.0, &error),
            }
        });
    }

    fn write(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.count(Op::Write);
        let kill_suid = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        let kill_suid = kill_suid.then(|| caller(req));
        let direct = is_direct(flags) && !write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        let write = move |union: &Union, data: &[u8]| {
            let how = Write {
                kill_suid: kill_suid.as_ref(),
                direct,
            };
            let result = union.write(ino.0, offset, data, how);
            reply::written(reply, Op::Write, ino.0, result);
        };
        if self.union.needs_copy_up(ino.0) {
            // The request's bytes lie in the worker's buffer.
            let data = data.to_vec();
            self.run(true, move |union| write(union, &data));
        } else {
            write(&self.union, data);
        }
    }

    fn release(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.count(Op::Release);
        reply.ok();
    }

    fn fsync(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        self.count(Op::Fsync);
        self.run(true, move |union| {
            reply::empty(reply, Op::Fsync, ino.0, union.fsync(ino.0, datasync));
        });
    }

    fn opendir(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.count(Op::OpenDir);
        if self.no_opendir {
            reply.refuse(Errno::ENOSYS);
        } else {
            let flags = FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE;
            reply.opened(FileHandle(0), flags);
        }
    }

    fn readdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        reply: ReplyDirectory,
    ) {
        self.list(ino, offset, reply);
    }

    fn readdirplus(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        self.list_plus(ino, offset, reply);
    }

    fn releasedir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.count(Op::ReleaseDir);
        reply.ok();
    }

    fn fsyncdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        self.count(Op::FsyncDir);
        self.run(true, move |union| {
            reply::empty(reply, Op::FsyncDir, ino.0, union.fsyncdir(ino.0, datasync));
        });
    }

    fn statfs(&self, _req: &Request, ino: INodeNo, reply: ReplyStatfs) {
        self.count(Op::StatFs);
        reply::statfs(reply, ino.0, self.union.statfs());
    }

    fn setxattr(
        &self,
        req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        self.count(Op::SetXattr);
        let (caller, flags) = (caller(req), convert::xattr_flags(flags));
        let (name, value) = (name.as_bytes().to_vec(), value.to_vec());
        self.modify(ino, move |union| {
            let result = union.setxattr(&caller, ino.0, &name, &value, flags);
            reply::empty(reply, Op::SetXattr, ino.0, result);
        });
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        self.count(Op::GetXattr);
        let result = self.union.getxattr(ino.0, name.as_bytes());
        reply::xattr(reply, Op::GetXattr, ino.0, size, result);
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.count(Op::ListXattr);
        let result = self.union.listxattr(&caller(req), ino.0);
        reply::xattr(reply, Op::ListXattr, ino.0, size, result);
    }

    fn removexattr(&self, req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.count(Op::RemoveXattr);
        let (caller, name) = (caller(req), name.as_bytes().to_vec());
        self.modify(ino, move |union| {
            let result = union.removexattr(&caller, ino.0, &name);
            reply::empty(reply, Op::RemoveXattr, ino.0, result);
        });
    }

    fn fallocate(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        self.count(Op::Fallocate);
        let caller = caller(req);
        self.modify(ino, move |union| {
            let result = union.fallocate(&caller, ino.0, mode.cast_unsigned(), offset, length);
            reply::empty(reply, Op::Fallocate, ino.0, result);
        });
    }

    fn lseek(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        self.count(Op::Lseek);
        match (u64::try_from(offset), u32::try_from(whence)) {
            (Ok(offset), Ok(whence)) => {
                reply::offset(reply, ino.0, self.union.lseek(ino.0, offset, whence));
            }
            // SEEK_DATA and SEEK_HOLE before the start of the file.
            (Err(_), Ok(_)) => reply.refuse(Errno::ENXIO),
            (_, Err(_)) => reply.refuse(Errno::EINVAL),
        }
    }

    fn copy_file_range(
        &self,
        req: &Request,
        ino_in: INodeNo,
        _fh_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        _fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        self.count(Op::CopyFileRange);
        if !flags.is_empty() {
            return reply.refuse(Errno::EINVAL);
        }
        let caller = caller(req);
        let len = len.min(MAX_COPY);
        let slow = len >= SLOW_COPY || self.union.needs_copy_up(ino_out.0);
        self.run(slow, move |union| {
            let (from, to) = ((ino_in.0, offset_in), (ino_out.0, offset_out));
            let result = union.copy_file_range(&caller, from, to, len);
            reply::written(reply, Op::CopyFileRange, ino_out.0, result);
        });
    }

    refused! {
        flush(INodeNo, FileHandle, LockOwner), ReplyEmpty => Flush ENOSYS;
        access(INodeNo, AccessFlags), ReplyEmpty => Access ENOSYS;
        // The kernel then sends MKNOD instead, and no RELEASE follows.
        create(INodeNo, &OsStr, u32, u32, i32), ReplyCreate => Create ENOSYS;
        getlk(INodeNo, FileHandle, LockOwner, u64, u64, i32, u32), ReplyLock => GetLk ENOSYS;
        setlk(INodeNo, FileHandle, LockOwner, u64, u64, i32, u32, bool), ReplyEmpty => SetLk ENOSYS;
        bmap(INodeNo, u32, u64), ReplyBmap => Bmap ENOSYS;
        ioctl(INodeNo, FileHandle, IoctlFlags, u32, &[u8], u32), ReplyIoctl => Ioctl ENOTTY;
        poll(INodeNo, FileHandle, PollNotifier, PollEvents, PollFlags), ReplyPoll => Poll ENOSYS;
    }
}
