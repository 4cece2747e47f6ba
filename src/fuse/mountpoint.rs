//! A directory named by a path, opened once: what is checked is what is then mounted on, or
//! unmounted, whatever becomes of the names on the way.
//!
//! Names are followed as the kernel follows them, but for those that another user decides on.
//! Where a directory on the way belongs to somebody else, or others may write to it, no symlink
//! and no `..` is followed from there on: its owner could lead us anywhere. In a directory such as
//! /tmp (sticky) symlinks of root and of ourselves are. In a user namespace, where we are nobody
//! outside of it, all names are followed.
//!
//! No server is asked about its own mountpoint, so a hung one can be opened. One that lies on the
//! way to another is asked whether it answers first.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Statx, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::error::{Error, Result};
use super::own_mount::MountId;
use super::{mountinfo, unmount};

/// As the kernel has it (MAXSYMLINKS).
const MAX_LINKS: usize = 40;

/// A directory to mount on, or what is mounted there.
#[derive(Debug)]
pub struct Mountpoint {
    dir: OwnedFd,
    path: PathBuf,
}

/// What tells a directory from others as long as it exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectoryId {
    mount: MountId,
    inode: u64,
}

impl Mountpoint {
    /// Opens what `path` leads to.
    ///
    /// # Errors
    /// [`Error::Mountpoint`] when it does not exist, is no directory, or another user decides
    /// where the path leads; [`Error::Silent`] when a mount on the way does not answer.
    pub fn open(path: &Path) -> Result<Self> {
        let failed = |source: io::Error| Error::Mountpoint {
            path: path.to_owned(),
            source,
        };
        let mut walk = Walk::new(path).map_err(failed)?;
        while let Some(name) = walk.todo.pop_front() {
            walk.step(&name).map_err(|stop| match stop {
                Stop::Failed(source) => failed(source),
                Stop::Silent(path) => Error::Silent { path },
            })?;
        }
        if walk.kind() != Some(FileType::Directory) {
            return Err(failed(Errno::NOTDIR.into()));
        }
        let link = format!("/proc/thread-self/fd/{}", walk.dir.as_raw_fd());
        let path = std::fs::read_link(link).map_err(failed)?;
        if !path.is_absolute() {
            return Err(failed(Errno::NOENT.into()));
        }
        Ok(Self {
            dir: walk.dir,
            path,
        })
    }

    /// Its path: absolute, without symlinks. For messages and records, as it may lead somewhere
    /// else by now.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What tells it from others.
    ///
    /// # Errors
    /// [`Error::Mountpoint`] when the kernel does not say.
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

    /// Whether a mount begins here; `false` is sure.
    pub fn may_be_mount(&self) -> bool {
        // EACCES comes from a FUSE mount that lets only its owner in.
        look(self.dir.as_fd(), StatxFlags::TYPE).map_or(true, |st| is_mount_root(&st))
    }

    /// The mount that begins here, if one does.
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

    /// A path that leads to this very directory as long as it is open.
    pub(super) fn proc_path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/thread-self/fd/{}", self.dir.as_raw_fd()))
    }
}

impl AsFd for Mountpoint {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

/// Why a walk does not get on.
enum Stop {
    Failed(io::Error),
    /// The mount on this path does not answer.
    Silent(PathBuf),
}

impl<E: Into<io::Error>> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// On the way to a directory, one name at a time.
struct Walk {
    dir: OwnedFd,
    todo: VecDeque<OsString>,
    links: usize,
    /// Another user decides on names from here on.
    foreign: bool,
    /// Ours and root's; `None`: everybody.
    trusted: Option<[u32; 2]>,
}

impl Walk {
    fn new(path: &Path) -> io::Result<Self> {
        let from = match path.is_absolute() {
            true => "/",
            false if path.as_os_str().is_empty() => return Err(Errno::NOENT.into()),
            false => ".",
        };
        let mut walk = Self {
            dir: rustix::fs::open(from, DIRECTORY, Mode::empty())?,
            todo: names(path).collect(),
            links: 0,
            foreign: false,
            trusted: in_first_user_namespace().then(|| [0, rustix::process::geteuid().as_raw()]),
        };
        walk.enter(look(walk.dir.as_fd(), OWNER)?);
        Ok(walk)
    }

    fn kind(&self) -> Option<FileType> {
        match look(self.dir.as_fd(), StatxFlags::TYPE) {
            Ok(st) => Some(FileType::from_raw_mode(st.stx_mode.into())),
            // The root of somebody's FUSE mount.
            Err(Errno::ACCESS) => Some(FileType::Directory),
            Err(_) => None,
        }
    }

    fn step(&mut self, name: &OsStr) -> std::result::Result<(), Stop> {
        if name == ".." && self.foreign {
            return Err(foreign("..").into());
        }
        let last = self.todo.is_empty();
        // With O_DIRECTORY first: it has file systems mounted that wait for it (autofs).
        let next = match rustix::fs::openat(&self.dir, name, DIRECTORY, Mode::empty()) {
            Err(Errno::NOTDIR | Errno::LOOP) => {
                rustix::fs::openat(&self.dir, name, ANYTHING, Mode::empty())?
            }
            other => other?,
        };
        let st = match look(next.as_fd(), OWNER) {
            Err(Errno::ACCESS) if last => {
                self.dir = next;
                return Ok(());
            }
            other => other?,
        };
        match FileType::from_raw_mode(st.stx_mode.into()) {
            FileType::Symlink => self.follow(&next, st.stx_uid, name)?,
            FileType::Directory => {
                if !last && is_mount_root(&st) && st.stx_dev_major == 0 {
                    self.ask(&next)?;
                }
                self.dir = next;
                self.enter(st);
            }
            _ if last => self.dir = next,
            _ => return Err(Errno::NOTDIR.into()),
        }
        Ok(())
    }

    /// Who decides on the names in the directory that was entered.
    fn enter(&mut self, st: Statx) {
        let Some(trusted) = self.trusted else {
            return;
        };
        self.foreign |= !trusted.contains(&st.stx_uid) || (open_to_others(&st) && !is_sticky(&st));
    }

    fn follow(
        &mut self,
        link: &OwnedFd,
        owner: u32,
        name: &OsStr,
    ) -> std::result::Result<(), Stop> {
        let trusted = self.trusted.is_none_or(|trusted| trusted.contains(&owner));
        let shared = || look(self.dir.as_fd(), OWNER).is_ok_and(|st| open_to_others(&st));
        if self.foreign || (!trusted && shared()) {
            return Err(foreign(&name.to_string_lossy()).into());
        }
        self.links += 1;
        if self.links > MAX_LINKS {
            return Err(Errno::LOOP.into());
        }
        let target = rustix::fs::readlinkat(link, c"", Vec::new())?;
        let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
        if target.is_absolute() {
            self.dir = rustix::fs::open("/", DIRECTORY, Mode::empty())?;
        }
        for name in names(&target).rev() {
            self.todo.push_front(name);
        }
        Ok(())
    }

    /// Of a mount on the way: whether it answers, and whom it belongs to.
    fn ask(&mut self, root: &OwnedFd) -> std::result::Result<(), Stop> {
        let id = MountId::of(root)?;
        let mounts = mountinfo::list()?;
        let Some(entry) = id.entry(&mounts).filter(|entry| entry.is_fuse()) else {
            return Ok(());
        };
        if unmount::is_silent(root)? {
            return Err(Stop::Silent(entry.mountpoint.clone()));
        }
        // Its server says what owners it likes.
        self.foreign |= self.trusted.is_some() && !entry.is_unionfs();
        Ok(())
    }
}

/// Names of a path in order. A dot leads nowhere.
fn names(path: &Path) -> impl DoubleEndedIterator<Item = OsString> + '_ {
    path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    })
}

const ANYTHING: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const DIRECTORY: OFlags = ANYTHING.union(OFlags::DIRECTORY);
const OWNER: StatxFlags = StatxFlags::TYPE
    .union(StatxFlags::MODE)
    .union(StatxFlags::UID);

fn look(file: BorrowedFd<'_>, mask: StatxFlags) -> rustix::io::Result<Statx> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    rustix::fs::statx(file, c"", flags, mask)
}

/// Before Linux 5.8 the kernel does not say.
fn is_mount_root(st: &Statx) -> bool {
    !st.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT)
        || st.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)
}

fn open_to_others(st: &Statx) -> bool {
    st.stx_mode & 0o022 != 0
}

fn is_sticky(st: &Statx) -> bool {
    st.stx_mode & 0o1000 != 0
}

fn foreign(name: &str) -> io::Error {
    let text = format!(
        "{name:?} on the way is in a directory that another user may change, and could lead \
         anywhere: give the path without symlinks and .."
    );
    io::Error::new(io::ErrorKind::PermissionDenied, text)
}

/// Elsewhere our rights end where those of the namespace's owner do.
fn in_first_user_namespace() -> bool {
    std::fs::read("/proc/self/uid_map").is_ok_and(|map| {
        let mut numbers = map
            .split(|b| b.is_ascii_whitespace())
            .filter(|n| !n.is_empty());
        [&b"0"[..], b"0", b"4294967295"]
            .into_iter()
            .all(|wanted| numbers.next() == Some(wanted))
    })
}

#[cfg(test)]
#[path = "mountpoint_tests.rs"]
mod tests;
