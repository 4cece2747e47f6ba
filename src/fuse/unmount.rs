//! The mount on a directory: whether it answers, and how to detach it. A [`Mount`] is held open
//! from the first look until it is gone, so that it is not confused with another one. Only the
//! question whether it answers reaches its server, with a time limit.

use std::io::{self, Read as _};
use std::os::fd::{AsFd, AsRawFd as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use super::error::{Error, Result};
use super::mountinfo::{self, MountEntry};
use super::mountpoint::Mountpoint;
use super::own_mount::MountId;
use super::{connection_control, fusermount, runtime};
use crate::sys::probe::{self, Answer};

/// The time for a mount to answer, unless `UNIONFS_TIMEOUT` sets it in seconds.
const PATIENCE: Duration = Duration::from_secs(5);

/// Returns the time for an answer of a mount, or of another process about it.
pub fn patience() -> Duration {
    let set = std::env::var("UNIONFS_TIMEOUT").ok();
    set.and_then(|text| text.parse().ok())
        .map_or(PATIENCE, Duration::from_secs)
}

/// The state of the server of a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// It answers.
    Answers,
    /// It is gone: every access gives ENOTCONN.
    Dead,
    /// It did not answer in time.
    Silent,
}

/// The topmost mount on a directory, of any type, held open.
#[derive(Debug)]
pub struct Mount {
    place: Mountpoint,
    id: MountId,
    entry: MountEntry,
}

impl Mount {
    pub(super) fn new(place: Mountpoint, id: MountId, entry: MountEntry) -> Self {
        Self { place, id, entry }
    }

    /// Opens the mount on the directory that `path` leads to, without asking its server.
    ///
    /// # Errors
    /// [`Error::NotFuse`] if nothing is mounted there; those of [`Mountpoint::open`].
    pub fn at(path: &Path) -> Result<Self> {
        Mountpoint::open(path)?
            .mount()?
            .map_err(|place| Error::NotFuse {
                path: place.path().to_owned(),
            })
    }

    /// Returns its line in the mount table.
    pub fn entry(&self) -> &MountEntry {
        &self.entry
    }

    /// Returns its identity.
    pub fn id(&self) -> MountId {
        self.id
    }

    /// Returns its mountpoint, absolute and without symlinks.
    pub fn path(&self) -> &Path {
        self.place.path()
    }

    /// Returns the directory that it is mounted on, as opened through the mount.
    pub fn into_place(self) -> Mountpoint {
        self.place
    }

    /// Returns the state of its server.
    ///
    /// # Errors
    /// An error if no process can be made to ask it.
    pub fn health(&self) -> Result<Health> {
        let answer = probe::statfs(&self.place, patience());
        let answer = answer.map_err(|source| Error::NotReady {
            path: self.path().to_owned(),
            source,
        })?;
        Ok(match answer {
            // The second error comes while the server is just ending.
            Answer::Fails(Errno::NOTCONN | Errno::CONNABORTED) => Health::Dead,
            // This includes a mount that only its owner may use.
            Answer::Works | Answer::Fails(_) => Health::Answers,
            Answer::Silent => Health::Silent,
        })
    }

    /// Aborts its connection: its server ends, and programs that use the mount get ENOTCONN.
    ///
    /// # Errors
    /// [`Error::Abort`] if it is not permitted, or if there is no fusectl.
    pub fn abort(&self) -> Result<()> {
        // The mount is held open, so the device number belongs to it.
        let abort = || -> io::Result<()> {
            let file = connection_control::open_abort(self.entry.device.1)?;
            rustix::io::write(&file, b"1")?;
            Ok(())
        };
        abort().map_err(|source| Error::Abort {
            path: self.path().to_owned(),
            source,
        })
    }

    /// Detaches it, also while it is in use (MNT_DETACH): its server ends with the last user. It
    /// uses umount2(2), or fusermount3 if this user may not. That it was unmounted meanwhile, for
    /// example by its server after [`Self::abort`], is no error.
    ///
    /// # Errors
    /// [`Error::Unmount`] with the reason of the system; [`Error::NotFuse`] for other file systems.
    pub fn detach(self) -> Result<()> {
        self.check()?;
        match detach_open(self.place.as_fd(), self.place.path()) {
            Err(_) if self.is_gone() => Ok(()),
            result => result,
        }
    }

    fn is_gone(&self) -> bool {
        // The mount is held open, so its number belongs to no other.
        mountinfo::list().is_ok_and(|mounts| self.id.entry(&mounts).is_none())
    }

    /// Unmounts it if it is not in use. It uses umount2(2), or fusermount3 if this user may not.
    ///
    /// # Errors
    /// [`Error::Unmount`] with the reason of the system (in use, not permitted); [`Error::NotFuse`]
    /// for other file systems.
    pub fn unmount(self) -> Result<()> {
        self.check()?;
        let path = self.place.path().to_owned();
        let moved = || failed(&path, "it was unmounted or moved meanwhile");
        let (Some(above), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(moved());
        };
        // A mount that is held open is in use, so the directory above is held instead. A name in it
        // with a mount on it can be neither moved nor replaced, and is not followed.
        let above = Mountpoint::open(above)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let same = rustix::fs::openat(&above, name, flags, Mode::empty())
            .ok()
            .and_then(|root| MountId::of(root).ok())
            .is_some_and(|id| id.is(&self.id));
        drop(self.place);
        if !same {
            return Err(moved());
        }
        match rustix::mount::unmount(above.proc_path().join(name), UnmountFlags::NOFOLLOW) {
            Ok(()) => Ok(()),
            Err(Errno::PERM) => unmount_with_helper(&path, &["-u", "-q"]),
            Err(Errno::BUSY) => Err(failed(
                &path,
                "still in use (a process has a file open or works there); end it, or unmount \
                 lazily",
            )),
            Err(error) => Err(failed(&path, &error.to_string())),
        }
    }

    pub(super) fn place(&self) -> &Mountpoint {
        &self.place
    }

    /// Checks that its file system is one of FUSE.
    pub(super) fn check(&self) -> Result<()> {
        if self.entry.is_fuse() {
            Ok(())
        } else {
            Err(Error::NotFuse {
                path: self.path().to_owned(),
            })
        }
    }
}

fn failed(path: &Path, text: &str) -> Error {
    Error::Unmount {
        path: path.to_owned(),
        text: text.to_owned(),
    }
}

/// Detaches the mount with the open `root`, even if its path leads elsewhere now. `path` is its
/// place, for the message and for fusermount3.
pub(super) fn detach_open(root: impl AsFd, path: &Path) -> Result<()> {
    let link = format!("/proc/thread-self/fd/{}", root.as_fd().as_raw_fd());
    match rustix::mount::unmount(link, UnmountFlags::DETACH) {
        Ok(()) => Ok(()),
        Err(Errno::PERM) => unmount_with_helper(path, &["-u", "-q", "-z"]),
        Err(error) => Err(failed(path, &error.to_string())),
    }
}

/// Unmounts the FUSE file system on `mountpoint`, as [`Mount::unmount`].
///
/// # Errors
/// [`Error::NotFuse`] if another file system, or nothing, is mounted there; [`Error::Unmount`] with
/// the reason of the system (in use, not permitted).
pub fn unmount(mountpoint: &Path) -> Result<()> {
    Mount::at(mountpoint)?.unmount()
}

/// Detaches the FUSE file system on `mountpoint`, as [`Mount::detach`].
///
/// # Errors
/// [`Error::NotFuse`] if another file system, or nothing, is mounted there; [`Error::Unmount`] with
/// the reason of the system (not permitted).
pub fn detach(mountpoint: &Path) -> Result<()> {
    Mount::at(mountpoint)?.detach()
}

/// Calls fusermount3 with these `options`.
fn unmount_with_helper(path: &Path, options: &[&str]) -> Result<()> {
    let Some(helper) = fusermount::find_helper() else {
        return Err(failed(
            path,
            "not permitted, and fusermount3 is not installed (install the package fuse3)",
        ));
    };
    let mut command = Command::new(helper);
    command.args(options).arg("--").arg(path);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let outcome = command
        .stderr(Stdio::piped())
        .spawn()
        .and_then(|child| end_of(child, patience()));
    match outcome {
        Ok(Some((true, _))) => Ok(()),
        Ok(Some((false, text))) => Err(failed(path, &fusermount::message(&text))),
        Ok(None) => Err(Error::Silent {
            path: path.to_owned(),
        }),
        Err(error) => Err(failed(path, &error.to_string())),
    }
}

/// Returns whether a child succeeded, and its output. `None` if it did not end in time and was
/// killed.
fn end_of(mut child: Child, limit: Duration) -> io::Result<Option<(bool, Vec<u8>)>> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            let mut text = Vec::new();
            if let Some(stderr) = &mut child.stderr {
                stderr.read_to_end(&mut text)?;
            }
            return Ok(Some((status.success(), text)));
        }
        if start.elapsed() > limit {
            // The child may wait for the server in a state in which no signal reaches it.
            let _ = child.kill();
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Whether the mount with this root does not answer in time.
pub(super) fn is_silent(root: impl AsFd) -> io::Result<bool> {
    Ok(probe::statfs(root, patience())? == Answer::Silent)
}

/// Returns the directory that `path` leads to, after detaching all unionfs mounts on it whose
/// servers are gone, and the FUSE mount that is left there.
///
/// # Errors
/// As [`Mountpoint::open`] and [`Mount::detach`]; [`Error::Silent`] if a FUSE mount there does not
/// answer.
pub fn without_dead(path: &Path) -> Result<(Mountpoint, Option<MountEntry>)> {
    let mut found = false;
    let clear = loop {
        let mount = match Mountpoint::open(path)?.mount()? {
            Ok(mount) if mount.entry.is_fuse() => mount,
            Ok(mount) => break (mount.into_place(), None),
            Err(place) => break (place, None),
        };
        match mount.health()? {
            Health::Dead if mount.entry.is_unionfs() => {
                mount.detach()?;
                found = true;
            }
            Health::Silent => {
                return Err(Error::Silent {
                    path: mount.path().to_owned(),
                });
            }
            _ => {
                let entry = mount.entry.clone();
                break (mount.into_place(), Some(entry));
            }
        }
    };
    if found {
        // This removes the records of the dead mounts.
        runtime::list();
    }
    Ok(clear)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_fuse_mount_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(unmount(dir.path()), Err(Error::NotFuse { .. })));
        assert!(matches!(
            unmount(&dir.path().join("a/b")),
            Err(Error::Mountpoint { .. })
        ));
        assert!(matches!(
            detach(Path::new("/proc")),
            Err(Error::NotFuse { .. })
        ));
        let (place, mount) = without_dead(dir.path()).unwrap();
        assert_eq!(place.path(), dir.path().canonicalize().unwrap());
        assert_eq!(mount, None);
    }

    #[test]
    fn a_child_that_does_not_end_is_not_waited_for() {
        let spawn = |program: &str, arg: &str| {
            let mut command = Command::new(program);
            command.arg(arg).stderr(Stdio::piped()).spawn().unwrap()
        };
        let limit = Duration::from_millis(50);
        assert_eq!(end_of(spawn("sleep", "60"), limit).unwrap(), None);
        let limit = Duration::from_secs(60);
        let (ok, text) = end_of(spawn("ls", "/absent"), limit).unwrap().unwrap();
        assert!(!ok && !text.is_empty());
    }
}
