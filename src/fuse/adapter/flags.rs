//! The flags of files that chattr(1) and lsattr(1) want, which come as ioctls.

use zerocopy::IntoBytes as _;

use super::Adapter;
use crate::fuse::counters::Op;
use crate::fuse::reply;
use crate::fuse::wire::abi::IoctlOut;
use crate::fuse::wire::{FlagsCmd, NewFlags, Reply};
use crate::union::FileFlags;

impl Adapter {
    pub(super) fn flags(&self, ino: u64, cmd: FlagsCmd, reply: Reply) {
        self.count(Op::Ioctl);
        let out = IoctlOut::default();
        let result = match cmd {
            FlagsCmd::Flags => self
                .union
                .file_flags(ino)
                .map(|flags| [out.as_bytes(), flags.0.as_bytes()].concat()),
            FlagsCmd::Xflags => self
                .union
                .file_xflags(ino)
                .map(|attr| [out.as_bytes(), attr.as_bytes()].concat()),
        };
        match result {
            Ok(answer) => {
                reply.bytes(&answer);
            }
            Err(error) => reply::fail(reply, &error),
        }
    }

    pub(super) fn set_flags(&self, ino: u64, new: NewFlags, reply: Reply) {
        self.count(Op::Ioctl);
        self.modify(ino, move |union| {
            let result = match new {
                NewFlags::Flags(flags) => union.set_file_flags(ino, FileFlags(flags)),
                NewFlags::Xflags(attr) => union.set_file_xflags(ino, attr),
            };
            match result {
                Ok(()) => {
                    reply.message(&IoctlOut::default());
                }
                Err(error) => reply::fail(reply, &error),
            }
        });
    }
}
