//! Where a thread that took a request from a ring finds the answer, whoever gives it.
//! Called by `rings` (which waits) and `reply` (which answers, from any thread).

use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::sys::uring::Payload;

/// How often a thread that waits for slow work looks whether anybody still wants it.
const LOOK: Duration = Duration::from_millis(200);

/// Holds the answer of one request after the other.
#[derive(Debug, Default)]
pub(super) struct Slot {
    state: Mutex<State>,
    answered: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Where the data of the answer goes, unless the request still lies there.
    payload: Option<Payload>,
    /// Where it goes then.
    beside: Vec<u8>,
    answer: Option<Answer>,
}

/// An answer; its data is in the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    /// 0 or a negative errno.
    pub(super) error: i32,
    pub(super) len: usize,
}

impl Slot {
    /// The next answer may be written there at once.
    pub(super) fn lend(&self, payload: Payload) {
        self.state.lock().payload = Some(payload);
    }

    /// Answers. `false`: too long for the payload, and answered EIO.
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
        state.answer = Some(match fits {
            true => Answer {
                error,
                len: data.len(),
            },
            false => Answer {
                error: -libc::EIO,
                len: 0,
            },
        });
        drop(state);
        self.answered.notify_one();
        fits
    }

    /// Answers with what `fill` leaves in `size` bytes of the payload, and counts. `false`, and
    /// the answer is still to be given: there is no such room here, or `fill` failed.
    pub(super) fn fill(&self, size: usize, fill: impl FnOnce(&mut [u8]) -> Option<usize>) -> bool {
        let mut state = self.state.lock();
        let room = state.payload.as_mut().and_then(|p| p.get_mut(..size));
        let Some(len) = room.and_then(fill) else {
            return false;
        };
        state.answer = Some(Answer { error: 0, len });
        drop(state);
        self.answered.notify_one();
        true
    }

    /// Waits for the answer; its data is in the payload returned: the one that was lent,
    /// else `kept`. `None`: neither is there, or it is `over`.
    pub(super) fn wait(
        &self,
        kept: Option<Payload>,
        over: impl Fn() -> bool,
    ) -> Option<(Answer, Payload)> {
        let mut state = self.state.lock();
        let mut answer = loop {
            match state.answer.take() {
                Some(answer) => break answer,
                None if over() => return None,
                None => self.answered.wait_for(&mut state, LOOK),
            };
        };
        if let Some(payload) = state.payload.take() {
            return Some((answer, payload));
        }
        let mut payload = kept?;
        match payload.get_mut(..answer.len) {
            Some(place) => place.copy_from_slice(state.beside.get(..answer.len)?),
            None => {
                answer = Answer {
                    error: -libc::EIO,
                    len: 0,
                }
            }
        }
        Some((answer, payload))
    }
}
