//! Inode numbers of the union: made from (device, inode) of the file a name comes from,
//! so that they are unique across file systems and stay the same across copy-up and
//! remount. Called by `resolve` and `readdir`.
//!
//! The device is the position of its file system among the layers, in the upper 16 bits
//! (as overlayfs' `xino`); numbers that do not fit get one from a table, which is stable
//! for the life of the mount only.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use dashmap::DashMap;
use parking_lot::RwLock;

use super::types::{Ino, ROOT_INO};
use crate::layer::at::Stat;

const DEVICE_SHIFT: u32 = 48;
/// Numbers from the table: bit 62, so that they fit a signed 64-bit `d_off`.
const FRESH: u64 = 1 << 62;

/// Makes inode numbers.
pub(crate) struct InodeNumbers {
    devices: RwLock<Vec<u64>>,
    odd: DashMap<(u64, u64), Ino>,
    /// Copies in the upper that do not say where they came from, and the number they keep.
    kept: DashMap<(u64, u64), Ino>,
    any_kept: AtomicBool,
    /// Names whose number was taken by another file, by (parent, name).
    aliases: DashMap<(Ino, Box<[u8]>), Ino>,
    next: AtomicU64,
}

/// A map for the odd case. How many shards another might like is read from a dozen files.
fn few<K: Eq + std::hash::Hash, V>() -> DashMap<K, V> {
    DashMap::with_shard_amount(16)
}

impl InodeNumbers {
    /// `devices`: the layers' file systems in a fixed order.
    pub fn new(devices: impl IntoIterator<Item = u64>) -> Self {
        let mut known = Vec::new();
        for device in devices {
            if !known.contains(&device) {
                known.push(device);
            }
        }
        Self {
            devices: RwLock::new(known),
            odd: few(),
            kept: few(),
            any_kept: AtomicBool::new(false),
            aliases: few(),
            next: AtomicU64::new(FRESH),
        }
    }

    /// The number of a file.
    pub fn number(&self, stat: &Stat) -> Ino {
        self.number_of(stat.dev, stat.ino)
    }

    /// The number of a file on `dev`.
    pub fn number_of(&self, dev: u64, ino: u64) -> Ino {
        if self.any_kept.load(Ordering::Acquire)
            && let Some(kept) = self.kept.get(&(dev, ino))
        {
            return *kept;
        }
        self.own_number(dev, ino)
    }

    /// A file of the upper is from now on known by the number of the lower file it was copied
    /// from, which only this remembers. Once the file is gone another may get its inode and with
    /// it this number, which then is nobody else's.
    pub fn keep(&self, stat: &Stat, number: Ino) {
        self.kept.insert((stat.dev, stat.ino), number);
        self.any_kept.store(true, Ordering::Release);
    }

    /// The number a file on `dev` has by itself, wherever it was copied from.
    pub fn own_number(&self, dev: u64, ino: u64) -> Ino {
        let known = self.devices.read().iter().position(|d| *d == dev);
        let index = known.unwrap_or_else(|| {
            let mut devices = self.devices.write();
            match devices.iter().position(|d| *d == dev) {
                Some(index) => index,
                None => {
                    devices.push(dev);
                    devices.len() - 1
                }
            }
        }) as u64;
        let fits = ino >> DEVICE_SHIFT == 0 && index < 1 << 14;
        if fits && (index > 0 || ino > ROOT_INO) {
            return index << DEVICE_SHIFT | ino;
        }
        *self.odd.entry((dev, ino)).or_insert_with(|| self.fresh())
    }

    /// The file's own number of one that [`Self::number_of`] made.
    pub fn own(&self, ino: Ino) -> u64 {
        let mut odd = self.odd.iter();
        match odd.find(|entry| *entry.value() == ino) {
            Some(entry) => entry.key().1,
            None => ino & ((1 << DEVICE_SHIFT) - 1),
        }
    }

    fn fresh(&self) -> Ino {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// The number of a name whose own is taken by another file: no two files may share one.
    pub fn alias(&self, parent: Ino, name: &[u8]) -> Ino {
        *self
            .aliases
            .entry((parent, name.into()))
            .or_insert_with(|| self.fresh())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_unique_across_devices_and_never_the_roots() {
        let inode_numbers = InodeNumbers::new([10, 20, 10]);
        assert_eq!(inode_numbers.number_of(10, 42), 42);
        assert_ne!(inode_numbers.number_of(20, 42), 42);
        assert_ne!(
            inode_numbers.number_of(20, 42),
            inode_numbers.number_of(30, 42)
        );
        assert_ne!(inode_numbers.number_of(10, 1), ROOT_INO);
        assert_ne!(inode_numbers.number_of(10, 0), 0);
        let huge = inode_numbers.number_of(10, u64::MAX);
        assert_eq!(inode_numbers.number_of(10, u64::MAX), huge);
        assert_ne!(inode_numbers.number_of(20, u64::MAX), huge);
        assert_ne!(inode_numbers.alias(1, b"a"), inode_numbers.alias(1, b"b"));
        assert_eq!(inode_numbers.alias(1, b"a"), inode_numbers.alias(1, b"a"));
    }
}
