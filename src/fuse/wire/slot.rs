//! A slot for the answer to one request, in which the thread that took the request from a ring
//! finds the answer of any other thread. If that thread has continued with other requests, the slot
//! passes the answer to the queue.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::rings::queue::{Due, Queue};
use crate::sys::uring::Payload;

/// How often a thread that waits for slow work checks whether the connection is gone.
pub(super) const LOOK: Duration = Duration::from_millis(200);

/// Holds the answer to one request at a time.
#[derive(Debug, Default)]
pub(super) struct Slot {
    state: Mutex<SlotState>,
    answered: Condvar,
}

#[derive(Debug, Default)]
struct SlotState {
    /// The memory for the data of the answer; `None` while the request still occupies it.
    payload: Option<Payload>,
    /// The data of the answer if there is no `payload`.
    beside: Vec<u8>,
    answer: Option<Answer>,
    /// The request whose thread does not wait here. Its answer goes to the queue with the payload.
    parked: Option<Parked>,
}

/// A request whose thread does not wait for the answer.
#[derive(Debug)]
pub(super) struct Parked {
    pub(super) queue: Arc<Queue>,
    pub(super) commit_id: u64,
    /// As in [`Due::held`].
    pub(super) held: usize,
}

/// An answer; its data is in the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    /// 0 or a negative errno.
    pub(super) error: i32,
    pub(super) len: usize,
}

impl Answer {
    /// Success without data.
    pub(super) const EMPTY: Self = Self { error: 0, len: 0 };
    const EIO: Self = Self {
        error: -libc::EIO,
        len: 0,
    };
}

impl Slot {
    /// Lends the payload: the next answer may be written into it.
    pub(super) fn lend(&self, payload: Payload) {
        self.state.lock().payload = Some(payload);
    }

    /// Stores the answer. Returns `false` if the data is too long for the payload; the answer is
    /// then EIO.
    pub(super) fn put(&self, error: i32, data: &[u8]) -> bool {
        let mut state = self.state.lock();
        let fits = match &mut state.payload {
            Some(payload) => payload
                .get_mut(..data.len())
                .map(|place| place.copy_from_slice(data))
                .is_some(),
            None => {
                state.beside.clear();
                state.beside.extend_from_slice(data);
                true
            }
        };
        state.answer = Some(if fits {
            Answer {
                error,
                len: data.len(),
            }
        } else {
            Answer::EIO
        });
        self.tell(state);
        fits
    }

    /// Answers with the bytes that `fill` writes into `size` bytes of the payload; `fill` returns
    /// their number. Returns `false` without an answer if no payload of that size was lent, or if
    /// `fill` failed.
    pub(super) fn fill(&self, size: usize, fill: impl FnOnce(&mut [u8]) -> Option<usize>) -> bool {
        let mut state = self.state.lock();
        let room = state.payload.as_mut().and_then(|p| p.get_mut(..size));
        let Some(len) = room.and_then(fill) else {
            return false;
        };
        state.answer = Some(Answer { error: 0, len });
        self.tell(state);
        true
    }

    fn tell(&self, mut state: parking_lot::MutexGuard<'_, SlotState>) {
        let Some(parked) = state.parked.take() else {
            drop(state);
            self.answered.notify_one();
            return;
        };
        let taken = state.take(&mut None);
        drop(state);
        if let Some((answer, payload)) = taken {
            parked.queue.finish(Due {
                payload,
                commit_id: parked.commit_id,
                answer,
                held: parked.held,
            });
        }
    }

    /// Takes the answer; `None` if there is none yet. Its data is in the returned payload, which is
    /// the lent one, or else `kept`.
    pub(super) fn take(&self, kept: &mut Option<Payload>) -> Option<(Answer, Payload)> {
        self.state.lock().take(kept)
    }

    /// Waits for the answer. `None` if `over` returns true.
    pub(super) fn wait(
        &self,
        kept: &mut Option<Payload>,
        over: impl Fn() -> bool,
    ) -> Option<(Answer, Payload)> {
        let mut state = self.state.lock();
        while state.answer.is_none() {
            if over() {
                return None;
            }
            self.answered.wait_for(&mut state, LOOK);
        }
        state.take(kept)
    }

    /// Passes the answer to the queue as soon as there is one; its data may be written to `kept`
    /// from now on. Returns the answer if there is one already. The slot is not used after this
    /// call.
    pub(super) fn park(
        &self,
        mut kept: Option<Payload>,
        parked: Parked,
    ) -> Option<(Answer, Payload)> {
        let mut state = self.state.lock();
        if let Some(taken) = state.take(&mut kept) {
            return Some(taken);
        }
        if kept.is_some() {
            state.payload = kept;
        }
        state.parked = Some(parked);
        None
    }
}

impl SlotState {
    fn take(&mut self, kept: &mut Option<Payload>) -> Option<(Answer, Payload)> {
        let mut answer = self.answer?;
        if let Some(payload) = self.payload.take() {
            self.answer = None;
            return Some((answer, payload));
        }
        let mut payload = kept.take()?;
        self.answer = None;
        match payload
            .get_mut(..answer.len)
            .zip(self.beside.get(..answer.len))
        {
            Some((place, data)) => place.copy_from_slice(data),
            None => answer = Answer::EIO,
        }
        Some((answer, payload))
    }
}
