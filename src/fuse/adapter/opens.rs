//! What opens, creates and closes files. Called by `handlers`. Under the policy `cached` the
//! kernel is told once that there is no OPEN and no CREATE (it then sends MKNOD), and asks no
//! more; under `passthrough` it sends both, and RELEASE after them.

use std::sync::Arc;

use super::{Adapter, with_loss};
use crate::fuse::convert::caller;
use crate::fuse::counters::Op;
use crate::fuse::passthrough::{Opens, is_writer};
use crate::fuse::reply;
use crate::fuse::wire::abi::{FOPEN_KEEP_CACHE, OpenOut};
use crate::fuse::wire::{Header, Reply};
use crate::union::{EntryRef, Result, Union};

impl Adapter {
    /// `kills`: O_TRUNC takes the file its set-id bits.
    pub(super) fn open(&self, header: &Header, flags: u32, kills: bool, reply: Reply) {
        self.count(Op::Open);
        let Some(opens) = &self.opens else {
            return opened(self.no_open, FOPEN_KEEP_CACHE, reply);
        };
        let (ino, opens) = (header.ino, Arc::clone(opens));
        let truncate = flags & libc::O_TRUNC as u32 != 0;
        let writes = truncate || is_writer(flags);
        // The kernel asks whether a program runs from it before an open for writing, but after one
        // for reading that truncates, when it is too late (do_open, fs/namei.c).
        if truncate && !is_writer(flags) && opens.is_executed(ino) {
            return reply.error(libc::ETXTBSY);
        }
        let slow = writes && self.union.needs_copy_up(ino);
        let (header, device) = (*header, Arc::clone(&self.device));
        self.run(slow, move |union| {
            let ready = match (truncate, writes) {
                (true, _) => with_loss(&device, &header, kills, |loss| {
                    union.open_truncated(ino, loss.copied())
                }),
                (false, true) => union.open_for_writing(ino, flags),
                (false, false) => Ok(()),
            };
            match ready.and_then(|()| opens.open(union, ino, flags)) {
                Ok(out) => {
                    if !reply.message(&out) {
                        opens.release(ino, out.fh);
                    }
                }
                Err(error) => reply::fail(reply, &error),
            }
        });
    }

    pub(super) fn release(&self, ino: u64, fh: u64, reply: Reply) {
        self.count(Op::Release);
        if let Some(opens) = &self.opens {
            opens.release(ino, fh);
        }
        reply.ok();
    }

    pub(super) fn forget(&self, ino: u64, count: u64) {
        self.count(Op::Forget);
        self.union.forget(ino, count);
        if let Some(opens) = &self.opens {
            opens.forget(&self.union, ino);
        }
    }

    /// What was just made keeps the mode it was made with, whatever the flags: O_TRUNC is for files
    /// that are there, and those are opened.
    pub(super) fn create(
        &self,
        header: &Header,
        name: &[u8],
        (mode, umask): (u32, u32),
        flags: u32,
        reply: Reply,
    ) {
        self.count(Op::Create);
        let Some(opens) = &self.opens else {
            return reply.error(libc::ENOSYS);
        };
        let mode = libc::S_IFREG | mode & 0o7777;
        let result = self
            .union
            .mknod(&caller(header), header.ino, name, mode, umask, (0, 0));
        created(&self.union, opens, result, flags, reply);
    }

    /// A file without a name comes open.
    pub(super) fn make_unnamed(
        &self,
        header: &Header,
        (mode, umask): (u32, u32),
        flags: u32,
        reply: Reply,
    ) {
        self.count(Op::TmpFile);
        let result = self
            .union
            .tmpfile(&caller(header), header.ino, mode & 0o7777, umask);
        match (&self.opens, result) {
            (Some(opens), result) => {
                created(&self.union, opens, result, flags, reply);
            }
            (None, Ok(entry)) => {
                let lifetime = self.lifetime(entry.attr().ino);
                reply::created(reply, entry, answer(FOPEN_KEEP_CACHE), lifetime);
            }
            (None, Err(error)) => reply::fail(reply, &error),
        }
    }
}

/// Opens what was created, and answers with both.
fn created(union: &Union, opens: &Opens, result: Result<EntryRef<'_>>, flags: u32, reply: Reply) {
    let open = result.and_then(|entry| {
        let (out, lifetime) = opens.open_new(union, entry.attr().ino, flags)?;
        Ok((entry, out, lifetime))
    });
    match open {
        Ok((entry, out, lifetime)) => {
            let ino = entry.attr().ino;
            if !reply::created(reply, entry, out, lifetime) {
                opens.release(ino, out.fh);
            }
        }
        Err(error) => reply::fail(reply, &error),
    }
}

fn answer(open_flags: u32) -> OpenOut {
    OpenOut {
        open_flags,
        ..OpenOut::default()
    }
}

/// The kernel takes ENOSYS as "opens always, never ask again" where it says so.
pub(super) fn opened(never_again: bool, open_flags: u32, reply: Reply) {
    match never_again {
        true => reply.error(libc::ENOSYS),
        false => {
            reply.message(&answer(open_flags));
        }
    }
}
