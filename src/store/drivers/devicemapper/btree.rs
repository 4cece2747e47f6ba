//! Look-ups in the trees of a pool's metadata.
//!
//! ```text
//!  4  u32 1: inner node, 2: leaf      16  u32 entries      20  u32 room for entries      24  u32 bytes of a value
//! 32  keys: u64 each, ascending; room for all of them
//!  …  values; of an inner node the u64 block of the node with the keys from this key on
//! ```
//! (Linux, drivers/md/persistent-data/dm-btree-internal.h.) A tree is never walked completely: a
//! look-up reads one node a level, and the number of levels is limited. So trees with cycles or
//! shared nodes do no harm.

use std::rc::Rc;
use std::sync::Arc;

use lru::LruCache;

use super::block::{BLOCK, Block, Kind, MetadataBlocks};
use super::{CHECK, bad};
use crate::store::error::Result;

/// The limit of levels of a tree. The kernel's trees have at most five: a node has room for 252
/// entries and is at least a third full, and a pool has 2^32 blocks at most.
const MAX_DEPTH: usize = 10;
const INNER: u32 = 1;
const LEAF: u32 = 2;
const HEADER: usize = 32;
/// The number of nodes that are kept in memory, 4 KiB each.
const KEPT: std::num::NonZeroUsize = std::num::NonZeroUsize::new(256).unwrap();

/// A node that was checked: its keys and values are in its block.
#[derive(Debug)]
struct Node {
    block: Block,
    is_leaf: bool,
    entries: usize,
    /// The number of values that the node has room for.
    room: usize,
    value_size: usize,
}

impl Node {
    fn parse(block: Block) -> std::result::Result<Self, String> {
        let is_leaf = match block.u32(4) {
            LEAF => true,
            INNER => false,
            flags => return Err(format!("flags {flags:#x}")),
        };
        let [entries, room, value_size] = [16, 20, 24].map(|at| block.u32(at) as usize);
        let bytes = value_size
            .checked_add(8)
            .and_then(|each| each.checked_mul(room));
        if entries > room || bytes.is_none_or(|bytes| bytes > BLOCK - HEADER) {
            return Err(format!(
                "{entries} entries with values of {value_size} bytes in room for {room}"
            ));
        }
        Ok(Self {
            block,
            is_leaf,
            entries,
            room,
            value_size,
        })
    }

    fn key(&self, at: usize) -> u64 {
        self.block.u64(HEADER + 8 * at)
    }

    fn value<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        let start = HEADER + 8 * self.room + self.value_size * at;
        (self.value_size == N)
            .then(|| self.block.bytes(start).copied())
            .flatten()
    }

    /// Returns the last entry whose key is not greater than `key`.
    fn at_or_below(&self, key: u64) -> Option<usize> {
        let (mut low, mut high) = (0, self.entries);
        while low < high {
            let middle = usize::midpoint(low, high);
            if self.key(middle) <= key {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low.checked_sub(1)
    }
}

/// The trees of a pool, with a cache of the nodes that were read last.
#[derive(Debug)]
pub(super) struct Trees {
    blocks: Arc<MetadataBlocks>,
    kept: LruCache<u64, Rc<Node>>,
}

impl Trees {
    pub(super) fn of(blocks: Arc<MetadataBlocks>) -> Self {
        Self {
            blocks,
            kept: LruCache::new(KEPT),
        }
    }

    fn node(&mut self, number: u64) -> Result<Rc<Node>> {
        if let Some(known) = self.kept.get(&number) {
            return Ok(Rc::clone(known));
        }
        let block = self.blocks.read(number, Kind::Node)?;
        let node = Node::parse(block).map_err(|fault| self.bad(number, &fault))?;
        let node = Rc::new(node);
        self.kept.put(number, Rc::clone(&node));
        Ok(node)
    }

    fn bad(&self, number: u64, fault: &str) -> crate::store::Error {
        let fault = format!("block {number}, a node of a tree, has {fault}");
        bad(self.blocks.path(), fault, CHECK)
    }

    /// Returns the value of a key in the tree with this root, whose values have `N` bytes.
    pub(super) fn find<const N: usize>(&mut self, root: u64, key: u64) -> Result<Option<[u8; N]>> {
        let mut number = root;
        for _ in 0..MAX_DEPTH {
            let node = self.node(number)?;
            let Some(at) = node.at_or_below(key) else {
                return Ok(None);
            };
            let wrong = || self.bad(number, &format!("values of {} bytes", node.value_size));
            if node.is_leaf {
                let value = node.value(at).ok_or_else(wrong)?;
                return Ok((node.key(at) == key).then_some(value));
            }
            let child = node.value(at).map(u64::from_le_bytes);
            number = child.ok_or_else(wrong)?;
        }
        let fault = format!("the tree at block {root} has too many levels");
        Err(bad(self.blocks.path(), fault, CHECK))
    }
}
