//! What the readers of long directories want: names only, or attributes too.
//!
//! In a long directory only the first names come with attributes, because a reader may need nothing
//! but names. A program that walks a tree and asks for each file lists the whole directory before it
//! asks, so each of the other names costs it a LOOKUP. From the next long directory on, all names
//! come with attributes. Whether the reader has changed since is tried with every
//! [`TRUSTED`]-th directory.

use std::sync::{Arc, Weak};

use crate::sys::sync::atomic::Ordering;
use crate::sys::sync::parking_lot::Mutex;
use crate::union::inode::Inode;
use crate::union::readdir::ASKED_ENOUGH;

/// The number of long directories that are listed with all attributes after one whose names were
/// looked up one by one.
const TRUSTED: u8 = 8;

/// The long directory that was read last, and what is expected of the readers.
#[derive(Default)]
pub(super) struct Readers {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    last: Weak<Inode>,
    /// Whether all names of `last` come with attributes.
    whole: bool,
    /// The number of long directories that follow and are listed with all attributes.
    left: u8,
}

impl Readers {
    /// Whether all names of a long directory should come with attributes, as far as the directories
    /// before it tell.
    pub fn want_attributes(&self, inode: &Arc<Inode>) -> bool {
        let mut state = self.state.lock();
        if state.last.as_ptr() == Arc::as_ptr(inode) {
            return state.whole;
        }
        let asked = |inode: &Inode| {
            let dir = inode.dir.as_ref();
            dir.is_some_and(|dir| dir.asked.load(Ordering::Relaxed) >= ASKED_ENOUGH)
        };
        if state.last.upgrade().is_some_and(|last| asked(&last)) {
            state.left = TRUSTED;
        }
        state.whole = state.left > 0;
        state.left = state.left.saturating_sub(1);
        state.last = Arc::downgrade(inode);
        state.whole
    }
}
