//! Blobs on their way from a registry: `unionfs/downloads/<hex of the digest>`, partial or
//! whole, kept from one `pull` to the next. Called by `registry` and by `garbage`.
//!
//! Each belongs to whoever holds its flock, not to the holder of the store's lock: blobs come
//! in while others change the store. What nobody holds, `prune` removes. Nothing in such a
//! file is believed before it is hashed.
//!
//! The flock is exclusive while a blob comes in, and shared from its last byte until the image is
//! taken in. Whoever has it exclusively waits for no other lock, and whoever waits has it shared at
//! most: so pulls of overlapping images share their downloads and cannot wait for each other in a
//! circle, in whatever order they meet them.

use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FlockOperation, OFlags, Stat};
use rustix::io::Errno;

use super::{Writable, flock};
use crate::layer::OpenDir;
use crate::store::beneath::Beneath;
use crate::store::error::Result;
use crate::store::single::Cache;
use crate::store::{Digest, chain};

/// Relative to the root.
pub(super) const DIR: &str = "unionfs/downloads";

/// A blob's file, held.
#[derive(Debug)]
pub(crate) struct Download {
    file: File,
    root: Arc<Beneath>,
    /// Relative to the root.
    relative: PathBuf,
    path: PathBuf,
    /// Nobody else has it.
    writing: bool,
}

impl Writable {
    /// Where downloads are; made if need be.
    pub(crate) fn downloads(&self) -> Result<OpenDir> {
        let root = self.beneath();
        root.make_dir(DIR, 0o700)?;
        root.require_ours(DIR)?;
        root.layer_dir(DIR)
    }

    /// How many of these layers, base first, are there. Without the lock it is a guess.
    pub(crate) fn present(&self, diff_ids: &[Digest]) -> usize {
        let mut known = Cache::new();
        // The first that is missing ends it.
        let _ = self.store.layers(diff_ids, &mut known);
        let chain = chain::chain_ids(diff_ids);
        let there = chain.iter().take_while(|id| known.contains_key(id));
        there.count()
    }

    /// Opens the file of a blob, making it if need be. It is held for writing; where another
    /// process has it, shared as soon as that is possible, and `Ok(None)` until then.
    pub(crate) fn download(&self, digest: &Digest) -> Result<Option<Download>> {
        self.downloads()?;
        let relative = relative(digest);
        let root = self.beneath();
        let path = root.full(&relative);
        loop {
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NONBLOCK;
            let file = root.open_file(&relative, flags, 0o600)?;
            let writing = try_flock(&file, &path, FlockOperation::NonBlockingLockExclusive)?;
            if !writing && !try_flock(&file, &path, FlockOperation::NonBlockingLockShared)? {
                return Ok(None);
            }
            // Meanwhile it may have been removed.
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

    /// Bytes that downloads have which a later `pull` could go on with.
    pub fn downloaded(&self) -> u64 {
        let root = self.beneath();
        let names = root.list(DIR).unwrap_or_default();
        let looks = names
            .iter()
            .map(|name| root.look(Path::new(DIR).join(name)));
        looks.flatten().flatten().map(|stat| size(&stat)).sum()
    }

    /// Of a blob, how many bytes are there; not yet hashed.
    pub(crate) fn downloaded_of(&self, digest: &Digest) -> u64 {
        let found = self.beneath().look(relative(digest)).ok().flatten();
        found.map_or(0, |stat| size(&stat))
    }

    /// Which process downloads a blob, where /proc/locks tells; for messages only.
    pub(crate) fn downloader(&self, digest: &Digest) -> Option<u32> {
        let stat = self.beneath().look(relative(digest)).ok()??;
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
    /// Its content.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Where it is, for messages.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it may be written to; else another process has it too, complete or given up.
    pub(crate) fn is_writing(&self) -> bool {
        self.writing
    }

    /// It is complete: others may have it too.
    pub(crate) fn share(&mut self) -> Result<()> {
        // In between somebody else may have it for writing, who finds it complete.
        flock(&self.file, &self.path, FlockOperation::LockShared)?;
        self.writing = false;
        Ok(())
    }

    /// It is not needed any more; who else has it removes it then.
    pub(crate) fn remove(self) -> Result<()> {
        let alone = FlockOperation::NonBlockingLockExclusive;
        let (root, relative) = (&self.root, &self.relative);
        match try_flock(&self.file, &self.path, alone)? && is_at(&self.file, root, relative)? {
            true => root.remove_file(relative),
            false => Ok(()),
        }
    }
}

/// Whether the lock could be had at once.
fn try_flock(file: &File, path: &Path, operation: FlockOperation) -> Result<bool> {
    match flock(file, path, operation) {
        Ok(()) => Ok(true),
        Err(error) if error.errno() == Some(Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error),
    }
}

pub(super) fn is_at(file: &File, root: &Beneath, relative: &Path) -> Result<bool> {
    let held = file
        .metadata()
        .map_err(|e| root.failed("stat", relative, &e))?;
    let there = root.look(relative)?;
    Ok(there.is_some_and(|there| (there.st_dev, there.st_ino) == (held.dev(), held.ino())))
}

/// Where a blob's file is, relative to the root.
fn relative(digest: &Digest) -> PathBuf {
    Path::new(DIR).join(digest.hex())
}

fn size(stat: &Stat) -> u64 {
    u64::try_from(stat.st_size).unwrap_or(0)
}

/// Whether nobody downloads into it, now; then `then` is done while it stays so.
pub(super) fn if_free(
    root: &Beneath,
    relative: &Path,
    then: impl FnOnce() -> Result<()>,
) -> Result<bool> {
    let file = match root.open_file(relative, OFlags::RDONLY | OFlags::NONBLOCK, 0) {
        Ok(file) => file,
        Err(error) => match error.errno() {
            Some(Errno::NOENT) => return Ok(false),
            // Nothing that a download has made.
            Some(Errno::LOOP | Errno::NXIO) => return then().map(|()| true),
            _ => return Err(error),
        },
    };
    let alone = FlockOperation::NonBlockingLockExclusive;
    let path = root.full(relative);
    match try_flock(&file, &path, alone)? && is_at(&file, root, relative)? {
        true => then().map(|()| true),
        false => Ok(false),
    }
}
