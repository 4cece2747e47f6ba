//! The keeper: a process beside a server in a sandbox, which does what the server no longer can.
//! It publishes the mount's record, detaches the mount, and tidies up after it, each on request;
//! it decides nothing and reads nothing but what is asked. It holds no descriptor but
//! its socket.
//!
//! ```text
//! server (sandbox) ── 1 byte: what ──► keeper (where the mount is)
//!                  ◄─ empty, or why not ──
//! ```
//!
//! It ends with the server. When the server was killed it leaves everything as it is: the mount
//! is dead and shown as such, as without a keeper.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use parking_lot::Mutex;
use rustix::net::{RecvFlags, SendFlags};
use rustix::thread::CapabilitySet;

use super::error::{Error, Result};
use super::own_mount::OwnMount;
use super::runtime::MountRecord;
use crate::sys::{capabilities, process};

/// Detach the mount; a byte follows, whether the connection lives.
const DETACH: u8 = b'd';
/// Give the record, which has been written, its name.
const PUBLISH: u8 = b'p';
/// Whether the thread whose number follows has CAP_SYS_ADMIN over the machine: the kernel tells
/// it to who may look at the thread.
const ADMINISTERS: u8 = b'a';
/// The mount has ended after it had answered: tidy up, and end.
const ENDED: u8 = b'e';
/// It never answered: the same.
const FAILED: u8 = b'f';

/// No message is longer.
const MAX_MESSAGE: usize = 1024;

/// What tidying up is, beside the record; told whether the mount had answered.
pub(super) type Afterwards = Box<dyn FnOnce(bool)>;

/// The server's side.
#[derive(Debug)]
pub(super) struct Keeper {
    /// Taken when there is nothing left to ask. Held over a request and its answer.
    socket: Mutex<Option<OwnedFd>>,
}

impl Keeper {
    /// Starts it. The process must have one thread.
    ///
    /// # Errors
    /// Those of [`process::beside`].
    pub(super) fn start(
        mount: &OwnMount,
        record: Option<&MountRecord>,
        afterwards: Afterwards,
    ) -> io::Result<Self> {
        let mount = mount.clone();
        let record = record.cloned();
        let socket = process::beside(&[], move |socket| {
            confine();
            keep(&socket, &mount, record.as_ref(), afterwards);
        })?;
        Ok(Self {
            socket: Mutex::new(Some(socket)),
        })
    }

    /// Detaches the mount, which was put on `mountpoint`; see [`OwnMount::detach`].
    ///
    /// # Errors
    /// [`Error::Unmount`] with the reason, also when there is no keeper any more.
    pub(super) fn detach(&self, mountpoint: &Path, connected: bool) -> Result<()> {
        let message = [DETACH, u8::from(connected)];
        self.say(&message).map_err(|error| Error::Unmount {
            path: mountpoint.to_owned(),
            text: error.to_string(),
        })
    }

    /// Gives the record its name.
    ///
    /// # Errors
    /// [`Error::Runtime`].
    pub(super) fn publish(&self, record: &MountRecord) -> Result<()> {
        self.ask(PUBLISH).map_err(|source| Error::Runtime {
            path: record.file(),
            source,
        })
    }

    /// Has everything tidied up; the keeper has ended then, or is about to.
    pub(super) fn finish(&self, had_answered: bool) {
        let last = match had_answered {
            true => ENDED,
            false => FAILED,
        };
        match self.ask(last) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotConnected => {}
            Err(error) => tracing::warn!(%error, "the end of the mount is not tidied up"),
        }
        *self.socket.lock() = None;
    }

    /// See [`process::administers_machine`]; false without a keeper.
    pub(super) fn administers_machine(&self, thread: u32) -> bool {
        let mut message = vec![ADMINISTERS];
        message.extend_from_slice(&thread.to_ne_bytes());
        self.say(&message).is_ok()
    }

    fn ask(&self, what: u8) -> io::Result<()> {
        self.say(&[what])
    }

    fn say(&self, message: &[u8]) -> io::Result<()> {
        let held = self.socket.lock();
        let socket = held.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        let gone = || io::Error::new(io::ErrorKind::BrokenPipe, "the keeper is gone");
        rustix::io::retry_on_intr(|| rustix::net::send(socket, message, SendFlags::NOSIGNAL))
            .map_err(|_| gone())?;
        let mut answer = [0; MAX_MESSAGE];
        let received = rustix::io::retry_on_intr(|| {
            rustix::net::recv(socket, &mut answer, RecvFlags::empty())
        });
        // The first byte is there so that an answer is no end of file.
        match received {
            Ok((1.., size)) => match answer.get(1..size).unwrap_or_default() {
                [] => Ok(()),
                text => Err(io::Error::other(String::from_utf8_lossy(text).into_owned())),
            },
            _ => Err(gone()),
        }
    }
}

impl Drop for Keeper {
    /// A mount that was given up.
    fn drop(&mut self) {
        self.finish(false);
    }
}

/// The keeper's own rights: to unmount, to find the mountpoint, to remove what a private upper
/// holds, and to look at callers. A plain user's keeper has none to give up, and needs fusermount3, a set-id
/// program.
fn confine() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let needed = CapabilitySet::SYS_ADMIN
        | CapabilitySet::DAC_READ_SEARCH
        | CapabilitySet::DAC_OVERRIDE
        | CapabilitySet::FOWNER
        | CapabilitySet::SYS_PTRACE;
    // The worst is a keeper with more rights than it needs; nobody hears its log.
    let _ = capabilities::set_no_new_privs();
    let _ = capabilities::keep_only(needed);
    let _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
}

/// The keeper's life.
fn keep(socket: &OwnedFd, mount: &OwnMount, record: Option<&MountRecord>, afterwards: Afterwards) {
    let mut what = [0; 5];
    loop {
        let received =
            rustix::io::retry_on_intr(|| rustix::net::recv(socket, &mut what, RecvFlags::empty()));
        let Ok((1.., _)) = received else {
            return;
        };
        let [first, thread @ ..] = what;
        let outcome = match first {
            ADMINISTERS => match process::administers_machine(u32::from_ne_bytes(thread)) {
                true => Ok(()),
                false => Err("no".to_owned()),
            },
            DETACH => mount
                .detach(thread[0] != 0)
                .map(|_| ())
                .map_err(|error| error.to_string()),
            PUBLISH => record
                .map_or(Ok(()), MountRecord::publish)
                .map_err(|error| error.to_string()),
            last => {
                if let Some(record) = record {
                    record.remove();
                }
                afterwards(last == ENDED);
                answer(socket, Ok(()));
                return;
            }
        };
        answer(socket, outcome);
    }
}

fn answer(socket: &OwnedFd, outcome: std::result::Result<(), String>) {
    let mut message = vec![0];
    if let Err(error) = outcome {
        message.extend_from_slice(error.as_bytes());
        message.truncate(MAX_MESSAGE);
    }
    // A server that has gone does not want to know.
    let _ = rustix::net::send(socket, &message, SendFlags::NOSIGNAL);
}
