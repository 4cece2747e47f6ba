//! Descriptors that one process gives to another over a socket (`SCM_RIGHTS` of unix(7)).

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

/// Sends a descriptor, with one byte.
///
/// # Errors
/// Those of sendmsg(2).
pub fn send(socket: impl AsFd, descriptor: BorrowedFd<'_>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let sent = [descriptor];
    if !control.push(SendAncillaryMessage::ScmRights(&sent)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    rustix::io::retry_on_intr(|| {
        let byte = [IoSlice::new(&[0])];
        rustix::net::sendmsg(&socket, &byte, &mut control, SendFlags::NOSIGNAL)
    })?;
    Ok(())
}

/// Receives a descriptor. `None` if the other end was closed without a message.
///
/// # Errors
/// Those of recvmsg(2); an error for a message without a descriptor.
pub fn receive(socket: impl AsFd) -> io::Result<Option<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0u8];
    let received = rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(
            &socket,
            &mut [IoSliceMut::new(&mut byte)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )
    })?;
    let descriptor = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut all) => all.next(),
        _ => None,
    });
    if received.bytes > 0 && descriptor.is_none() {
        return Err(io::Error::other("a message came without a descriptor"));
    }
    Ok(descriptor)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_descriptor_arrives_and_is_closed_on_exec() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let sent = rustix::pipe::pipe().unwrap().0;
        send(&theirs, sent.as_fd()).unwrap();
        let received = receive(&ours).unwrap().unwrap();
        let [one, other] = [&sent, &received].map(|fd| rustix::fs::fstat(fd).unwrap());
        assert_eq!((one.st_dev, one.st_ino), (other.st_dev, other.st_ino));
        let flags = rustix::io::fcntl_getfd(&received).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
    }

    #[test]
    fn a_closed_socket_is_no_descriptor() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        assert!(receive(&ours).unwrap().is_none());
    }

    #[test]
    fn a_byte_without_descriptor_is_an_error() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(b"x").unwrap();
        assert!(receive(&ours).is_err());
    }
}
