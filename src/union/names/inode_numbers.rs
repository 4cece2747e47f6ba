//! Inode numbers of the union. A number is computed from device and inode number of the file that a
//! name resolves to (of the lower file, once it is copied up), so it is unique across file systems
//! and stays the same across copy-up and remount.
//!
//! The upper 16 bits are the position of the file system among those of the layers, as with
//! overlayfs' `xino`. A file whose numbers do not fit gets one from a table, which lasts as long as
//! the mount:
//!
//! ```text
//! first file system,  inode 42          -> 42
//! second file system, inode 42          -> 1 << 48 | 42
//! first file system,  inode 1 << 60     -> 1 << 62 | n
//! ```

use super::super::types::{Ino, ROOT_INO};
use crate::layer::at::Stat;
use crate::sys::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sys::sync::dashmap::DashMap;
use crate::sys::sync::parking_lot::RwLock;

const DEVICE_SHIFT: u32 = 48;
/// The first number from the table: bit 62, so that numbers fit a signed 64-bit `d_off`. No number has
/// bit 63, which the kernel's numbers of some files have (`fuse::successors`).
const FRESH: u64 = 1 << 62;

/// Assigns inode numbers.
pub(crate) struct InodeNumbers {
    devices: RwLock<Vec<u64>>,
    odd: DashMap<(u64, u64), Ino>,
    /// Numbers of copies in the upper that have no origin marker: those of their lower files.
    kept: DashMap<(u64, u64), Ino>,
    any_kept: AtomicBool,
    /// Numbers of names whose own number is taken by another file, by (parent, name).
    aliases: DashMap<(Ino, Box<[u8]>), Ino>,
    next: AtomicU64,
}

/// A map that has few entries. The default number of shards would be computed by reading a dozen
/// files in /sys.
fn few<K: Eq + std::hash::Hash, V>() -> DashMap<K, V> {
    DashMap::with_shard_amount(16)
}

impl InodeNumbers {
    /// Creates the numbers of a union. `devices` are the layers' file systems, in the order of the
    /// layers.
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

    /// Returns the number of a file.
    pub fn number(&self, stat: &Stat) -> Ino {
        self.number_of(stat.dev, stat.ino)
    }

    /// Returns the number of the file `ino` on `dev`.
    pub fn number_of(&self, dev: u64, ino: u64) -> Ino {
        if self.any_kept.load(Ordering::Acquire)
            && let Some(kept) = self.kept.get(&(dev, ino))
        {
            return *kept;
        }
        self.own_number(dev, ino)
    }

    /// Keeps the number of a lower file for its copy in the upper, which has no origin marker. If
    /// the copy is removed and its inode number is used again, the new file gets this number too;
    /// no other file has it then.
    pub fn keep(&self, stat: &Stat, number: Ino) {
        self.kept.insert((stat.dev, stat.ino), number);
        self.any_kept.store(true, Ordering::Release);
    }

    /// Returns the number that a file on `dev` has regardless of any origin.
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

    /// Returns a number that no file has had.
    pub fn fresh(&self) -> Ino {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Returns the number of a name whose own number is taken by another file: no two files share
    /// one.
    pub fn alias(&self, parent: Ino, name: &[u8]) -> Ino {
        *self
            .aliases
            .entry((parent, name.into()))
            .or_insert_with(|| self.fresh())
    }

    /// Returns the number of a name if `taken`, its own number or its alias, belongs to another
    /// file: for example to a removed file of that name that is not forgotten yet. Threads that ask
    /// for one name with the same `taken` get the same number.
    pub fn alias_beside(&self, taken: Ino, parent: Ino, name: &[u8]) -> Ino {
        let entry = self.aliases.entry((parent, name.into()));
        let mut alias = entry.or_insert_with(|| self.fresh());
        if *alias == taken {
            *alias = self.fresh();
        }
        *alias
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
        let first = inode_numbers.alias_beside(42, 1, b"a");
        assert_eq!(first, inode_numbers.alias(1, b"a"));
        let second = inode_numbers.alias_beside(first, 1, b"a");
        assert_ne!(first, second);
        assert_eq!(second, inode_numbers.alias_beside(first, 1, b"a"));
        assert_eq!(second, inode_numbers.alias(1, b"a"));
    }
}
