//! Blobs that are downloaded from a registry: `unionfs/downloads/<hex of the digest>`, partial or
//! complete, kept from one `pull` to the next.
//!
//! The holder of its flock owns such a file, not the holder of the store's lock: blobs are
//! downloaded while other processes change the store. `prune` removes files that nobody has locked.
//! The content of such a file is not trusted before it is hashed.
//!
//! The flock is exclusive while a blob is downloaded, and shared from its last byte until the image
//! is in the store. A process with an exclusive flock waits for no other lock, and a waiting
//! process has at most shared flocks: so pulls of overlapping images share their downloads and
//! cannot deadlock, in any order of their blobs.

use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FlockOperation, OFlags, Stat};
use rustix::io::Errno;

use super::{Writable, flock};
use crate::layer::OpenDir;
use crate::oci::{Digest, chain_id};
use crate::store::confined_dir::ConfinedDir;
use crate::store::error::Result;
use crate::store::image_store::Cache;

/// The directory, relative to the root.
pub(super) const DIR: &str = "unionfs/downloads";

/// The file of a blob that is downloaded from a registry, locked by this process.
#[derive(Debug)]
pub struct Download {
    file: File,
    root: Arc<ConfinedDir>,
    /// The path relative to the root.
    relative: PathBuf,
    path: PathBuf,
    /// Whether the flock is exclusive.
    writing: bool,
}

impl Writable {
    /// Opens the directory of the downloads, and makes it if necessary.
    ///
    /// # Errors
    /// [`crate::store::Error::Io`], and [`crate::store::Error::NotSafe`] for a directory of another user.
    pub fn downloads(&self) -> Result<OpenDir> {
        let root = self.confined_root();
        root.make_dir(DIR, 0o700)?;
        root.require_ours(DIR)?;
        root.layer_dir(DIR)
    }

    /// Counts how many of these layers, base first, the store has. Without the lock the number may
    /// change.
    pub fn present(&self, diff_ids: &[Digest]) -> usize {
        let mut known = Cache::new();
        // The first missing layer ends the loop.
        let _ = self.store.layers(diff_ids, &mut known);
        let chain = chain_id::chain_ids(diff_ids);
        let there = chain.iter().take_while(|id| known.contains_key(id));
        there.count()
    }

    /// Opens the file of a blob, and makes it if necessary. The lock is exclusive if possible,
    /// otherwise shared; `Ok(None)` while another process has an exclusive lock.
    ///
    /// # Errors
    /// As [`Writable::downloads`].
    pub fn download(&self, digest: &Digest) -> Result<Option<Download>> {
        self.downloads()?;
        let relative = relative(digest);
        let root = self.confined_root();
        let path = root.full(&relative);
        loop {
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NONBLOCK;
            let file = root.open_file(&relative, flags, 0o600)?;
            let writing = try_flock(&file, &path, FlockOperation::NonBlockingLockExclusive)?;
            if !writing && !try_flock(&file, &path, FlockOperation::NonBlockingLockShared)? {
                return Ok(None);
            }
            if writing && file.metadata().is_ok_and(|stat| stat.nlink() > 1) {
                // A process that was killed has left a second name of a blob that is kept: nothing may
                // be written to it.
                root.remove_file(&relative)?;
                continue;
            }
            // The file may have been removed meanwhile.
            if is_at(&file, root, &relative)? {
                return Ok(Some(Download {
                    file,
                    root: Arc::clone(root),
                    relative,
                    path,
                    writing,
                }));
            }
        }
    }

    /// Returns the bytes of downloads that a later `pull` could continue.
    pub fn downloaded(&self) -> u64 {
        let root = self.confined_root();
        let names = root.list(DIR).unwrap_or_default();
        let looks = names
            .iter()
            .map(|name| root.look(Path::new(DIR).join(name)));
        looks.flatten().flatten().map(|stat| size(&stat)).sum()
    }

    /// Returns how many bytes of a blob have been downloaded; they are not hashed yet.
    pub fn downloaded_of(&self, digest: &Digest) -> u64 {
        let found = self.confined_root().look(relative(digest)).ok().flatten();
        found.map_or(0, |stat| size(&stat))
    }

    /// Returns the process that downloads a blob, if /proc/locks shows it; for messages only.
    pub fn downloader(&self, digest: &Digest) -> Option<u32> {
        let stat = self.confined_root().look(relative(digest)).ok()??;
        let (major, minor) = (
            rustix::fs::major(stat.st_dev),
            rustix::fs::minor(stat.st_dev),
        );
        let file = format!("{major:02x}:{minor:02x}:{}", stat.st_ino);
        let locks = std::fs::read_to_string("/proc/locks").ok()?;
        let line = locks.lines().find(|line| {
            let mut words = line.split_whitespace();
            words.any(|word| word == "FLOCK") && words.any(|word| word == file)
        })?;
        let process = line.split_whitespace().nth(4)?.parse().ok()?;
        Some(process).filter(|process| *process > 0)
    }
}

impl Download {
    /// Returns the file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Returns the path of the file, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns its path relative to the store's root.
    pub(super) fn relative(&self) -> &Path {
        &self.relative
    }

    /// Whether the file may be written to. If not, another process also has it, complete or given
    /// up.
    pub fn is_writing(&self) -> bool {
        self.writing
    }

    /// Lets other processes use the file, which must be complete.
    ///
    /// # Errors
    /// [`crate::store::Error::Io`] of flock(2).
    pub fn share(&mut self) -> Result<()> {
        // In between another process may lock it for writing, and finds it complete.
        flock(&self.file, &self.path, FlockOperation::LockShared)?;
        self.writing = false;
        Ok(())
    }

    /// Removes the file, unless another process uses it. That process then removes it.
    ///
    /// # Errors
    /// [`crate::store::Error::Io`] of flock(2) and unlink(2).
    pub fn remove(self) -> Result<()> {
        let alone = FlockOperation::NonBlockingLockExclusive;
        let (root, relative) = (&self.root, &self.relative);
        if try_flock(&self.file, &self.path, alone)? && is_at(&self.file, root, relative)? {
            root.remove_file(relative)
        } else {
            Ok(())
        }
    }
}

/// Takes a lock without waiting; returns whether that was possible.
fn try_flock(file: &File, path: &Path, operation: FlockOperation) -> Result<bool> {
    match flock(file, path, operation) {
        Ok(()) => Ok(true),
        Err(error) if error.errno() == Some(Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error),
    }
}

pub(super) fn is_at(file: &File, root: &ConfinedDir, relative: &Path) -> Result<bool> {
    let held = file
        .metadata()
        .map_err(|e| root.failed("stat", relative, &e))?;
    let there = root.look(relative)?;
    Ok(there.is_some_and(|there| (there.st_dev, there.st_ino) == (held.dev(), held.ino())))
}

/// Returns the path of a blob's file, relative to the root.
fn relative(digest: &Digest) -> PathBuf {
    Path::new(DIR).join(digest.hex())
}

fn size(stat: &Stat) -> u64 {
    u64::try_from(stat.st_size).unwrap_or(0)
}

/// Calls `then` under the lock of a file if no process downloads into it; returns whether it did.
pub(super) fn if_free(
    root: &ConfinedDir,
    relative: &Path,
    then: impl FnOnce() -> Result<()>,
) -> Result<bool> {
    let file = match root.open_file(relative, OFlags::RDONLY | OFlags::NONBLOCK, 0) {
        Ok(file) => file,
        Err(error) => match error.errno() {
            Some(Errno::NOENT) => return Ok(false),
            // The file was not made by a download.
            Some(Errno::LOOP | Errno::NXIO) => return then().map(|()| true),
            _ => return Err(error),
        },
    };
    let alone = FlockOperation::NonBlockingLockExclusive;
    let path = root.full(relative);
    if try_flock(&file, &path, alone)? && is_at(&file, root, relative)? {
        then().map(|()| true)
    } else {
        Ok(false)
    }
}
