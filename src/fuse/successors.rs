//! Files that the kernel knows by two numbers. While an inode of the kernel is open and passed through
//! to one file, all its opens are (fs/fuse/iomode.c). So a file that is written for the first time
//! while readers have it open from a lower, gets a second number, its successor, for the writer and
//! all who open it from then on. The readers keep the first number, which is retired, and the data of
//! the lower, as mappings do on overlayfs. Only regular files have successors: a directory with two
//! inodes of the kernel would have two locks.
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
//! its readers. The kernel then comes back with the same number, which [`Successors::arrives`]
//! recognises.

use std::sync::atomic::{AtomicBool, Ordering};

use dashmap::DashMap;

use super::operations::{Ino, Node};
use crate::union::Union;

/// The bit that a successor has and no inode number of the union.
const SUCCESSOR: u64 = 1 << 63;
/// How many threads are remembered of those whose opens of one retired number were refused.
const REFUSED: usize = 64;

/// How a thread comes to open a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    /// The number is not retired, or not yet.
    First,
    /// The number is retired. The open has to fail with ESTALE, and the kernel looks the name up again.
    Late,
    /// The kernel has looked all names up again and still comes with the retired number: no name leads
    /// to it.
    Again,
}

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

    /// Says how a thread comes to open this number.
    pub(super) fn arrives(&self, node: Node, thread: u32) -> Arrival {
        let retired = self.is_retired(node);
        let Some(mut refused) = retired.then(|| self.retired.get_mut(&node.0)).flatten() else {
            return Arrival::First;
        };
        if let Some(at) = refused.iter().position(|known| *known == thread) {
            refused.remove(at);
            return Arrival::Again;
        }
        // The oldest have long found the successor.
        if refused.len() == REFUSED {
            refused.remove(0);
        }
        refused.push(thread);
        Arrival::Late
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
    fn an_open_of_a_retired_number_fails_once_for_each_thread() {
        let successors = Successors::default();
        assert_eq!(successors.node(7), Node(7));
        assert_eq!(successors.arrives(Node(7), 1), Arrival::First);
        successors.retire(7);
        let successor = successors.node(7);
        assert_ne!(successor, Node(7));
        assert_eq!(inode(successor), Ino(7));
        assert_eq!(
            successors.nodes(7).collect::<Vec<_>>(),
            [Node(7), successor]
        );
        assert_eq!(successors.nodes(8).collect::<Vec<_>>(), [Node(8)]);
        assert_eq!(successors.arrives(successor, 1), Arrival::First);
        assert_eq!(successors.arrives(Node(7), 1), Arrival::Late);
        assert_eq!(successors.arrives(Node(7), 2), Arrival::Late);
        assert_eq!(successors.arrives(Node(7), 1), Arrival::Again);
        assert_eq!(successors.arrives(Node(7), 1), Arrival::Late);
        for thread in 10..1000 {
            assert_eq!(successors.arrives(Node(7), thread), Arrival::Late);
        }
        assert!(successors.retired.get(&7).unwrap().len() <= REFUSED);
    }
}
