//! FUSE over io_uring: rings that give answers to the kernel and take requests from it in one
//! system call, and the memory of requests ([`Payload`]).
//!
//! A ring belongs to the thread that made it. An entry is a place for one request; the kernel knows
//! it by the memory that was registered. It belongs to the owner of its payload: one ring registers
//! it, and another may answer it. After an answer, the entry waits for its next request in the ring
//! that carried the answer. The kernel offers no answer without this, and no way to take an entry
//! back.
//!
//! Facts: Linux `include/uapi/linux/fuse.h` (`fuse_uring_req_header`, `fuse_uring_cmd_req`),
//! `Documentation/filesystems/fuse-io-uring.rst`, `fs/fuse/dev_uring.c`.
#![allow(unsafe_code)]

mod payload;

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use io_uring::register::Restriction;
use io_uring::{IoUring, cqueue, opcode, squeue, types};
use rustix::event::{EventfdFlags, eventfd};

pub use payload::Payload;

/// The numbers of entries in the two queues of a ring. They are powers of two.
#[derive(Clone, Copy, Debug)]
struct Entries {
    /// The queue of commands.
    commands: u32,
    /// The queue of completions.
    completions: u32,
}

/// `FUSE_IO_URING_CMD_REGISTER`: a new entry waits for its first request.
const REGISTER: u32 = 1;
/// `FUSE_IO_URING_CMD_COMMIT_AND_FETCH`: the entry carries an answer, then waits for the next
/// request.
const COMMIT_AND_FETCH: u32 = 2;
/// The size of `struct fuse_uring_req_header`.
pub const HEADER: usize = 288;
/// The offset of `len` in `struct io_uring_sqe`. The crate has no setter for this command.
const SQE_LEN_AT: usize = 24;
/// The number of commands that a ring with a bell takes with one system call, and of completions
/// before the kernel keeps some elsewhere.
const ROOM: Entries = Entries {
    commands: 64,
    completions: 1024,
};
/// The user data of the bell. Commands have small numbers.
const BELL: u64 = u64::MAX;

/// The header of a request, `struct fuse_uring_req_header`. It travels beside the payload.
pub type Header = [u8; HEADER];

/// A command to the kernel.
#[derive(Clone, Copy, Debug)]
pub enum Command {
    /// Registers a place for requests. This is the first command of an entry.
    Register,
    /// The header and the payload hold the answer to the request with this commit ID.
    Commit(u64),
}

/// Wakes the thread of a ring. Any thread may ring it.
#[derive(Debug)]
pub struct Bell(OwnedFd);

impl Bell {
    /// Creates a bell that was not rung yet.
    ///
    /// # Errors
    /// Those of eventfd(2): EMFILE, ENFILE, ENOMEM.
    pub fn new() -> io::Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Ok(Self(eventfd(0, flags)?))
    }

    /// Rings the bell.
    pub fn ring(&self) {
        // EAGAIN comes after 2^64 rings that were not heard: it has been rung then.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }
}

/// An event in a ring.
#[derive(Debug)]
pub enum Event {
    /// The bell was rung.
    Rung,
    /// A request came. Its header was stored, and this is its payload.
    Came(Payload),
    /// A command was refused.
    Refused(Refused),
}

/// A command that the kernel did not carry out.
#[derive(Debug)]
pub struct Refused {
    /// The command.
    pub command: Command,
    /// The reason.
    pub error: io::Error,
    /// The payload, with the header of the command. `None`: the ring itself failed and keeps it.
    pub payload: Option<Payload>,
}

/// A ring for FUSE commands. Only the thread that makes it may use it.
pub struct Ring {
    ring: IoUring<squeue::Entry128, cqueue::Entry>,
    queue: u16,
    /// Payloads of commands without a completion, by their user data: the kernel may write there.
    pending: Vec<Option<(Command, Payload)>>,
    /// Free places in `pending`.
    free: Vec<usize>,
}

impl Ring {
    /// Creates a ring for one command at a time to `device`, an open /dev/fuse. `queue` is the CPU
    /// whose requests it gets.
    ///
    /// # Errors
    /// Those of io_uring_setup(2) and io_uring_register(2): EPERM and ENOSYS if io_uring is
    /// forbidden (`kernel.io_uring_disabled`, seccomp); EINVAL before Linux 6.1; ENOMEM.
    pub fn new(device: impl AsFd, queue: u16) -> io::Result<Self> {
        let files = [device.as_fd().as_raw_fd()];
        let entries = Entries {
            commands: 1,
            completions: 2,
        };
        Self::build(&files, &[opcode::UringCmd80::CODE], queue, entries)
    }

    /// Creates a ring for many commands at a time. The bell also wakes its thread.
    ///
    /// # Errors
    /// As [`Ring::new`], and those of io_uring_enter(2).
    pub fn with_bell(device: impl AsFd, bell: &Bell, queue: u16) -> io::Result<Self> {
        let files = [device.as_fd().as_raw_fd(), bell.0.as_raw_fd()];
        let operations = [opcode::UringCmd80::CODE, opcode::PollAdd::CODE];
        let mut ring = Self::build(&files, &operations, queue, ROOM)?;
        ring.listen()?;
        Ok(ring)
    }

    fn build(files: &[RawFd], operations: &[u8], queue: u16, entries: Entries) -> io::Result<Self> {
        let ring = IoUring::<squeue::Entry128, cqueue::Entry>::builder()
            // One thread submits and waits, and the kernel's own work in that thread is done when
            // the thread waits. So no interrupt stops a handler.
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_r_disabled()
            .setup_cqsize(entries.completions)
            .build(entries.commands)?;
        let submitter = ring.submitter();
        submitter.register_files(files)?;
        // From here on the kernel takes only commands for these files. A process that could write
        // to the memory of the ring can open and connect nothing with it.
        let fixed = Restriction::sqe_flags_required(squeue::Flags::FIXED_FILE.bits());
        let mut allowed = vec![fixed];
        allowed.extend(operations.iter().map(|code| Restriction::sqe_op(*code)));
        submitter.register_restrictions(&mut allowed)?;
        submitter.register_enable_rings()?;
        Ok(Self {
            ring,
            queue,
            pending: Vec::new(),
            free: Vec::new(),
        })
    }

    /// Gives `command` to the kernel and waits for the next request of the same entry. Stores its
    /// header in `header` and returns its payload. This usually takes one system call. The ring
    /// must have no other command.
    ///
    /// # Errors
    /// ENOTCONN if the file system is unmounted or the connection was aborted; else the kernel's
    /// error for the command, or those of io_uring_enter(2).
    pub fn exchange(
        &mut self,
        command: Command,
        header: &mut Header,
        payload: Payload,
    ) -> Result<Payload, Refused> {
        let pushed = self.push(command, Some(header), payload);
        let done = pushed.and_then(|()| self.wait());
        done.map_err(|error| Refused::by_ring(command, error))?;
        self.completion(command, header)
    }

    /// As [`Ring::exchange`], with one more system call. When the kernel has the command, calls
    /// `note` with whether a request was there at once, which had waited for an entry.
    ///
    /// # Errors
    /// As [`Ring::exchange`].
    pub fn exchange_noting(
        &mut self,
        command: Command,
        header: &mut Header,
        payload: Payload,
        note: impl FnOnce(bool),
    ) -> Result<Payload, Refused> {
        self.give(command, header, payload)
            .map_err(|error| Refused::by_ring(command, error))?;
        let at_once = !self.ring.completion().is_empty();
        note(at_once);
        self.completion(command, header)
    }

    fn completion(&mut self, command: Command, header: &mut Header) -> Result<Payload, Refused> {
        let failed = |error| Refused::by_ring(command, error);
        loop {
            match self.take(header).map_err(failed)? {
                Some(Event::Came(payload)) => return Ok(payload),
                Some(Event::Refused(refused)) => return Err(refused),
                Some(Event::Rung) | None => self.wait().map_err(failed)?,
            }
        }
    }

    /// Gives `command` to the kernel and does not wait. If a request waited for an entry,
    /// [`Ring::take`] returns it at once.
    ///
    /// # Errors
    /// Those of io_uring_enter(2). The payload is lost then.
    pub fn give(&mut self, command: Command, header: &Header, payload: Payload) -> io::Result<()> {
        self.push(command, Some(header), payload)?;
        self.enter(0)
    }

    /// Gives a refused command to the kernel once more.
    ///
    /// # Errors
    /// As [`Ring::give`]; the error of the ring, if it has failed.
    pub fn give_again(&mut self, refused: Refused) -> io::Result<()> {
        let Some(payload) = refused.payload else {
            return Err(refused.error);
        };
        self.push(refused.command, None, payload)?;
        self.enter(0)
    }

    /// Waits until an event comes.
    ///
    /// # Errors
    /// Those of io_uring_enter(2).
    pub fn wait(&mut self) -> io::Result<()> {
        self.enter(1)
    }

    /// Returns the next event. Stores the header of a request in `header`.
    ///
    /// # Errors
    /// Those of io_uring_enter(2) by which listening to the bell ended.
    pub fn take(&mut self, header: &mut Header) -> io::Result<Option<Event>> {
        let Some(completion) = self.ring.completion().next() else {
            return Ok(None);
        };
        if completion.user_data() == BELL {
            if !cqueue::more(completion.flags()) {
                self.listen()?;
            }
            return Ok(Some(Event::Rung));
        }
        let number = usize::try_from(completion.user_data()).unwrap_or(usize::MAX);
        let pending = self.pending.get_mut(number).and_then(Option::take);
        let Some((command, payload)) = pending else {
            return Err(io::Error::other("a completion of no command"));
        };
        self.free.push(number);
        if completion.result() < 0 {
            return Ok(Some(Event::Refused(Refused {
                command,
                error: io::Error::from_raw_os_error(-completion.result()),
                payload: Some(payload),
            })));
        }
        payload.read_header(header);
        Ok(Some(Event::Came(payload)))
    }

    /// Starts to listen to the bell. Each ring gives a completion, until one says that it was the
    /// last.
    fn listen(&mut self) -> io::Result<()> {
        let poll = opcode::PollAdd::new(types::Fixed(1), libc::POLLIN as u32).multi(true);
        let poll = poll.build().user_data(BELL).into();
        // SAFETY: points to no memory.
        unsafe { self.ring.submission().push(&poll) }
            .map_err(|_| io::Error::from(io::ErrorKind::WouldBlock))?;
        self.enter(0)
    }

    /// Submits a command. `header` is `None` if it is in the payload already.
    fn push(
        &mut self,
        command: Command,
        header: Option<&Header>,
        mut payload: Payload,
    ) -> io::Result<()> {
        if let Some(header) = header {
            payload.set_header(header);
        }
        let number = self.free.pop().unwrap_or(self.pending.len());
        let built = self.command(command, &mut payload).user_data(number as u64);
        // SAFETY: what the command points to lies in the map of the payload, which `pending` keeps
        // until its completion has been seen, or forever (`drop`).
        unsafe { self.ring.submission().push(&built) }
            .map_err(|_| io::Error::from(io::ErrorKind::WouldBlock))?;
        match self.pending.get_mut(number) {
            Some(place) => *place = Some((command, payload)),
            None => self.pending.push(Some((command, payload))),
        }
        Ok(())
    }

    fn enter(&mut self, want: usize) -> io::Result<()> {
        loop {
            match self.ring.submit_and_wait(want) {
                Ok(_) => return Ok(()),
                Err(error) if is_passing(&error) => {
                    if !self.ring.completion().is_empty() {
                        return Ok(());
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn command(&self, command: Command, payload: &mut Payload) -> squeue::Entry128 {
        let (number, commit_id) = match command {
            Command::Register => (REGISTER, 0),
            Command::Commit(id) => (COMMIT_AND_FETCH, id),
        };
        // `struct fuse_uring_cmd_req`: flags, commit_id, qid, padding.
        let mut request = [0; 80];
        request[8..16].copy_from_slice(&commit_id.to_ne_bytes());
        request[16..18].copy_from_slice(&self.queue.to_ne_bytes());
        let build = opcode::UringCmd80::new(types::Fixed(0), number).cmd(request);
        let Command::Register = command else {
            return build.build();
        };
        let mut built = build.addr(Some(payload.iovecs())).build();
        // SAFETY: `Entry128` is `repr(C)` over the kernel's 128 bytes, of which these four
        // are `len`, aligned as in the kernel's struct.
        unsafe {
            (&raw mut built)
                .cast::<u8>()
                .add(SQE_LEN_AT)
                .cast::<u32>()
                .write(2);
        }
        built
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // The kernel may still write there, so the memory is never freed or used again.
        for (_, payload) in self.pending.drain(..).flatten() {
            std::mem::forget(payload);
        }
    }
}

impl Refused {
    fn by_ring(command: Command, error: io::Error) -> Self {
        Self {
            command,
            error,
            payload: None,
        }
    }
}

/// Whether the error is a signal, or a temporary lack of memory.
fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)
    )
}

#[cfg(test)]
mod tests;
