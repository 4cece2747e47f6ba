//! One request of FUSE over io_uring at a time: a ring of its own, the memory the kernel
//! writes requests to and reads answers from, and the one system call that gives an answer
//! and takes the next request. Called by `fuse::wire`, from one thread per [`Entry`].
//!
//! Facts: Linux `include/uapi/linux/fuse.h` (`fuse_uring_req_header`, `fuse_uring_cmd_req`)
//! and `Documentation/filesystems/fuse-io-uring.rst`.
#![allow(unsafe_code)]

use std::io;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::NonNull;
use std::sync::Arc;

use io_uring::register::Restriction;
use io_uring::{IoUring, cqueue, opcode, squeue, types};

/// `FUSE_IO_URING_CMD_REGISTER`: a new entry waits for its first request.
const REGISTER: u32 = 1;
/// `FUSE_IO_URING_CMD_COMMIT_AND_FETCH`: an answer, and wait for the next request.
const COMMIT_AND_FETCH: u32 = 2;
/// Bytes of `struct fuse_uring_req_header`.
pub const HEADER: usize = 288;
/// Where the payload begins in the memory of an entry; before it the header, and behind
/// that the two `struct iovec` that tell the kernel about both.
const PAYLOAD_AT: usize = 4096;
const IOVECS_AT: usize = 1024;
/// Where `len` lies in `struct io_uring_sqe`; the crate has no setter for this command.
const SQE_LEN_AT: usize = 24;

/// What travels beside the payload: `struct fuse_uring_req_header`.
pub type Header = [u8; HEADER];

/// What the kernel is told.
#[derive(Clone, Copy, Debug)]
pub enum Command {
    /// Here is a place for requests. The first command of an entry.
    Register,
    /// The header and the payload hold the answer to the request with this commit ID.
    Commit(u64),
}

/// The memory of an entry; given back when neither the entry nor its payload is left.
#[derive(Debug)]
struct Map {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: plain memory of this process; who may touch which part of it, and when, is the
// business of `Entry` (header, iovecs) and `Payload` (payload), of which there is one each.
unsafe impl Send for Map {}
// SAFETY: as above; a shared `Map` gives access to nothing.
unsafe impl Sync for Map {}

impl Map {
    /// Zeroed, page-aligned; pages that are never touched take no memory.
    fn new(payload: usize) -> io::Result<Self> {
        let len = PAYLOAD_AT + payload;
        let (access, kind) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
        );
        // SAFETY: new memory wherever the kernel likes; nothing of ours is replaced.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), len, access, kind, -1, 0) };
        match NonNull::new(start) {
            Some(mapped) if start != libc::MAP_FAILED => Ok(Self {
                start: mapped.cast(),
                len,
            }),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this length, and nobody has a pointer into it left.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// Data of a request (names, values, what is written), then of its answer. There is one of
/// each [`Entry`], and having it means that the kernel does not touch it.
#[derive(Debug)]
pub struct Payload(Arc<Map>);

impl Deref for Payload {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the map is initialised and at least this long; no other `Payload` of it
        // exists, and the kernel writes to it only while `Entry::exchange` has this one.
        unsafe {
            std::slice::from_raw_parts(
                self.0.start.as_ptr().add(PAYLOAD_AT),
                self.0.len - PAYLOAD_AT,
            )
        }
    }
}

impl DerefMut for Payload {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `self` is borrowed exclusively.
        unsafe {
            std::slice::from_raw_parts_mut(
                self.0.start.as_ptr().add(PAYLOAD_AT),
                self.0.len - PAYLOAD_AT,
            )
        }
    }
}

/// A place for one request. The thread that makes it must be the one that uses it.
pub struct Entry {
    ring: IoUring<squeue::Entry128, cqueue::Entry>,
    map: Arc<Map>,
    queue: u16,
    /// A command has no completion yet: the kernel may write to the map.
    pending: bool,
}

impl Entry {
    /// A ring for `device`, an open /dev/fuse, and memory for `payload` bytes. The kernel
    /// knows nothing of it until it is registered. `queue`: the CPU whose requests come here.
    ///
    /// # Errors
    /// Those of io_uring_setup(2) and io_uring_register(2): EPERM and ENOSYS where io_uring
    /// is forbidden (`kernel.io_uring_disabled`, seccomp), EINVAL before Linux 6.1; ENOMEM.
    pub fn new(device: impl AsFd, queue: u16, payload: usize) -> io::Result<(Self, Payload)> {
        let ring = IoUring::<squeue::Entry128, cqueue::Entry>::builder()
            // One thread submits and waits, and what the kernel has to do in that thread
            // is done when it waits: no interrupt ever breaks into a handler.
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_r_disabled()
            .build(1)?;
        let submitter = ring.submitter();
        submitter.register_files(&[device.as_fd().as_raw_fd()])?;
        // From here on the kernel takes nothing but commands for this device: whoever could write
        // to the memory of the ring opens and connects nothing by it.
        submitter.register_restrictions(&mut [
            Restriction::sqe_op(opcode::UringCmd80::CODE),
            Restriction::sqe_flags_required(squeue::Flags::FIXED_FILE.bits()),
        ])?;
        submitter.register_enable_rings()?;
        let map = Arc::new(Map::new(payload)?);
        let payload = Payload(Arc::clone(&map));
        let entry = Self {
            ring,
            map,
            queue,
            pending: false,
        };
        Ok((entry, payload))
    }

    /// Gives `command` to the kernel and waits for the next request, whose parts are in
    /// `header` and the payload returned. Usually one system call.
    ///
    /// # Errors
    /// ENOTCONN when the file system is unmounted or the connection was aborted; EINVAL for
    /// a payload of another entry; else what the kernel says of the command. The payload is
    /// gone then.
    pub fn exchange(
        &mut self,
        command: Command,
        header: &mut Header,
        payload: Payload,
    ) -> io::Result<Payload> {
        if !Arc::ptr_eq(&payload.0, &self.map) || self.pending {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let shared = self.map.start.as_ptr();
        // SAFETY: the first `HEADER` bytes of the map; only this function touches them, and
        // the kernel does so only while a command is pending.
        unsafe { std::ptr::copy_nonoverlapping(header.as_ptr(), shared, HEADER) };
        let command = self.command(command);
        // SAFETY: what the command points to lies in the map, which lives until its
        // completion has been seen, or for ever (`drop`); the caller's payload is ours till
        // then.
        unsafe { self.ring.submission().push(&command) }
            .map_err(|_| io::Error::from(io::ErrorKind::WouldBlock))?;
        self.pending = true;
        let result = self.completion()?;
        self.pending = false;
        if result < 0 {
            return Err(io::Error::from_raw_os_error(-result));
        }
        // SAFETY: as above; the command is over.
        unsafe { std::ptr::copy_nonoverlapping(shared, header.as_mut_ptr(), HEADER) };
        Ok(payload)
    }

    fn completion(&mut self) -> io::Result<i32> {
        loop {
            match self.ring.submit_and_wait(1) {
                Ok(_) => {}
                Err(e) if is_passing(&e) => {}
                Err(error) => return Err(error),
            }
            if let Some(completion) = self.ring.completion().next() {
                return Ok(completion.result());
            }
        }
    }

    fn command(&self, command: Command) -> squeue::Entry128 {
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
        let mut built = build.addr(Some(self.iovecs() as u64)).build();
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

    /// Writes where header and payload are; the address of the two.
    fn iovecs(&self) -> usize {
        let start = self.map.start.as_ptr();
        // SAFETY: the offsets lie in the map (its length is `PAYLOAD_AT` plus the payload),
        // IOVECS_AT is aligned for `iovec` and behind the header; nobody else is there.
        unsafe {
            let iovecs = start.add(IOVECS_AT).cast::<libc::iovec>();
            iovecs.write(libc::iovec {
                iov_base: start.cast(),
                iov_len: HEADER,
            });
            iovecs.add(1).write(libc::iovec {
                iov_base: start.add(PAYLOAD_AT).cast(),
                iov_len: self.map.len - PAYLOAD_AT,
            });
            iovecs as usize
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if self.pending {
            // Only after an error that io_uring_enter(2) does not have for us. The kernel
            // may still write there: the memory is never used for anything else.
            std::mem::forget(Arc::clone(&self.map));
        }
    }
}

/// A signal, or no memory for the moment.
fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn null() -> std::fs::File {
        let mut options = std::fs::File::options();
        options.read(true).write(true).open("/dev/null").unwrap()
    }

    /// Where io_uring is forbidden there is nothing to test.
    fn entry(queue: u16) -> Option<(Entry, Payload)> {
        match Entry::new(null(), queue, 8192) {
            Ok(both) => Some(both),
            Err(error) => {
                assert!(std::env::var_os("CI").is_none(), "io_uring: {error}");
                eprintln!("skipped: io_uring: {error}");
                None
            }
        }
    }

    #[test]
    fn a_device_that_is_not_fuse_ends_the_command() {
        let Some((mut takes_all, mut payload)) = entry(0) else {
            return;
        };
        assert_eq!(payload.len(), 8192);
        let mut header = [3; HEADER];
        // /dev/null says yes to every command.
        for command in [Command::Register, Command::Commit(1)] {
            payload = takes_all.exchange(command, &mut header, payload).unwrap();
        }
        assert_eq!(header, [3; HEADER]);
        let (read, _write) = io::pipe().unwrap();
        let (mut entry, payload) = Entry::new(read, 0, 8192).unwrap();
        let error = entry
            .exchange(Command::Register, &mut header, payload)
            .unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EOPNOTSUPP));
        assert!(!entry.pending);
    }

    /// Neither another operation, nor another file, nor another change of the ring.
    #[test]
    fn a_ring_takes_nothing_but_commands_for_its_device() {
        let Some((mut entry, _payload)) = entry(0) else {
            return;
        };
        let path = c"/etc/passwd";
        let open = opcode::OpenAt::new(types::Fd(libc::AT_FDCWD), path.as_ptr()).build();
        let nothing = opcode::Nop::new().build();
        let other = null();
        let command = opcode::UringCmd80::new(types::Fd(other.as_raw_fd()), REGISTER).build();
        for refused in [open.into(), nothing.into(), command] {
            // SAFETY: the path lives to the end; the others point to nothing.
            unsafe { entry.ring.submission().push(&refused) }.unwrap();
            assert_eq!(entry.completion().unwrap(), -libc::EACCES);
        }
        let submitter = entry.ring.submitter();
        let changed = submitter.register_files(&[other.as_raw_fd()]).unwrap_err();
        assert_eq!(changed.raw_os_error(), Some(libc::EACCES));
        let lifted = submitter.register_restrictions(&mut []).unwrap_err();
        assert!(lifted.raw_os_error().is_some(), "{lifted}");
    }

    #[test]
    fn payloads_are_not_mixed_up() {
        let (Some((mut one, mut first)), Some((_two, second))) = (entry(0), entry(1)) else {
            return;
        };
        first.fill(7);
        let mut header = [0; HEADER];
        let error = one
            .exchange(Command::Commit(1), &mut header, second)
            .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        drop(one);
        // The memory outlives the entry as long as somebody has it.
        assert!(first.iter().all(|&byte| byte == 7));
    }

    #[test]
    fn the_command_is_what_the_kernel_reads() {
        let Some((entry, _payload)) = entry(3) else {
            return;
        };
        let bytes = |command: squeue::Entry128| -> [u8; 128] {
            // SAFETY: 128 bytes, all initialised.
            unsafe { std::mem::transmute(command) }
        };
        let word = |all: &[u8; 128], at: usize| {
            u32::from_ne_bytes([all[at], all[at + 1], all[at + 2], all[at + 3]])
        };
        let register = bytes(entry.command(Command::Register));
        // opcode, cmd_op, len, and the queue in the command's own bytes.
        assert_eq!(register[0], opcode::UringCmd80::CODE);
        assert_eq!(
            (word(&register, 8), word(&register, SQE_LEN_AT)),
            (REGISTER, 2)
        );
        assert_ne!(register[16..24], [0; 8]);
        assert_eq!(word(&register, 48 + 16), 3);
        let commit = bytes(entry.command(Command::Commit(0x1234)));
        assert_eq!(
            (word(&commit, 8), word(&commit, SQE_LEN_AT)),
            (COMMIT_AND_FETCH, 0)
        );
        assert_eq!(word(&commit, 48 + 8), 0x1234);
    }
}
