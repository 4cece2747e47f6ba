//! Opens that the kernel serves from the file of a layer itself (`FUSE_PASSTHROUGH`, Linux 6.9): no
//! READ and no WRITE reaches us, unless fcntl(2) could change what it means (O_APPEND, O_DIRECT).
//!
//! The kernel's rule (fs/fuse/iomode.c), broken by an open with EIO for the program: while an
//! inode is open, all its opens are passed through to one registered file, or none is. So the
//! first open decides, the others follow, and the decision falls with the last RELEASE. A
//! file of a lower on a writable mount is not passed through: whoever has it open must see
//! what a later writer makes of it. Locks: one shard of the table, never during a system
//! call but the close of a registration.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use rustix::io::Errno;
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities};

use super::config::MountConfig;
use super::error::{Error, Result};
use super::operations::{Handle, Notices as _, Opened};
use super::protocol_values;
use super::wire::Connection;
use super::wire::abi::{FOPEN_DIRECT_IO, FOPEN_KEEP_CACHE, FOPEN_PASSTHROUGH, init2};
use crate::sys::fuse::{close_backing, open_backing};
use crate::sys::process::in_initial_user_namespace;
use crate::union::{self, Ino, Union};

/// How long the kernel may keep the attributes of a file that was passed through to who may map
/// it for writing, in seconds, when it is not open so any more (not at all while it is): what a
/// mapping does to its times reaches the kernel's FUSE only when it asks.
const MAPPED: u64 = 1;

/// Whether `io=auto` tries it: it gains most for what is written, nobody asked for `writeback`,
/// which excludes it, the kernel will not refuse for want of privilege, and there is room for an
/// overlay on top of this mount.
pub(super) fn pays(union: &Union, config: &MountConfig) -> bool {
    let written = union.is_writable() && !config.is_read_only() && !config.writeback;
    written && is_privileged() && !union.is_stacked()
}

/// CAP_SYS_ADMIN outside of user namespaces, which BACKING_OPEN wants (fs/fuse/backing.c).
fn is_privileged() -> bool {
    let has = |sets: CapabilitySets| sets.effective.contains(CapabilitySet::SYS_ADMIN);
    in_initial_user_namespace() && capabilities(None).is_ok_and(has)
}

/// Begins to pass files through on a fresh connection, unless this kernel cannot and nobody
/// insists (`None`: it knows nothing of it then, and need not be sent an answer to OPEN).
///
/// # Errors
/// [`Error::Passthrough`] when somebody insists, and the kernel or our privileges do not allow
/// it, or the upper's file system does not.
pub(super) fn start(
    connection: &Connection,
    union: &Union,
    path: &Path,
    insists: bool,
) -> Result<Option<Opens>> {
    let no = |why, source| {
        let path = path.to_owned();
        Error::Passthrough { path, why, source }
    };
    if connection.flags2() & init2::PASSTHROUGH == 0 {
        let source = Errno::OPNOTSUPP.into();
        let why = no("the kernel does not support it (Linux 6.9 does)", source);
        return if insists { Err(why) } else { Ok(None) };
    }
    let opens = Opens::new(connection.device());
    let Err(error) = opens.probe(union.sample()) else {
        return Ok(Some(opens));
    };
    let why = match error.raw_os_error() {
        Some(libc::EPERM) => "it needs CAP_SYS_ADMIN outside of user namespaces",
        Some(libc::ELOOP) => "the file system of the upper directory stacks too many others",
        _ => "the kernel refuses a file of the upper directory",
    };
    if insists {
        return Err(no(why, error));
    }
    // It is agreed that OPEN truncates, so there has to be OPEN; each is answered as what cannot
    // be passed through is.
    let path = path.display();
    tracing::warn!(%error, "{path}: files are not passed through, each read is a message: {why}");
    Ok(Some(opens))
}

/// A file registered with the kernel; given back when dropped.
#[derive(Debug)]
struct Registered {
    device: Arc<OwnedFd>,
    id: i32,
}

impl Registered {
    fn new(device: &Arc<OwnedFd>, file: impl AsFd) -> io::Result<Self> {
        let id = open_backing(device, file)?;
        let device = Arc::clone(device);
        Ok(Self { device, id })
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        if let Err(error) = close_backing(&self.device, self.id) {
            // The connection is gone, and all registrations with it.
            tracing::debug!(id = self.id, %error, "registration not given back");
        }
    }
}

/// How an inode is open.
#[derive(Debug)]
enum Mode {
    Passed(Registered),
    /// Through the kernel's page cache and us; whether its pages outlive an open.
    Cached {
        keep: bool,
    },
}

#[derive(Debug)]
struct Open {
    mode: Mode,
    opens: u64,
    mappers: u64,
    executors: u64,
    writers: u64,
}

/// The inodes that are open.
#[derive(Debug)]
pub(super) struct Opens {
    device: Arc<OwnedFd>,
    open: DashMap<Ino, Open>,
    /// Those passed through to who could map them for writing since the kernel learnt of them, and
    /// whether it may have been told since that it can keep their attributes for a while.
    mapped: DashMap<Ino, AtomicBool>,
}

impl Opens {
    /// `device`: the connection, whose handshake agreed on passthrough.
    pub(super) fn new(device: &Arc<OwnedFd>) -> Self {
        Self {
            device: Arc::clone(device),
            open: DashMap::new(),
            mapped: DashMap::new(),
        }
    }

    /// Whether files can be registered: a real one is.
    ///
    /// # Errors
    /// Those of [`open_backing`].
    pub(super) fn probe(&self, sample: Option<OwnedFd>) -> io::Result<()> {
        let Some(file) = sample else {
            // No file to try; a directory is refused, but only after the question of privilege.
            let refused = Registered::new(&self.device, &*self.device).err();
            return match refused.and_then(|e| e.raw_os_error()) {
                Some(errno @ (libc::EPERM | libc::ENOTTY)) => {
                    Err(io::Error::from_raw_os_error(errno))
                }
                _ => Ok(()),
            };
        };
        Registered::new(&self.device, &file).map(drop)
    }

    /// Counts an open of `ino`, which the kernel knows, and answers it. What it is to be open for
    /// writing has been copied up.
    ///
    /// # Errors
    /// EINVAL for O_DIRECT where the file system of the data has none and the file is passed
    /// through already; those of [`Union::backing`].
    pub(super) fn open(&self, union: &Union, ino: Ino, flags: u32) -> union::Result<Opened> {
        let (out, must_ask) = self.count(union, ino, flags)?;
        if must_ask {
            // From here on a mapping may change what it was told.
            self.device.attributes_changed(ino);
        }
        Ok(out)
    }

    /// The same of an inode that was just made, of which the kernel is told by the answer. With
    /// the time, in seconds, for which it may keep the attributes: it looks at them once more
    /// before it gives the file to the program. Nothing was mapped yet, and what gives the file a
    /// size makes the kernel ask again.
    pub(super) fn open_new(
        &self,
        union: &Union,
        ino: Ino,
        flags: u32,
    ) -> union::Result<(Opened, u64)> {
        let (out, _) = self.count(union, ino, flags)?;
        Ok((out, self.lifetime(ino).max(MAPPED)))
    }

    /// Counts an open; its answer, and whether the file could be mapped for writing through it
    /// while the kernel keeps attributes.
    fn count(&self, union: &Union, ino: Ino, flags: u32) -> union::Result<(Opened, bool)> {
        let (kind, direct) = (kind(flags), flags & libc::O_DIRECT as u32 != 0);
        let known = self.open.get_mut(&ino).map(|mut open| open.add(kind));
        let out = match known {
            Some(out) => out,
            None => {
                let mode = self.choose(union, ino, direct)?;
                match self.open.entry(ino) {
                    // Another was faster. Both looked at the same inode; he decides.
                    Entry::Occupied(mut open) => open.get_mut().add(kind),
                    Entry::Vacant(place) => place.insert(Open::new(mode)).add(kind),
                }
            }
        };
        let passed = out.flags & FOPEN_PASSTHROUGH != 0;
        let maps = passed && kind & MAPPER != 0;
        if maps && union.is_append_only(ino).unwrap_or(true) {
            // It became that while it was open.
            self.release(ino, out.handle.0);
            return Err(Errno::PERM.into());
        }
        let must_ask = maps && self.takes_back(ino);
        if passed && direct && known.is_some() && !takes_direct(union, ino) {
            self.release(ino, out.handle.0);
            return Err(Errno::INVAL.into());
        }
        Ok((out, must_ask))
    }

    /// Whether the kernel may keep attributes of an inode that was just opened by a mapper: it was
    /// told forever before the first, for a while since the last.
    fn takes_back(&self, ino: Ino) -> bool {
        let told = self.mapped.get(&ino);
        if let Some(told) = told {
            return told.swap(false, Ordering::Relaxed);
        }
        self.mapped.insert(ino, AtomicBool::new(false));
        true
    }

    fn choose(&self, union: &Union, ino: Ino, direct: bool) -> union::Result<Mode> {
        // The kernel holds no pages of a file that may change behind its back.
        let cached = Mode::Cached { keep: false };
        // A mapping that is passed through could change what is there.
        if union.is_append_only(ino)? {
            return Ok(cached);
        }
        let backing = match union.backing(ino) {
            Ok(Some(backing)) => backing,
            Ok(None) => return Ok(Mode::Cached { keep: true }),
            // What it is opened for may still be possible: to execute it, say.
            Err(error) if is_passing(error.errno()) => {
                tracing::debug!(ino, %error, "not passed through");
                return Ok(cached);
            }
            Err(error) => return Err(error),
        };
        if direct && !backing.takes_direct() {
            return Ok(cached);
        }
        match Registered::new(&self.device, &backing) {
            Ok(registered) => Ok(Mode::Passed(registered)),
            Err(error) => {
                tracing::debug!(ino, %error, "not passed through");
                Ok(cached)
            }
        }
    }

    /// An open with this `fh` has ended.
    pub(super) fn release(&self, ino: Ino, fh: u64) {
        let last = self.open.remove_if_mut(&ino, |_, open| {
            open.opens = open.opens.saturating_sub(1);
            open.mappers = open.mappers.saturating_sub(u64::from(fh & MAPPER != 0));
            open.executors = open.executors.saturating_sub(u64::from(fh & EXECUTOR != 0));
            open.writers = open.writers.saturating_sub(u64::from(fh & WRITER != 0));
            open.opens == 0
        });
        // Outside the shard.
        drop(last);
    }

    /// Whether somebody writes past us, or could: who does holds the lock of the layer's file, for as
    /// long as the data takes to come, which is forever if it lies in memory that never comes.
    pub(super) fn may_wait(&self, ino: Ino) -> bool {
        let waits = |open: &Open| open.writers > 0 && matches!(open.mode, Mode::Passed(_));
        self.open.get(&ino).is_some_and(|open| waits(&open))
    }

    /// Whether a program runs from it, or is about to.
    pub(super) fn is_executed(&self, ino: Ino) -> bool {
        self.open.get(&ino).is_some_and(|open| open.executors > 0)
    }

    /// The kernel has given lookups of the inode back. It may have looked it up again since.
    pub(super) fn forget(&self, union: &Union, ino: Ino) {
        if self.mapped.contains_key(&ino) && !union.is_known(ino) && !self.open.contains_key(&ino) {
            self.mapped.remove(&ino);
        }
    }

    /// How long the kernel may keep what it is told of an inode's attributes, in seconds.
    pub(super) fn lifetime(&self, ino: Ino) -> u64 {
        let Some(told) = self.mapped.get(&ino) else {
            return protocol_values::FOREVER;
        };
        // Before the look at who has it open: a mapper that comes later finds it.
        told.store(true, Ordering::Relaxed);
        drop(told);
        match self.open.get(&ino) {
            Some(open) if open.mappers > 0 => 0,
            _ => MAPPED,
        }
    }
}

/// Of `fh`: the open lets map for writing.
const MAPPER: u64 = 1;
/// Of `fh`: the open is the kernel's, which executes the file.
const EXECUTOR: u64 = 2;
/// Of `fh`: the open has O_APPEND or O_DIRECT.
const CHANGEABLE: u64 = 4;
/// Of `fh`: the open is for writing.
const WRITER: u64 = 8;
/// Of the flags of an open to execute (`FMODE_EXEC`, linux/fs.h).
const FMODE_EXEC: u32 = 0x20;

impl Open {
    fn new(mode: Mode) -> Self {
        Self {
            mode,
            opens: 0,
            mappers: 0,
            executors: 0,
            writers: 0,
        }
    }

    fn add(&mut self, fh: u64) -> Opened {
        self.opens += 1;
        self.mappers += u64::from(fh & MAPPER != 0);
        self.executors += u64::from(fh & EXECUTOR != 0);
        self.writers += u64::from(fh & WRITER != 0);
        let (open_flags, backing_id) = match &self.mode {
            // The kernel opens the registered file with the flags of this open, and does not
            // follow when fcntl(2) takes these two away. So what is read and written comes to
            // us, with the flags of its moment; mappings are passed through.
            Mode::Passed(registered) if fh & CHANGEABLE != 0 => {
                (FOPEN_PASSTHROUGH | FOPEN_DIRECT_IO, registered.id)
            }
            Mode::Passed(registered) => (FOPEN_PASSTHROUGH, registered.id),
            Mode::Cached { keep: true } => (FOPEN_KEEP_CACHE, 0),
            Mode::Cached { keep: false } => (0, 0),
        };
        Opened {
            handle: Handle(fh),
            flags: open_flags,
            backing: backing_id,
        }
    }
}

/// Errors of opening a file for writing that do not concern those who only read it, and
/// shortages.
fn is_passing(errno: i32) -> bool {
    const PASSING: [i32; 6] = [
        libc::EACCES,
        libc::EPERM,
        libc::EROFS,
        libc::ETXTBSY,
        libc::EMFILE,
        libc::ENFILE,
    ];
    PASSING.contains(&errno)
}

/// Whether the `O_` flags allow to write.
pub(super) fn is_writer(flags: u32) -> bool {
    flags & libc::O_ACCMODE as u32 != libc::O_RDONLY as u32
}

/// What an open with these `O_` flags counts as, for `fh`. Mapping shared and writable takes both
/// modes (mmap(2)).
fn kind(flags: u32) -> u64 {
    let maps = flags & libc::O_ACCMODE as u32 == libc::O_RDWR as u32;
    let executes = flags & FMODE_EXEC != 0;
    let changes = flags & (libc::O_APPEND | libc::O_DIRECT) as u32 != 0;
    let kinds = [
        (maps, MAPPER),
        (executes, EXECUTOR),
        (changes, CHANGEABLE),
        (is_writer(flags), WRITER),
    ];
    kinds
        .into_iter()
        .filter_map(|(is, bit)| is.then_some(bit))
        .sum()
}

fn takes_direct(union: &Union, ino: Ino) -> bool {
    let backing = union.backing(ino).ok().flatten();
    backing.is_none_or(|backing| backing.takes_direct())
}
