//! Blobs on their way from a registry: `unionfs/downloads/<hex of the digest>`, partial or
//! whole, kept from one `pull` to the next. Called by `registry` and by `garbage`.
//!
//! Each belongs to whoever holds its flock, not to the holder of the store's lock: blobs come
//! in while others change the store. What nobody holds, `prune` removes. Nothing in such a
//! file is believed before it is hashed.

use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::{Writable, files, flock};
use crate::store::error::{Error, Result};
use crate::store::single::Cache;
use crate::store::{Digest, chain};

/// Relative to the root.
pub(super) const DIR: &str = "unionfs/downloads";

/// A blob's file, held.
#[derive(Debug)]
pub(crate) struct Download {
    file: File,
    path: PathBuf,
}

impl Writable {
    /// Where downloads are; made if need be.
    pub(crate) fn downloads(&self) -> Result<PathBuf> {
        let dir = self.root().join(DIR);
        files::make_dir(&dir, 0o700)?;
        Ok(dir)
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

    /// Opens the file of a blob, making it if need be; waits for another process that
    /// downloads the same.
    pub(crate) fn download(&self, digest: &Digest) -> Result<Download> {
        let path = self.downloads()?.join(digest.hex());
        loop {
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = rustix::fs::open(&path, flags, Mode::from_raw_mode(0o600))
                .map_err(|errno| Error::io("open", &path, errno))?;
            let file = File::from(file);
            flock(&file, &path, FlockOperation::LockExclusive)?;
            // While waiting it may have been removed.
            if is_at(&file, &path)? {
                return Ok(Download { file, path });
            }
        }
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

    /// It is not needed any more.
    pub(crate) fn remove(self) -> Result<()> {
        files::remove_file(&self.path)
    }
}

fn is_at(file: &File, path: &Path) -> Result<bool> {
    let held = file.metadata().map_err(files::io("stat", path))?;
    match path.symlink_metadata() {
        Ok(there) => Ok((there.dev(), there.ino()) == (held.dev(), held.ino())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(files::io("stat", path)(error)),
    }
}

/// Whether nobody downloads into it, now; then `then` is done while it stays so.
pub(super) fn if_free(path: &Path, then: impl FnOnce() -> Result<()>) -> Result<bool> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(Errno::NOENT) => return Ok(false),
        // Nothing that a download has made.
        Err(Errno::LOOP | Errno::NXIO) => return then().map(|()| true),
        Err(errno) => return Err(Error::io("open", path, errno)),
    };
    match flock(&file, path, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) if is_at(&file, path)? => then().map(|()| true),
        Ok(()) => Ok(false),
        Err(error) if error.errno() == Some(Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error),
    }
}
