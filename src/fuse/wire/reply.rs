//! The answer to one request. Any thread gives exactly one, in one writev(2), or leaves it for the
//! thread that took the request from a ring. `answers` has the content.

use std::io::IoSlice;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use zerocopy::{Immutable, IntoBytes};

use super::abi::{Dirent, EntryOut, OutHeader};
use super::slot::Slot;
use crate::fuse::busy;

/// The largest errno that the kernel takes from a file system.
const MAX_ERRNO: i32 = 511;

/// The reply to one request. If it is dropped without an answer, it answers EIO, because the caller
/// must not wait forever.
#[derive(Debug)]
pub(crate) struct Reply {
    /// The source of the request; `None` once it is answered.
    to: Option<To>,
    unique: u64,
}

#[derive(Debug)]
enum To {
    Device(Arc<OwnedFd>),
    Ring(Arc<Slot>),
}

impl Reply {
    pub(super) fn new(device: Arc<OwnedFd>, unique: u64) -> Self {
        Self {
            to: Some(To::Device(device)),
            unique,
        }
    }

    /// Creates the reply of a request whose answer goes to `slot`.
    pub(super) fn to_slot(slot: Arc<Slot>, unique: u64) -> Self {
        Self {
            to: Some(To::Ring(slot)),
            unique,
        }
    }

    /// Creates the reply of a request that takes no answer.
    pub(super) fn none() -> Self {
        Self {
            to: None,
            unique: 0,
        }
    }

    /// Answers with a failure. A number that is not an errno becomes EIO.
    pub(crate) fn error(mut self, errno: i32) {
        self.send(errno, &[]);
    }

    /// Answers with a message. Returns whether the kernel took it.
    pub(crate) fn message(self, message: &(impl IntoBytes + Immutable)) -> bool {
        self.bytes(message.as_bytes())
    }

    /// Answers with data. Returns whether the kernel took it.
    pub(crate) fn bytes(mut self, data: &[u8]) -> bool {
        self.send(0, data)
    }

    /// Answers with the bytes that `fill` writes into `size` bytes of the ring's own memory; `fill`
    /// returns their number. Returns the unused reply if the request came over no ring, or if
    /// `fill` failed.
    pub(crate) fn filled(
        mut self,
        size: u32,
        fill: impl FnOnce(&mut [u8]) -> Option<usize>,
    ) -> Option<Self> {
        match &self.to {
            Some(To::Ring(slot)) if slot.fill(size as usize, fill) => {
                self.to = None;
                None
            }
            _ => Some(self),
        }
    }

    fn send(&mut self, errno: i32, data: &[u8]) -> bool {
        let error = match errno {
            0..=MAX_ERRNO => -errno,
            _ => -libc::EIO,
        };
        let device = match self.to.take() {
            Some(To::Device(device)) => device,
            Some(To::Ring(slot)) => return slot.put(error, data),
            None => return false,
        };
        let header = OutHeader {
            // The length always fits: no reply is larger than 1 MiB.
            len: u32::try_from(size_of::<OutHeader>() + data.len()).unwrap_or(u32::MAX),
            error,
            unique: self.unique,
        };
        busy::answers();
        let parts = [IoSlice::new(header.as_bytes()), IoSlice::new(data)];
        match rustix::io::retry_on_intr(|| rustix::io::writev(&*device, &parts)) {
            Ok(_) => true,
            // ENOENT: the request was aborted. ENODEV: the file system is unmounted. No caller
            // waits any more.
            Err(error) => {
                tracing::debug!(unique = self.unique, %error, "reply not taken");
                false
            }
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if self.to.is_some() {
            self.send(libc::EIO, &[]);
        }
    }
}

/// A directory listing that is built in a buffer of the size that the caller requested.
pub(crate) struct DirBuffer<'b> {
    buffer: &'b mut [u8],
    used: usize,
}

impl<'b> DirBuffer<'b> {
    pub(crate) fn new(buffer: &'b mut [u8]) -> Self {
        Self { buffer, used: 0 }
    }

    /// Adds an entry of READDIR, or of READDIRPLUS with its `EntryOut`. Returns `false` if it does
    /// not fit; nothing was added then. `kind` is one of the `DT_` values.
    pub(crate) fn add(
        &mut self,
        entry: Option<&EntryOut>,
        ino: u64,
        off: u64,
        kind: u32,
        name: &[u8],
    ) -> bool {
        let Ok(namelen) = u32::try_from(name.len()) else {
            return false;
        };
        let dirent = Dirent {
            ino,
            off,
            namelen,
            kind,
        };
        let entry = entry.map_or(&[][..], IntoBytes::as_bytes);
        let parts = [entry, dirent.as_bytes(), name];
        let len: usize = parts.iter().map(|part| part.len()).sum();
        let padded = len.next_multiple_of(8);
        let Some(place) = self.buffer.get_mut(self.used..self.used + padded) else {
            return false;
        };
        let mut rest = place;
        for part in parts {
            let Some((to, after)) = rest.split_at_mut_checked(part.len()) else {
                return false;
            };
            to.copy_from_slice(part);
            rest = after;
        }
        rest.fill(0);
        self.used += padded;
        true
    }

    /// Returns the listing.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.buffer.get(..self.used).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::net::UnixStream;
    use zerocopy::FromBytes;

    fn answered(answer: impl FnOnce(Reply)) -> (OutHeader, Vec<u8>) {
        let (mut kernel, ours) = UnixStream::pair().unwrap();
        answer(Reply::new(Arc::new(OwnedFd::from(ours)), 7));
        let mut all = Vec::new();
        kernel.read_to_end(&mut all).unwrap();
        let (header, rest) = OutHeader::read_from_prefix(&all).unwrap();
        assert_eq!(header.len as usize, all.len());
        assert_eq!(header.unique, 7);
        (header, rest.to_vec())
    }

    #[test]
    fn each_request_is_answered_once() {
        let (header, body) = answered(|reply| assert!(reply.bytes(b"data")));
        assert_eq!((header.error, &*body), (0, &b"data"[..]));
        let (header, body) = answered(|reply| reply.error(libc::ENOENT));
        assert_eq!((header.error, &*body), (-libc::ENOENT, &b""[..]));
        let (header, _) = answered(drop);
        assert_eq!(header.error, -libc::EIO);
        for no_errno in [-1, 512, i32::MIN, i32::MAX] {
            let (header, _) = answered(|reply| reply.error(no_errno));
            assert_eq!(header.error, -libc::EIO);
        }
    }

    #[test]
    fn a_listing_ends_where_the_buffer_does() {
        let mut space = [0xff; 80];
        let mut list = DirBuffer::new(&mut space);
        assert!(list.add(None, 1, 1, 4, b"."));
        assert!(list.add(None, 2, 2, 8, b"eightchr"));
        assert!(!list.add(None, 3, 3, 8, b"x"), "16 bytes are left");
        assert_eq!(list.bytes().len(), 64);
        let (first, rest) = Dirent::read_from_prefix(list.bytes()).unwrap();
        assert_eq!(
            (first.ino, first.off, first.namelen, first.kind),
            (1, 1, 1, 4)
        );
        assert_eq!(&rest[..8], b".\0\0\0\0\0\0\0");
        let entry = EntryOut::default();
        let mut list = DirBuffer::new(&mut space);
        assert!(!list.add(Some(&entry), 1, 1, 4, b"."));
        assert!(list.bytes().is_empty());
    }
}
