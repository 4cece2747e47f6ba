//! The connection to the kernel: the handshake, and the workers that read requests, alone or beside
//! the `rings`.

use std::io;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::io::Errno;
use zerocopy::FromBytes;

use super::abi::{self, InitIn, InitOut, init, init2, op};
use super::idle_priority::{Membership, Moves, Watch};
use super::reply::Reply;
use super::request::{self, Header, Request};
use super::rings::{self, Rings, Served};
use crate::fuse::config::Transport;
use crate::fuse::request_scope;
use crate::sys::fuse::{clone_device, join_device};

/// The room for the header and the arguments of a request before the data of a WRITE.
const HEADROOM: usize = 4096;
/// The number of bytes of a WRITE before its data.
const BEFORE_DATA: usize = size_of::<abi::InHeader>() + size_of::<abi::WriteIn>();

/// How long FORGETs are collected beside the rings.
const GATHER: Duration = Duration::from_millis(2);

/// Answers requests. Several threads call it at the same time.
pub(crate) trait Handler: Send + Sync + 'static {
    /// Answers one request. A dropped reply gives EIO.
    fn handle(&self, header: &Header, request: Request<'_>, reply: Reply);

    /// Returns a few regular files that the kernel probably knows.
    fn known_files(&self) -> Vec<u64> {
        Vec::new()
    }

    /// Runs work for a user on a thread that may wait; without such a thread, on this thread.
    fn elsewhere(&self, _user: u32, work: Box<dyn FnOnce() + Send>) {
        work();
    }
}

/// The limits and features to negotiate in the handshake.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// The flags of `abi::init`. Each is used if the kernel offers it.
    pub(crate) flags: u32,
    /// The flags of `abi::init2` beside those of the transport and of passthrough.
    pub(crate) flags2: u32,
    /// The maximum number of bytes in one READ, WRITE and readahead.
    pub(crate) max_io: u32,
    /// The number of requests that may be in flight for readahead and other background work.
    pub(crate) max_background: u16,
    /// The transport; `None` chooses the best one that is possible.
    pub(crate) transport: Option<Transport>,
    /// The depth of stacked file systems with ours on top, for passthrough: 1 if the one below
    /// stacks nothing, 2 if it does; 0 asks for no passthrough.
    pub(crate) stack_depth: u32,
}

/// A connection after the handshake.
#[derive(Debug)]
pub(crate) struct Connection {
    device: Arc<OwnedFd>,
    flags: u32,
    flags2: u32,
    buffer: usize,
    /// The rings. The answer to INIT has promised the kernel to register them.
    rings: Option<Rings>,
    /// Open devices without a connection, for workers that cannot open one; `None` if they can.
    spares: Option<Mutex<Vec<OwnedFd>>>,
}

impl Connection {
    /// Answers INIT, which the kernel sends first.
    ///
    /// # Errors
    /// ENODEV if it was unmounted meanwhile; EPROTO if the kernel has a version older than 7.31 or
    /// sends another message; an error if io_uring is requested and not possible.
    pub(crate) fn open(device: OwnedFd, limits: &Limits) -> io::Result<Self> {
        let buffer = limits.max_io as usize + HEADROOM;
        let device = Arc::new(device);
        let mut space = vec![0; buffer];
        loop {
            let message = receive(&device, &mut space)?;
            let (header, opcode, body) = request::split(message).ok_or_else(not_fuse)?;
            let reply = Reply::new(Arc::clone(&device), header.unique);
            let init = InitIn::read_from_prefix(body);
            let (op::INIT, Ok((init, rest))) = (opcode, init) else {
                reply.error(libc::EIO);
                return Err(not_fuse());
            };
            let flags2 = flags2(&init, rest);
            let Some(mut answer) = answer(&init, flags2, limits) else {
                reply.error(libc::EPROTO);
                return Err(Errno::PROTO.into());
            };
            let is_last = answer.major == init.major;
            if is_last && limits.flags2 & init2::ALLOW_IDMAP & !flags2 != 0 {
                tracing::warn!("allow_idmap has no effect: this needs Linux 6.12 or newer");
            }
            let mut rings = None;
            if is_last {
                // The rings are created before the answer, because a promise in the answer cannot
                // be withdrawn.
                rings = match rings_for(flags2, limits, &device) {
                    Ok(rings) => rings,
                    Err(error) => {
                        reply.error(libc::EIO);
                        return Err(error);
                    }
                };
            }
            if rings.is_some() {
                answer.flags |= init::INIT_EXT;
                answer.flags2 |= init2::OVER_IO_URING;
            }
            if !reply.message(&answer) {
                return Err(Errno::NODEV.into());
            }
            if is_last {
                return Ok(Self {
                    device,
                    flags: answer.flags,
                    flags2: answer.flags2,
                    buffer,
                    rings,
                    spares: None,
                });
            }
        }
    }

    /// Reads the facts about the machine that [`Self::open`] needs, for a process that cannot read
    /// them later.
    pub(crate) fn look_around() {
        rings::look_around();
    }

    /// Returns the flags that both sides agreed on.
    pub(crate) fn flags(&self) -> u32 {
        self.flags
    }

    /// Returns the transport.
    pub(crate) fn transport(&self) -> Transport {
        match self.rings {
            Some(_) => Transport::Uring,
            None => Transport::Classic,
        }
    }

    /// Returns those flags from bit 32 on that both sides agreed on.
    pub(crate) fn flags2(&self) -> u32 {
        self.flags2
    }

    /// Returns the device, for ioctls on the connection.
    pub(crate) fn device(&self) -> &Arc<OwnedFd> {
        &self.device
    }

    /// Serves with `threads` workers until the file system is unmounted. The first starts now, the
    /// others when `others` returns; if it returns true, with their own descriptors where the
    /// kernel gives them. `abort` must end the connection. It is called if a request could
    /// otherwise wait for ever.
    ///
    /// # Errors
    /// An error if no worker could be started, or if one ended early.
    pub(crate) fn serve(
        mut self,
        handler: Arc<impl Handler>,
        threads: usize,
        others: impl FnOnce() -> bool,
        abort: impl Fn() + Send + Sync + 'static,
    ) -> io::Result<()> {
        let handler: Arc<dyn Handler> = handler;
        let Some(rings) = self.rings.take() else {
            return self.read_all(&handler, threads, others);
        };
        let served = Arc::new(Served::new(Arc::clone(&handler), Box::new(abort)));
        let ring_ends = rings.start(&served);
        let mut outcome = self.read_beside_rings(&handler, threads, others);
        if outcome.is_ok() {
            // A worker has read that the file system is gone.
            served.give_up();
        }
        for end in ring_ends {
            outcome = outcome.and(end);
        }
        outcome
    }

    /// Reads with workers until the file system is unmounted: with one at first, and with the
    /// others when `others` has returned whether they may have their own devices.
    fn read_all(
        &self,
        handler: &Arc<dyn Handler>,
        threads: usize,
        others: impl FnOnce() -> bool,
    ) -> io::Result<()> {
        // The first requests do not have to wait for this.
        let watch = Arc::new(OnceLock::new());
        let start = |number, device| self.start_worker(handler, number, device, &watch);
        let mut workers = vec![start(0, Arc::clone(&self.device))?];
        let own_devices = others();
        if let Some(new) = Watch::of_workers() {
            new.start();
            watch.get_or_init(|| new);
        }
        for number in 1..threads {
            let device = if own_devices {
                self.another_device()
            } else {
                Arc::clone(&self.device)
            };
            match start(number, device) {
                Ok(worker) => workers.push(worker),
                // The mount works with fewer workers.
                Err(error) => tracing::warn!(%error, "cannot start another worker"),
            }
        }
        let outcome = workers.into_iter().map(end).fold(Ok(()), io::Result::and);
        if let Some(watch) = watch.get() {
            watch.end();
        }
        outcome
    }

    /// Takes messages that rings do not carry: FORGET, INTERRUPT. After each removed file the
    /// kernel would wake a reader for its FORGET. A reader that waits a short time finds many in
    /// one message. If the rings could not be registered, all messages come here.
    fn read_beside_rings(
        &self,
        handler: &Arc<dyn Handler>,
        threads: usize,
        others: impl FnOnce() -> bool,
    ) -> io::Result<()> {
        let mut buffer = vec![0; self.buffer];
        loop {
            match take(
                &self.device,
                &**handler,
                self.parse(),
                &mut buffer,
                &mut None,
            )? {
                Taken::End => return Ok(()),
                Taken::Message(op::FORGET | op::BATCH_FORGET) => std::thread::sleep(GATHER),
                // NOTIFY_REPLY: the kernel sends the answer to a request of the rings in this way.
                Taken::Message(op::INTERRUPT | op::NOTIFY_REPLY) | Taken::Noise => {}
                Taken::Message(_) => break,
            }
        }
        drop(buffer);
        self.read_all(handler, threads, others)
    }

    fn start_worker(
        &self,
        handler: &Arc<dyn Handler>,
        number: usize,
        device: Arc<OwnedFd>,
        watch: &Arc<OnceLock<Arc<Watch>>>,
    ) -> io::Result<JoinHandle<io::Result<()>>> {
        let (handler, size, watch) = (Arc::clone(handler), self.buffer, Arc::clone(watch));
        let parse = self.parse();
        std::thread::Builder::new()
            .name(format!("unionfs-{number}"))
            .spawn(move || work(&device, &*handler, parse, size, &watch))
    }

    /// Returns the parser for the form of message bodies that the handshake agreed on.
    fn parse(&self) -> Parse {
        match self.flags & init::SETXATTR_EXT {
            0 => request::parse_short,
            _ => request::parse,
        }
    }

    /// Gives the workers these descriptors, because they cannot open the device.
    pub(crate) fn with_spares(mut self, spares: Vec<OwnedFd>) -> Self {
        self.spares = Some(Mutex::new(spares));
        self
    }

    fn another_device(&self) -> Arc<OwnedFd> {
        let another = match &self.spares {
            None => clone_device(&*self.device),
            Some(spares) => match spares.lock().pop() {
                Some(spare) => join_device(spare, &*self.device),
                None => Err(io::ErrorKind::NotFound.into()),
            },
        };
        match another {
            Ok(device) => Arc::new(device),
            Err(error) => {
                tracing::debug!(%error, "workers share a descriptor");
                Arc::clone(&self.device)
            }
        }
    }
}

type Parse = for<'b> fn(u32, &'b [u8]) -> Request<'b>;

fn end(worker: JoinHandle<io::Result<()>>) -> io::Result<()> {
    let panicked = |_| Err(io::Error::other("a worker panicked"));
    worker.join().unwrap_or_else(panicked)
}

fn not_fuse() -> io::Error {
    io::Error::other("the kernel did not begin with FUSE_INIT")
}

/// Returns the flags from bit 32 on, which follow the message if INIT_EXT is set.
fn flags2(init: &InitIn, rest: &[u8]) -> u32 {
    match u32::read_from_prefix(rest) {
        Ok((flags2, _)) if init.flags & init::INIT_EXT != 0 => flags2,
        _ => 0,
    }
}

/// Creates rings, if they are wanted, and possible for the kernel and this process.
///
/// # Errors
/// An error only if they were requested.
fn rings_for(flags2: u32, limits: &Limits, device: &Arc<OwnedFd>) -> io::Result<Option<Rings>> {
    if limits.transport == Some(Transport::Classic) {
        return Ok(None);
    }
    let rings = match flags2 & init2::OVER_IO_URING {
        0 => Err(io::Error::other(
            "the kernel does not offer it (it needs Linux 6.14 or newer, and as root: \
             echo Y > /sys/module/fuse/parameters/enable_uring)",
        )),
        // The kernel requires room for the largest READ or WRITE.
        _ => Rings::prepare(device, limits.max_io as usize),
    };
    match rings {
        Ok(rings) => Ok(Some(rings)),
        Err(error) if limits.transport.is_none() => {
            tracing::debug!(%error, "no FUSE over io_uring");
            Ok(None)
        }
        Err(error) => {
            let text = format!("transport=uring is not possible: {error}");
            Err(io::Error::new(error.kind(), text))
        }
    }
}

/// Returns the answer to INIT; `None` if the version is too old. The answer to a newer major
/// version contains only our version, and the kernel sends INIT again.
fn answer(init: &InitIn, flags2: u32, limits: &Limits) -> Option<InitOut> {
    if init.major < abi::MAJOR || init.major == abi::MAJOR && init.minor < abi::MIN_MINOR {
        return None;
    }
    let version = InitOut {
        major: abi::MAJOR,
        minor: abi::MINOR,
        ..InitOut::default()
    };
    if init.major > abi::MAJOR {
        return Some(version);
    }
    let passes = match limits.stack_depth {
        0 => 0,
        _ => flags2 & init2::PASSTHROUGH,
    };
    let flags2 = passes | flags2 & limits.flags2;
    let wanted = limits.flags | init::BIG_WRITES | init::MAX_PAGES;
    // Only a transport that opens files by message can truncate them in the open.
    let extended = match (flags2, passes) {
        (0, _) => 0,
        (_, 0) => init::INIT_EXT,
        _ => init::INIT_EXT | init::ATOMIC_O_TRUNC,
    };
    let page = u32::try_from(rustix::param::page_size()).unwrap_or(4096);
    Some(InitOut {
        max_readahead: init.max_readahead.min(limits.max_io),
        flags: init.flags & (wanted | extended),
        flags2,
        max_stack_depth: if passes == 0 { 0 } else { limits.stack_depth },
        max_background: limits.max_background,
        congestion_threshold: limits.max_background / 4 * 3,
        max_write: limits.max_io,
        time_gran: 1,
        max_pages: u16::try_from(limits.max_io / page).unwrap_or(u16::MAX),
        ..version
    })
}

/// Reads the next message. ENOENT if a request was aborted while it was being read.
fn receive<'b>(device: &OwnedFd, buffer: &'b mut [u8]) -> io::Result<&'b [u8]> {
    loop {
        match rustix::io::read(device, &mut *buffer) {
            // The device has no end of file, but a socket in its place has.
            Ok(0) => return Err(Errno::NODEV.into()),
            Ok(size) => return Ok(buffer.get(..size).unwrap_or_default()),
            Err(Errno::INTR | Errno::NOENT | Errno::AGAIN) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// The result of reading and handling a message.
enum Taken {
    /// A message with this opcode.
    Message(u32),
    /// The message cannot be a request.
    Noise,
    /// The file system is unmounted.
    End,
}

/// A worker. It takes messages until the file system is unmounted.
fn work(
    device: &Arc<OwnedFd>,
    handler: &dyn Handler,
    parse: Parse,
    size: usize,
    watch: &OnceLock<Arc<Watch>>,
) -> io::Result<()> {
    let mut buffer = vec![0; size + 2 * HEADROOM];
    // The data of a WRITE starts at a page boundary, so that O_DIRECT can write it from there.
    let start = buffer.as_ptr().align_offset(HEADROOM) + HEADROOM - BEFORE_DATA;
    let buffer = buffer.get_mut(start..).unwrap_or_default();
    let mut way = None;
    while !matches!(take(device, handler, parse, buffer, &mut way)?, Taken::End) {
        if way.is_none() {
            way = watch.get().and_then(|watch| watch.join(0));
        }
    }
    Ok(())
}

/// Reads, parses and handles a message.
fn take(
    device: &Arc<OwnedFd>,
    handler: &dyn Handler,
    parse: Parse,
    buffer: &mut [u8],
    way: &mut Option<Membership>,
) -> io::Result<Taken> {
    let message = match receive(device, buffer) {
        Ok(message) => message,
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Ok(Taken::End),
        Err(error) => return Err(error),
    };
    let Some((header, opcode, body)) = request::split(message) else {
        tracing::warn!(
            len = message.len(),
            "message without a valid header ignored"
        );
        return Ok(Taken::Noise);
    };
    let reply = if request::is_answered(opcode) {
        Reply::new(Arc::clone(device), header.unique)
    } else {
        Reply::none()
    };
    let request = parse(opcode, body);
    if let Some(way) = way {
        way.took_from(header.pid, moves(&request));
    }
    handle(handler, &header, opcode, request, reply);
    Ok(Taken::Message(opcode))
}

fn moves(request: &Request<'_>) -> Moves {
    const MUCH: usize = 64 << 10;
    let size = match request {
        Request::Read { size, .. } => *size as usize,
        Request::Write(write) => write.data.len(),
        _ => 0,
    };
    if size >= MUCH {
        Moves::MuchData
    } else {
        Moves::LittleData
    }
}

/// Passes a request to the handler. A panic in one must not end the mount for other callers: a
/// dropped reply answers EIO.
pub(super) fn handle(
    handler: &dyn Handler,
    header: &Header,
    opcode: u32,
    request: Request<'_>,
    reply: Reply,
) {
    let _scope = request_scope::begin(header.ino, header.context());
    let handled = catch_unwind(AssertUnwindSafe(|| handler.handle(header, request, reply)));
    if handled.is_err() {
        tracing::error!(opcode, "request panicked");
    }
}

#[cfg(test)]
mod tests;
