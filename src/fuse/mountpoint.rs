//! A directory that a path names, opened once: the checked directory is the one that is mounted on
//! or unmounted, even if names on the way change.
//!
//! Names are followed as in [`crate::sys::walk`], except those that another user controls.
//!
//! Opening a mountpoint does not ask its own server, so that of a hung server can be opened. A
//! mount on the way must answer first.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, StatxFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::error::{Error, Result};
use super::own_mount::MountId;
use super::{mountinfo, unmount};
use crate::sys::walk::{self, Trust, is_mount_root, look};

/// A directory to mount on, or the root of a mount there.
#[derive(Debug)]
pub struct Mountpoint {
    dir: OwnedFd,
    path: PathBuf,
}

/// The identity of a directory as long as it exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectoryId {
    mount: MountId,
    inode: u64,
}

impl Mountpoint {
    /// Opens the directory that `path` leads to.
    ///
    /// # Errors
    /// [`Error::Mountpoint`] if it does not exist, is not a directory, or if another user decides
    /// where the path leads; [`Error::Silent`] if a mount on the way does not answer.
    pub fn open(path: &Path) -> Result<Self> {
        let failed = |source: io::Error| Error::Mountpoint {
            path: path.to_owned(),
            source,
        };
        let trust = Trust::in_first_user_namespace();
        let dir = walk::open(path, trust, ask).map_err(|stop| match stop {
            Stop::Failed(source) => failed(source),
            Stop::Silent(path) => Error::Silent { path },
        })?;
        if walk::kind(&dir) != Some(FileType::Directory) {
            return Err(failed(Errno::NOTDIR.into()));
        }
        let link = format!("/proc/thread-self/fd/{}", dir.as_raw_fd());
        let path = std::fs::read_link(link).map_err(failed)?;
        if !path.is_absolute() {
            return Err(failed(Errno::NOENT.into()));
        }
        Ok(Self { dir, path })
    }

    /// Returns its path, absolute and without symlinks, for messages and records. The path may lead
    /// to another directory now.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns its identity.
    ///
    /// # Errors
    /// [`Error::Mountpoint`] if the kernel does not report it.
    pub fn id(&self) -> Result<DirectoryId> {
        let inode = || -> io::Result<DirectoryId> {
            Ok(DirectoryId {
                mount: MountId::of(&self.dir)?,
                inode: look(self.dir.as_fd(), StatxFlags::INO)?.stx_ino,
            })
        };
        inode().map_err(|source| Error::Mountpoint {
            path: self.path.clone(),
            source,
        })
    }

    /// Whether a mount begins here. `false` is reliable; `true` is not.
    pub fn may_be_mount(&self) -> bool {
        // EACCES comes from a FUSE mount that only its owner may access.
        look(self.dir.as_fd(), StatxFlags::TYPE).map_or(true, |st| is_mount_root(&st))
    }

    /// Returns the mount that begins here, or `self` if none does.
    ///
    /// # Errors
    /// [`Error::Mountpoint`] when the mount table cannot be read.
    pub fn mount(self) -> Result<std::result::Result<unmount::Mount, Self>> {
        if !self.may_be_mount() {
            return Ok(Err(self));
        }
        let found = MountId::of(&self.dir).and_then(|id| Ok((id, mountinfo::list()?)));
        let (id, mounts) = found.map_err(|source| Error::Mountpoint {
            path: self.path.clone(),
            source,
        })?;
        Ok(match id.entry(&mounts) {
            Some(entry) => Ok(unmount::Mount::new(self, id, entry.clone())),
            None => Err(self),
        })
    }

    /// Returns a path that leads to exactly this directory as long as it is open.
    pub(super) fn proc_path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/thread-self/fd/{}", self.dir.as_raw_fd()))
    }
}

impl AsFd for Mountpoint {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

/// The reason why a walk stops.
enum Stop {
    Failed(io::Error),
    /// The mount on this path does not answer.
    Silent(PathBuf),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Failed(error)
    }
}

/// Checks a mount on the way: it must answer. Returns whether the owners that it shows may be
/// invented; unionfs shows those of its layers' files.
fn ask(root: &OwnedFd) -> std::result::Result<bool, Stop> {
    let id = MountId::of(root)?;
    let mounts = mountinfo::list()?;
    let Some(entry) = id.entry(&mounts).filter(|entry| entry.is_fuse()) else {
        return Ok(false);
    };
    if unmount::is_silent(root)? {
        return Err(Stop::Silent(entry.mountpoint.clone()));
    }
    Ok(!entry.is_unionfs())
}

#[cfg(test)]
mod tests;
