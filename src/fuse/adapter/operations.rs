//! Each operation as one call of the union and one answer. `opens` has the operations that open,
//! create and close files.

use std::sync::Arc;

use super::freed_room::with_freed_room;
use super::{Acls, Adapter, SLOW_COPY, UNKNOWN_ID, caller, known, lifetime, with_loss};
use crate::fuse::busy::Work;
use crate::fuse::counters::Op;
use crate::fuse::operations::{
    Allocation, AttrReply, Context, CopyRange, CreateReply, DataReply, DirectoryReply, EmptyReply,
    EntryReply, FlagsForm, FlagsReply, Handle, Ino, InodeFlags, KnownAs, Name, NewMode, Node,
    Offset, OffsetReply, OpenFlags, OpenReply, Operations, ReadReply, SetIdBits, StatfsReply,
    StatxReply, WriteData, WriteReply, Xattr, XattrReply,
};
use crate::fuse::passthrough::Opens;
use crate::fuse::request_scope;
use crate::fuse::successors::{self, Arrival};
use crate::union::{
    Caching, Change, FileFlags, FileKind, Position, RenameFlags, SetAttr, SyncExtent, Union,
    XattrFlags,
};

/// The maximum length of one copy_file_range: the limit of the kernel for one call (MAX_RW_COUNT).
const MAX_COPY: u64 = 0x7fff_f000;

/// The maximum number of known files that are returned. One regular file that still exists is
/// enough.
const MANY_FILES: usize = 16;

impl Operations for Adapter {
    fn count(&self, operation: Op) {
        self.counters.count(operation);
        request_scope::is_a(operation);
    }

    fn inode(&self, node: Node) -> Ino {
        successors::inode(node)
    }

    fn known_files(&self) -> Vec<u64> {
        let files = self.union.known_files(MANY_FILES);
        files
            .into_iter()
            .map(|ino| self.known(ino).node.0)
            .collect()
    }

    fn elsewhere(&self, user: u32, work: Box<dyn FnOnce() + Send>) {
        match self.pool.admit(0) {
            Some(room) => self.pool.submit(room, user, work),
            None => work(),
        }
    }

    fn lookup(&self, Name { parent, name }: Name<'_>, reply: impl EntryReply) {
        match name {
            b".." => found(self.union.lookup_parent(parent.0), reply, |ino| {
                self.known(ino)
            }),
            _ => match self.union.lookup(parent.0, name) {
                Ok(Some(entry)) => self.entry(Ok(entry), reply),
                Ok(None) => reply.no_entry(),
                Err(error) => reply.fail(&error),
            },
        }
    }

    /// Looks a file up by a number that the kernel may have forgotten. The answer has the same number.
    fn lookup_node(&self, node: Node, reply: impl EntryReply) {
        let (ino, opens) = (self.inode(node), self.opens.clone());
        let restores = match &opens {
            Some(opens) => opens.restores(node),
            None => !successors::is_successor(node),
        };
        if !restores {
            return reply.error(libc::ESTALE);
        }
        match self.union.known_number(ino.0) {
            Ok(Some(entry)) => found_again(Ok(entry), node, opens, reply),
            Err(error) => found_again(Err(error), node, opens, reply),
            Ok(None) => {
                let sought = self.union.seek_number(ino.0);
                self.run(Work::Slow, move |union| {
                    found_again(union.find_sought(sought), node, opens, reply);
                });
            }
        }
    }

    fn forget(&self, ino: Ino, count: u64) {
        self.union.forget(ino.0, count);
        if let Some(opens) = &self.opens {
            opens.forget(&self.union, ino.0);
        }
    }

    fn getattr(&self, ino: Ino, reply: impl AttrReply) {
        reply.result(self.union.getattr(ino.0), self.lifetime(ino.0));
    }

    fn statx(&self, ino: Ino, mask: u32, reply: impl StatxReply) {
        if !self.told.births {
            return reply.error(libc::ENOSYS);
        }
        match self.union.getattr(ino.0) {
            Ok(attr) => reply.statx(&attr, mask, self.lifetime(ino.0)),
            Err(error) => reply.fail(&error),
        }
    }

    fn setattr(&self, context: Context, node: Node, change: SetAttr, reply: impl AttrReply) {
        let ino = self.inode(node);
        let mut change = change;
        if !self.says_kills && (change.size, change.uid, change.gid) != (None, None, None) {
            change.drops_set_id |= unsaid_bits(context) == SetIdBits::Dropped;
        }
        let kind = change.size.map_or(Change::Metadata, |_| Change::Data);
        let (opens, notices) = (self.opens.clone(), Arc::clone(&self.notices));
        let table = opens.clone().filter(|_| change.size.is_some());
        let comes = table.as_ref().map(|table| table.arrives(node, context.pid));
        if comes == Some(Arrival::Late) {
            return reply.error(libc::ESTALE);
        }
        let waits = table
            .as_ref()
            .is_some_and(|table| table.waits_for_readers(node));
        self.attempt(
            Work::slow_if(waits || self.union.needs_copy_up(ino.0, kind)),
            move |union| {
                let change = || union.setattr(&caller(context), ino.0, &change);
                let (Some(table), Some(comes)) = (&table, comes) else {
                    return change().map(Some);
                };
                // A program may have run from the file, and others may still have it open.
                let admitted = table.write(union, node, comes)?;
                let attr = change()?;
                if admitted.succeeds {
                    table.retire(node);
                }
                Ok((!admitted.succeeds).then_some(attr))
            },
            move |result| {
                if result.is_err() {
                    // The parts before the error have been done, so the attributes that the kernel
                    // knows are not valid any more.
                    notices.attributes_changed(ino.0);
                }
                match result.transpose() {
                    Some(result) => reply.result(result, lifetime(opens.as_deref(), ino.0)),
                    None => reply.error(libc::ESTALE),
                }
            },
        );
    }

    fn readlink(&self, ino: Ino, reply: impl DataReply) {
        match self.union.readlink(ino.0) {
            Ok(target) => reply.data(&target),
            Err(error) => reply.fail(&error),
        }
    }

    fn symlink(&self, context: Context, new: Name<'_>, target: &[u8], reply: impl EntryReply) {
        let Name { parent, name } = new;
        let (target, opens) = (target.to_vec(), self.opens.clone());
        self.run_with(Work::Quick, name, move |union, name| {
            let caller = caller(context);
            let made = with_freed_room(union, || union.symlink(&caller, parent.0, name, &target));
            reply.result(made, |ino| known(opens.as_deref(), ino));
        });
    }

    fn mknod(
        &self,
        context: Context,
        Name { parent, name }: Name<'_>,
        NewMode { mode, umask }: NewMode,
        rdev: (u32, u32),
        reply: impl EntryReply,
    ) {
        let opens = self.opens.clone();
        self.run_with(Work::Quick, name, move |union, name| {
            let caller = caller(context);
            let made = with_freed_room(union, || {
                union.mknod(&caller, parent.0, name, mode, umask, rdev)
            });
            reply.result(made, |ino| known(opens.as_deref(), ino));
        });
    }

    fn mkdir(
        &self,
        context: Context,
        Name { parent, name }: Name<'_>,
        NewMode { mode, umask }: NewMode,
        reply: impl EntryReply,
    ) {
        let opens = self.opens.clone();
        self.run_with(Work::Quick, name, move |union, name| {
            let (caller, mode) = (caller(context), mode & 0o7777);
            let made = with_freed_room(union, || union.mkdir(&caller, parent.0, name, mode, umask));
            reply.result(made, |ino| known(opens.as_deref(), ino));
        });
    }

    fn unlink(&self, Name { parent, name }: Name<'_>, reply: impl EmptyReply) {
        self.run_with(Work::Quick, name, move |union, name| {
            reply.result(with_freed_room(union, || union.unlink(parent.0, name)));
        });
    }

    fn rmdir(&self, Name { parent, name }: Name<'_>, reply: impl EmptyReply) {
        self.run_with(Work::Quick, name, move |union, name| {
            reply.result(with_freed_room(union, || union.rmdir(parent.0, name)));
        });
    }

    fn rename(&self, old: Name<'_>, new: Name<'_>, flags: RenameFlags, reply: impl EmptyReply) {
        let copies = |name: Name<'_>| self.union.needs_copy_up_name(name.parent.0, name.name);
        let work = Work::slow_if(copies(old) || flags.exchange && copies(new));
        let (from, to) = (old.parent.0, new.parent.0);
        let (old, new) = (old.name.to_vec(), new.name.to_vec());
        let rename = move |union: &Union| union.rename(from, &old, to, &new, flags);
        self.attempt(work, rename, |result| reply.result(result));
    }

    fn link(&self, ino: Ino, Name { parent, name }: Name<'_>, reply: impl EntryReply) {
        let (name, opens) = (name.to_vec(), self.opens.clone());
        self.modify(ino, move |union| {
            let linked = with_freed_room(union, || union.link(ino.0, parent.0, &name));
            reply.result(linked, |ino| known(opens.as_deref(), ino));
        });
    }

    fn open(
        &self,
        context: Context,
        node: Node,
        flags: OpenFlags,
        set_id: SetIdBits,
        reply: impl OpenReply,
    ) {
        self.open_file(context, node, flags, set_id, reply);
    }

    fn create(
        &self,
        context: Context,
        name: Name<'_>,
        new: NewMode,
        flags: OpenFlags,
        reply: impl CreateReply,
    ) {
        self.create_file(context, name, new, flags, reply);
    }

    fn tmpfile(
        &self,
        context: Context,
        parent: Ino,
        new: NewMode,
        flags: OpenFlags,
        reply: impl CreateReply,
    ) {
        self.create_unnamed(context, parent, new, flags, reply);
    }

    fn read(&self, ino: Ino, offset: Offset, size: u32, caching: Caching, reply: impl ReadReply) {
        if i64::try_from(offset.0).is_err() {
            return reply.error(libc::EINVAL);
        }
        let range = (ino.0, offset.0, size);
        if self.may_wait(ino) {
            return self.run(Work::Slow, move |union| {
                if let Some(reply) = read(union, range, caching, reply) {
                    reply.error(libc::EAGAIN);
                }
            });
        }
        let Some(reply) = read(&self.union, range, caching, reply) else {
            return;
        };
        // The opened file stays in the cache for a while. Nothing is read here.
        let open = move |union: &Union| union.read(ino.0, offset.0, &mut [], Caching::Cached);
        let union = Arc::clone(&self.union);
        self.attempt(Work::Slow, open, move |opened| match opened {
            Ok(_) => {
                if let Some(reply) = read(&union, range, caching, reply) {
                    reply.error(libc::EAGAIN);
                }
            }
            Err(error) => reply.fail(&error),
        });
    }

    fn write(&self, context: Context, ino: Ino, request: WriteData<'_>, reply: impl WriteReply) {
        let WriteData {
            offset,
            data,
            how,
            set_id,
        } = request;
        // Cached pages are not written by a particular process.
        let unsaid = !self.says_kills && !how.pages;
        let set_id = if unsaid {
            set_id.max(unsaid_bits(context))
        } else {
            set_id
        };
        let work = Work::slow_if(self.union.needs_copy_up(ino.0, Change::Data));
        let notices = Arc::clone(&self.notices);
        let write = move |union: &Union, data: &[u8]| {
            with_loss(&*notices, context, set_id, |loss| {
                union.write(ino.0, offset.0, data, how, loss)
            })
        };
        self.attempt_with(work, data, write, |result| reply.result(result));
    }

    fn release(&self, node: Node, handle: Handle, reply: impl EmptyReply) {
        if let Some(opens) = &self.opens {
            opens.release(node, handle.0);
        }
        reply.ok();
    }

    fn fsync(&self, ino: Ino, extent: SyncExtent, reply: impl EmptyReply) {
        self.run(Work::Slow, move |union| {
            reply.result(union.fsync(ino.0, extent));
        });
    }

    fn opendir(&self, _ino: Ino, reply: impl OpenReply) {
        self.open_dir(reply);
    }

    fn readdir(&self, ino: Ino, offset: Offset, reply: impl DirectoryReply) {
        // The kernel learns no number of a node.
        let known = |ino| KnownAs {
            node: Node(ino),
            lifetime: 0,
        };
        reply.list(|add| {
            self.union.readdir(ino.0, offset.0, &mut |item| {
                let known = known(item.ino);
                add(item, known)
            })
        });
    }

    fn readdirplus(&self, ino: Ino, offset: Offset, reply: impl DirectoryReply) {
        reply.list(|add| {
            self.union.readdirplus(ino.0, offset.0, &mut |item| {
                let known = self.known(item.ino);
                add(item, known)
            })
        });
    }

    fn fsyncdir(&self, ino: Ino, extent: SyncExtent, reply: impl EmptyReply) {
        self.run(Work::Slow, move |union| {
            reply.result(union.fsyncdir(ino.0, extent));
        });
    }

    fn statfs(&self, reply: impl StatfsReply) {
        match self.union.statfs() {
            Ok(statfs) => reply.statfs(&statfs),
            Err(error) => reply.fail(&error),
        }
    }

    fn syncfs(&self, reply: impl EmptyReply) {
        self.run(Work::Slow, move |union| reply.result(union.syncfs()));
    }

    fn setxattr(
        &self,
        context: Context,
        ino: Ino,
        Xattr { name, value }: Xattr<'_>,
        mut flags: XattrFlags,
        kill_sgid: Option<bool>,
        reply: impl EmptyReply,
    ) {
        if !self.told.xattrs {
            return reply.error(libc::ENOSYS);
        }
        // The kernel cannot report it in this form of the message, so the most common case is
        // assumed.
        flags.drops_set_gid = kill_sgid.unwrap_or(context.uid != 0);
        let (name, value) = (name.to_vec(), value.to_vec());
        let work = Work::slow_if(self.union.needs_copy_up(ino.0, Change::Metadata));
        let job = move |union: &Union| union.setxattr(ino.0, &name, &value, flags);
        self.attempt(work, job, |result| reply.result(result));
    }

    fn getxattr(&self, ino: Ino, name: &[u8], reply: impl XattrReply) {
        if !self.told.xattrs {
            return reply.error(libc::ENOSYS);
        }
        let value = self.union.getxattr(ino.0, name);
        // To the kernel, EOPNOTSUPP would be a failed check of permissions.
        if self.told.acls == Acls::Forced
            && name.starts_with(b"system.posix_acl_")
            && matches!(&value, Err(error) if error.errno() == libc::EOPNOTSUPP)
        {
            return reply.error(libc::ENODATA);
        }
        reply.result(value);
    }

    fn listxattr(&self, context: Context, ino: Ino, reply: impl XattrReply) {
        if !self.told.xattrs {
            return reply.error(libc::ENOSYS);
        }
        let may_be_root = [0, UNKNOWN_ID].contains(&context.uid);
        let is_admin = || may_be_root && self.is_administrator(context.pid);
        reply.result(self.union.listxattr(ino.0, &is_admin));
    }

    fn removexattr(&self, ino: Ino, name: &[u8], reply: impl EmptyReply) {
        if !self.told.xattrs {
            return reply.error(libc::ENOSYS);
        }
        let name = name.to_vec();
        let work = Work::slow_if(self.union.needs_copy_up(ino.0, Change::Metadata));
        let job = move |union: &Union| union.removexattr(ino.0, &name);
        self.attempt(work, job, |result| reply.result(result));
    }

    fn flags(&self, ino: Ino, form: FlagsForm, reply: impl FlagsReply) {
        let flags = match form {
            FlagsForm::Flags => {
                let flags = self.union.file_flags(ino.0);
                flags.map(|flags| InodeFlags::Flags(flags.0))
            }
            FlagsForm::Xflags => self.union.file_xflags(ino.0).map(InodeFlags::Xflags),
        };
        match flags {
            Ok(flags) => reply.flags(flags),
            Err(error) => reply.fail(&error),
        }
    }

    fn set_flags(&self, ino: Ino, flags: InodeFlags, reply: impl EmptyReply) {
        self.modify(ino, move |union| {
            reply.result(with_freed_room(union, || match flags {
                InodeFlags::Flags(flags) => union.set_file_flags(ino.0, FileFlags(flags)),
                InodeFlags::Xflags(flags) => union.set_file_xflags(ino.0, flags),
            }));
        });
    }

    fn fallocate(&self, context: Context, ino: Ino, range: Allocation, reply: impl EmptyReply) {
        let notices = Arc::clone(&self.notices);
        let allocate = move |union: &Union| {
            let (offset, length) = (range.offset.0, range.length);
            with_loss(&*notices, context, unsaid_bits(context), |loss| {
                union.fallocate(ino.0, range.mode, offset, length, loss)
            })
        };
        let work = Work::slow_if(self.union.needs_copy_up(ino.0, Change::Data));
        self.attempt(work, allocate, |result| reply.result(result));
    }

    fn lseek(&self, ino: Ino, offset: Offset, whence: u32, reply: impl OffsetReply) {
        if self.no_lseek {
            return reply.error(libc::ENOSYS);
        }
        // The caller used SEEK_DATA or SEEK_HOLE with an offset before the start of the file.
        if i64::try_from(offset.0).is_err() {
            return reply.error(libc::ENXIO);
        }
        self.attempt_here(
            move |union| union.lseek(ino.0, offset.0, whence),
            |found| match found {
                Ok(offset) => reply.offset(offset),
                Err(error) => reply.fail(&error),
            },
        );
    }

    fn copy_file_range(&self, context: Context, range: CopyRange, reply: impl WriteReply) {
        if range.flags != 0 {
            return reply.error(libc::EINVAL);
        }
        let notices = Arc::clone(&self.notices);
        let length = range.length.min(MAX_COPY);
        let work = Work::slow_if(
            length >= SLOW_COPY
                || self.union.needs_copy_up(range.to.0, Change::Data)
                || self.may_wait(range.from),
        );
        let copy = move |union: &Union| {
            let from = Position {
                ino: range.from.0,
                offset: range.from_offset.0,
            };
            let to = Position {
                ino: range.to.0,
                offset: range.to_offset.0,
            };
            with_loss(&*notices, context, unsaid_bits(context), |loss| {
                union.copy_file_range(from, to, length, loss)
            })
        };
        self.attempt(work, copy, |result| reply.result(result));
    }
}

impl Adapter {
    fn entry(
        &self,
        result: crate::union::Result<crate::union::EntryRef<'_>>,
        reply: impl EntryReply,
    ) {
        reply.result(result, |ino| self.known(ino));
    }
}

/// Reads this number of bytes of an inode into the answer. Returns the reply if a lease prevents
/// it.
fn read<R: ReadReply>(
    union: &Union,
    (ino, offset, size): (u64, u64, u32),
    caching: Caching,
    reply: R,
) -> Option<R> {
    reply.read(size, |room| union.read(ino, offset, room, caching))
}

fn found(
    entry: crate::union::Result<crate::union::EntryRef<'_>>,
    reply: impl EntryReply,
    known: impl Fn(u64) -> KnownAs,
) {
    match entry {
        // A stale handle is no fault of the server, so it is not logged.
        Err(error) if error.errno() == libc::ESTALE => reply.error(libc::ESTALE),
        entry => reply.result(entry, known),
    }
}

/// Answers a lookup of a file by its number.
fn found_again(
    entry: crate::union::Result<crate::union::EntryRef<'_>>,
    node: Node,
    opens: Option<Arc<Opens>>,
    reply: impl EntryReply,
) {
    if let (true, Some(opens), Ok(entry)) = (successors::is_successor(node), &opens, &entry) {
        // A handle can have any number.
        if entry.attr().kind != FileKind::Regular {
            return reply.error(libc::ESTALE);
        }
        // The inode is counted, so no FORGET takes the successor away any more.
        opens.retire(node);
    }
    found(entry, reply, |ino| KnownAs {
        node,
        lifetime: lifetime(opens.as_deref(), ino),
    });
}

/// Whether a change that has no flag for it drops set-id bits. Newer kernels have reported that
/// before, by an empty SETATTR. Kernels before 6.1 do not report it for fallocate, so it drops the
/// bits for all users but root. A kernel that does not say who calls is newer (6.12).
fn unsaid_bits(context: Context) -> SetIdBits {
    SetIdBits::dropped_if(![0, UNKNOWN_ID].contains(&context.uid))
}
