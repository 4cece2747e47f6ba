//! The handlers: count, call the union, reply once. Called by the workers of `wire`.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::opens::opened;
use super::{Adapter, MAX_COPY, SLOW_COPY, lifetime, with_buffer, with_loss};
use crate::fuse::convert::{self, caller};
use crate::fuse::counters::Op;
use crate::fuse::reply;
use crate::fuse::wire::abi::{FOPEN_CACHE_DIR, FOPEN_KEEP_CACHE, SetattrIn};
use crate::fuse::wire::{Handler, Header, Reply, Request};
use crate::union::{Union, Write};

impl Handler for Adapter {
    /// Names and what is asked most; the rest goes on to [`Adapter::file`].
    fn handle(&self, header: &Header, request: Request<'_>, reply: Reply) {
        let ino = header.ino;
        match request {
            Request::Lookup { name } => self.lookup_name(ino, name, reply),
            Request::ReadDirPlus { offset, size } => self.list_plus(ino, offset, size, reply),
            Request::ReadDir { offset, size } => self.list(ino, offset, size, reply),
            Request::Forget { count } => self.forget(ino, count),
            Request::BatchForget(forgets) => {
                for (ino, count) in forgets.iter() {
                    self.forget(ino, count);
                }
            }
            Request::MkNod {
                name,
                mode,
                umask,
                rdev,
            } => self.make_node(header, name, (mode, umask, rdev), reply),
            Request::MkDir { name, mode, umask } => {
                self.make_dir(header, name, (mode, umask), reply);
            }
            Request::TmpFile { mode, umask, flags } => {
                self.make_unnamed(header, (mode, umask), flags, reply);
            }
            Request::Create {
                name,
                mode,
                umask,
                flags,
            } => self.create(header, name, (mode, umask), flags, reply),
            Request::SymLink { name, target } => self.make_symlink(header, name, target, reply),
            Request::Link { ino: file, name } => self.link_name(file, ino, name, reply),
            Request::Unlink { name } => {
                self.count(Op::Unlink);
                reply::empty(reply, self.union.unlink(ino, name));
            }
            Request::RmDir { name } => {
                self.count(Op::RmDir);
                reply::empty(reply, self.union.rmdir(ino, name));
            }
            Request::Rename {
                name,
                new_parent,
                new_name,
                flags,
            } => self.rename_name((ino, name), (new_parent, new_name), flags, reply),
            other => self.file(header, other, reply),
        }
    }
}

impl Adapter {
    /// Attributes and data; the rest goes on to [`Adapter::other`].
    fn file(&self, header: &Header, request: Request<'_>, reply: Reply) {
        let ino = header.ino;
        match request {
            Request::GetAttr => {
                self.count(Op::GetAttr);
                let attr = self.union.getattr(ino);
                reply::attr(reply, attr, self.lifetime(ino));
            }
            Request::StatX { mask } => {
                self.count(Op::StatX);
                if !self.told.births {
                    return reply.error(libc::ENOSYS);
                }
                let attr = self.union.getattr(ino);
                reply::statx(reply, mask, attr, self.lifetime(ino));
            }
            Request::SetAttr(set) => self.set_attr(header, &set, reply),
            Request::Read {
                offset,
                size,
                direct,
            } => self.read(ino, (offset, size), direct, reply),
            Request::Write {
                offset,
                data,
                kill_suid,
                direct,
                append,
                pages,
            } => {
                let how = Write {
                    direct,
                    append,
                    pages,
                };
                self.write(header, (offset, data), how, kill_suid, reply);
            }
            Request::Open { flags, kill_suid } => self.open(header, flags, kill_suid, reply),
            Request::OpenDir => {
                self.count(Op::OpenDir);
                opened(self.no_opendir, FOPEN_CACHE_DIR | FOPEN_KEEP_CACHE, reply);
            }
            Request::Release { fh } => self.release(ino, fh, reply),
            Request::ReleaseDir => {
                self.count(Op::ReleaseDir);
                reply.ok();
            }
            Request::Fsync { datasync } => {
                self.count(Op::Fsync);
                self.run(true, move |union| {
                    reply::empty(reply, union.fsync(ino, datasync));
                });
            }
            Request::FsyncDir { datasync } => {
                self.count(Op::FsyncDir);
                self.run(true, move |union| {
                    reply::empty(reply, union.fsyncdir(ino, datasync));
                });
            }
            Request::SyncFs => {
                self.count(Op::SyncFs);
                self.run(true, move |union| {
                    reply::empty(reply, union.syncfs());
                });
            }
            other => self.other(header, other, reply),
        }
    }

    /// Everything else. What [`Handler::handle`] and [`Adapter::file`] take never comes here.
    fn other(&self, header: &Header, request: Request<'_>, reply: Reply) {
        let ino = header.ino;
        match request {
            Request::GetXattr { name, size } => {
                self.count(Op::GetXattr);
                if !self.told.xattrs {
                    return reply.error(libc::ENOSYS);
                }
                let result = self.union.getxattr(ino, name);
                reply::xattr(reply, size, result);
            }
            Request::ListXattr { size } => {
                self.count(Op::ListXattr);
                if !self.told.xattrs {
                    return reply.error(libc::ENOSYS);
                }
                let is_admin = || header.uid == 0 && self.is_administrator(header.pid);
                let result = self.union.listxattr(ino, &is_admin);
                reply::xattr(reply, size, result);
            }
            Request::SetXattr {
                name,
                value,
                flags,
                kill_sgid,
            } => {
                // A kernel that cannot say it: as for most.
                let kill_sgid = kill_sgid.unwrap_or(header.uid != 0);
                self.set_xattr(ino, (name, value), (flags, kill_sgid), reply);
            }
            Request::RemoveXattr { name } => self.remove_xattr(ino, name, reply),
            Request::ReadLink => {
                self.count(Op::ReadLink);
                match self.union.readlink(ino) {
                    Ok(target) => {
                        reply.bytes(&target);
                    }
                    Err(error) => reply::fail(reply, &error),
                }
            }
            Request::StatFs => {
                self.count(Op::StatFs);
                reply::statfs(reply, self.union.statfs());
            }
            Request::Fallocate {
                offset,
                length,
                mode,
            } => self.allocate(header, (offset, length), mode, reply),
            Request::Lseek { offset, whence } => self.seek(ino, offset, whence, reply),
            Request::CopyFileRange { .. } => self.copy_range(header, request, reply),
            Request::Flags(cmd) => self.flags(ino, cmd, reply),
            Request::SetFlags(new) => self.set_flags(ino, new, reply),
            Request::Destroy => {
                self.count(Op::Destroy);
                reply.ok();
            }
            Request::Refused(op, errno) => {
                if let Some(op) = op {
                    self.count(op);
                }
                reply.error(errno);
            }
            _ => reply.error(libc::EINVAL),
        }
    }

    fn set_attr(&self, header: &Header, set: &SetattrIn, reply: Reply) {
        self.count(Op::SetAttr);
        let (caller, ino, set) = (caller(header), header.ino, convert::set_attr(set));
        let opens = self.opens.clone();
        self.modify(ino, move |union| {
            let result = union.setattr(&caller, ino, &set);
            let lifetime = lifetime(opens.as_deref(), ino);
            reply::attr(reply, result, lifetime);
        });
    }

    fn read(&self, ino: u64, (offset, size): (u64, u32), direct: bool, reply: Reply) {
        self.count(Op::Read);
        if i64::try_from(offset).is_err() {
            return reply.error(libc::EINVAL);
        }
        let fill = |room: &mut [u8]| self.union.read(ino, offset, room, direct).ok();
        let Some(reply) = reply.filled(size, fill) else {
            return;
        };
        with_buffer(size, reply, |buffer, reply| {
            match self.union.read(ino, offset, buffer, direct) {
                Ok(count) => {
                    reply.bytes(buffer.get(..count).unwrap_or_default());
                }
                Err(error) => reply::fail(reply, &error),
            }
        });
    }

    /// `kills`: the file loses its set-id bits.
    fn write(
        &self,
        header: &Header,
        (offset, data): (u64, &[u8]),
        how: Write,
        kills: bool,
        reply: Reply,
    ) {
        self.count(Op::Write);
        let header = *header;
        let write = move |union: &Union, device: &OwnedFd, data: &[u8]| {
            let result = with_loss(device, &header, kills, |loss| {
                union.write(header.ino, (offset, data), how, loss)
            });
            reply::written(reply, result);
        };
        if self.union.needs_copy_up(header.ino) {
            let device = Arc::clone(&self.device);
            self.run_with(data, move |union, data| write(union, &device, data));
        } else {
            write(&self.union, &self.device, data);
        }
    }

    fn set_xattr(
        &self,
        ino: u64,
        (name, value): (&[u8], &[u8]),
        (flags, kill_sgid): (u32, bool),
        reply: Reply,
    ) {
        self.count(Op::SetXattr);
        if !self.told.xattrs {
            return reply.error(libc::ENOSYS);
        }
        let flags = convert::xattr_flags(flags);
        let (name, value) = (name.to_vec(), value.to_vec());
        self.modify(ino, move |union| {
            let result = union.setxattr(ino, &name, &value, flags, kill_sgid);
            reply::empty(reply, result);
        });
    }

    fn remove_xattr(&self, ino: u64, name: &[u8], reply: Reply) {
        self.count(Op::RemoveXattr);
        if !self.told.xattrs {
            return reply.error(libc::ENOSYS);
        }
        let name = name.to_vec();
        self.modify(ino, move |union| {
            let result = union.removexattr(ino, &name);
            reply::empty(reply, result);
        });
    }

    fn allocate(&self, header: &Header, range: (u64, u64), mode: u32, reply: Reply) {
        self.count(Op::Fallocate);
        let (header, ino, device) = (*header, header.ino, Arc::clone(&self.device));
        self.modify(ino, move |union| {
            let result = with_loss(&device, &header, kills_unsaid(&header), |loss| {
                union.fallocate(ino, mode, range, loss)
            });
            reply::empty(reply, result);
        });
    }

    fn seek(&self, ino: u64, offset: u64, whence: u32, reply: Reply) {
        self.count(Op::Lseek);
        if self.no_lseek {
            return reply.error(libc::ENOSYS);
        }
        // SEEK_DATA and SEEK_HOLE before the start of the file.
        if i64::try_from(offset).is_err() {
            return reply.error(libc::ENXIO);
        }
        reply::offset(reply, self.union.lseek(ino, offset, whence));
    }

    fn copy_range(&self, header: &Header, request: Request<'_>, reply: Reply) {
        self.count(Op::CopyFileRange);
        let Request::CopyFileRange {
            offset,
            to,
            to_offset,
            len,
            flags: 0,
            wide,
        } = request
        else {
            return reply.error(libc::EINVAL);
        };
        let (header, from, device) = (*header, header.ino, Arc::clone(&self.device));
        let len = len.min(MAX_COPY);
        let slow = len >= SLOW_COPY || self.union.needs_copy_up(to);
        self.run(slow, move |union| {
            let result = with_loss(&device, &header, kills_unsaid(&header), |loss| {
                union.copy_file_range((from, offset), (to, to_offset), len, loss)
            });
            match result {
                Ok(count) if wide => {
                    reply.message(&(count as u64));
                }
                result => reply::written(reply, result),
            }
        });
    }
}

/// Whether a change that has no flag for it takes set-id bits. The kernel has said so before, by an
/// empty SETATTR; kernels before 6.1 do not for fallocate, so it holds for whoever is not root.
fn kills_unsaid(header: &Header) -> bool {
    header.uid != 0
}
