//! What the server tells the kernel unasked. Called by `passthrough`.

use std::os::fd::OwnedFd;

use rustix::io::{IoSlice, retry_on_intr, writev};
use zerocopy::IntoBytes as _;

use super::abi::{NOTIFY_INVAL_INODE, NotifyInvalInodeOut, OutHeader};

/// Makes the kernel ask for the attributes of `ino` again, whatever it was told of how long they
/// are valid; its pages stay. An answer that is on its way is dropped by the kernel.
pub(crate) fn attributes_changed(device: &OwnedFd, ino: u64) {
    let body = NotifyInvalInodeOut {
        ino,
        // None of the data.
        off: -1,
        len: 0,
    };
    let header = OutHeader {
        len: (size_of::<OutHeader>() + size_of::<NotifyInvalInodeOut>()) as u32,
        error: NOTIFY_INVAL_INODE,
        unique: 0,
    };
    let parts = [
        IoSlice::new(header.as_bytes()),
        IoSlice::new(body.as_bytes()),
    ];
    // ENOENT: the kernel does not know the inode (yet); ENODEV: unmounted.
    if let Err(error) = retry_on_intr(|| writev(device, &parts)) {
        tracing::debug!(ino, %error, "notification not taken");
    }
}
