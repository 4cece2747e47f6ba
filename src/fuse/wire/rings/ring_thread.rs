//! A thread that takes requests from its ring, one at a time, and answers them or leaves the answer
//! to other threads.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;

use super::super::ring_message;
use super::super::slot::{Answer, Parked, Slot};
use super::queue::Queue;
use super::{Outcome, PAUSE, Refusal, Served, answer, grow, overflow, refusal};
use crate::fuse::thread::{self, Thread};
use crate::sys::uring::{self, Command, HEADER, Payload, Refused, Ring};

/// The memory of more data than this, in bytes, is returned to the system while a request waits.
const MUCH: usize = 64 << 10;

/// A thread with its ring, and the slot that receives its answers.
pub(super) struct RingThread {
    queue: Arc<Queue>,
    ends: Sender<io::Result<()>>,
    ring: Ring,
    /// The memory of the first entry.
    payload: Option<Payload>,
    header: uring::Header,
    slot: Arc<Slot>,
}

/// The command that a thread gives to the kernel next.
struct Next {
    command: Command,
    payload: Payload,
    /// Whether the answer is to a request of our own.
    is_ours: bool,
}

/// The state of a thread whose command was refused.
struct ThreadState {
    /// As in [`Next`].
    is_ours: bool,
    /// Whether it has received a request.
    has_served: bool,
}

impl RingThread {
    /// Creates the ring and the memory of the first entry.
    ///
    /// # Errors
    /// Those of [`Ring::new`] and [`Queue::new_payload`].
    pub(super) fn new(queue: Arc<Queue>, ends: Sender<io::Result<()>>) -> io::Result<Self> {
        let ring = Ring::new(&*queue.device, queue.cpu)?;
        let payload = Some(queue.new_payload()?);
        Ok(Self {
            queue,
            ends,
            ring,
            payload,
            header: [0; HEADER],
            slot: Arc::default(),
        })
    }

    /// Serves until this thread is not needed any more, and sends how it ended.
    pub(super) fn work(mut self, served: Arc<Served>) {
        let end = self.serve(&served);
        match &end {
            // The overflow thread may have no event that reports the end.
            Ok(End::Over) => self.queue.end(),
            // The other threads of this CPU go on.
            Ok(End::NoEntry(error)) => self.queue.cannot_grow(error),
            Err(error) => {
                // Without the abort, requests of this CPU could wait forever.
                tracing::error!(%error, cpu = self.queue.cpu, "a ring failed: aborting the connection");
                (served.abort)();
                self.queue.end();
            }
        }
        // The handler is dropped with its last handle, and then removes its files from the disk.
        // The thread that waits for the ends of all threads ends the process when the last sender
        // is dropped, so the sender is dropped after the handle.
        drop(served);
        let _ = self.ends.send(end.map(drop));
    }

    /// Takes requests until the file system is unmounted, or the first entry is refused.
    fn serve(&mut self, served: &Arc<Served>) -> io::Result<End> {
        // The copy of a request other than WRITE, so that the answer may overwrite the payload.
        let mut copy = Vec::new();
        let watch = self.queue.watch.clone();
        let mut way = watch.and_then(|watch| watch.join(self.queue.cpu));
        let first = self.payload.take().map(Next::new);
        let mut next = first.or_else(|| self.another(served));
        let mut has_served = false;
        while let Some(now) = next {
            let state = ThreadState {
                is_ours: now.is_ours,
                has_served,
            };
            let (payload, was_last) = match self.exchange(now) {
                Ok(taken) => taken,
                Err(refused) => match self.refused(served, refused, state)? {
                    Ok(again) => {
                        next = again;
                        continue;
                    }
                    Err(end) => return Ok(end),
                },
            };
            has_served = true;
            if let Some(way) = &mut way {
                way.took();
            }
            let may_wait = !was_last || self.was_last(served);
            thread::is(Thread::Ring { may_wait });
            next = self.answer(served, payload, &mut copy);
            if next.is_none() {
                next = self.another(served);
            }
        }
        Ok(End::Over)
    }

    /// Handles a refused command. Returns the next command, `None` if there is none, or the end of
    /// the thread.
    ///
    /// # Errors
    /// The error of the command, if the request cannot be answered.
    fn refused(
        &mut self,
        served: &Served,
        refused: Refused,
        state: ThreadState,
    ) -> io::Result<Result<Option<Next>, End>> {
        let Refused {
            command,
            error,
            payload,
        } = refused;
        match (refusal(command, &error), payload) {
            (Refusal::Over, _) => Ok(Err(End::Over)),
            (Refusal::NoEntry, _) => {
                self.queue.lost_entry(&error);
                if !state.has_served {
                    return Ok(Err(End::NoEntry(error)));
                }
                // The entry of a request that this thread left unanswered may become spare.
                self.queue.wait_for_spare();
                Ok(Ok(self.another(served)))
            }
            (Refusal::NotNow, Some(payload)) => {
                std::thread::sleep(PAUSE);
                Ok(Ok(Some(Next {
                    command,
                    payload,
                    is_ours: state.is_ours,
                })))
            }
            (Refusal::NotNow | Refusal::Broken, _) => Err(error),
        }
    }

    /// Gives an answer or an entry to the kernel and waits for a request. The returned flag is true
    /// if this was the last idle thread.
    fn exchange(&mut self, next: Next) -> Result<(Payload, bool), Refused> {
        let queue = &*self.queue;
        let (command, header) = (next.command, &mut self.header);
        queue.idle.fetch_add(1, Ordering::Relaxed);
        let exchanged = if next.is_ours || matches!(command, Command::Register) {
            // A new entry does not receive a request that waits in the kernel. If another entry
            // did, more may wait.
            let note = |at_once| {
                if at_once || !next.is_ours {
                    queue.starve();
                }
            };
            self.ring
                .exchange_noting(command, header, next.payload, note)
        } else {
            self.ring.exchange(command, header, next.payload)
        };
        let was_last = queue.idle.fetch_sub(1, Ordering::Relaxed) == 1;
        Ok((exchanged?, was_last))
    }

    /// Starts another thread and the overflow thread, after the last idle thread took a request.
    /// Returns whether another thread will be idle.
    fn was_last(&self, served: &Arc<Served>) -> bool {
        let grows = grow(&self.queue, served, &self.ends);
        overflow::start(&self.queue, served, &self.ends);
        self.queue.starve();
        grows
    }

    /// Has the handler answer the request. `None` if the answer is left to another thread.
    fn answer(&mut self, served: &Served, payload: Payload, copy: &mut Vec<u8>) -> Option<Next> {
        let commit_id = ring_message::commit_id(&self.header);
        let outcome = answer(served, &self.header, payload, copy, &self.slot);
        let is_ours = matches!(outcome, Outcome::Ours(_));
        let (Answer { error, len }, payload) = match outcome {
            Outcome::Answered(answer, payload) => (answer, payload),
            Outcome::Ours(payload) => (Answer::EMPTY, payload),
            Outcome::Waits(kept) => self.wait(served, commit_id, kept)?,
        };
        ring_message::answer(&mut self.header, commit_id, error, len);
        Some(Next {
            command: Command::Commit(commit_id),
            payload,
            is_ours,
        })
    }

    /// Waits for the answer if this thread can be spared, else leaves it to the overflow thread.
    fn wait(
        &mut self,
        served: &Served,
        commit_id: u64,
        mut kept: Option<Payload>,
    ) -> Option<(Answer, Payload)> {
        let message = ring_message::read(&self.header, usize::MAX);
        // The pool has a copy of the data and counts it.
        if message.is_some_and(|message| message.payload > MUCH) {
            kept.iter_mut().for_each(Payload::release);
        }
        let is_spared = self.queue.begin_waiting();
        if is_spared || !self.queue.has_overflow() {
            let answered = self.slot.wait(&mut kept, || served.is_over());
            if is_spared {
                self.queue.end_waiting();
            }
            return answered;
        }
        let parked = Parked {
            queue: Arc::clone(&self.queue),
            commit_id,
            held: 0,
        };
        std::mem::take(&mut self.slot).park(kept, parked)
    }

    /// Returns another entry: a spare one if there is one, since the kernel puts the oldest waiting
    /// request into it. `None` if the connection is gone.
    fn another(&mut self, served: &Served) -> Option<Next> {
        while !served.is_over() && !self.queue.is_over() {
            if let Some(spare) = self.queue.spare() {
                ring_message::answer(&mut self.header, spare.commit_id, 0, 0);
                return Some(Next {
                    command: Command::Commit(spare.commit_id),
                    payload: spare.payload,
                    is_ours: true,
                });
            }
            match self.queue.new_payload() {
                Ok(payload) => return Some(Next::new(payload)),
                Err(error) => self.queue.tell(&error),
            }
            self.queue.wait_for_spare();
        }
        None
    }
}

impl Next {
    /// Registers an entry that the kernel does not know yet.
    fn new(payload: Payload) -> Self {
        Self {
            command: Command::Register,
            payload,
            is_ours: false,
        }
    }
}

/// The way in which a thread ends.
enum End {
    /// The connection is gone.
    Over,
    /// The kernel refused the first entry of the thread.
    NoEntry(io::Error),
}
