//! The threads that take requests from io_uring instead of reading /dev/fuse. The connection keeps a
//! reader beside them for FORGET and INTERRUPT, and starts more readers when the kernel refuses a ring.
//!
//! Invariants:
//! - Who has the payload of an entry is the only one who may touch its memory; while a command is under
//!   way, that is the kernel.
//! - Each request that came in an entry is answered once, by the thread that took it or by the overflow
//!   thread of its CPU, or the connection is gone.
//! - A thread gives up its handle of the handler before it gives up its sender of `ends`.
//!
//! The kernel queues each request for the CPU its caller runs on. A thread of that CPU,
//! pinned there, takes it: no other CPU has to be woken. Every thread has a ring of its own
//! with one entry, so a thread that is busy, or blocks in a disk's read, has nothing waiting
//! behind it. The one that takes the last idle place of its CPU starts another thread first,
//! up to [`MAX_THREADS`]; so a CPU has as many as there were ever requests at once, and one.
//!
//! An answer is left in the thread's slot and goes to the kernel with the system call that
//! waits for the next request.
//!
//! **What waits keeps no thread.** Slow work answers from the pool. A few threads wait for that
//! answer; where no other thread is idle, or these are too many, the thread goes on with another
//! entry, and the answer is given by the overflow thread of the CPU (`overflow`). The last idle
//! thread leaves changes to the pool, too. So the requests of one user that wait take memory (a
//! spare entry each), but no thread that others need. The number of entries and the bytes of data
//! that they hold are limited (`queue`).
//!
//! While requests come in numbers the threads are SCHED_IDLE, so that a caller stays on its CPU
//! (`idle_priority`). What they start inherits that and takes it back (`fuse::pool`).
//!
//! Memory: address space of `payload` (1 MiB) for each entry, of which pages count once
//! data of that size went through them; two pages of kernel memory for the ring of a thread.

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

/// The most threads of one CPU that serve requests. Enough to keep a disk busy; what comes beyond
/// that goes to the pool.
const MAX_THREADS: usize = 32;
/// All together have no more rings than one in so many of the descriptors that there may be, for
/// each is one.
const SHARE: usize = 8;
/// How long to wait before the kernel is asked again for memory that it did not have.
const PAUSE: Duration = Duration::from_millis(20);

/// What all threads have in common once the mount is served.
pub(super) struct Served {
    handler: Arc<dyn Handler>,
    /// Ends the connection.
    abort: Box<dyn Fn() + Send + Sync>,
    /// The connection is gone: nobody waits for an answer any more.
    over: AtomicBool,
    queues: OnceLock<Vec<Arc<Queue>>>,
    /// The kernel lets requests of our own stay unanswered.
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

    /// Threads that wait for slow work's answer end without it.
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

/// Rings for every CPU, of which the kernel does not know yet.
#[derive(Debug)]
pub(super) struct Rings {
    leaders: Vec<Sender<Arc<Served>>>,
    queues: Vec<Arc<Queue>>,
    ends: Receiver<io::Result<()>>,
    watch: Option<Arc<Watch>>,
}

impl Rings {
    /// Everything that can fail, before the kernel is promised anything: a thread and a ring
    /// for each CPU the machine can have.
    ///
    /// # Errors
    /// Those of [`RingThread::new`] and of starting threads; when the CPUs cannot be counted.
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
        // A thread that ended without a word panicked.
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

    /// Registers the rings: requests come to the handler. What is returned yields how each
    /// thread ended, and ends itself with the last.
    pub(super) fn start(self, served: &Arc<Served>) -> Receiver<io::Result<()>> {
        if let Some(watch) = &self.watch {
            watch.start();
        }
        served.queues.get_or_init(|| self.queues);
        for leader in self.leaders {
            // It waits for nothing else.
            let _ = leader.send(Arc::clone(served));
        }
        self.ends
    }
}

fn spawn(cpu: u16, thread: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let builder = std::thread::Builder::new().name(format!("unionfs-cpu{cpu}"));
    builder.spawn(thread).map(drop)
}

/// The most threads of one of so many CPUs.
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
    // Never, when the mount is given up before it is served.
    if let Ok(served) = start.recv() {
        place.work(served);
    }
}

/// Starts another thread; it inherits the CPU. Whether there will be one.
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
        // After `served`: see `RingThread::work`.
        drop(ends);
    });
    if let Err(error) = &spawned {
        queue.cannot_grow(error);
    }
    spawned.is_ok()
}

/// What became of a request.
enum Outcome {
    /// It was answered.
    Answered(Answer, Payload),
    /// The answer will come to the slot. The payload was lent to it, or is returned.
    Waits(Option<Payload>),
    /// It is one of our own (`overflow`), and is answered by nothing.
    Ours(Payload),
}

/// Has the request in `header` and `payload` answered.
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
    // A kernel that has rings has SETXATTR_EXT, which is asked for.
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

/// What a refused command means.
#[derive(Debug, PartialEq, Eq)]
enum Refusal {
    /// The file system was unmounted, or the connection was aborted.
    Over,
    /// There is no further entry. As long as a CPU has none at all, the kernel goes on with /dev/fuse.
    NoEntry,
    /// The answer did not get to the kernel for want of memory: it is to be given again.
    NotNow,
    /// Whoever waits for the answer would wait forever.
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
