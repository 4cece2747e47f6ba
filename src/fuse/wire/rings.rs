//! The threads that take requests from io_uring instead of reading /dev/fuse. Called by
//! `connection`, which keeps a reader beside them for FORGET and INTERRUPT, and starts more when
//! the kernel refused a ring.
//!
//! The kernel queues each request for the CPU its caller runs on. A thread of that CPU,
//! pinned there, takes it: no other CPU has to be woken. Every thread has a ring of its own
//! with one entry, so a thread that is busy, or blocks in a disk's read, has nothing waiting
//! behind it. The one that takes the last idle place of its CPU starts another thread first,
//! up to [`MAX_THREADS`]; so a CPU has as many as there were ever requests at once, and one.
//!
//! An answer is left in the thread's slot and goes to the kernel with the system call that
//! waits for the next request. Slow work answers from the pool; the thread of the request
//! waits for it (only it may use its ring) while others take the next ones.
//!
//! While requests come in numbers the threads are SCHED_IDLE, so that a caller stays on its CPU
//! (`giving_way`). What they start inherits that and takes it back (`fuse::pool`).
//!
//! Memory: address space of `payload` (1 MiB) for each thread, of which pages count once
//! data of that size went through them; two pages of kernel memory for the ring.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, OnceLock};

use rustix::process::{Resource, getrlimit};
use rustix::thread::{CpuSet, sched_setaffinity};

use super::abi::op;
use super::connection::{Handler, handle};
use super::giving_way::{Watch, only};
use super::reply::Reply;
use super::request;
use super::ring_message;
use super::slot::{Answer, Slot};
use crate::sys::uring::{self, Command, Entry, HEADER, Payload};

/// The most threads of one CPU. Requests beyond that wait in the kernel.
const MAX_THREADS: usize = 64;
/// All together have no more rings than one in so many of the descriptors that there may be, for
/// each is one.
const SHARE: usize = 8;

/// What all threads have in common once the mount is served.
pub(super) struct Served {
    handler: Arc<dyn Handler>,
    /// Ends the connection.
    abort: Box<dyn Fn() + Send + Sync>,
    /// The connection is gone: nobody waits for an answer any more.
    over: AtomicBool,
}

impl Served {
    pub(super) fn new(handler: Arc<dyn Handler>, abort: Box<dyn Fn() + Send + Sync>) -> Self {
        Self {
            handler,
            abort,
            over: AtomicBool::new(false),
        }
    }

    /// Threads that wait for slow work's answer end without it.
    pub(super) fn give_up(&self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

/// Rings for every CPU, of which the kernel does not know yet.
#[derive(Debug)]
pub(super) struct Rings {
    leaders: Vec<Sender<Arc<Served>>>,
    ends: Receiver<io::Result<()>>,
    watch: Option<Arc<Watch>>,
}

/// The requests of one CPU.
struct Queue {
    cpu: u16,
    device: Arc<OwnedFd>,
    payload: usize,
    threads: AtomicUsize,
    /// No more threads than this.
    most: usize,
    /// Threads that wait for a request, or are about to.
    idle: AtomicUsize,
    /// That it cannot grow.
    told: AtomicBool,
    ends: Sender<io::Result<()>>,
    watch: Option<Arc<Watch>>,
}

impl Rings {
    /// Everything that can fail, before the kernel is promised anything: a thread and a ring
    /// for each CPU the machine can have.
    ///
    /// # Errors
    /// Those of [`Entry::new`] and of starting threads; when the CPUs cannot be counted.
    pub(super) fn prepare(device: &Arc<OwnedFd>, payload: usize) -> io::Result<Self> {
        let (ends, all_ends) = mpsc::channel();
        let (ready, answers) = mpsc::channel();
        let mut leaders = Vec::new();
        let cpus = possible_cpus()?;
        let watch = Watch::of_rings(cpus);
        for cpu in 0..cpus {
            let queue = Queue {
                cpu,
                device: Arc::clone(device),
                payload,
                threads: AtomicUsize::new(1),
                most: most_threads(cpus),
                idle: AtomicUsize::new(0),
                told: AtomicBool::new(false),
                ends: ends.clone(),
                watch: watch.clone(),
            };
            let (start, started) = mpsc::channel();
            let ready = ready.clone();
            spawn(cpu, move || lead(queue, &ready, &started))?;
            leaders.push(start);
        }
        drop(ready);
        // A thread that ended without a word panicked.
        for _ in &leaders {
            answers.recv().map_err(io::Error::other)??;
        }
        Ok(Self {
            leaders,
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

/// The first thread of a queue.
fn lead(queue: Queue, ready: &Sender<io::Result<()>>, start: &Receiver<Arc<Served>>) {
    pin(queue.cpu);
    let queue = Arc::new(queue);
    let place = match Place::new(&queue) {
        Ok(place) => place,
        Err(error) => {
            let _ = ready.send(Err(error));
            return;
        }
    };
    let _ = ready.send(Ok(()));
    // Never, when the mount is given up before it is served.
    if let Ok(served) = start.recv() {
        place.work(&served);
    }
}

/// The further ones; they inherit the CPU from the one that starts them.
fn grow(queue: &Arc<Queue>, served: &Arc<Served>) {
    let more = |threads| (threads < queue.most).then_some(threads + 1);
    if queue
        .threads
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more)
        .is_err()
    {
        return;
    }
    let (new, served) = (Arc::clone(queue), Arc::clone(served));
    let spawned = spawn(queue.cpu, move || match Place::new(&new) {
        Ok(place) => place.work(&served),
        Err(error) => new.cannot_grow(&error),
    });
    if let Err(error) = spawned {
        queue.cannot_grow(&error);
    }
}

impl Queue {
    /// The next request tries again; what is told is told once.
    fn cannot_grow(&self, error: &io::Error) {
        self.threads.fetch_sub(1, Ordering::Relaxed);
        if !self.told.swap(true, Ordering::Relaxed) {
            let cpu = self.cpu;
            tracing::warn!(%error, cpu, "no further thread: requests wait for each other");
        }
    }
}

/// Fails where the CPU is offline or not ours to use. Then the scheduler has its way.
fn pin(cpu: u16) {
    let cpu = usize::from(cpu);
    if cpu >= CpuSet::MAX_CPU {
        return;
    }
    if let Err(error) = sched_setaffinity(None, &only(cpu)) {
        tracing::debug!(%error, cpu, "thread not pinned");
    }
}

/// Reads how many CPUs there are, while that can be read.
pub(super) fn look_around() {
    // Why not is told to who asks for rings.
    let _ = possible_cpus();
}

/// How many CPUs the kernel counts with, which is how many queues it wants.
fn possible_cpus() -> io::Result<u16> {
    static KNOWN: OnceLock<u16> = OnceLock::new();
    if let Some(known) = KNOWN.get() {
        return Ok(*known);
    }
    let read = read_possible_cpus()?;
    Ok(*KNOWN.get_or_init(|| read))
}

fn read_possible_cpus() -> io::Result<u16> {
    const LIST: &str = "/sys/devices/system/cpu/possible";
    let list = std::fs::read_to_string(LIST)
        .map_err(|error| io::Error::new(error.kind(), format!("{LIST}: {error}")))?;
    count(list.trim()).ok_or_else(|| io::Error::other(format!("{LIST}: not a list: {list:?}")))
}

/// The most threads of one of so many CPUs.
fn most_threads(cpus: u16) -> usize {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let rings = usize::try_from(limit).unwrap_or(usize::MAX) / SHARE;
    (rings / usize::from(cpus).max(1)).clamp(1, MAX_THREADS)
}

/// Of a list like `0-3,8`.
fn count(list: &str) -> Option<u16> {
    let mut count = 0u16;
    for range in list.split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u16, u16) = (first.parse().ok()?, last.parse().ok()?);
        count = count.checked_add(last.checked_sub(first)?.checked_add(1)?)?;
    }
    Some(count)
}

/// A thread's ring, and where its answers are left.
struct Place {
    queue: Arc<Queue>,
    entry: Entry,
    payload: Payload,
    slot: Arc<Slot>,
}

impl Place {
    fn new(queue: &Arc<Queue>) -> io::Result<Self> {
        let (entry, payload) = Entry::new(&*queue.device, queue.cpu, queue.payload)?;
        Ok(Self {
            queue: Arc::clone(queue),
            entry,
            payload,
            slot: Arc::default(),
        })
    }

    fn work(self, served: &Arc<Served>) {
        let queue = Arc::clone(&self.queue);
        let end = self.serve(served);
        if let Err(error) = &end {
            // Requests of this CPU could wait for ever.
            tracing::error!(%error, cpu = queue.cpu, "a ring failed: aborting the connection");
            (served.abort)();
        }
        let _ = queue.ends.send(end);
    }

    /// Takes requests until the file system is unmounted.
    fn serve(self, served: &Arc<Served>) -> io::Result<()> {
        let Self {
            queue,
            mut entry,
            mut payload,
            slot,
        } = self;
        let mut header = [0; HEADER];
        let mut command = Command::Register;
        // Requests other than WRITE, so that the answer may be written over them.
        let mut copy = Vec::new();
        let mut way = queue.watch.as_ref().and_then(|w| w.join(queue.cpu));
        loop {
            queue.idle.fetch_add(1, Ordering::Relaxed);
            let exchanged = entry.exchange(command, &mut header, payload);
            let was_last = queue.idle.fetch_sub(1, Ordering::Relaxed) == 1;
            payload = match exchanged {
                Ok(payload) => payload,
                Err(error) => return ended(command, error, queue.cpu),
            };
            if let Some(way) = &mut way {
                way.took();
            }
            if was_last {
                grow(&queue, served);
            }
            let commit_id = ring_message::commit_id(&header);
            let answered = answer(served, &header, payload, &mut copy, &slot);
            let Some((answer, back)) = answered else {
                return Ok(());
            };
            payload = back;
            ring_message::answer(&mut header, commit_id, answer.error, answer.len);
            command = Command::Commit(commit_id);
        }
    }
}

/// Has the request in `header` and `payload` answered; `None`: the connection is over.
fn answer(
    served: &Served,
    header: &uring::Header,
    payload: Payload,
    copy: &mut Vec<u8>,
    slot: &Arc<Slot>,
) -> Option<(Answer, Payload)> {
    let Some(message) = ring_message::read(header, payload.len()) else {
        tracing::warn!("request with wrong lengths refused");
        let (error, len) = (-libc::EIO, 0);
        return Some((Answer { error, len }, payload));
    };
    let reply = Reply::to_slot(Arc::clone(slot), message.header.unique);
    let handler = &*served.handler;
    let over = || served.over.load(Ordering::Relaxed);
    let rest = payload.get(..message.payload)?;
    // A kernel that has rings has SETXATTR_EXT, which is asked for.
    if message.opcode == op::WRITE {
        let request = request::parse_parts(message.opcode, message.op, rest);
        handle(handler, (&message.header, message.opcode), request, reply);
        return slot.wait(Some(payload), over);
    }
    copy.clear();
    copy.extend_from_slice(rest);
    slot.lend(payload);
    let request = request::parse_parts(message.opcode, message.op, copy);
    handle(handler, (&message.header, message.opcode), request, reply);
    slot.wait(None, over)
}

/// How a thread ends whose command the kernel refused.
fn ended(command: Command, error: io::Error, cpu: u16) -> io::Result<()> {
    match (error.raw_os_error(), command) {
        // Unmounted or aborted.
        (Some(libc::ENOTCONN | libc::ECONNABORTED | libc::ENODEV | libc::ECANCELED), _) => Ok(()),
        // As long as a CPU has no ring the kernel goes on with /dev/fuse.
        (_, Command::Register) => {
            tracing::warn!(%error, cpu, "ring not registered");
            Ok(())
        }
        (_, Command::Commit(_)) => Err(error),
    }
}

#[cfg(test)]
mod tests;
