//! The identity of a mount: whether it still exists, and how to detach it.
//!
//! A path and a device number do not identify a mount: after a file system is gone, the kernel
//! gives its anonymous device number to the next one, and the next mount may be on the same
//! directory. So a mount is identified by the number of `STATX_MNT_ID_UNIQUE` (Linux 6.8), which no
//! other mount gets before the next boot. Older kernels only have the number in mountinfo, which is
//! used again once the mount is gone. Together with the device number it is reliable as long as
//! something keeps the mount or its connection alive ([`OwnMount::detach`] asks for that).
//!
//! mount(8) maps owners (`X-mount.idmap`) by putting a copy in the place of the mount. The copy has a
//! number of its own; while the connection is alive, its place and its device number identify it.
//!
//! No function here asks the server of the mount, so a hung server does not block it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::error::{Error, Result};
use super::mountinfo::{self, MountEntry};
use super::unmount;
use crate::sys::mounts::number_of;
use crate::sys::stat::{UNIQUE_MOUNT, is_missing};

/// The number of tries to find a mount if names change meanwhile.
const ATTEMPTS: usize = 8;

/// Whether the connection of a mount to its server is alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connectedness {
    /// It is.
    Connected,
    /// It was a moment ago.
    Likely,
    /// It has ended, or nobody knows.
    Ended,
}

/// The identity of a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountId {
    /// The unique number since the last boot; `None` before Linux 6.8.
    pub unique: Option<u64>,
    /// The number in mountinfo, which is used again once the mount is gone.
    pub number: u64,
    /// The device number of the file system, which is used again once the file system is gone.
    pub device: (u32, u32),
}

impl MountId {
    /// Returns the identity of the mount of a descriptor. While that is open, no number is used
    /// again.
    ///
    /// # Errors
    /// Those of reading /proc; an error if the mount is in no mount table of this process.
    pub fn of(dir: impl AsFd) -> io::Result<Self> {
        let dir = dir.as_fd();
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
        match rustix::fs::statx(dir, c"", flags, UNIQUE_MOUNT) {
            Ok(st) => {
                let granted = st.stx_mask & UNIQUE_MOUNT.bits() != 0;
                Ok(Self {
                    unique: granted.then_some(st.stx_mnt_id),
                    number: number(dir)?,
                    device: (st.stx_dev_major, st.stx_dev_minor),
                })
            }
            // It is a FUSE mount whose owner allows no other user; or the kernel has no statx(2),
            // and another call could ask the server.
            Err(error) if error == Errno::ACCESS || is_missing(error) => {
                let number = number(dir)?;
                let mounts = mountinfo::list()?;
                let entry = mounts.into_iter().find(|entry| entry.id == number);
                let entry = entry.ok_or(io::ErrorKind::NotFound)?;
                Ok(Self {
                    unique: None,
                    number,
                    device: entry.device,
                })
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Whether both are the same mount.
    pub fn is(&self, other: &Self) -> bool {
        match (self.unique, other.unique) {
            (Some(ours), Some(theirs)) => ours == theirs,
            _ => (self.number, self.device) == (other.number, other.device),
        }
    }

    /// Returns the line of this mount in the mount table, if it is in this mount namespace.
    pub fn entry<'a>(&self, mounts: &'a [MountEntry]) -> Option<&'a MountEntry> {
        let number = match self.unique.map(number_of) {
            Some(Ok(number)) => number,
            // It is gone, or in another mount namespace.
            Some(Err(Errno::NOENT)) => return None,
            _ => self.number,
        };
        mounts
            .iter()
            .find(|entry| entry.id == number && entry.device == self.device)
    }

    /// Returns the copy of this mount that is the topmost mount on `place`. The file system must be
    /// in use still, so that nobody else has its device number.
    pub fn copy_on<'a>(&self, mounts: &'a [MountEntry], place: &Path) -> Option<&'a MountEntry> {
        topmost_on(mounts, place).filter(|topmost| topmost.device == self.device)
    }
}

/// Returns the topmost mount on `place`, if it is one of ours.
pub(super) fn topmost_on<'a>(mounts: &'a [MountEntry], place: &Path) -> Option<&'a MountEntry> {
    let mut topmost = mounts.iter().rev();
    let topmost = topmost.find(|entry| entry.mountpoint == place)?;
    topmost.is_unionfs().then_some(topmost)
}

/// Returns the number in mountinfo of the mount of a descriptor. This works without access to the
/// mount.
fn number(dir: impl AsFd) -> io::Result<u64> {
    let file = format!("/proc/thread-self/fdinfo/{}", dir.as_fd().as_raw_fd());
    let text = std::fs::read_to_string(file)?;
    text.lines()
        .find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok())
        .ok_or_else(|| io::ErrorKind::Unsupported.into())
}

/// A mount that this process may detach.
#[derive(Clone, Debug)]
pub struct OwnMount {
    id: MountId,
    mountpoint: PathBuf,
}

impl OwnMount {
    /// Returns the mount with the open `root`. It was put on `mountpoint`.
    ///
    /// # Errors
    /// As [`MountId::of`].
    pub fn new(root: impl AsFd, mountpoint: &Path) -> io::Result<Self> {
        Ok(Self {
            id: MountId::of(root)?,
            mountpoint: mountpoint.to_owned(),
        })
    }

    /// Returns the mount of a caller, which this process never detaches. `name` is its name for
    /// messages.
    pub(super) fn of_caller(name: &Path) -> Self {
        Self::nowhere(name)
    }

    /// Returns a mount that does not exist.
    #[cfg(test)]
    pub(super) fn unmounted(mountpoint: &Path) -> Self {
        Self::nowhere(mountpoint)
    }

    /// Returns an identity that no mount has.
    fn nowhere(mountpoint: &Path) -> Self {
        let id = MountId {
            unique: Some(u64::MAX),
            number: u64::MAX,
            device: (0, 0),
        };
        Self {
            id,
            mountpoint: mountpoint.to_owned(),
        }
    }

    /// Returns its identity.
    pub fn id(&self) -> MountId {
        self.id
    }

    /// Returns its first mountpoint, absolute and without symlinks.
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// Whether it is in the mount table, wherever its directory was moved.
    pub fn is_there(&self) -> bool {
        mountinfo::list().is_ok_and(|mounts| self.id.entry(&mounts).is_some())
    }

    /// Detaches it, also while it is in use, and touches no other mount. A copy that was put in its
    /// place counts as this mount while the connection is alive. Returns `false` if it does
    /// not exist any more, or if the connection has ended and only a live one proves that the
    /// numbers are still ours (before Linux 6.8).
    ///
    /// # Errors
    /// [`Error::Unmount`] with the reason: another mount covers it, or detaching is not permitted.
    pub fn detach(&self, connection: Connectedness) -> Result<bool> {
        if self.id.unique.is_none() && connection == Connectedness::Ended {
            return Ok(false);
        }
        let failed = |text: String| Error::Unmount {
            path: self.mountpoint.clone(),
            text,
        };
        for _ in 0..ATTEMPTS {
            let mounts = mountinfo::list().map_err(|error| failed(error.to_string()))?;
            let entry = match connection {
                Connectedness::Connected => self
                    .id
                    .entry(&mounts)
                    .or_else(|| self.id.copy_on(&mounts, &self.mountpoint)),
                Connectedness::Likely | Connectedness::Ended => self.id.entry(&mounts),
            };
            let Some(entry) = entry else {
                return Ok(false);
            };
            // The name may lead anywhere by now. Only the mount that it finds is compared.
            if let Some(root) = self.open_at(entry, connection) {
                return unmount::detach_open(&root, &entry.mountpoint).map(|()| true);
            }
        }
        Err(failed("something else is mounted over it".into()))
    }

    /// Returns the root of this mount, or of a copy of it, if its path leads to it.
    fn open_at(&self, entry: &MountEntry, connection: Connectedness) -> Option<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(&entry.mountpoint, flags, Mode::empty()).ok()?;
        // While the descriptor is open, its number is that of no other mount.
        let found = MountId::of(&root).ok()?;
        let is_copy = (found.number, found.device) == (entry.id, self.id.device);
        let is_ours = self.id.is(&found) || connection == Connectedness::Connected && is_copy;
        is_ours.then_some(root)
    }
}

#[cfg(test)]
mod tests {
    use testkit::need::skip;

    use super::*;

    fn root() -> OwnedFd {
        rustix::fs::open("/proc", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap()
    }

    #[test]
    fn a_mount_is_itself_and_in_the_table() {
        let id = MountId::of(root()).unwrap();
        let mounts = mountinfo::list().unwrap();
        let entry = id.entry(&mounts).unwrap();
        assert_eq!(entry.mountpoint, Path::new("/proc"));
        assert!(id.is(&MountId::of(root()).unwrap()));
        let json = serde_json::to_string(&id).unwrap();
        assert_eq!(serde_json::from_str::<MountId>(&json).unwrap(), id);
    }

    /// Path, device and number may be equal. The unique number decides, if there is one.
    #[test]
    fn equal_numbers_are_not_the_same_mount() {
        let id = MountId::of(root()).unwrap();
        let Some(unique) = id.unique else {
            return skip(&"the kernel has no unique mount numbers");
        };
        let later = MountId {
            unique: Some(unique + (1 << 40)),
            ..id
        };
        assert!(!id.is(&later));
        assert_eq!(later.entry(&mountinfo::list().unwrap()), None);
        let own = OwnMount {
            id: later,
            mountpoint: "/proc".into(),
        };
        assert!(!own.is_there());
        assert!(!own.detach(Connectedness::Connected).unwrap());
    }

    /// This simulates a kernel without unique numbers.
    #[test]
    fn without_unique_numbers_a_live_connection_is_needed() {
        let id = MountId {
            unique: None,
            ..MountId::of(root()).unwrap()
        };
        assert!(id.entry(&mountinfo::list().unwrap()).is_some());
        let own = OwnMount {
            id,
            mountpoint: "/proc".into(),
        };
        assert!(own.is_there());
        assert!(!own.detach(Connectedness::Ended).unwrap());
        let other = MountId {
            device: (id.device.0, id.device.1 + 1),
            ..id
        };
        assert!(!id.is(&other));
        assert_eq!(other.entry(&mountinfo::list().unwrap()), None);
    }
}
