//! Answers the calls with which root of a plain user's container gives files to other users.
//!
//! The container has one user ID, so the kernel refuses such a call before any file system sees it.
//! The filter of the container therefore hands these calls to this process (seccomp_unotify(2)). It
//! opens the file that the caller names, and changes its owner through the mount of the image, whose
//! server records it beside the file, for `commit`.
//!
//! No right is gained. This process has the user ID of the container and no capability. It changes
//! owners only of files on the mount of the image, where this user may set every owner anyway, and
//! which nobody else can reach. What the caller exchanges meanwhile (its memory, files, mounts)
//! therefore only decides which of these files gets an owner.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use anyhow::Context as _;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use unionfs::sys::notify::{Listener, WaitingCall};
use unionfs::sys::seccomp::ARCHITECTURE;

use super::callers_path::{AtEnd, Caller, chown};
use super::seccomp;

/// The ID that the kernel shows for those that a user namespace does not have, unless an administrator
/// has changed it (/proc/sys/kernel/overflowuid).
const OVERFLOW_ID: u32 = 65534;

/// The longest message of a runtime that is read. A runtime says more than is needed here.
const MAX_MESSAGE: usize = 64 << 10;

/// The owners of a container, as the mount shows them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Users {
    /// The user and the group of the container.
    pub(super) inside: (u32, u32),
    /// The user and the group who run it. The mount shows each pair as the other one.
    pub(super) outside: (u32, u32),
}

/// A thread that records owners until it is stopped.
pub(super) struct Recorder {
    /// Closing it ends the thread.
    stop: OwnedFd,
    thread: JoinHandle<()>,
}

/// Returns the socket at which a runtime gives the listener; `None` if no owners can be recorded
/// here.
pub(super) fn socket(bundle: &Path) -> Option<(UnixListener, PathBuf)> {
    let own = std::process::id().to_string();
    // The numbers of callers are those of our PID namespace.
    let has_proc = std::fs::read_link("/proc/self").is_ok_and(|link| link.as_os_str() == &*own);
    if !has_proc || !unionfs::sys::notify::is_known() || ARCHITECTURE.is_none() {
        return None;
    }
    let path = bundle.join("owners");
    // A long path is no name of a socket.
    let socket = UnixListener::bind(&path).ok()?;
    Some((socket, path))
}

impl Recorder {
    /// Begins to record owners of files on the file system of `rootfs`.
    pub(super) fn start(socket: UnixListener, rootfs: &Path, users: Users) -> anyhow::Result<Self> {
        let device = rustix::fs::stat(rootfs)?.st_dev;
        let (stopped, stop) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let recording = Recording { device, users };
        let thread = std::thread::Builder::new().name("owners".into());
        let thread = thread.spawn(move || {
            if let Err(error) = recording.serve(&socket, &stopped) {
                tracing::warn!(%error, "owners are not recorded");
            }
        });
        let thread = thread.context("cannot start a thread")?;
        Ok(Self { stop, thread })
    }

    /// Ends the thread, which keeps no file of the container open then.
    pub(super) fn stop(self) {
        drop(self.stop);
        let _ = self.thread.join();
    }
}

struct Recording {
    /// The device number of the mount of the image.
    device: u64,
    users: Users,
}

impl Recording {
    fn serve(&self, socket: &UnixListener, stopped: &OwnedFd) -> io::Result<()> {
        if !is_ready(socket, stopped)? {
            return Ok(());
        }
        let (connection, _) = socket.accept()?;
        let listener = Listener::new(receive(&connection)?);
        while is_ready(&listener, stopped)? {
            match listener.receive() {
                Ok(call) => {
                    let answer = self.answer(&listener, &call);
                    // The caller may have ended.
                    let _ = listener.answer(&call, answer);
                }
                Err(error) => match Errno::from_io_error(&error) {
                    Some(Errno::NOENT | Errno::INTR) => {}
                    _ => return Err(error),
                },
            }
        }
        Ok(())
    }

    /// Does what the call asks for. What cannot be recorded, such as an owner on another file system,
    /// succeeds and changes nothing.
    fn answer(&self, listener: &Listener, call: &WaitingCall) -> Result<(), Errno> {
        if Some(call.architecture) != ARCHITECTURE {
            return Ok(());
        }
        let Some(wanted) = seccomp::Chown::of(call.number.into(), &call.arguments) else {
            return Ok(());
        };
        let Ok(caller) = Caller::of_thread(call.thread) else {
            return Ok(());
        };
        let path = match wanted.path.map(|address| caller.path_at(address)) {
            Some(Ok(path)) => Some(path),
            None => None,
            Some(Err(None)) => return Ok(()),
            Some(Err(Some(error))) => return Err(error),
        };
        let file = match path {
            Some(path) if !(path.is_empty() && wanted.may_be_empty) => {
                let at_end = if wanted.follows {
                    AtEnd::Follow
                } else {
                    AtEnd::Keep
                };
                caller.file(wanted.dir, &path, at_end)
            }
            _ => caller.descriptor(wanted.dir),
        };
        // The files are those of another process, if the caller has ended.
        if !listener.is_waiting(call) {
            return Ok(());
        }
        let file = file?;
        if rustix::fs::fstat(&file)?.st_dev != self.device {
            return Ok(());
        }
        let users = &self.users;
        let uid = given(wanted.uid).map(|id| shown(id, users.inside.0, users.outside.0));
        let gid = given(wanted.gid).map(|id| shown(id, users.inside.1, users.outside.1));
        match chown(&file, uid, gid) {
            // The layer has no records.
            Err(Errno::PERM | Errno::INVAL) => Ok(()),
            other => other,
        }
    }
}

/// Returns the ID that a file gets; `None` if it keeps its own. The container sees the overflow ID for
/// all that it does not have. Programs that write a file anew give it the owner that they read
/// (useradd does this with /etc/shadow), so this ID means an unknown one.
fn given(id: u32) -> Option<u32> {
    (id != u32::MAX && id != OVERFLOW_ID).then_some(id)
}

/// Returns how the mount shows an ID of the image.
fn shown(id: u32, inside: u32, outside: u32) -> u32 {
    match id {
        id if id == inside => outside,
        id if id == outside => inside,
        id => id,
    }
}

/// Waits until there is something to read; false after the end.
fn is_ready(fd: &impl std::os::fd::AsFd, stopped: &OwnedFd) -> io::Result<bool> {
    let mut fds = [
        PollFd::new(fd, PollFlags::IN),
        PollFd::new(stopped, PollFlags::IN),
    ];
    rustix::io::retry_on_intr(|| poll(&mut fds, None))?;
    // After the last process of the container the listener hangs up.
    let more = fds[0].revents().contains(PollFlags::IN);
    Ok(more && fds[1].revents().is_empty())
}

/// Receives the listener from the runtime (`containerProcessState` of the OCI runtime
/// specification, "The Container Process State"). Its descriptors have names.
fn receive(connection: &UnixStream) -> io::Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut message = vec![0; MAX_MESSAGE];
    let flags = RecvFlags::CMSG_CLOEXEC;
    let received = rustix::io::retry_on_intr(|| {
        let mut message = [IoSliceMut::new(&mut message)];
        rustix::net::recvmsg(connection.as_fd(), &mut message, &mut control, flags)
    })?;
    let mut all: Vec<OwnedFd> = Vec::new();
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = part {
            all.extend(fds);
        }
    }
    let state: serde_json::Value =
        serde_json::from_slice(&message[..received.bytes]).unwrap_or_default();
    let names = state["fds"].as_array();
    let position = names.and_then(|names| names.iter().position(|name| name == "seccompFd"));
    let at = position.unwrap_or(0);
    if at >= all.len() {
        return Err(io::Error::other("the runtime sent no listener"));
    }
    Ok(all.swap_remove(at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_are_exchanged_as_the_mount_shows_them() {
        assert_eq!(shown(0, 0, 1000), 1000);
        assert_eq!(shown(1000, 0, 1000), 0);
        assert_eq!(shown(5, 0, 1000), 5);
        assert_eq!(shown(0, 0, 0), 0);
    }

    #[test]
    fn an_unknown_owner_is_not_given() {
        assert_eq!(given(u32::MAX), None);
        assert_eq!(given(OVERFLOW_ID), None);
        assert_eq!(given(0), Some(0));
    }
}
