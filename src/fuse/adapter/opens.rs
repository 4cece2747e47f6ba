//! Operations that open and create files. Under the policy `cached` the kernel learns once that
//! there is no OPEN and no CREATE, and sends MKNOD instead. Under `passthrough` it sends both, and
//! RELEASE after them.

use std::sync::Arc;

use super::freed_room::with_freed_room;
use super::{Adapter, caller, known, with_loss};
use crate::fuse::busy::Work;
use crate::fuse::operations::{
    Context, CreateReply, Handle, Ino, Name, NewMode, Node, OpenFlags, OpenReply, Opened, SetIdBits,
};
use crate::fuse::passthrough::{Opens, is_writer};
use crate::fuse::successors::{self, Arrival};
use crate::fuse::wire::abi::{FOPEN_CACHE_DIR, FOPEN_KEEP_CACHE};
use crate::union::{Change, EntryRef, Result, Union};

impl Adapter {
    pub(super) fn open_file(
        &self,
        context: Context,
        node: Node,
        flags: OpenFlags,
        set_id: SetIdBits,
        reply: impl OpenReply,
    ) {
        let Some(opens) = &self.opens else {
            return self.open_files.answer(FOPEN_KEEP_CACHE, reply);
        };
        let opens = Arc::clone(opens);
        let ino = successors::inode(node).0;
        let truncate = flags.truncates();
        let writes = truncate || is_writer(flags.0);
        // Before an open for writing, the kernel checks whether a program runs from the file. For
        // an open for reading that truncates, it checks after the open, which is too late (do_open,
        // fs/namei.c).
        if truncate && !is_writer(flags.0) && opens.is_executed(node) {
            return reply.error(libc::ETXTBSY);
        }
        let comes = opens.arrives(node, context.pid);
        if comes == Arrival::Late {
            return reply.error(libc::ESTALE);
        }
        // The kernel holds no lock of the inode during an open.
        let work = Work::slow_if(
            writes
                && (self.union.needs_copy_up(ino, Change::Data) || opens.waits_for_readers(node))
                || truncate && opens.may_wait(ino),
        );
        let notices = Arc::clone(&self.notices);
        let table = Arc::clone(&opens);
        let open = move |union: &Union| {
            if writes {
                let admitted = table.write(union, node, comes)?;
                if truncate {
                    with_loss(&*notices, context, set_id, |loss| {
                        union.open_truncated(ino, loss.copied())
                    })?;
                } else {
                    union.open_for_writing(ino, flags.0)?;
                }
                if admitted.succeeds {
                    table.retire(node);
                    return Ok(None);
                }
                return table.open(union, node, flags.0).map(Some);
            }
            table.open(union, node, flags.0).map(Some)
        };
        let answer = move |result: Result<Option<Opened>>| match result {
            Ok(Some(out)) => {
                if !reply.opened(out) {
                    opens.release(node, out.handle.0);
                }
            }
            // The kernel comes back with the successor.
            Ok(None) => reply.error(libc::ESTALE),
            Err(error) => reply.fail(&error),
        };
        if writes {
            self.attempt(work, open, answer);
        } else {
            self.attempt_here(open, answer);
        }
    }

    pub(super) fn open_dir(&self, reply: impl OpenReply) {
        self.open_dirs
            .answer(FOPEN_CACHE_DIR | FOPEN_KEEP_CACHE, reply);
    }

    /// Creates a file and opens it. A new file keeps its mode whatever the flags are: O_TRUNC
    /// concerns existing files, which are opened.
    pub(super) fn create_file(
        &self,
        context: Context,
        Name { parent, name }: Name<'_>,
        NewMode { mode, umask }: NewMode,
        flags: OpenFlags,
        reply: impl CreateReply,
    ) {
        let Some(opens) = self.opens.clone() else {
            return reply.error(libc::ENOSYS);
        };
        self.run_with(Work::Quick, name, move |union, name| {
            let (caller, mode) = (caller(context), libc::S_IFREG | mode & 0o7777);
            let made = with_freed_room(union, || {
                union.mknod(&caller, parent.0, name, mode, umask, (0, 0))
            });
            created(union, &opens, made, flags, reply);
        });
    }

    /// Creates a file without a name, which is open from the start.
    pub(super) fn create_unnamed(
        &self,
        context: Context,
        parent: Ino,
        NewMode { mode, umask }: NewMode,
        flags: OpenFlags,
        reply: impl CreateReply,
    ) {
        let opens = self.opens.clone();
        self.run(Work::Quick, move |union| {
            let (caller, mode) = (caller(context), mode & 0o7777);
            let made = with_freed_room(union, || union.tmpfile(&caller, parent.0, mode, umask));
            match (opens, made) {
                (Some(opens), made) => created(union, &opens, made, flags, reply),
                (None, Ok(entry)) => {
                    let (ino, opened) = (entry.attr().ino, without_handle(FOPEN_KEEP_CACHE));
                    reply.created(entry, opened, known(None, ino));
                }
                (None, Err(error)) => reply.fail(&error),
            }
        });
    }
}

/// Opens the created file and answers with both.
fn created(
    union: &Union,
    opens: &Opens,
    made: Result<EntryRef<'_>>,
    flags: OpenFlags,
    reply: impl CreateReply,
) {
    let open = made.and_then(|entry| {
        let (out, known) = opens.open_new(union, entry.attr().ino, flags.0)?;
        Ok((entry, out, known))
    });
    match open {
        Ok((entry, out, known)) => {
            if !reply.created(entry, out, known) {
                opens.release(known.node, out.handle.0);
            }
        }
        Err(error) => reply.fail(&error),
    }
}

/// An open that needs no RELEASE.
fn without_handle(flags: u32) -> Opened {
    Opened {
        handle: Handle(0),
        flags,
        backing: 0,
    }
}

/// Whether the kernel sends the opens that the server does not need.
#[derive(Clone, Copy, Debug)]
pub(super) enum UnneededOpens {
    /// It sends each.
    Sent,
    /// It takes ENOSYS as "every open succeeds, send no more of them".
    Refusable,
}

impl UnneededOpens {
    pub(super) fn agreed(flags: u32, refusable: u32) -> Self {
        if flags & refusable == 0 {
            Self::Sent
        } else {
            Self::Refusable
        }
    }

    fn answer(self, flags: u32, reply: impl OpenReply) {
        match self {
            Self::Sent => {
                reply.opened(without_handle(flags));
            }
            Self::Refusable => reply.error(libc::ENOSYS),
        }
    }
}
