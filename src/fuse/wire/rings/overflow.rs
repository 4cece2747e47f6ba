//! The overflow thread of a CPU. It gives the kernel the answers to requests whose threads
//! continued with other requests, and it offers entries when no thread of the CPU is idle. It
//! passes the requests that arrive in these entries to the pool, so it waits for nothing but its
//! ring.
//!
//! **Spare entries.** When a thread gives an answer, the entry of the answer waits for a further
//! request in the ring of that thread. The kernel uses the entry that was added last first. Without
//! a countermeasure too many entries would wait in this ring, and all requests would go through the
//! pool. So after each answer this thread asks the kernel for a request of our own, for which no
//! caller waits (FUSE_NOTIFY_RETRIEVE of zero bytes of some file). The request arrives in that
//! entry and stays unanswered until the entry is needed again. Such an entry is spare. Some kernels
//! accept the root directory as that file, others (6.18.44) require a regular file. Until they know
//! one of this mount, all requests of the CPU may go through the pool, which costs time and nothing
//! else.
//!
//! **Requests that wait in the kernel.** While no entry is free, the kernel keeps new requests. It
//! hands out one of them with each answer of this CPU, and none for a newly registered entry. If
//! all requests that have an entry wait for something, the kept requests would never arrive. So
//! after the last idle thread has taken a request, this thread answers spare entries until one of
//! them does not receive a request at once.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;

use super::super::abi::{ROOT, op};
use super::super::notify;
use super::super::ring_message;
use super::super::slot::{Answer, Parked};
use super::queue::{Due, Queue};
use super::{Outcome, PAUSE, Refusal, Served, answer, refusal};
use crate::sys::uring::{Command, Event, HEADER, Header, Payload, Ring};

/// A request with more data than this counts as held, in bytes. Every entry uses about that much
/// memory anyway.
const MUCH: usize = 64 << 10;
/// A bit that all numbers of our own requests have. The kernel's own numbers count from 0 and do
/// not have it.
const OURS: u64 = 1 << 62;

struct Overflow {
    queue: Arc<Queue>,
    served: Arc<Served>,
    ring: Ring,
    header: Header,
    /// The number of entries that wait for a request in this ring.
    open: usize,
    /// Whether requests may wait in the kernel.
    starved: bool,
    /// Whether our next own request is answered at once, because the answer may fetch a request
    /// that waits.
    probing: bool,
    asked: u64,
    /// The file that our last own request named.
    file: u64,
}

/// Starts the thread, at most once.
pub(super) fn start(queue: &Arc<Queue>, served: &Arc<Served>, ends: &Sender<io::Result<()>>) {
    if !served.may_keep_requests || !queue.wants_overflow() {
        return;
    }
    let (new, served, ends) = (Arc::clone(queue), Arc::clone(served), ends.clone());
    let builder = std::thread::Builder::new().name(format!("unionfs-over{}", queue.cpu));
    if let Err(error) = builder.spawn(move || run(new, served, &ends)) {
        queue.cannot_overflow(&error);
    }
}

fn run(queue: Arc<Queue>, served: Arc<Served>, ends: &Sender<io::Result<()>>) {
    queue.take_policy();
    let ring = match Ring::with_bell(&*queue.device, queue.bell(), queue.cpu) {
        Ok(ring) => ring,
        Err(error) => return queue.cannot_overflow(&error),
    };
    queue.overflow_is_there();
    let mut overflow = Overflow {
        queue,
        served: Arc::clone(&served),
        ring,
        header: [0; HEADER],
        open: 0,
        starved: false,
        probing: false,
        asked: 0,
        file: ROOT,
    };
    let end = overflow.serve();
    if let Err(error) = &end {
        tracing::error!(%error, cpu = overflow.queue.cpu, "a ring failed: aborting the connection");
        (served.abort)();
    }
    let _ = ends.send(end);
}

impl Overflow {
    /// Serves until the connection is gone.
    fn serve(&mut self) -> io::Result<()> {
        loop {
            if self.queue.is_over() {
                return Ok(());
            }
            let answers = self.queue.all_due();
            let mut given = answers.len();
            for due in answers {
                self.give(due)?;
            }
            self.starved |= self.queue.was_starved();
            self.starved |= self.open == 0 && self.queue.idle.load(Ordering::Relaxed) == 0;
            if self.starved && !self.queue.is_full() {
                self.starved = false;
                given += usize::from(self.probe()?);
            }
            if self.queue.idle.load(Ordering::Relaxed) > 0 {
                for _ in 0..given {
                    self.ask();
                }
            }
            self.ring.wait()?;
            if !self.take_all()? {
                return Ok(());
            }
        }
    }

    /// Gives an answer to the kernel, which offers its entry again.
    fn give(&mut self, due: Due) -> io::Result<()> {
        let Answer { error, len } = due.answer;
        ring_message::answer(&mut self.header, due.commit_id, error, len);
        self.ring
            .give(Command::Commit(due.commit_id), &self.header, due.payload)?;
        self.open += 1;
        Ok(())
    }

    /// Offers entries until one does not receive a request at once, which shows that none waits in
    /// the kernel. Returns whether there was such an entry.
    fn probe(&mut self) -> io::Result<bool> {
        while let Some(spare) = self.queue.spare() {
            self.give(spare)?;
            let before = self.open;
            self.take_all()?;
            let is_open = self.open >= before;
            self.starved |= !is_open;
            if is_open || self.queue.is_full() {
                return Ok(is_open);
            }
        }
        if self.open == 0 {
            match self.queue.new_payload() {
                Ok(payload) => {
                    self.ring.give(Command::Register, &self.header, payload)?;
                    self.open += 1;
                }
                // The next answer offers an entry.
                Err(error) => self.queue.tell(&error),
            }
        }
        // The request arrives in the open entry, and its answer fetches a request that waits.
        self.probing = self.open > 0 && self.ask();
        Ok(false)
    }

    /// Asks the kernel for a request of our own. Returns whether it will arrive. It does not if the
    /// kernel requires a regular file and no file is known to it.
    fn ask(&mut self) -> bool {
        if self.ask_of(self.file) {
            return true;
        }
        for file in self.served.handler.known_files() {
            if self.ask_of(file) {
                self.file = file;
                return true;
            }
        }
        false
    }

    fn ask_of(&mut self, file: u64) -> bool {
        self.asked += 1;
        let number = OURS | u64::from(self.queue.cpu) << 40 | self.asked << 1;
        notify::ask_for_request(&self.queue.device, number, file)
    }

    /// Takes all events of the ring. Returns `false` if the connection is gone.
    fn take_all(&mut self) -> io::Result<bool> {
        while let Some(event) = self.ring.take(&mut self.header)? {
            match event {
                Event::Rung => {}
                Event::Came(payload) => self.came(payload)?,
                Event::Refused(refused) => match refusal(refused.command, &refused.error) {
                    Refusal::Over => return Ok(false),
                    Refusal::NoEntry => {
                        self.open -= 1;
                        self.queue.lost_entry(&refused.error);
                        std::thread::sleep(PAUSE);
                    }
                    Refusal::NotNow => {
                        std::thread::sleep(PAUSE);
                        self.ring.give_again(refused)?;
                    }
                    Refusal::Broken => return Err(refused.error),
                },
            }
        }
        Ok(true)
    }

    fn came(&mut self, payload: Payload) -> io::Result<()> {
        self.open -= 1;
        // The request is our own, or one that arrived before our own.
        self.starved |= std::mem::take(&mut self.probing);
        let commit_id = ring_message::commit_id(&self.header);
        let message = ring_message::read(&self.header, payload.len());
        let is_ours = message.is_some_and(|m| m.opcode == op::NOTIFY_REPLY);
        if is_ours {
            self.queue.keep(Due {
                payload,
                commit_id,
                answer: Answer::EMPTY,
                held: 0,
            });
            return Ok(());
        }
        let user = message.map_or(0, |message| message.header.context().uid);
        let bytes = message.map_or(0, |message| message.payload);
        let held = if bytes > MUCH { bytes } else { 0 };
        self.queue.hold(held);
        let (served, header) = (Arc::clone(&self.served), self.header);
        let parked = Parked {
            queue: Arc::clone(&self.queue),
            commit_id,
            held,
        };
        let job = move || serve_here(&served, &header, payload, parked);
        self.served.handler.elsewhere(user, Box::new(job));
        Ok(())
    }
}

/// Serves a request on a thread of the pool.
fn serve_here(served: &Served, header: &Header, payload: Payload, parked: Parked) {
    let (queue, commit_id, held) = (Arc::clone(&parked.queue), parked.commit_id, parked.held);
    let slot = Arc::default();
    let answered = match answer(served, header, payload, &mut Vec::new(), &slot) {
        Outcome::Answered(answer, payload) => Some((answer, payload)),
        Outcome::Waits(kept) => slot.park(kept, parked),
        // The pool never gets a request of our own.
        Outcome::Ours(payload) => Some((Answer::EMPTY, payload)),
    };
    if let Some((answer, payload)) = answered {
        queue.finish(Due {
            payload,
            commit_id,
            answer,
            held,
        });
    }
}
