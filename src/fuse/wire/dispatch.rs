//! Passes parsed requests on to operations. Every request of [`Request`] has a match arm here, so a
//! missing one does not compile.

use super::answers::{IoctlReply, Listing, Value, WideCount};
use super::connection::Handler;
use super::reply::Reply;
use super::request::{Header, Request};
use crate::fuse::counters::Op;
use crate::fuse::operations::{CopyRange, Name, Node, Operations, Xattr};
use crate::fuse::protocol_values;

/// A handler that passes requests on to operations.
pub(crate) struct Dispatch<T>(pub(crate) T);

impl<T: Operations> Handler for Dispatch<T> {
    fn known_files(&self) -> Vec<u64> {
        self.0.known_files()
    }

    fn elsewhere(&self, user: u32, work: Box<dyn FnOnce() + Send>) {
        self.0.elsewhere(user, work);
    }

    fn handle(&self, header: &Header, request: Request<'_>, reply: Reply) {
        let (fs, context, node) = (&self.0, header.context(), Node(header.ino));
        let ino = fs.inode(node);
        let within = |name| Name { parent: ino, name };
        if let Some(operation) = request.operation() {
            fs.count(operation);
        }
        match request {
            Request::Lookup { name: b"." } => fs.lookup_node(node, reply),
            Request::Lookup { name } => fs.lookup(within(name), reply),
            Request::Forget { count } => fs.forget(ino, count),
            Request::BatchForget(forgets) => {
                for (ino, count) in forgets.iter() {
                    fs.count(Op::Forget);
                    fs.forget(fs.inode(Node(ino)), count);
                }
            }
            Request::GetAttr => fs.getattr(ino, reply),
            Request::StatX { mask } => fs.statx(ino, mask, reply),
            Request::SetAttr(set) => {
                fs.setattr(context, node, protocol_values::set_attr(&set), reply);
            }
            Request::ReadLink => fs.readlink(ino, reply),
            Request::SymLink { name, target } => {
                fs.symlink(context, within(name), target, reply);
            }
            Request::MkNod { name, new, rdev } => {
                fs.mknod(
                    context,
                    within(name),
                    new,
                    protocol_values::decode_dev(rdev),
                    reply,
                );
            }
            Request::MkDir { name, new } => fs.mkdir(context, within(name), new, reply),
            Request::TmpFile { new, flags } => fs.tmpfile(context, ino, new, flags, reply),
            Request::Create { name, new, flags } => {
                fs.create(context, within(name), new, flags, reply);
            }
            Request::Unlink { name } => fs.unlink(within(name), reply),
            Request::RmDir { name } => fs.rmdir(within(name), reply),
            Request::Rename { name, to, flags } => match protocol_values::rename_flags(flags) {
                Some(flags) => fs.rename(within(name), to, flags, reply),
                None => reply.error(libc::EINVAL),
            },
            Request::Link { node, name } => fs.link(fs.inode(node), within(name), reply),
            Request::Open { flags, set_id } => fs.open(context, node, flags, set_id, reply),
            Request::OpenDir => fs.opendir(ino, reply),
            Request::Release { handle } => fs.release(node, handle, reply),
            Request::ReleaseDir => fs.releasedir(ino, reply),
            Request::Read {
                offset,
                size,
                caching,
            } => fs.read(ino, offset, size, caching, reply),
            Request::Write(write) => fs.write(context, ino, write, reply),
            Request::Flags(form) => fs.flags(ino, form, IoctlReply(reply)),
            Request::SetFlags(flags) => fs.set_flags(ino, flags, IoctlReply(reply)),
            Request::Ioctl => fs.ioctl(ino, reply),
            Request::Flush => fs.flush(ino, reply),
            Request::Fsync { extent } => fs.fsync(ino, extent, reply),
            Request::FsyncDir { extent } => fs.fsyncdir(ino, extent, reply),
            Request::SyncFs => fs.syncfs(reply),
            Request::ReadDir { offset, size } => {
                fs.readdir(
                    ino,
                    offset,
                    Listing {
                        reply,
                        size,
                        plus: false,
                    },
                );
            }
            Request::ReadDirPlus { offset, size } => {
                fs.readdirplus(
                    ino,
                    offset,
                    Listing {
                        reply,
                        size,
                        plus: true,
                    },
                );
            }
            Request::StatFs => fs.statfs(reply),
            Request::SetXattr {
                name,
                value,
                flags,
                kill_sgid,
            } => {
                let flags = protocol_values::xattr_flags(flags);
                fs.setxattr(context, ino, Xattr { name, value }, flags, kill_sgid, reply);
            }
            Request::GetXattr { name, size } => fs.getxattr(ino, name, Value { reply, size }),
            Request::ListXattr { size } => fs.listxattr(context, ino, Value { reply, size }),
            Request::RemoveXattr { name } => fs.removexattr(ino, name, reply),
            Request::Access => fs.access(ino, reply),
            Request::GetLk => fs.getlk(ino, reply),
            Request::SetLk => fs.setlk(ino, reply),
            Request::Bmap => fs.bmap(ino, reply),
            Request::Poll => fs.poll(ino, reply),
            Request::Interrupt => fs.interrupt(reply),
            Request::Fallocate(range) => fs.fallocate(context, ino, range, reply),
            Request::Lseek { offset, whence } => fs.lseek(ino, offset, whence, reply),
            Request::CopyFileRange {
                offset,
                to,
                to_offset,
                length,
                flags,
                wide,
            } => {
                let range = CopyRange {
                    from: ino,
                    from_offset: offset,
                    to: fs.inode(to),
                    to_offset,
                    length,
                    flags,
                };
                if wide {
                    fs.copy_file_range(context, range, WideCount(reply));
                } else {
                    fs.copy_file_range(context, range, reply);
                }
            }
            Request::Destroy => fs.destroy(reply),
            Request::Unknown => reply.error(libc::ENOSYS),
            Request::Malformed => reply.error(libc::EINVAL),
        }
    }
}
