//! Answers a request exactly once, with the result of the union or its errno, and logs
//! failures once. Called by `adapter`.

use fuser::{
    Errno, Generation, ReplyAttr, ReplyBmap, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLock, ReplyLseek, ReplyOpen,
    ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr,
};

use super::convert::{self, FOREVER};
use super::counters::Op;
use crate::union::{Attr, EntryRef, Error, Result, StatFs};

/// A reply that can be an error.
pub(super) trait Reply: Sized {
    /// Answers with an errno, without a word in the log.
    fn refuse(self, errno: Errno);

    /// Answers with the errno of a failed operation of the union.
    fn fail(self, op: Op, ino: u64, error: &Error) {
        log(op, ino, error);
        self.refuse(Errno::from_i32(error.errno()));
    }
}

macro_rules! replies {
    ($($reply:ty,)*) => {
        $(impl Reply for $reply {
            fn refuse(self, errno: Errno) {
                self.error(errno);
            }
        })*
    };
}

replies! {
    ReplyAttr, ReplyBmap, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLock, ReplyLseek, ReplyOpen, ReplyPoll,
    ReplyStatfs, ReplyWrite, ReplyXattr,
}

/// What the user did wrong is told to the user by errno; what went wrong on our side or on
/// the disk is for the administrator.
fn log(op: Op, ino: u64, error: &Error) {
    match error.errno() {
        libc::EIO | libc::EUCLEAN | libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ESTALE => {
            tracing::warn!(op = op.name(), ino, %error);
        }
        _ => tracing::debug!(op = op.name(), ino, %error),
    }
}

pub(super) fn empty(reply: ReplyEmpty, op: Op, ino: u64, result: Result<()>) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.fail(op, ino, &error),
    }
}

pub(super) fn attr(reply: ReplyAttr, op: Op, ino: u64, result: Result<Attr>) {
    match result {
        Ok(attr) => reply.attr(&FOREVER, &convert::attr(&attr)),
        Err(error) => reply.fail(op, ino, &error),
    }
}

/// The kernel holds a lookup on the entry from the reply on.
pub(super) fn entry(reply: ReplyEntry, op: Op, parent: u64, result: Result<EntryRef<'_>>) {
    match result {
        Ok(entry) => {
            let attr = convert::attr(entry.attr());
            reply.entry(&FOREVER, &attr, Generation(entry.generation()));
            entry.surrender();
        }
        Err(error) => reply.fail(op, parent, &error),
    }
}

pub(super) fn written(reply: ReplyWrite, op: Op, ino: u64, result: Result<usize>) {
    match result {
        Ok(count) => reply.written(u32::try_from(count).unwrap_or(u32::MAX)),
        Err(error) => reply.fail(op, ino, &error),
    }
}

/// `size` 0 asks for the length only; a value longer than `size` is ERANGE.
pub(super) fn xattr(reply: ReplyXattr, op: Op, ino: u64, size: u32, result: Result<Vec<u8>>) {
    match result {
        Ok(value) => match u32::try_from(value.len()) {
            Ok(len) if size == 0 => reply.size(len),
            Ok(len) if len <= size => reply.data(&value),
            _ => reply.refuse(Errno::ERANGE),
        },
        Err(error) => reply.fail(op, ino, &error),
    }
}

pub(super) fn statfs(reply: ReplyStatfs, ino: u64, result: Result<StatFs>) {
    match result {
        Ok(s) => reply.statfs(
            s.blocks, s.bfree, s.bavail, s.files, s.ffree, s.bsize, s.namelen, s.frsize,
        ),
        Err(error) => reply.fail(Op::StatFs, ino, &error),
    }
}

pub(super) fn offset(reply: ReplyLseek, ino: u64, result: Result<u64>) {
    match result.map(i64::try_from) {
        Ok(Ok(offset)) => reply.offset(offset),
        Ok(Err(_)) => reply.refuse(Errno::EOVERFLOW),
        Err(error) => reply.fail(Op::Lseek, ino, &error),
    }
}
