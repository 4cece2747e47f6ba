//! Answers the calls with which root of a plain user's container gives files to other users, and on
//! request those that ask for owners (`--other-users=show`).
//!
//! The container has one user ID, so the kernel refuses the first kind before any file system sees
//! them, and shows the overflow ID for all others. The filter of the container therefore hands these
//! calls to this process (seccomp_unotify(2)). It opens the file that the caller names, and changes its
//! owner through the mount of the image, whose server records it beside the file, for `commit`; or it
//! writes the attributes of the file, with the recorded owner, to where the caller wants them.
//!
//! No right is gained. This process has the user ID of the container and no capability. It changes
//! owners only of files on the mount of the image, where this user may set every owner anyway, and
//! which nobody else can reach. What the caller exchanges meanwhile (its memory, files, mounts)
//! therefore only decides which of these files gets an owner. An answer goes into the memory of the
//! caller only, and nobody but the caller believes it: rights are checked by the kernel, which does not
//! know these owners.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;

use anyhow::Context as _;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{AtFlags, chownat};
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use unionfs::sys::notify::{Listener, Reply, WaitingCall, knows_kernels_answer};
use unionfs::sys::seccomp::ARCHITECTURE;
use unionfs::sys::stat_bytes;

use super::callers_path::{AtEnd, Caller};
use super::watched_calls::{Asked, NamedFile, StatForm, Watched};

/// The ID that the kernel shows for those that a user namespace does not have, unless an administrator
/// has changed it (/proc/sys/kernel/overflowuid).
const OVERFLOW_ID: u32 = 65534;

/// The longest message of a runtime that is read. A runtime says more than is needed here.
const MAX_MESSAGE: usize = 64 << 10;

/// How many threads answer where programs ask for owners. A file on a file system of this machine that
/// does not answer then does not stop all programs of the container.
const THREADS: usize = 4;

/// The owners of a container, as the mount shows them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Users {
    /// The user and the group of the container.
    pub(super) inside: (u32, u32),
    /// The user and the group who run it. The mount shows each pair as the other one.
    pub(super) outside: (u32, u32),
}

/// Threads that record owners until they are stopped.
pub(super) struct Recorder {
    /// Closing it ends the threads.
    stop: OwnedFd,
    thread: JoinHandle<()>,
}

/// Where the listener comes from.
pub(super) enum Source {
    /// An OCI runtime connects to this socket.
    Runtime(UnixListener),
    /// A program that this process starts sends it.
    Program(UnixStream),
}

/// Returns why no calls can be answered on this machine.
pub(super) fn obstacle(watched: Watched) -> Option<&'static str> {
    let own = std::process::id().to_string();
    // The numbers of callers are those of our PID namespace.
    let has_proc = std::fs::read_link("/proc/self").is_ok_and(|link| link.as_os_str() == &*own);
    if !has_proc {
        Some("/proc is not that of this PID namespace")
    } else if !unionfs::sys::notify::is_known() {
        Some("the kernel cannot hand system calls to another process (Linux 5.0)")
    } else if ARCHITECTURE.is_none() {
        Some("system calls of this architecture are not known")
    } else if watched == Watched::ChangesAndQuestions && !knows_kernels_answer() {
        Some("the kernel does not take system calls back (Linux 5.5)")
    } else {
        None
    }
}

/// Returns the socket at which a runtime gives the listener.
///
/// # Errors
/// Those of bind(2): the path of the bundle is too long for the name of a socket.
pub(super) fn socket(bundle: &Path) -> io::Result<(UnixListener, PathBuf)> {
    let path = bundle.join("owners");
    Ok((UnixListener::bind(&path)?, path))
}

impl Recorder {
    /// Begins to answer the calls about files on the file system of `rootfs`.
    pub(super) fn start(
        source: Source,
        rootfs: &Path,
        users: Users,
        watched: Watched,
    ) -> anyhow::Result<Self> {
        let device = rustix::fs::stat(rootfs)?.st_dev;
        let (stopped, stop) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let recording = Recording {
            device,
            users,
            watched,
        };
        let thread = std::thread::Builder::new().name("owners".into());
        let thread = thread.spawn(move || {
            if let Err(error) = recording.serve(source, &stopped) {
                crate::cli::warn(format_args!("owners are not recorded: {error}"));
            }
        });
        let thread = thread.context("cannot start a thread")?;
        Ok(Self { stop, thread })
    }

    /// Ends the threads, which keep no file of the container open then.
    pub(super) fn stop(self) {
        drop(self.stop);
        let _ = self.thread.join();
    }
}

struct Recording {
    /// The device number of the mount of the image.
    device: u64,
    users: Users,
    watched: Watched,
}

impl Recording {
    fn serve(&self, source: Source, stopped: &OwnedFd) -> io::Result<()> {
        let connection = match source {
            Source::Program(connection) => connection,
            Source::Runtime(socket) => {
                if !is_ready(&socket, stopped)? {
                    return Ok(());
                }
                socket.accept()?.0
            }
        };
        if !is_ready(&connection, stopped)? {
            return Ok(());
        }
        let Some(listener) = receive(&connection)? else {
            return Ok(());
        };
        drop(connection);
        let listener = Listener::new(listener);
        // Receiving waits without looking at `stopped`: only one thread does it, after it has seen
        // that there is something.
        let turn = Mutex::new(());
        let next = || -> io::Result<Option<WaitingCall>> {
            let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
            while is_ready(&listener, stopped)? {
                match listener.receive() {
                    Ok(call) => return Ok(Some(call)),
                    Err(error) => match Errno::from_io_error(&error) {
                        Some(Errno::NOENT | Errno::INTR) => {}
                        _ => return Err(error),
                    },
                }
            }
            Ok(None)
        };
        let answer_all = || -> io::Result<()> {
            while let Some(call) = next()? {
                let reply = self.answer(&listener, &call);
                // The caller may have ended.
                let _ = listener.answer(&call, reply);
            }
            Ok(())
        };
        let others = match self.watched {
            Watched::Changes => 0,
            Watched::ChangesAndQuestions => THREADS - 1,
        };
        std::thread::scope(|scope| {
            for _ in 0..others {
                // Fewer threads answer as well.
                let thread = std::thread::Builder::new().name("owners".into());
                let _ = thread.spawn_scoped(scope, answer_all);
            }
            answer_all()
        })
    }

    fn answer(&self, listener: &Listener, call: &WaitingCall) -> Reply {
        let is_native = Some(call.architecture) == ARCHITECTURE;
        match Asked::of(call).filter(|_| is_native) {
            Some(Asked::Chown { file, uid, gid }) => {
                match self.change(listener, call, file, uid, gid) {
                    Ok(()) => Reply::Done,
                    Err(error) => Reply::Failed(error),
                }
            }
            Some(Asked::Stat { file, answer, form }) => {
                match self.show(listener, call, file, answer, form) {
                    Some(()) => Reply::Done,
                    None => Reply::OfKernel,
                }
            }
            // Of another architecture.
            None => match self.watched {
                Watched::Changes => Reply::Done,
                Watched::ChangesAndQuestions => Reply::OfKernel,
            },
        }
    }

    /// Does what a chown asks for. What cannot be recorded, such as an owner on another file system,
    /// succeeds and changes nothing.
    fn change(
        &self,
        listener: &Listener,
        call: &WaitingCall,
        file: NamedFile,
        uid: u32,
        gid: u32,
    ) -> Result<(), Errno> {
        let Ok(caller) = Caller::of_thread(call.thread) else {
            return Ok(());
        };
        let file = match opened(&caller, file) {
            Err(None) => return Ok(()),
            Err(Some(error)) => Err(error),
            Ok(file) => Ok(file),
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
        let uid = self
            .given(uid)
            .map(|id| exchanged(id, users.inside.0, users.outside.0));
        let gid = self
            .given(gid)
            .map(|id| exchanged(id, users.inside.1, users.outside.1));
        let uid = uid.map(rustix::fs::Uid::from_raw);
        let gid = gid.map(rustix::fs::Gid::from_raw);
        match chownat(&file, "", uid, gid, AtFlags::EMPTY_PATH) {
            // The layer has no records.
            Err(Errno::PERM | Errno::INVAL) => Ok(()),
            other => other,
        }
    }

    /// Answers with the attributes of a file whose owner the kernel cannot show; `None` if the kernel
    /// shows it, and where anything fails, so that the caller hears of it from the kernel.
    fn show(
        &self,
        listener: &Listener,
        call: &WaitingCall,
        file: NamedFile,
        answer: u64,
        form: StatForm,
    ) -> Option<()> {
        let caller = Caller::of_thread(call.thread).ok()?;
        let file = opened(&caller, file).ok()?;
        let stat = rustix::fs::fstat(&file).ok()?;
        let users = &self.users;
        if stat.st_dev != self.device || (stat.st_uid, stat.st_gid) == users.outside {
            return None;
        }
        let uid = exchanged(stat.st_uid, users.inside.0, users.outside.0);
        let gid = exchanged(stat.st_gid, users.inside.1, users.outside.1);
        let bytes = match form {
            StatForm::Stat => stat_bytes::stat(&file, uid, gid),
            StatForm::Statx { flags, mask } => stat_bytes::statx(&file, flags, mask, uid, gid),
        };
        let (bytes, memory) = (bytes.ok()?, caller.memory().ok()?);
        // The memory is that of another process, if the caller has ended.
        if !listener.is_waiting(call) {
            return None;
        }
        memory.write_all_at(&bytes, answer).ok()
    }

    /// Returns the ID that a file gets; `None` if it keeps its own. Where owners are not shown, the
    /// container sees the overflow ID for all that it does not have. Programs that write a file anew
    /// give it the owner that they read (useradd does this with /etc/shadow), so this ID means an
    /// unknown one.
    fn given(&self, id: u32) -> Option<u32> {
        let is_unknown = self.watched == Watched::Changes && id == OVERFLOW_ID;
        (id != u32::MAX && !is_unknown).then_some(id)
    }
}

/// Opens the file that a caller names. The error is `None` if its name cannot be read.
fn opened(caller: &Caller, file: NamedFile) -> Result<OwnedFd, Option<Errno>> {
    let path = match file.path {
        Some(address) => caller.path_at(address)?,
        None => Vec::new(),
    };
    if path.is_empty() && file.may_be_empty {
        return caller.descriptor(file.dir).map_err(Some);
    }
    let at_end = if file.follows {
        AtEnd::Follow
    } else {
        AtEnd::Keep
    };
    caller.file(file.dir, &path, at_end).map_err(Some)
}

/// Returns how the mount shows an ID of the image, and the ID of the image that it shows so.
fn exchanged(id: u32, inside: u32, outside: u32) -> u32 {
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

/// Receives the listener. A runtime sends the `containerProcessState` of the OCI runtime specification
/// ("The Container Process State"), whose descriptors have names. `None` if the other end was closed
/// without a message: the program was not started.
fn receive(connection: &UnixStream) -> io::Result<Option<OwnedFd>> {
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
    if received.bytes == 0 {
        return Ok(None);
    }
    let state: serde_json::Value =
        serde_json::from_slice(&message[..received.bytes]).unwrap_or_default();
    let names = state["fds"].as_array();
    let position = names.and_then(|names| names.iter().position(|name| name == "seccompFd"));
    let at = position.unwrap_or(0);
    if at >= all.len() {
        return Err(io::Error::other("the runtime sent no listener"));
    }
    Ok(Some(all.swap_remove(at)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_are_exchanged_as_the_mount_shows_them() {
        assert_eq!(exchanged(0, 0, 1000), 1000);
        assert_eq!(exchanged(1000, 0, 1000), 0);
        assert_eq!(exchanged(5, 0, 1000), 5);
        assert_eq!(exchanged(0, 0, 0), 0);
    }

    #[test]
    fn an_unknown_owner_is_not_given() {
        let of = |watched| Recording {
            device: 0,
            users: Users {
                inside: (0, 0),
                outside: (1000, 1000),
            },
            watched,
        };
        let changes = of(Watched::Changes);
        assert_eq!(changes.given(u32::MAX), None);
        assert_eq!(changes.given(OVERFLOW_ID), None);
        assert_eq!(changes.given(0), Some(0));
        let questions = of(Watched::ChangesAndQuestions);
        assert_eq!(questions.given(u32::MAX), None);
        assert_eq!(questions.given(OVERFLOW_ID), Some(OVERFLOW_ID));
    }
}
