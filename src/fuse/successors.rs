//! Files that the kernel knows by two numbers. While an inode of the kernel is open and passed through
//! to one file, all its opens are (fs/fuse/iomode.c). So a file that is written for the first time
//! while readers have it open from a lower, gets a second number, its successor, for the writer and
//! all who open it from then on. The readers keep the first number, which is retired, and the data of
//! the lower, as on overlayfs.
//!
//! The writer's open of the retired number fails with ESTALE. The kernel then looks all names of the
//! path up again, without its cache, finds the successor, and opens that, all in the same open(2) or
//! truncate(2) of the program (`do_filp_open` of fs/namei.c, `retry_estale` of linux/namei.h). The
//! union knows nothing of this: both numbers mean the same inode of it.
//!
//! ```text
//! reader: LOOKUP file -> node 7        OPEN 7 -> passed through to the lower
//! writer: OPEN 7 (copied up) -> ESTALE LOOKUP file -> node 1 << 63 | 7   OPEN 1 << 63 | 7 -> the upper
//! ```
//!
//! A retired number is opened again only where no name leads to it: through /proc/self/fd of one of
//! its readers. The kernel then comes back with the same number, which [`Successors::refuses`]
//! recognises.

use std::sync::atomic::{AtomicBool, Ordering};

use dashmap::DashMap;

use super::operations::{Ino, Node};
use crate::union::Union;

/// The bit that a successor has and no inode number of the union.
const SUCCESSOR: u64 = 1 << 63;
/// How many threads are remembered of those whose opens of one retired number were refused.
const REFUSED: usize = 64;

/// The retired numbers of a mount.
#[derive(Debug, Default)]
pub(super) struct Successors {
    any: AtomicBool,
    /// Inodes whose first number is retired, with the threads that were refused.
    retired: DashMap<u64, Vec<u32>>,
}

/// Whether a number is that of a successor.
pub(super) fn is_successor(node: Node) -> bool {
    node.0 & SUCCESSOR != 0
}

/// Returns the inode that a number means.
pub(super) fn inode(node: Node) -> Ino {
    Ino(node.0 & !SUCCESSOR)
}

impl Successors {
    /// Returns the number that stands for an inode from now on. The kernel must hold a lookup of the
    /// inode until it has the answer.
    pub(super) fn node(&self, ino: u64) -> Node {
        Node(if self.has(ino) { ino | SUCCESSOR } else { ino })
    }

    /// Returns all numbers by which the kernel may know an inode.
    pub(super) fn nodes(&self, ino: u64) -> impl Iterator<Item = Node> + use<> {
        let successor = self.has(ino).then_some(Node(ino | SUCCESSOR));
        std::iter::once(Node(ino)).chain(successor)
    }

    /// Whether an inode has a successor.
    pub(super) fn has(&self, ino: u64) -> bool {
        self.any.load(Ordering::Acquire) && self.retired.contains_key(&ino)
    }

    /// Whether a number is retired.
    pub(super) fn is_retired(&self, node: Node) -> bool {
        !is_successor(node) && self.has(node.0)
    }

    /// Retires the first number of an inode.
    pub(super) fn retire(&self, ino: u64) {
        self.any.store(true, Ordering::Release);
        self.retired.entry(ino).or_default();
    }

    /// Whether an open of this number by a thread has to be refused with ESTALE: the number is
    /// retired, and the thread has not come back with it. It comes back if no name leads to the
    /// number.
    pub(super) fn refuses(&self, node: Node, thread: u32) -> bool {
        if !self.is_retired(node) {
            return false;
        }
        let Some(mut refused) = self.retired.get_mut(&node.0) else {
            return false;
        };
        if let Some(at) = refused.iter().position(|known| *known == thread) {
            refused.remove(at);
            return false;
        }
        // The oldest have long found the successor.
        if refused.len() == REFUSED {
            refused.remove(0);
        }
        refused.push(thread);
        true
    }

    /// Whether a file may be looked up by this number, which a handle has kept. A successor that the
    /// kernel and the server have forgotten comes into force again, unless the kernel knows the first
    /// number.
    pub(super) fn restores(&self, union: &Union, node: Node) -> bool {
        let ino = inode(node).0;
        if !is_successor(node) || self.has(ino) {
            return true;
        }
        let forgotten = !union.is_known(ino);
        if forgotten {
            self.retire(ino);
        }
        forgotten
    }

    /// Notes that the kernel has returned lookups of an inode. If it knows the inode no more, the next
    /// lookup gives it the first number again.
    pub(super) fn forget(&self, union: &Union, ino: u64) {
        if self.has(ino) {
            // A lookup counts the inode before it asks for the number. With the lock of the table, it
            // either finds the successor here or is found by this check.
            self.retired.remove_if(&ino, |_, _| !union.is_known(ino));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_retired_number_is_refused_once_to_each_thread() {
        let successors = Successors::default();
        assert_eq!(successors.node(7), Node(7));
        assert!(!successors.refuses(Node(7), 1));
        successors.retire(7);
        let successor = successors.node(7);
        assert_ne!(successor, Node(7));
        assert_eq!(inode(successor), Ino(7));
        assert_eq!(
            successors.nodes(7).collect::<Vec<_>>(),
            [Node(7), successor]
        );
        assert_eq!(successors.nodes(8).collect::<Vec<_>>(), [Node(8)]);
        assert!(!successors.refuses(successor, 1));
        assert!(successors.refuses(Node(7), 1));
        assert!(successors.refuses(Node(7), 2));
        assert!(!successors.refuses(Node(7), 1), "it came back");
        assert!(successors.refuses(Node(7), 1));
        for thread in 10..1000 {
            assert!(successors.refuses(Node(7), thread));
        }
        assert!(successors.retired.get(&7).unwrap().len() <= REFUSED);
    }
}
