//! Answers a request exactly once, with the result of the union or its errno, and logs
//! failures once. Called by `adapter`.

use super::convert;
use super::wire::Reply;
use super::wire::abi::{AttrOut, CreateOut, GetxattrIn, OpenOut, StatfsOut, StatxOut, WriteOut};
use crate::union::{Attr, EntryRef, Error, Result, StatFs};

/// Answers with the errno of a failed operation of the union.
pub(super) fn fail(reply: Reply, error: &Error) {
    log(error);
    reply.error(error.errno());
}

/// What the user did wrong is told to the user by errno; what went wrong on our side or on
/// the disk is for the administrator. The log adds which request it was (`request_scope`).
fn log(error: &Error) {
    match error.errno() {
        libc::EIO | libc::EUCLEAN | libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ESTALE => {
            tracing::warn!("{error}");
        }
        _ => tracing::debug!("{error}"),
    }
}

pub(super) fn empty(reply: Reply, result: Result<()>) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => fail(reply, &error),
    }
}

/// `lifetime`: how long the kernel may keep the attributes, in seconds.
pub(super) fn attr(reply: Reply, result: Result<Attr>, lifetime: u64) {
    match result {
        Ok(attr) => {
            reply.message(&AttrOut {
                attr_valid: lifetime,
                attr: convert::attr(&attr),
                ..AttrOut::default()
            });
        }
        Err(error) => fail(reply, &error),
    }
}

/// `mask`: the `STATX_` bits asked for.
pub(super) fn statx(reply: Reply, mask: u32, result: Result<Attr>, lifetime: u64) {
    match result {
        Ok(attr) => {
            reply.message(&StatxOut {
                attr_valid: lifetime,
                stat: convert::statx(&attr, mask),
                ..StatxOut::default()
            });
        }
        Err(error) => fail(reply, &error),
    }
}

/// The kernel holds a lookup on the entry from the reply on. `lifetime`: of an inode's
/// attributes, in seconds.
pub(super) fn entry(reply: Reply, result: Result<EntryRef<'_>>, lifetime: impl Fn(u64) -> u64) {
    match result {
        Ok(entry) => {
            if reply.message(&convert::entry(&entry, lifetime(entry.attr().ino))) {
                entry.surrender();
            }
        }
        Err(error) => fail(reply, &error),
    }
}

/// [`entry`] of a file that comes open; whether the kernel took it.
pub(super) fn created(reply: Reply, entry: EntryRef<'_>, open: OpenOut, lifetime: u64) -> bool {
    let entry_out = convert::entry(&entry, lifetime);
    let taken = reply.message(&CreateOut {
        entry: entry_out,
        open,
    });
    if taken {
        entry.surrender();
    }
    taken
}

pub(super) fn written(reply: Reply, result: Result<usize>) {
    match result {
        Ok(count) => {
            reply.message(&WriteOut {
                size: u32::try_from(count).unwrap_or(u32::MAX),
                padding: 0,
            });
        }
        Err(error) => fail(reply, &error),
    }
}

/// `size` 0 asks for the length only; a value longer than `size` is ERANGE.
pub(super) fn xattr(reply: Reply, size: u32, result: Result<Vec<u8>>) {
    match result {
        Ok(value) => match u32::try_from(value.len()) {
            Ok(len) if size == 0 => {
                reply.message(&GetxattrIn {
                    size: len,
                    padding: 0,
                });
            }
            Ok(len) if len <= size => {
                reply.bytes(&value);
            }
            _ => reply.error(libc::ERANGE),
        },
        Err(error) => fail(reply, &error),
    }
}

pub(super) fn statfs(reply: Reply, result: Result<StatFs>) {
    match result {
        Ok(s) => {
            reply.message(&StatfsOut {
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
        Err(error) => fail(reply, &error),
    }
}

pub(super) fn offset(reply: Reply, result: Result<u64>) {
    match result.map(i64::try_from) {
        Ok(Ok(offset)) => {
            reply.message(&offset);
        }
        Ok(Err(_)) => reply.error(libc::EOVERFLOW),
        Err(error) => fail(reply, &error),
    }
}
