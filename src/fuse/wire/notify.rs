//! Notifications to the kernel.

use std::os::fd::OwnedFd;

use rustix::io::{IoSlice, retry_on_intr, writev};
use zerocopy::{Immutable, IntoBytes};

use crate::fuse::operations::Notices;

use super::abi::{
    NOTIFY_INVAL_INODE, NOTIFY_RETRIEVE, NotifyInvalInodeOut, NotifyRetrieveOut, OutHeader,
};

/// Sends notifications through the device of a connection.
impl Notices for OwnedFd {
    fn attributes_changed(&self, ino: u64) {
        let body = NotifyInvalInodeOut {
            ino,
            // Attributes only: the range contains no data.
            off: -1,
            len: 0,
        };
        // ENOENT: the kernel does not know the inode (yet); ENODEV: unmounted.
        if let Err(error) = send(self, NOTIFY_INVAL_INODE, &body) {
            tracing::debug!(ino, %error, "notification not taken");
        }
    }
}

/// Makes the kernel send a request with this number (NOTIFY_REPLY, with no data of inode `ino`), as
/// if the calling thread had made a system call. Returns whether the kernel will send it. It
/// refuses an inode that it does not know, and from Linux 6.18 on also one that is not a regular
/// file.
pub(super) fn ask_for_request(device: &OwnedFd, number: u64, ino: u64) -> bool {
    let body = NotifyRetrieveOut {
        notify_unique: number,
        nodeid: ino,
        ..NotifyRetrieveOut::default()
    };
    let sent = send(device, NOTIFY_RETRIEVE, &body);
    if let Err(error) = &sent {
        tracing::debug!(ino, %error, "no request to be had");
    }
    sent.is_ok()
}

fn send(
    device: &OwnedFd,
    code: i32,
    body: &(impl IntoBytes + Immutable),
) -> rustix::io::Result<usize> {
    let body = body.as_bytes();
    let header = OutHeader {
        len: (size_of::<OutHeader>() + body.len()) as u32,
        error: code,
        unique: 0,
    };
    let parts = [IoSlice::new(header.as_bytes()), IoSlice::new(body)];
    retry_on_intr(|| writev(device, &parts))
}
