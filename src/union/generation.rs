//! Generations of inode numbers: what tells a file from a later one to which the upper's file
//! system gave the same number. They are part of file handles (name_to_handle_at(2)), so they
//! are made from the file itself and are the same after it was forgotten, and after a remount.
//!
//! A number from a lower is never used again: generation 0. One from the upper has the time of
//! birth, hashed; and as clocks tick in milliseconds, the file made over a number twice in one
//! tick is told apart by a count, which is remembered. Called by `lookup` and `create`.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};

use dashmap::DashMap;
use parking_lot::Mutex;

use super::types::{Ino, Time};

/// Creations are counted in this many parts, so that they do not wait for each other.
const SHARDS: usize = 16;

/// Files made in the current tick, by number: how many.
type Tick = (Time, HashMap<Ino, u32>);

/// Tells reuses of a number apart.
#[derive(Default)]
pub(crate) struct Generations {
    ticks: [Mutex<Tick>; SHARDS],
    /// Counts of the numbers that were used before in their tick.
    repeated: DashMap<Ino, u32>,
    any_repeated: AtomicBool,
}

impl Generations {
    /// A file has been made in the upper.
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

    /// The generation of an upper file's number; 0 where its birth is not known.
    pub fn of(&self, ino: Ino, birth: Option<Time>) -> u32 {
        let Some(birth) = birth else { return 0 };
        let count = match self.any_repeated.load(Ordering::Acquire) {
            true => self.repeated.get(&ino).map_or(0, |count| *count),
            false => 0,
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
            // Others between do no harm, and it stays the same.
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
