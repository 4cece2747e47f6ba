//! Opens that the kernel serves from the file of a layer itself (`FUSE_PASSTHROUGH`, Linux 6.9). No
//! READ and no WRITE reaches the server, unless fcntl(2) could change the meaning (O_APPEND,
//! O_DIRECT).
//!
//! The kernel has a rule (fs/fuse/iomode.c), and an open that breaks it fails with EIO: while an
//! inode is open, all its opens are passed through to one registered file, or none is. So the first
//! open decides, the others follow, and the decision ends with the last RELEASE.
//!
//! A file of a lower on a writable mount can be passed through too ([`Mode::Lower`]), so that all
//! mounts of the layer share its pages. If a program runs from it, the kernel lets nobody write it
//! (ETXTBSY). Under `io=shared` files that are read are passed through as well: the first writer gets
//! another inode of the kernel ([`Successors`]), and readers keep the data of the lower, as mappings
//! do on overlayfs. Under `io=passthrough` they are not, because readers shall see the changes.
//!
//! Locks: one shard of a table. It is not held during a system call, except the call that closes
//! a registration.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use rustix::fs::Stat;
use rustix::io::Errno;
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities};

use super::config::{IoPolicy, MountConfig};
use super::error::{Error, Result};
use super::kept_registrations::{Kept, OfLower};
use super::operations::{Handle, KnownAs, Node, Notices, OpenFlags, Opened};
use super::protocol_values;
use super::successors::{self, Arrival, Successors};
use super::wire::Connection;
use super::wire::abi::{FOPEN_DIRECT_IO, FOPEN_KEEP_CACHE, FOPEN_PASSTHROUGH, init2};
use crate::sys::fuse::{close_backing, open_backing};
use crate::sys::process::in_initial_user_namespace;
use crate::union::{self, Caching, Change, Ino, Union};

/// How long the kernel may keep the attributes of a file after the end of an open that was passed
/// through to a program that may map it for writing, in seconds. During such an open the kernel may
/// not keep them at all. FUSE in the kernel learns of times that a mapping changed only by asking.
const MAPPED: u64 = 1;

/// How long a writer waits until nobody has a file of a lower open that is passed through to readers,
/// if the writer cannot have another inode.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often it looks meanwhile.
const LOOKS: u32 = 400;

/// Whether `io=auto` tries passthrough: the mount is writable (passthrough speeds up written files
/// most), `writeback` was not requested (it excludes passthrough), the process has the privilege,
/// and an overlay still fits on top of this mount.
pub(super) fn pays(union: &Union, config: &MountConfig) -> bool {
    let written = union.is_writable() && !config.is_read_only() && !config.writeback;
    written && is_privileged() && !union.is_stacked()
}

/// Whether the process has CAP_SYS_ADMIN outside of user namespaces, which BACKING_OPEN needs
/// (fs/fuse/backing.c).
fn is_privileged() -> bool {
    let has = |sets: CapabilitySets| sets.effective.contains(CapabilitySet::SYS_ADMIN);
    in_initial_user_namespace() && capabilities(None).is_ok_and(has)
}

/// Sets up passthrough on a new connection. `None` if the kernel does not support it and it was not
/// requested explicitly; the kernel then does not use it and needs no answer to OPEN.
///
/// # Errors
/// [`Error::Passthrough`] if the policy insists on it, and the kernel, our privileges or the
/// upper's file system do not allow it.
pub(super) fn start(
    connection: &Connection,
    union: &Union,
    path: &Path,
    policy: IoPolicy,
) -> Result<Option<Opens>> {
    let insists = policy.insists();
    let no = |why, source| {
        let path = path.to_owned();
        Error::Passthrough {
            policy,
            path,
            why,
            source,
        }
    };
    if connection.flags2() & init2::PASSTHROUGH == 0 {
        let source = Errno::OPNOTSUPP.into();
        let why = no("the kernel does not support it (Linux 6.9 does)", source);
        return if insists { Err(why) } else { Ok(None) };
    }
    let opens = Opens::new(connection.device(), policy);
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
    // The handshake agreed that OPEN truncates, so there must be OPEN. Each is answered like a file
    // that cannot be passed through.
    let path = path.display();
    tracing::warn!(%error, "{path}: files are not passed through, each read is a message: {why}");
    Ok(Some(opens))
}

/// A file registered with the kernel. Dropping it ends the registration.
#[derive(Debug)]
pub(super) struct Registered {
    device: Arc<OwnedFd>,
    id: i32,
}

impl Registered {
    fn new(device: &Arc<OwnedFd>, file: impl AsFd) -> io::Result<Self> {
        let id = open_backing(device, file)?;
        let device = Arc::clone(device);
        Ok(Self { device, id })
    }

    /// Returns a registration that the kernel does not know.
    #[cfg(test)]
    pub(super) fn unchecked(device: &Arc<OwnedFd>, id: i32) -> Self {
        let device = Arc::clone(device);
        Self { device, id }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        if let Err(error) = close_backing(&self.device, self.id) {
            // The connection is gone, with all registrations.
            tracing::debug!(id = self.id, %error, "registration not given back");
        }
    }
}

/// The mode in which an inode is open.
#[derive(Debug)]
enum Mode {
    Passed(Registered),
    /// Passed through to the file of a lower, because the first open was to execute it, or to read
    /// it under `io=shared`. No open for writing joins it. While a program runs, the kernel refuses
    /// them itself.
    Lower(OfLower),
    /// Through the kernel's page cache and the server. `keep` says whether the pages outlive an
    /// open.
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

/// Changed attributes concern all numbers of an inode.
impl Notices for Opens {
    fn attributes_changed(&self, ino: Ino) {
        for node in self.successors.nodes(ino) {
            self.device.attributes_changed(node.0);
        }
    }
}

/// The open inodes.
#[derive(Debug)]
pub(super) struct Opens {
    device: Arc<OwnedFd>,
    /// Whether files of lowers are passed through to all readers (`io=shared`).
    shares: bool,
    successors: Successors,
    open: DashMap<Node, Open>,
    kept: Kept,
    /// Inodes that were passed through to programs that could map them for writing, since the
    /// kernel looked them up. The value says whether the kernel may have received attributes with a
    /// lifetime since then.
    mapped: DashMap<Ino, AtomicBool>,
    /// Inodes that are being copied up for a writer, with the number of such requests.
    written: DashMap<Ino, u64>,
}

/// A writer that may go on.
#[derive(Debug)]
pub(super) struct Admitted {
    _writing: Option<Writing>,
    /// Readers keep the file of the lower. After the change, which copies the file up, its number is
    /// to be retired ([`Opens::retire`]).
    pub(super) succeeds: bool,
}

/// A request that opens a file for writing or changes its data. Until it is dropped, no open is
/// passed through to a lower, unless the file is open so already.
#[derive(Debug)]
struct Writing {
    opens: Arc<Opens>,
    ino: Ino,
}

impl Drop for Writing {
    fn drop(&mut self) {
        self.opens.written.remove_if_mut(&self.ino, |_, requests| {
            *requests -= 1;
            *requests == 0
        });
    }
}

impl Opens {
    /// `device` is the connection. Its handshake agreed on passthrough.
    pub(super) fn new(device: &Arc<OwnedFd>, policy: IoPolicy) -> Self {
        Self {
            device: Arc::clone(device),
            shares: policy == IoPolicy::Shared,
            successors: Successors::default(),
            open: DashMap::new(),
            kept: Kept::new(),
            mapped: DashMap::new(),
            written: DashMap::new(),
        }
    }

    /// Begins an open for writing, or a change of the data by name. This comes before anything is
    /// changed. Where a writer cannot have another inode than the readers, it waits for them. `comes` is
    /// the answer of [`Self::arrives`] to the request.
    ///
    /// # Errors
    /// ETXTBSY if the file is passed through to a lower: a program ran from it, or a reader has kept
    /// it open for longer than [`PATIENCE`].
    pub(super) fn write(
        self: &Arc<Self>,
        union: &Union,
        node: Node,
        comes: Arrival,
    ) -> union::Result<Admitted> {
        let ino = successors::inode(node).0;
        // The order matters: `count` looks for this before it adds the entry that is checked here.
        let writing = union.needs_copy_up(ino, Change::Data).then(|| {
            *self.written.entry(ino).or_default() += 1;
            let opens = Arc::clone(self);
            Writing { opens, ino }
        });
        let first = !successors::is_successor(node) && comes == Arrival::First;
        let succeeds = first && self.waits_for_readers(node) && {
            // The cached names of a file lead to one number. The kernel looks only the name that the
            // writer uses up again.
            union.getattr(ino)?.nlink == 1
        };
        let free = patiently(|| match self.open.get(&node) {
            Some(open) if open.is_of_lower() => {
                let refused = open.executors > 0 || !self.shares;
                (refused || succeeds).then_some(!refused)
            }
            _ => Some(true),
        });
        match free {
            Some(true) => Ok(Admitted {
                _writing: writing,
                succeeds,
            }),
            _ => Err(Errno::TXTBSY.into()),
        }
    }

    /// Whether readers have the file of a lower open, so that [`Self::write`] may wait for them.
    pub(super) fn waits_for_readers(&self, node: Node) -> bool {
        self.shares && self.open.get(&node).is_some_and(|open| open.is_of_lower())
    }

    /// Gives the file, which has just been copied up, another number. The request that has changed it
    /// fails with ESTALE, and is repeated.
    pub(super) fn retire(&self, node: Node) {
        let ino = successors::inode(node).0;
        self.successors.retire(ino);
        // The kernel takes no attributes for this number any more that are under way.
        self.device.attributes_changed(ino);
    }

    /// Says how a thread comes to open a file, or to change its size, by this number.
    pub(super) fn arrives(&self, node: Node, thread: u32) -> Arrival {
        self.successors.arrives(node, thread)
    }

    /// Whether a file may be looked up by this number, which a handle has kept. A successor that was
    /// forgotten comes into force again when its inode is counted ([`Self::retire`]), unless the file is
    /// open by the first number.
    pub(super) fn restores(&self, node: Node) -> bool {
        let ino = successors::inode(node).0;
        !successors::is_successor(node) || self.successors.has(ino) || !self.is_open(ino)
    }

    /// Returns how the kernel knows an inode, of which it holds a lookup until it has the answer.
    pub(super) fn known(&self, ino: Ino) -> KnownAs {
        KnownAs {
            node: self.successors.node(ino),
            lifetime: self.lifetime(ino),
        }
    }

    /// Whether files can be registered. A real file is tried.
    ///
    /// # Errors
    /// Those of [`open_backing`].
    pub(super) fn probe(&self, sample: Option<OwnedFd>) -> io::Result<()> {
        let Some(file) = sample else {
            // There is no file to try. A directory is refused, but only after the check of the
            // privilege.
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

    /// Counts an open of `node`, which the kernel knows, and returns the answer. A file that is
    /// opened for writing has been copied up.
    ///
    /// # Errors
    /// EINVAL for O_DIRECT if the file system of the data does not have it and the file is passed
    /// through already; those of [`Union::backing`].
    pub(super) fn open(&self, union: &Union, node: Node, flags: u32) -> union::Result<Opened> {
        let (out, must_ask) = self.count(union, node, flags)?;
        if must_ask {
            // From here on a mapping may change attributes that the kernel has.
            self.attributes_changed(successors::inode(node).0);
        }
        Ok(out)
    }

    /// As [`Self::open`], for a new inode, of which the kernel learns by the answer. Also returns how
    /// the kernel knows it. It asks for the attributes once more before the program gets the file:
    /// there are no mappings yet, and any change of the size makes the kernel ask again.
    pub(super) fn open_new(
        &self,
        union: &Union,
        ino: Ino,
        flags: u32,
    ) -> union::Result<(Opened, KnownAs)> {
        let node = self.successors.node(ino);
        let (out, _) = self.count(union, node, flags)?;
        let lifetime = self.lifetime(ino).max(MAPPED);
        Ok((out, KnownAs { node, lifetime }))
    }

    /// Counts an open. Returns its answer, and whether the program could map the file for writing
    /// while the kernel keeps attributes.
    fn count(&self, union: &Union, node: Node, flags: u32) -> union::Result<(Opened, bool)> {
        let ino = successors::inode(node).0;
        let (kind, caching) = (kind(flags), OpenFlags(flags).caching());
        let known = self.open.get_mut(&node).map(|mut open| open.add(kind));
        let out = match known {
            Some(out) => out,
            None => loop {
                let mut mode = self.choose(union, ino, caching, kind)?;
                match self.open.entry(node) {
                    // Another thread was faster. Both looked at the same inode; the first one
                    // decides.
                    Entry::Occupied(mut open) => break open.get_mut().add(kind),
                    Entry::Vacant(place) => {
                        if matches!(mode, Mode::Lower(_)) {
                            // A writer that comes after these two checks finds the entry.
                            if self.written.contains_key(&ino) {
                                if kind & EXECUTOR != 0 {
                                    return Err(Errno::TXTBSY.into());
                                }
                                mode = Mode::Cached { keep: true };
                            } else if !union.needs_copy_up(ino, Change::Data) {
                                continue;
                            }
                        }
                        break place.insert(Open::new(mode)).add(kind);
                    }
                }
            },
        };
        let passed = out.flags & FOPEN_PASSTHROUGH != 0;
        let maps = passed && kind & MAPPER != 0;
        if !passed && self.successors.is_retired(node) {
            // Its pages would be others than those of the successor.
            self.release(node, out.handle.0);
            return Err(Errno::STALE.into());
        }
        if maps && union.is_append_only(ino).unwrap_or(true) {
            // The file became append-only while it was open.
            self.release(node, out.handle.0);
            return Err(Errno::PERM.into());
        }
        let must_ask = maps && self.takes_back(ino);
        if passed && caching == Caching::Direct && known.is_some() && !takes_direct(union, ino) {
            self.release(node, out.handle.0);
            return Err(Errno::INVAL.into());
        }
        Ok((out, must_ask))
    }

    /// Whether cached attributes of an inode must be invalidated after an open by a program that
    /// can map it. The attributes had an unlimited lifetime before the first such open, and have a
    /// short one since the last.
    fn takes_back(&self, ino: Ino) -> bool {
        let told = self.mapped.get(&ino);
        if let Some(told) = told {
            return told.swap(false, Ordering::Relaxed);
        }
        self.mapped.insert(ino, AtomicBool::new(false));
        true
    }

    fn choose(&self, union: &Union, ino: Ino, caching: Caching, kind: u64) -> union::Result<Mode> {
        // The kernel keeps no pages of a file that may change without its knowledge.
        let cached = Mode::Cached { keep: false };
        // A mapping that is passed through could change the data.
        if union.is_append_only(ino)? {
            return Ok(cached);
        }
        let backing = match union.backing(ino) {
            Ok(Some(backing)) => backing,
            Ok(None) => return Ok(self.of_lower(union, ino, caching, kind)),
            // The purpose of the open may still be possible, for example to execute the file.
            Err(error) if is_passing(error.errno()) => {
                tracing::debug!(ino, %error, "not passed through");
                return Ok(cached);
            }
            Err(error) => return Err(error),
        };
        if caching == Caching::Direct && !backing.takes_direct() {
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

    /// Chooses for a file of a lower that a write would copy up.
    fn of_lower(&self, union: &Union, ino: Ino, caching: Caching, kind: u64) -> Mode {
        let cached = Mode::Cached { keep: true };
        let passes = kind & EXECUTOR != 0 || self.shares;
        if kind & WRITER != 0 || !passes {
            return cached;
        }
        let file = match union.unwritten(ino) {
            Ok(Some(file)) => file,
            Ok(None) => return cached,
            Err(error) => {
                tracing::debug!(ino, %error, "file of a lower not passed through");
                return cached;
            }
        };
        if caching == Caching::Direct && !file.takes_direct() {
            return cached;
        }
        let Ok(stat) = rustix::fs::fstat(&file) else {
            return cached;
        };
        if kind & EXECUTOR == 0 && !is_shared_by_readers(&stat) {
            return cached;
        }
        let register = || Registered::new(&self.device, &file);
        // A lower on a file system that is stacked too deep is refused.
        let lower = self.kept.take(ino, &stat, register);
        lower.map_or(cached, Mode::Lower)
    }

    /// Ends an open with this `fh`.
    pub(super) fn release(&self, node: Node, fh: u64) {
        let last = self.open.remove_if_mut(&node, |_, open| {
            open.opens = open.opens.saturating_sub(1);
            open.mappers = open.mappers.saturating_sub(u64::from(fh & MAPPER != 0));
            open.executors = open.executors.saturating_sub(u64::from(fh & EXECUTOR != 0));
            open.writers = open.writers.saturating_sub(u64::from(fh & WRITER != 0));
            open.opens == 0
        });
        // A registration ends while the lock of the shard is not held.
        if let Some((
            _,
            Open {
                mode: Mode::Lower(lower),
                ..
            },
        )) = last
        {
            self.kept.put(successors::inode(node).0, lower);
        }
    }

    /// Whether a program writes by passthrough, or could. Such a writer holds the lock of the
    /// layer's file until its data arrives. It may wait forever, for example if a page of its
    /// memory never becomes available.
    pub(super) fn may_wait(&self, ino: Ino) -> bool {
        let waits = |open: &Open| open.writers > 0 && matches!(open.mode, Mode::Passed(_));
        let mut nodes = self.successors.nodes(ino);
        nodes.any(|node| self.open.get(&node).is_some_and(|open| waits(&open)))
    }

    /// Whether a program runs from the file, or is about to.
    pub(super) fn is_executed(&self, node: Node) -> bool {
        self.open.get(&node).is_some_and(|open| open.executors > 0)
    }

    /// Notes that the kernel has returned lookups of the inode. The kernel may have looked it up
    /// again since.
    pub(super) fn forget(&self, union: &Union, ino: Ino) {
        if self.mapped.contains_key(&ino) && !union.is_known(ino) && !self.is_open(ino) {
            self.mapped.remove(&ino);
        }
        self.successors.forget(union, ino);
    }

    fn is_open(&self, ino: Ino) -> bool {
        let mut nodes = self.successors.nodes(ino);
        nodes.any(|node| self.open.contains_key(&node))
    }

    /// Returns how long the kernel may keep the attributes of an inode, in seconds.
    pub(super) fn lifetime(&self, ino: Ino) -> u64 {
        // A change by one number would not concern what the kernel knows of the other.
        if self.successors.has(ino) {
            return 0;
        }
        let Some(told) = self.mapped.get(&ino) else {
            return protocol_values::FOREVER;
        };
        // The flag is set before the opens are checked, so that a program that maps the file later
        // finds it.
        told.store(true, Ordering::Relaxed);
        drop(told);
        match self.open.get(&Node(ino)) {
            Some(open) if open.mappers > 0 => 0,
            _ => MAPPED,
        }
    }
}

/// A bit of `fh`: the program may map the file for writing.
const MAPPER: u64 = 1;
/// A bit of `fh`: the kernel has opened the file to execute it.
const EXECUTOR: u64 = 2;
/// A bit of `fh`: the open has O_APPEND or O_DIRECT.
const CHANGEABLE: u64 = 4;
/// A bit of `fh`: the open is for writing.
const WRITER: u64 = 8;
/// A flag of an open to execute (`FMODE_EXEC`, linux/fs.h).
const FMODE_EXEC: u32 = 0x20;

impl Open {
    /// Whether it is passed through to the file of a lower that a write would copy up.
    fn is_of_lower(&self) -> bool {
        matches!(self.mode, Mode::Lower(_))
    }

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
            // The kernel opens the registered file with the flags of this open, and does not notice
            // when fcntl(2) removes these two. So the server handles reads and writes, with the
            // flags of the moment. Mappings are passed through.
            Mode::Passed(registered) | Mode::Lower(OfLower { registered, .. })
                if fh & CHANGEABLE != 0 =>
            {
                (FOPEN_PASSTHROUGH | FOPEN_DIRECT_IO, registered.id)
            }
            Mode::Passed(registered) | Mode::Lower(OfLower { registered, .. }) => {
                (FOPEN_PASSTHROUGH, registered.id)
            }
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

/// Whether readers of a file of a lower get it passed through. A file with several names is not: the
/// first writer would have to wait for its readers. An empty one has nothing to read.
fn is_shared_by_readers(stat: &Stat) -> bool {
    stat.st_nlink == 1 && stat.st_size > 0
}

/// Errors of opening a file for writing that do not matter to a reader, and shortages.
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

/// Whether the `O_` flags allow writing.
pub(super) fn is_writer(flags: u32) -> bool {
    flags & libc::O_ACCMODE as u32 != libc::O_RDONLY as u32
}

/// Returns the bits of `fh` for an open with these `O_` flags. A shared writable mapping needs both
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

/// Looks again and again, for [`PATIENCE`] at most, and returns what was seen.
fn patiently<T>(look: impl Fn() -> Option<T>) -> Option<T> {
    for _ in 0..LOOKS {
        let seen = look();
        if seen.is_some() {
            return seen;
        }
        std::thread::sleep(PATIENCE / LOOKS);
    }
    None
}

fn takes_direct(union: &Union, ino: Ino) -> bool {
    let backing = union.backing(ino).ok().flatten();
    let backing = backing.or_else(|| union.unwritten(ino).ok().flatten());
    backing.is_none_or(|backing| backing.takes_direct())
}
