//! Locks of the upper and the work directory: no two mounts share either.
//!
//! A directory itself is locked by flock(2). But any user who may list a directory may lock it, so
//! a local user could prevent it from being mounted. If [`super::Options::locks`] names a directory
//! that belongs to this user, there is a second lock: a file `<device>-<inode>.lock` (hexadecimal)
//! in it, mode 0600, which no other user can open. While that lock is held, a foreign lock of a
//! directory counts only if it may be that of another mount:
//!
//! | the directory | a lock that another process holds |
//! |---|---|
//! | belongs to another user | counts: that user may have mounted it |
//! | is ours, and no other user may list it | counts: only another mount of this user can hold it |
//! | is ours, and other users may list it | is ignored with a warning |
//!
//! The holder of its lock removes a file ([`remove`]). A process that waited for the lock then
//! notices that the file has no name any more, and creates a new one.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::error::{Error, Result};
use crate::layer::at::At;
use crate::sys::sync::parking_lot::Mutex;

/// How long to wait for the server of a previous mount to finish.
const PATIENCE: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(10);

/// The permission bits that let other users list a directory.
const LISTED_BY_OTHERS: u32 = 0o044;

/// The locks that a mount holds in addition to those of the directories themselves. Dropping it
/// removes the files, unless [`LockFiles::leave`] was called.
#[derive(Debug, Default)]
pub(super) struct LockFiles {
    names: Vec<String>,
    /// The open lock files. Closing them releases the locks.
    held: Vec<OwnedFd>,
    place: Mutex<Option<Arc<OwnedFd>>>,
}

impl LockFiles {
    /// Returns the names of the files, and leaves their removal to the caller.
    pub(super) fn leave(&self) -> &[String] {
        *self.place.lock() = None;
        &self.names
    }
}

impl Drop for LockFiles {
    fn drop(&mut self) {
        let Some(place) = self.place.get_mut().take() else {
            return;
        };
        for name in &self.names {
            if let Err(error) = rustix::fs::unlinkat(&place, name, AtFlags::empty()) {
                tracing::warn!(name, %error, "cannot remove a lock file");
            }
        }
    }
}

/// Locks directories; their paths are for messages. This waits for a while, because the server of a
/// mount that was just removed may still be writing back, and callers mount again as soon as umount
/// returns.
///
/// # Errors
/// EBUSY for a directory in use by another mount; those of flock(2), and of openat(2) in `place`.
pub(super) fn lock(
    dirs: &[(BorrowedFd<'_>, &Path)],
    place: Option<&Arc<OwnedFd>>,
) -> Result<LockFiles> {
    let mut files = LockFiles::default();
    *files.place.get_mut() = place.cloned();
    for (dir, path) in dirs {
        let in_use = || Error::from(Errno::BUSY).context("in use by another mount:", path);
        let failed = |errno| Error::from(errno).context("cannot lock", path);
        let stat = At::fd(*dir).stat().map_err(failed)?;
        if let Some(place) = place {
            let name = format!("{:x}-{:x}.lock", stat.dev, stat.ino);
            let file = lock_file(place.as_fd(), &name).map_err(failed)?;
            files.held.push(file.ok_or_else(in_use)?);
            files.names.push(name);
        }
        let ours = stat.uid == rustix::process::geteuid().as_raw();
        let listed = stat.perm & LISTED_BY_OTHERS != 0;
        // A previous server of this user unlocks the directory before it unlocks the file.
        let counts = place.is_none() || !ours || !listed;
        let patience = if counts { PATIENCE } else { Duration::ZERO };
        if flock_within(patience, dir).map_err(failed)? {
            continue;
        }
        if counts {
            return Err(in_use());
        }
        let path = path.display();
        tracing::warn!(%path, "another user has locked this directory: ignored");
    }
    Ok(files)
}

/// Removes lock files that no process holds; those of mounts stay.
///
/// # Errors
/// Those of openat(2), flock(2) and unlinkat(2), but not ENOENT.
#[cfg(feature = "fuse")]
pub(crate) fn remove(place: impl AsFd, name: &str) -> Result<(), Errno> {
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = match rustix::fs::openat(&place, name, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(()),
        opened => opened?,
    };
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => Ok(()),
        // The previous holder has removed the file.
        Ok(()) if rustix::fs::fstat(&file)?.st_nlink == 0 => Ok(()),
        Ok(()) => rustix::fs::unlinkat(&place, name, AtFlags::empty()),
        Err(errno) => Err(errno),
    }
}

/// Returns the locked file of that name; `None` if another process holds the lock.
fn lock_file(place: BorrowedFd<'_>, name: &str) -> Result<Option<OwnedFd>, Errno> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    loop {
        let file = rustix::fs::openat(place, name, flags, Mode::RUSR | Mode::WUSR)?;
        if !flock_within(PATIENCE, &file)? {
            return Ok(None);
        }
        if rustix::fs::fstat(&file)?.st_nlink > 0 {
            return Ok(Some(file));
        }
    }
}

/// Returns whether the lock was obtained in time.
fn flock_within(patience: Duration, fd: impl AsFd) -> Result<bool, Errno> {
    let start = Instant::now();
    loop {
        match rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(true),
            Err(Errno::WOULDBLOCK) if start.elapsed() < patience => std::thread::sleep(PAUSE),
            Err(Errno::WOULDBLOCK) => return Ok(false),
            Err(errno) => return Err(errno),
        }
    }
}
