//! Registrations of files of lowers that were closed a short time ago. Programs open the same files
//! again and again, and a registration and its end are two ioctl(2).
//!
//! Invariant: a registration is used only for the file that it was made for. While it exists, the
//! kernel holds that file, so no other file of the same file system gets its inode number. All
//! attributes that tell files apart are compared, because some file systems (FUSE) use numbers
//! twice.
//!
//! Locks: one shard, never during a system call.

use std::num::NonZeroUsize;

use lru::LruCache;
use parking_lot::Mutex;
use rustix::fs::Stat;

use super::passthrough::Registered;
use crate::union::Ino;

/// The number of shards.
const SHARDS: usize = 16;
/// The number of registrations in a shard. Each takes about 300 bytes in the kernel.
const IN_A_SHARD: NonZeroUsize = NonZeroUsize::new(32).unwrap();

/// What tells the file of a lower from all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    place: (u64, u64),
    size: i64,
    modified: (i64, u64),
    changed: (i64, u64),
}

impl Identity {
    // The types of the fields differ between architectures.
    #[allow(clippy::unnecessary_cast)]
    fn of(stat: &Stat) -> Self {
        Self {
            place: (stat.st_dev as u64, stat.st_ino as u64),
            size: stat.st_size as i64,
            modified: (stat.st_mtime as i64, stat.st_mtime_nsec as u64),
            changed: (stat.st_ctime as i64, stat.st_ctime_nsec as u64),
        }
    }
}

/// A registered file of a lower.
#[derive(Debug)]
pub(super) struct OfLower {
    file: Identity,
    pub(super) registered: Registered,
}

/// The registrations of a mount that may be used again.
#[derive(Debug)]
pub(super) struct Kept([Mutex<LruCache<Ino, OfLower>>; SHARDS]);

impl Kept {
    pub(super) fn new() -> Self {
        Self(std::array::from_fn(|_| {
            Mutex::new(LruCache::sparse(IN_A_SHARD))
        }))
    }

    fn shard(&self, ino: Ino) -> &Mutex<LruCache<Ino, OfLower>> {
        &self.0[(ino % SHARDS as u64) as usize]
    }

    /// Returns the registration of `file`, whose attributes are `stat`: a kept one, or that of
    /// `register`.
    ///
    /// # Errors
    /// Those of `register`.
    pub(super) fn take<E>(
        &self,
        ino: Ino,
        stat: &Stat,
        register: impl FnOnce() -> Result<Registered, E>,
    ) -> Result<OfLower, E> {
        let file = Identity::of(stat);
        let kept = self.shard(ino).lock().pop(&ino);
        match kept {
            Some(kept) if kept.file == file => Ok(kept),
            _ => register().map(|registered| OfLower { file, registered }),
        }
    }

    /// Keeps a registration that is not used any more.
    pub(super) fn put(&self, ino: Ino, lower: OfLower) {
        let oldest = self.shard(ino).lock().push(ino, lower);
        // Its registration ends while no lock is held.
        drop(oldest);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    /// Takes the registration of a file, and returns whether a new one was made.
    fn took(kept: &Kept, ino: Ino, file: &std::fs::File) -> (bool, OfLower) {
        let mut made = false;
        let stat = rustix::fs::fstat(file).unwrap();
        let device = Arc::new(std::fs::File::open("/dev/null").unwrap().into());
        let lower = kept.take(ino, &stat, || {
            made = true;
            Ok::<_, std::convert::Infallible>(Registered::unchecked(&device, 1))
        });
        (made, lower.unwrap())
    }

    #[test]
    fn a_registration_is_used_again_for_its_file_only() {
        let kept = Kept::new();
        let (file, other) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let (made, lower) = took(&kept, 7, &file);
        assert!(made, "there was none");
        kept.put(7, lower);
        let (made, lower) = took(&kept, 7, &file);
        assert!(!made);
        let (made, second) = took(&kept, 7, &file);
        assert!(made, "the other one is in use");
        kept.put(7, second);
        kept.put(7, lower);
        let (made, lower) = took(&kept, 7, &other);
        assert!(made, "another file has the number");
        kept.put(7, lower);
        other.set_len(1).unwrap();
        assert!(took(&kept, 7, &other).0, "the file has changed");
    }

    #[test]
    fn the_least_recently_closed_go_first() {
        let kept = Kept::new();
        let file = tempfile::tempfile().unwrap();
        let in_one_shard: Vec<Ino> = (0..=IN_A_SHARD.get() as u64)
            .map(|n| n * SHARDS as u64)
            .collect();
        for &ino in &in_one_shard {
            let (_, lower) = took(&kept, ino, &file);
            kept.put(ino, lower);
        }
        assert!(took(&kept, in_one_shard[0], &file).0);
        assert!(!took(&kept, in_one_shard[1], &file).0);
    }
}
