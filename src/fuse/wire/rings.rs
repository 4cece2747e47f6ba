//! The threads that take requests from io_uring instead of reading /dev/fuse. The connection keeps
//! a reader beside them for FORGET and INTERRUPT, and starts more readers if the kernel refuses a
//! ring.
//!
//! Invariants:
//! - Only the owner of an entry's payload may access its memory. While a command is under way, the
//!   kernel owns it.
//! - Each request that came in an entry is answered once, by the thread that took it or by the overflow
//!   thread of its CPU, or the connection is gone.
//! - A thread drops its handle of the handler before its sender of `ends`.
//!
//! The kernel queues each request for the CPU of its caller. A thread that is pinned to that CPU
//! takes it, so no other CPU has to wake up. Every thread has a ring of its own with one entry, so
//! no request waits behind a thread that is busy or blocks in a read. When the last idle thread of
//! a CPU takes a request, it first starts another thread, up to [`MAX_THREADS`]. So a CPU has one
//! thread more than the greatest number of simultaneous requests.
//!
//! An answer is left in the slot of the thread. It goes to the kernel with the system call that
//! waits for the next request.
//!
//! **Waiting requests keep no thread.** Slow work answers from the pool. A few threads wait for
//! that answer. If no other thread is idle, or too many wait, the thread continues with another
//! entry, and the overflow thread of the CPU (`overflow`) gives the answer. The last idle thread
//! also leaves changes to the pool. So the waiting requests of one user take memory (a spare entry
//! each), but no thread that others need. The number of entries and the bytes of data that they
//! hold are limited (`queue`).
//!
//! While many requests come, the threads are SCHED_IDLE, so that a caller stays on its CPU
//! (`idle_priority`). Threads that they start inherit that and undo it (`fuse::pool`).
//!
//! Memory: `payload` bytes of address space (1 MiB) for each entry, of which only used pages count;
//! two pages of kernel memory for the ring of a thread.

mod machine;
mod overflow;
pub(super) mod queue;
mod ring_thread;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustix::process::{Resource, getrlimit};

use super::abi::op;
use super::connection::{Handler, handle};
use super::idle_priority::Watch;
use super::reply::Reply;
use super::request;
use super::ring_message;
use super::slot::{Answer, Slot};
use crate::sys::uring::{self, Command, Payload};

pub(super) use machine::look_around;
use machine::{may_keep_requests, pin, possible_cpus};
use queue::Queue;
use ring_thread::RingThread;

/// The maximum number of threads of one CPU that serve requests. It is enough to keep a disk busy.
/// Further work goes to the pool.
const MAX_THREADS: usize = 32;
/// All rings together take at most this fraction of the possible descriptors, since each ring is
/// one.
const SHARE: usize = 8;
/// The pause before the kernel is asked again for memory that it did not have.
const PAUSE: Duration = Duration::from_millis(20);

/// The shared state of all threads of a served mount.
pub(super) struct Served {
    handler: Arc<dyn Handler>,
    /// Aborts the connection.
    abort: Box<dyn Fn() + Send + Sync>,
    /// Whether the connection is gone. No caller waits for an answer then.
    over: AtomicBool,
    queues: OnceLock<Vec<Arc<Queue>>>,
    /// Whether the kernel permits that requests of our own stay unanswered.
    may_keep_requests: bool,
}

impl Served {
    pub(super) fn new(handler: Arc<dyn Handler>, abort: Box<dyn Fn() + Send + Sync>) -> Self {
        Self {
            handler,
            abort,
            over: AtomicBool::new(false),
            queues: OnceLock::new(),
            may_keep_requests: may_keep_requests(),
        }
    }

    /// Ends the threads that wait for the answer of slow work.
    pub(super) fn give_up(&self) {
        self.over.store(true, Ordering::Relaxed);
        self.queues
            .get()
            .into_iter()
            .flatten()
            .for_each(|q| q.end());
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }
}

/// Rings for every CPU. The kernel does not know them yet.
#[derive(Debug)]
pub(super) struct Rings {
    leaders: Vec<Sender<Arc<Served>>>,
    queues: Vec<Arc<Queue>>,
    ends: Receiver<io::Result<()>>,
    watch: Option<Arc<Watch>>,
}

impl Rings {
    /// Does everything that can fail before the kernel is told of rings: creates a thread and a
    /// ring for each CPU that the machine can have.
    ///
    /// # Errors
    /// Those of [`RingThread::new`] and of starting threads; an error if the CPUs cannot be
    /// counted.
    pub(super) fn prepare(device: &Arc<OwnedFd>, payload: usize) -> io::Result<Self> {
        let (ends, all_ends) = mpsc::channel();
        let (ready, answers) = mpsc::channel();
        let (mut leaders, mut queues) = (Vec::new(), Vec::new());
        let cpus = possible_cpus()?;
        let watch = Watch::of_rings(cpus);
        for cpu in 0..cpus {
            let most = most_threads(cpus);
            let queue = Queue::new(cpu, device, payload, cpus, most, watch.clone())?;
            let queue = Arc::new(queue);
            queues.push(Arc::clone(&queue));
            let (start, started) = mpsc::channel();
            let (ready, ends) = (ready.clone(), ends.clone());
            spawn(cpu, move || lead(queue, ends, &ready, &started))?;
            leaders.push(start);
        }
        drop(ready);
        // A thread that ends without a message has panicked.
        for _ in &leaders {
            answers.recv().map_err(io::Error::other)??;
        }
        Ok(Self {
            leaders,
            queues,
            ends: all_ends,
            watch,
        })
    }

    /// Registers the rings, so that requests arrive at the handler. The returned iterator yields
    /// the end of each thread, and finishes with the last thread.
    pub(super) fn start(self, served: &Arc<Served>) -> Receiver<io::Result<()>> {
        if let Some(watch) = &self.watch {
            watch.start();
        }
        served.queues.get_or_init(|| self.queues);
        for leader in self.leaders {
            // The thread waits for nothing else.
            let _ = leader.send(Arc::clone(served));
        }
        self.ends
    }
}

fn spawn(cpu: u16, thread: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let builder = std::thread::Builder::new().name(format!("unionfs-cpu{cpu}"));
    builder.spawn(thread).map(drop)
}

/// Returns the maximum number of threads of each of this number of CPUs.
fn most_threads(cpus: u16) -> usize {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let rings = usize::try_from(limit).unwrap_or(usize::MAX) / SHARE;
    (rings / usize::from(cpus).max(1)).clamp(1, MAX_THREADS)
}

/// The first thread of a queue.
fn lead(
    queue: Arc<Queue>,
    ends: Sender<io::Result<()>>,
    ready: &Sender<io::Result<()>>,
    start: &Receiver<Arc<Served>>,
) {
    pin(queue.cpu);
    let place = match RingThread::new(queue, ends) {
        Ok(place) => place,
        Err(error) => {
            let _ = ready.send(Err(error));
            return;
        }
    };
    let _ = ready.send(Ok(()));
    // Nothing is received if the mount is dropped before it is served.
    if let Ok(served) = start.recv() {
        place.work(served);
    }
}

/// Starts another thread, which inherits the CPU. Returns whether that was possible.
fn grow(queue: &Arc<Queue>, served: &Arc<Served>, ends: &Sender<io::Result<()>>) -> bool {
    let more = |threads| (threads < queue.most).then_some(threads + 1);
    if queue
        .threads
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more)
        .is_err()
    {
        return false;
    }
    let (new, served, ends) = (Arc::clone(queue), Arc::clone(served), ends.clone());
    let spawned = spawn(queue.cpu, move || {
        match RingThread::new(Arc::clone(&new), ends.clone()) {
            Ok(place) => place.work(served),
            Err(error) => {
                drop(served);
                new.cannot_grow(&error);
            }
        }
        // The sender is dropped after `served`: see `RingThread::work`.
        drop(ends);
    });
    if let Err(error) = &spawned {
        queue.cannot_grow(error);
    }
    spawned.is_ok()
}

/// The result of handling a request.
enum Outcome {
    /// The request was answered.
    Answered(Answer, Payload),
    /// The slot will get the answer. The payload was lent to the slot, or is returned.
    Waits(Option<Payload>),
    /// The request is our own (`overflow`) and needs no answer.
    Ours(Payload),
}

/// Has the handler answer the request in `header` and `payload`.
fn answer(
    served: &Served,
    header: &uring::Header,
    payload: Payload,
    copy: &mut Vec<u8>,
    slot: &Arc<Slot>,
) -> Outcome {
    let message = ring_message::read(header, payload.len());
    let rest = message.and_then(|message| payload.get(..message.payload));
    let Some((message, rest)) = message.zip(rest) else {
        tracing::warn!("request with wrong lengths refused");
        let (error, len) = (-libc::EIO, 0);
        return Outcome::Answered(Answer { error, len }, payload);
    };
    if message.opcode == op::NOTIFY_REPLY {
        return Outcome::Ours(payload);
    }
    let reply = Reply::to_slot(Arc::clone(slot), message.header.unique);
    let handler = &*served.handler;
    // A kernel that has rings has SETXATTR_EXT, which the handshake requests.
    let mut kept = None;
    if message.opcode == op::WRITE {
        let request = request::parse_parts(message.opcode, message.op, rest);
        handle(handler, &message.header, message.opcode, request, reply);
        kept = Some(payload);
    } else {
        copy.clear();
        copy.extend_from_slice(rest);
        slot.lend(payload);
        let request = request::parse_parts(message.opcode, message.op, copy);
        handle(handler, &message.header, message.opcode, request, reply);
    }
    match slot.take(&mut kept) {
        Some((answer, payload)) => Outcome::Answered(answer, payload),
        None => Outcome::Waits(kept),
    }
}

/// The meaning of a refused command.
#[derive(Debug, PartialEq, Eq)]
enum Refusal {
    /// The file system was unmounted, or the connection was aborted.
    Over,
    /// The kernel has no further entry. While a CPU has no entry at all, the kernel uses /dev/fuse.
    NoEntry,
    /// For lack of memory the answer did not reach the kernel. It must be given again.
    NotNow,
    /// The answer cannot be given, and its caller would wait forever.
    Broken,
}

fn refusal(command: Command, error: &io::Error) -> Refusal {
    match (error.raw_os_error(), command) {
        (Some(libc::ENOTCONN | libc::ECONNABORTED | libc::ENODEV | libc::ECANCELED), _) => {
            Refusal::Over
        }
        (_, Command::Register) => Refusal::NoEntry,
        (Some(libc::ENOMEM | libc::EAGAIN), Command::Commit(_)) => Refusal::NotNow,
        (_, Command::Commit(_)) => Refusal::Broken,
    }
}

#[cfg(test)]
mod tests;
