//! A thread that takes requests from its ring, one at a time, and answers them or leaves them to others.

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

/// Data of this size, in bytes, is given back to the system while a request waits.
const MUCH: usize = 64 << 10;

/// A thread's ring, and where its answers are left.
pub(super) struct RingThread {
    queue: Arc<Queue>,
    ends: Sender<io::Result<()>>,
    ring: Ring,
    /// Of the first entry.
    payload: Option<Payload>,
    header: uring::Header,
    slot: Arc<Slot>,
}

/// What a thread tells the kernel next.
struct Next {
    command: Command,
    payload: Payload,
    /// The answer is to a request of our own.
    is_ours: bool,
}

impl RingThread {
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

    /// Serves until this thread is not needed any more, and says how it ended.
    pub(super) fn work(mut self, served: Arc<Served>) {
        let end = self.serve(&served);
        match &end {
            // The overflow thread may have nothing that tells it.
            Ok(End::Over) => self.queue.end(),
            // The other threads of this CPU go on.
            Ok(End::NoEntry(error)) => self.queue.cannot_grow(error),
            Err(error) => {
                // Requests of this CPU could wait forever.
                tracing::error!(%error, cpu = self.queue.cpu, "a ring failed: aborting the connection");
                (served.abort)();
                self.queue.end();
            }
        }
        // The handler ends with the last handle of it, and takes away what it has left on the disk. Whoever
        // waits for the ends of all threads, by the senders of these, ends the process.
        drop(served);
        let _ = self.ends.send(end.map(drop));
    }

    /// Takes requests until the file system is unmounted, or the first entry is refused.
    fn serve(&mut self, served: &Arc<Served>) -> io::Result<End> {
        // Requests other than WRITE, so that the answer may be written over them.
        let mut copy = Vec::new();
        let watch = self.queue.watch.clone();
        let mut way = watch.and_then(|watch| watch.join(self.queue.cpu));
        let first = self.payload.take().map(Next::new);
        let mut next = first.or_else(|| self.another(served));
        let mut has_served = false;
        while let Some(now) = next {
            let is_ours = now.is_ours;
            let (payload, was_last) = match self.exchange(now) {
                Ok(taken) => taken,
                Err(refused) => match self.refused(served, refused, is_ours, has_served)? {
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

    /// What this thread does after a command was refused: something else, or it ends.
    ///
    /// # Errors
    /// What makes it impossible to answer the request.
    fn refused(
        &mut self,
        served: &Served,
        refused: Refused,
        is_ours: bool,
        has_served: bool,
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
                if !has_served {
                    return Ok(Err(End::NoEntry(error)));
                }
                // The entry that this thread has left with a request may become a spare one.
                self.queue.wait_for_spare();
                Ok(Ok(self.another(served)))
            }
            (Refusal::NotNow, Some(payload)) => {
                std::thread::sleep(PAUSE);
                Ok(Ok(Some(Next {
                    command,
                    payload,
                    is_ours,
                })))
            }
            (Refusal::NotNow | Refusal::Broken, _) => Err(error),
        }
    }

    /// Gives an answer or an entry and waits for a request. Whether no other thread does that now.
    fn exchange(&mut self, next: Next) -> Result<(Payload, bool), Refused> {
        let queue = &*self.queue;
        let (command, header) = (next.command, &mut self.header);
        queue.idle.fetch_add(1, Ordering::Relaxed);
        let exchanged = if next.is_ours || matches!(command, Command::Register) {
            // A new entry gets none that waits. If another got one, there may be more.
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

    /// The last idle thread has taken a request. Whether there will be another.
    fn was_last(&self, served: &Arc<Served>) -> bool {
        let grows = grow(&self.queue, served, &self.ends);
        overflow::start(&self.queue, served, &self.ends);
        self.queue.starve();
        grows
    }

    /// Has the request answered; `None`: that is left to others.
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
        // The data has been copied: the pool counts it.
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

    /// Another entry, a spare one if there is one: the kernel puts into it what has waited longest.
    /// `None`: the connection is over.
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
    /// An entry that the kernel does not know yet.
    fn new(payload: Payload) -> Self {
        Self {
            command: Command::Register,
            payload,
            is_ours: false,
        }
    }
}

/// How a thread ends.
enum End {
    /// The connection is gone.
    Over,
    /// The kernel took no entry from it.
    NoEntry(io::Error),
}
