//! The keeper is a process beside a server in a sandbox. It does what the server may not do: it
//! publishes the record of the mount, removes a catalog that is wrong, detaches the mount, and
//! cleans up after it, each on request. It decides nothing and reads only these requests. Its only
//! descriptors are its socket, that of the log, the directory of the catalog and, to find origins by
//! their file handles, the root of a lower on each file system. A handle leads to any file of a
//! file system, and the holder of its descriptor may change its mode, so only the identity of the
//! file is returned.
//!
//! ```text
//! server (sandbox) ── 1 byte: request ──► keeper (in the mount's namespace)
//!                  ◄─ 0 and the result, or 1 and the error ──
//! ```
//!
//! It ends with the server. If the server was killed, it changes nothing: the mount is dead and
//! shown as dead, as without a keeper.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use parking_lot::Mutex;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use rustix::thread::CapabilitySet;

use super::error::{Error, Result};
use super::own_mount::{Connectedness, OwnMount};
use super::runtime::MountRecord;
use crate::layer::held_name::HeldName;
use crate::layer::origin::{Origin, OriginFile};
use crate::sys::{capabilities, daemon, process};

/// Detach the mount. A byte follows: whether the connection lives.
const DETACH: u8 = b'd';
/// Give the written record its name.
const PUBLISH: u8 = b'p';
/// Remove the catalog of the mount, so that the next mount makes another one.
const CATALOG: u8 = b'c';
/// Find an origin. The device number and the origin follow. The answer is an [`OriginFile`].
const ORIGIN: u8 = b'o';
/// Whether the thread whose number follows has CAP_SYS_ADMIN over the machine. The kernel tells it
/// only to a process that may inspect the thread.
const ADMINISTERS: u8 = b'a';
/// The mount has ended ([`MountEnd::Served`]): clean up, and end.
const ENDED: u8 = b'e';
/// As [`ENDED`], with [`MountEnd::NeverAnswered`].
const FAILED: u8 = b'f';

/// The first byte of an answer.
const DONE: u8 = 0;
const REFUSED: u8 = 1;

/// The maximum length of a message.
const MAX_MESSAGE: usize = 1024;

/// Cleans up everything but the record.
pub type Afterwards = Box<dyn FnOnce(MountEnd)>;

/// How a mount went, at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MountEnd {
    /// It answered programs.
    Served,
    /// It failed before it answered.
    NeverAnswered,
}

/// The server's end of the connection.
#[derive(Debug)]
pub(super) struct Keeper {
    /// The socket; `None` once there is nothing more to request. It is locked during a request and
    /// its answer.
    socket: Mutex<Option<OwnedFd>>,
    /// Whether the keeper may open file handles.
    opens_handles: bool,
}

impl Keeper {
    /// Starts the keeper. The process must have one thread.
    ///
    /// # Errors
    /// Those of [`daemon::bare_helper`].
    pub(super) fn start(
        mount: &OwnMount,
        record: Option<&MountRecord>,
        file_systems: &[(u64, BorrowedFd<'_>)],
        catalog: Option<HeldName>,
        afterwards: Afterwards,
    ) -> io::Result<Self> {
        let mount = mount.clone();
        let record = record.cloned();
        let own = rustix::thread::capabilities(None)?.effective;
        let opens_handles = own.contains(CapabilitySet::DAC_READ_SEARCH);
        let roots = file_systems.iter().map(|(_, root)| *root);
        let kept: Vec<_> = roots.chain(catalog.as_ref().map(HeldName::dir)).collect();
        let catalog = catalog.as_ref();
        let socket = daemon::bare_helper(&kept, move |socket| {
            confine();
            let own = OwnFiles {
                record: record.as_ref(),
                catalog,
            };
            keep(&socket, &mount, &own, file_systems, afterwards);
        })?;
        Ok(Self {
            socket: Mutex::new(Some(socket)),
            opens_handles,
        })
    }

    /// Finds the file of an origin on the file system with this device number.
    ///
    /// # Errors
    /// EPERM if file handles may not be opened; ESTALE if there is no such file, or no keeper.
    pub(super) fn find_origin(&self, dev: u64, origin: &Origin) -> rustix::io::Result<OriginFile> {
        if !self.opens_handles {
            return Err(Errno::PERM);
        }
        let mut message = vec![ORIGIN];
        message.extend_from_slice(&dev.to_ne_bytes());
        message.extend_from_slice(origin.as_bytes());
        let answer = self.say(&message).map_err(|_| Errno::STALE)?;
        OriginFile::from_bytes(dev, &answer).ok_or(Errno::STALE)
    }

    /// Detaches the mount on `mountpoint`; see [`OwnMount::detach`].
    ///
    /// # Errors
    /// [`Error::Unmount`] with the reason, also if the keeper has ended.
    pub(super) fn detach(&self, mountpoint: &Path, connection: Connectedness) -> Result<()> {
        let message = [DETACH, u8::from(connection == Connectedness::Connected)];
        let said = self.say(&message).map(drop);
        said.map_err(|error| Error::Unmount {
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

    /// Makes the keeper clean up. It has ended when this returns, or is about to end.
    pub(super) fn finish(&self, outcome: MountEnd) {
        let last = match outcome {
            MountEnd::Served => ENDED,
            MountEnd::NeverAnswered => FAILED,
        };
        match self.ask(last) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotConnected => {}
            Err(error) => tracing::warn!(%error, "the end of the mount is not tidied up"),
        }
        *self.socket.lock() = None;
    }

    /// Removes the catalog of the mount. A warning says why it stays.
    pub(super) fn remove_catalog(&self) {
        if let Err(error) = self.ask(CATALOG) {
            tracing::warn!(%error, "the catalog stays");
        }
    }

    /// See [`process::administers_machine`]; false without a keeper.
    pub(super) fn administers_machine(&self, thread: u32) -> bool {
        let mut message = vec![ADMINISTERS];
        message.extend_from_slice(&thread.to_ne_bytes());
        self.say(&message).is_ok()
    }

    fn ask(&self, what: u8) -> io::Result<()> {
        self.say(&[what]).map(drop)
    }

    /// Sends a request and returns the answer.
    fn say(&self, message: &[u8]) -> io::Result<Vec<u8>> {
        let held = self.socket.lock();
        let socket = held.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        let gone = || io::Error::new(io::ErrorKind::BrokenPipe, "the keeper is gone");
        rustix::io::retry_on_intr(|| rustix::net::send(socket, message, SendFlags::NOSIGNAL))
            .map_err(|_| gone())?;
        let mut answer = [0; MAX_MESSAGE];
        let received = rustix::io::retry_on_intr(|| {
            rustix::net::recv(socket, &mut answer, RecvFlags::empty())
        });
        let size = received.map_or(0, |(size, _)| size);
        match answer.get(..size).and_then(<[u8]>::split_first) {
            Some((&DONE, answer)) => Ok(answer.to_vec()),
            Some((_, text)) => Err(io::Error::other(String::from_utf8_lossy(text).into_owned())),
            None => Err(gone()),
        }
    }
}

impl Drop for Keeper {
    /// Cleans up after a mount that was given up.
    fn drop(&mut self) {
        self.finish(MountEnd::NeverAnswered);
    }
}

/// Drops the rights of the keeper except those to unmount, to find the mountpoint, to remove the
/// content of a private upper, and to inspect callers. A plain user's keeper has none to drop,
/// and needs fusermount3, a set-id program.
fn confine() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let needed = CapabilitySet::SYS_ADMIN
        | CapabilitySet::DAC_READ_SEARCH
        | CapabilitySet::DAC_OVERRIDE
        | CapabilitySet::FOWNER
        | CapabilitySet::SYS_PTRACE;
    // In the worst case the keeper has more rights than it needs. A log message of it would reach
    // no reader.
    let _ = capabilities::set_no_new_privs();
    let _ = capabilities::keep_only(needed);
    let _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
}

/// The files of the mount that the keeper may remove.
struct OwnFiles<'f> {
    record: Option<&'f MountRecord>,
    catalog: Option<&'f HeldName>,
}

/// Runs the keeper.
fn keep(
    socket: &OwnedFd,
    mount: &OwnMount,
    own: &OwnFiles<'_>,
    file_systems: &[(u64, BorrowedFd<'_>)],
    afterwards: Afterwards,
) {
    let mut message = [0; MAX_MESSAGE];
    loop {
        let received = rustix::io::retry_on_intr(|| {
            rustix::net::recv(socket, &mut message, RecvFlags::empty())
        });
        let size = received.map_or(0, |(size, _)| size);
        let Some((&first, rest)) = message.get(..size).and_then(<[u8]>::split_first) else {
            return;
        };
        let done = |outcome: Result<()>| match outcome {
            Ok(()) => Ok(Vec::new()),
            Err(error) => Err(error.to_string()),
        };
        let outcome = match first {
            ORIGIN => found(rest, file_systems),
            ADMINISTERS => match rest.first_chunk().map(|thread| u32::from_ne_bytes(*thread)) {
                Some(thread) if process::administers_machine(thread) => Ok(Vec::new()),
                _ => Err("no".to_owned()),
            },
            DETACH => {
                let connection = match rest.first() {
                    Some(&1) => Connectedness::Connected,
                    _ => Connectedness::Ended,
                };
                done(mount.detach(connection).map(drop))
            }
            PUBLISH => done(own.record.map_or(Ok(()), MountRecord::publish)),
            CATALOG => match own.catalog.map(HeldName::remove) {
                None | Some(Ok(())) => Ok(Vec::new()),
                Some(Err(error)) => Err(error.to_string()),
            },
            last => {
                if let Some(record) = own.record {
                    record.remove();
                }
                afterwards(match last {
                    ENDED => MountEnd::Served,
                    _ => MountEnd::NeverAnswered,
                });
                answer(socket, Ok(Vec::new()));
                return;
            }
        };
        answer(socket, outcome);
    }
}

/// Encodes the file that an origin leads to.
fn found(
    message: &[u8],
    file_systems: &[(u64, BorrowedFd<'_>)],
) -> std::result::Result<Vec<u8>, String> {
    let find = || {
        let (dev, origin) = message.split_first_chunk()?;
        let (dev, origin) = (u64::from_ne_bytes(*dev), Origin::parse(origin)?);
        let (_, root) = file_systems.iter().find(|(known, _)| *known == dev)?;
        let file = origin.find(root).ok().filter(|file| file.id.0 == dev)?;
        Some(file.to_bytes())
    };
    find().ok_or_else(|| "there is no such file".to_owned())
}

fn answer(socket: &OwnedFd, outcome: std::result::Result<Vec<u8>, String>) {
    let (first, rest) = match outcome {
        Ok(answer) => (DONE, answer),
        Err(error) => (REFUSED, error.into_bytes()),
    };
    let mut message = vec![first];
    message.extend_from_slice(&rest);
    message.truncate(MAX_MESSAGE);
    // The server may have ended.
    let _ = rustix::net::send(socket, &message, SendFlags::NOSIGNAL);
}
