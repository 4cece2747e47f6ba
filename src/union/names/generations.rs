//! Generations of inode numbers: they tell a file from a later one that the upper's file system
//! gave the same number. They are part of file handles (name_to_handle_at(2)), so they are computed
//! from the file itself and stay the same after the inode was forgotten and after a remount.
//!
//! Numbers of lower files are never reused: their generation is 0. The generation of an upper file
//! is a hash of its birth time. File system clocks tick in milliseconds, so files created with the
//! same number within one tick are told apart by a count, which is kept in memory.

use std::collections::HashMap;

use super::super::types::{Ino, Time};
use crate::sys::sync::atomic::{AtomicBool, Ordering};
use crate::sys::sync::dashmap::DashMap;
use crate::sys::sync::parking_lot::Mutex;

/// The number of shards; threads that create files in different shards do not contend.
const SHARDS: usize = 16;

/// The number of files created in the current tick, by inode number.
type Tick = (Time, HashMap<Ino, u32>);

/// Generations of the upper's inode numbers.
#[derive(Default)]
pub(crate) struct Generations {
    ticks: [Mutex<Tick>; SHARDS],
    /// The number of times each number had been used before in its tick.
    repeated: DashMap<Ino, u32>,
    any_repeated: AtomicBool,
}

impl Generations {
    /// Notes that a file has been created in the upper.
    pub fn created(&self, ino: Ino, birth: Option<Time>) {
        let Some(birth) = birth else { return };
        let mut tick = self.ticks[ino as usize % SHARDS].lock();
        if tick.0 != birth {
            *tick = (birth, HashMap::new());
        }
        let before = tick.1.entry(ino).or_insert(0);
        if *before > 0 {
            self.repeated.insert(ino, *before);
            self.any_repeated.store(true, Ordering::Release);
        } else if self.any_repeated.load(Ordering::Acquire) {
            self.repeated.remove(&ino);
        }
        *before += 1;
    }

    /// Returns the generation of an upper file; 0 if its birth time is not known.
    pub fn of(&self, ino: Ino, birth: Option<Time>) -> u32 {
        let Some(birth) = birth else { return 0 };
        let count = if self.any_repeated.load(Ordering::Acquire) {
            self.repeated.get(&ino).map_or(0, |count| *count)
        } else {
            0
        };
        let nanos = birth.sec.cast_unsigned().wrapping_mul(1_000_000_000);
        let mixed = nanos
            .wrapping_add(u64::from(birth.nsec))
            .wrapping_mul(0x9e37_79b9_7f4a_7c15);
        ((mixed >> 32) as u32).wrapping_add(count).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(nsec: u32) -> Option<Time> {
        Some(Time { sec: 5, nsec })
    }

    #[test]
    fn a_number_used_again_has_another_generation() {
        let generations = Generations::default();
        let mut seen = std::collections::HashSet::new();
        for birth in [1, 1, 1, 2, 2, 900_000_000] {
            generations.created(7, at(birth));
            assert!(seen.insert(generations.of(7, at(birth))), "{birth}");
            // Files created in between do not matter: the generation stays the same.
            generations.created(7 + SHARDS as Ino, at(birth));
            assert!(!seen.insert(generations.of(7, at(birth))), "{birth}");
        }
    }

    #[test]
    fn an_old_file_needs_no_memory() {
        let (one, other) = (Generations::default(), Generations::default());
        one.created(7, at(3));
        assert_eq!(one.of(7, at(3)), other.of(7, at(3)));
        assert_ne!(one.of(7, at(3)), 0);
        assert_eq!(one.of(7, None), 0);
        assert!(one.repeated.is_empty());
    }
}
