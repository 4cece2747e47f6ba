//! Changes files below a store's root, and no others. Every name is looked up in a directory that
//! the kernel reached from the root without a symlink, and the call is made in that directory.
//!
//! Invariant: no system call of this file takes an absolute path, and none follows a symlink. If
//! another process exchanges names meanwhile, all files are still written below the root that was
//! checked, and only files that were below it are removed.
//!
//! Files are complete after a crash: they are written under a new name, synced, and renamed.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Mode, OFlags, RenameFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::{ConfinedDir, tree};
use crate::layer::at::At;
use crate::store::error::{Error, Result};
use crate::store::random;
use crate::sys::openat2::openat2;
use crate::sys::process::is_root_of_machine;

impl ConfinedDir {
    /// Opens the directory of a path's last component. Returns it with that component.
    fn above(&self, relative: &Path) -> std::result::Result<(OwnedFd, OsString), Errno> {
        let name = relative.file_name().ok_or(Errno::INVAL)?;
        let above = match relative.parent() {
            Some(above) if !above.as_os_str().is_empty() => above,
            _ => Path::new("."),
        };
        let dir = self.open_at(above, OFlags::PATH | OFlags::DIRECTORY)?;
        Ok((dir, name.to_owned()))
    }

    /// Makes a system call on a name in its directory.
    fn at<T>(
        &self,
        action: &'static str,
        relative: &Path,
        call: impl FnOnce(&OwnedFd, &OsStr) -> rustix::io::Result<T>,
    ) -> Result<T> {
        let (dir, name) = self
            .above(relative)
            .map_err(|errno| self.error(action, relative, errno))?;
        call(&dir, &name).map_err(|errno| Error::io(action, &self.full(relative), errno))
    }

    /// Opens a file with any flags of open(2); a symlink is an error.
    pub(crate) fn open_file(
        &self,
        relative: impl AsRef<Path>,
        flags: OFlags,
        mode: u32,
    ) -> Result<File> {
        let relative = relative.as_ref();
        let resolve =
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(mode);
        openat2(&self.fd, relative, flags, mode, resolve)
            .map(File::from)
            .map_err(|errno| Error::io("open", &self.full(relative), errno))
    }

    /// Makes a directory with exactly that mode; false if it exists.
    pub(crate) fn make_dir(&self, relative: impl AsRef<Path>, mode: u32) -> Result<bool> {
        let relative = relative.as_ref();
        let wanted = Mode::from_raw_mode(mode);
        self.at("create", relative, |dir, name| {
            match rustix::fs::mkdirat(dir, name, wanted) {
                Err(Errno::EXIST) => return Ok(false),
                other => other?,
            }
            // Sets the mode again: the umask may have removed bits.
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let made = rustix::fs::openat(dir, name, flags, Mode::empty())?;
            rustix::fs::fchmod(&made, wanted)?;
            Ok(true)
        })
    }

    /// Makes a directory, which must not exist.
    pub(crate) fn new_dir(&self, relative: impl AsRef<Path>, mode: u32) -> Result<()> {
        let relative = relative.as_ref();
        if self.make_dir(relative, mode)? {
            Ok(())
        } else {
            Err(Error::io("create", &self.full(relative), Errno::EXIST))
        }
    }

    /// Makes a directory and its missing ancestors, all with `mode`.
    pub(crate) fn make_dirs(&self, relative: impl AsRef<Path>, mode: u32) -> Result<()> {
        let relative = relative.as_ref();
        let missing: Vec<&Path> = relative.ancestors().collect();
        let missing = missing.into_iter().rev();
        for dir in missing.filter(|dir| !dir.as_os_str().is_empty()) {
            self.make_dir(dir, mode)?;
        }
        Ok(())
    }

    /// Creates a file, which must not exist.
    pub(crate) fn create(&self, relative: impl AsRef<Path>, mode: u32) -> Result<File> {
        let relative = relative.as_ref();
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        self.at("create", relative, |dir, name| {
            rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(mode)).map(File::from)
        })
    }

    /// Writes a file, which must not exist, and syncs it.
    pub(crate) fn write_new(
        &self,
        relative: impl AsRef<Path>,
        mode: u32,
        bytes: &[u8],
    ) -> Result<()> {
        let relative = relative.as_ref();
        let mut file = self.create(relative, mode)?;
        file.write_all(bytes)
            .map_err(|e| self.failed("write", relative, &e))?;
        file.sync_all()
            .map_err(|e| self.failed("sync", relative, &e))
    }

    /// Writes a file and renames it over the old one, if there is one: readers see the old file or
    /// the new one. `staging` is a directory on the same file system.
    pub(crate) fn replace(
        &self,
        staging: impl AsRef<Path>,
        relative: impl AsRef<Path>,
        mode: u32,
        bytes: &[u8],
    ) -> Result<()> {
        let staged = staging.as_ref().join(random::hex(16)?);
        let written = self.write_new(&staged, mode, bytes);
        let outcome = written.and_then(|()| self.publish(&staged, relative));
        if outcome.is_err() {
            // The first failure is the one to report.
            let _ = self.remove_file(&staged);
        }
        outcome
    }

    /// Creates a file without a name in the directory `staging`.
    pub(crate) fn temporary(&self, staging: impl AsRef<Path>) -> Result<File> {
        let staging = staging.as_ref();
        match self.open_file(staging, OFlags::RDWR | OFlags::TMPFILE, 0o600) {
            Err(e) if matches!(e.errno(), Some(Errno::OPNOTSUPP | Errno::ISDIR)) => {}
            other => return other,
        }
        let name = staging.join(random::hex(16)?);
        let file = self.open_file(&name, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL, 0o600)?;
        self.remove_file(&name)?;
        Ok(file)
    }

    /// Makes a symlink.
    pub(crate) fn make_link(&self, target: &str, relative: impl AsRef<Path>) -> Result<()> {
        self.at("create", relative.as_ref(), |dir, name| {
            rustix::fs::symlinkat(target, dir, name)
        })
    }

    /// Renames a file or directory, and replaces a file with the new name.
    pub(crate) fn rename(&self, from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<()> {
        let (from, to) = (from.as_ref(), to.as_ref());
        let (old, was) = self
            .above(from)
            .map_err(|errno| self.error("rename", from, errno))?;
        self.at("rename", to, |new, name| {
            rustix::fs::renameat(&old, &was, new, name)
        })
    }

    /// Gives a file another name, which must not exist. A symlink is not followed.
    pub(crate) fn hard_link(&self, from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<()> {
        let (from, to) = (from.as_ref(), to.as_ref());
        let (old, name) = self
            .above(from)
            .map_err(|errno| self.error("link", from, errno))?;
        self.at("link", to, |new, new_name| {
            rustix::fs::linkat(&old, &name, new, new_name, AtFlags::empty())
        })
    }

    /// Exchanges two names: in one step if the file system supports it, else one after the other.
    pub(crate) fn exchange(&self, one: impl AsRef<Path>, other: impl AsRef<Path>) -> Result<()> {
        let (one, other) = (one.as_ref(), other.as_ref());
        let (dir, name) = self
            .above(one)
            .map_err(|errno| self.error("rename", one, errno))?;
        let exchanged = self.at("rename", other, |new, to| {
            rustix::fs::renameat_with(&dir, &name, new, to, RenameFlags::EXCHANGE)
        });
        match exchanged {
            Err(error) if error.errno() == Some(Errno::INVAL) => {
                let aside = one.with_extension("replaced");
                self.rename(other, &aside)?;
                self.rename(one, other)?;
                self.rename(aside, one)
            }
            exchanged => exchanged,
        }
    }

    /// Renames a file or directory that is already synced, and makes the new name durable.
    pub(crate) fn publish(&self, from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<()> {
        self.rename(from, to.as_ref())?;
        self.sync_names(to)
    }

    /// Makes the names in the directory of `relative` durable.
    pub(crate) fn sync_names(&self, relative: impl AsRef<Path>) -> Result<()> {
        let dir = relative.as_ref().parent().unwrap_or(Path::new(""));
        let dir = if dir.as_os_str().is_empty() {
            Path::new(".")
        } else {
            dir
        };
        let opened = self.open_at(dir, OFlags::RDONLY | OFlags::DIRECTORY);
        let opened = opened.map_err(|errno| self.error("open", dir, errno))?;
        rustix::fs::fsync(&opened).map_err(|errno| self.error("sync", dir, errno))
    }

    /// Writes back all changes of the file system of a directory.
    pub(crate) fn sync_all(&self, relative: impl AsRef<Path>) -> Result<()> {
        let relative = relative.as_ref();
        let opened = self.open_at(relative, OFlags::RDONLY | OFlags::DIRECTORY);
        let opened = opened.map_err(|errno| self.error("open", relative, errno))?;
        rustix::fs::syncfs(&opened).map_err(|errno| self.error("sync", relative, errno))
    }

    /// Removes a file. It is no error if the file does not exist.
    pub(crate) fn remove_file(&self, relative: impl AsRef<Path>) -> Result<()> {
        let relative = relative.as_ref();
        let removed = self.at("remove", relative, |dir, name| {
            rustix::fs::unlinkat(dir, name, AtFlags::empty())
        });
        match removed {
            Err(error) if error.errno() == Some(Errno::NOENT) => Ok(()),
            other => other,
        }
    }

    /// Removes a file, or a directory with all below it. It is no error if it does not exist.
    /// Symlinks are removed, not followed. EBUSY if something is mounted in it.
    pub(crate) fn remove_tree(&self, relative: impl AsRef<Path>) -> Result<()> {
        let relative = relative.as_ref();
        let removed = self.at("remove", relative, |dir, name| {
            tree::remove(dir.as_fd(), name)
        });
        match removed {
            Err(error) if error.errno() == Some(Errno::NOENT) => Ok(()),
            other => other,
        }
    }

    /// Returns the bytes that a file or a tree uses on the disk. Each inode counts once; files that
    /// cannot be read do not count.
    pub(crate) fn disk_usage(&self, relative: impl AsRef<Path>) -> u64 {
        let above = self.above(relative.as_ref());
        above.map_or(0, |(dir, name)| tree::disk_usage(dir.as_fd(), &name))
    }

    /// Returns the attributes of a file, or of a symlink itself; `None` if there is no such name.
    pub(crate) fn look(&self, relative: impl AsRef<Path>) -> Result<Option<Stat>> {
        let looked = self.at("look up", relative.as_ref(), |dir, name| {
            rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)
        });
        match looked {
            Err(error) if matches!(error.errno(), Some(Errno::NOENT | Errno::NOTDIR)) => Ok(None),
            other => other.map(Some),
        }
    }

    /// Checks that no other user can change the names in a directory before this process writes to
    /// it: it belongs to root and others may not write to it. In the root of the store itself, here
    /// "", others may write if they cannot rename our files (sticky).
    ///
    /// Only root of the machine checks this: other users can lose no more rights than their own.
    ///
    /// # Errors
    /// [`Error::NotSafe`], and those of opening the directory.
    pub(crate) fn require_ours(&self, relative: impl AsRef<Path>) -> Result<()> {
        if !is_root_of_machine() {
            return Ok(());
        }
        let relative = relative.as_ref();
        let (stat, is_root) = if relative.as_os_str().is_empty() {
            (At::fd(self.fd.as_fd()).stat(), true)
        } else {
            let dir = self.open_at(relative, OFlags::PATH | OFlags::DIRECTORY);
            (dir.and_then(|dir| At::fd(dir.as_fd()).stat()), false)
        };
        let stat = stat.map_err(|errno| self.error("look up", relative, errno))?;
        let unsafe_as = |why: String, remedy: String| Error::NotSafe {
            path: self.full(relative),
            why,
            remedy,
        };
        if stat.uid != 0 {
            let who = format!("belongs to the user with ID {}", stat.uid);
            let remedy =
                format!("run the command as that user, or use a store of root's ({DEFAULT})");
            return Err(unsafe_as(who, remedy));
        }
        let sticky = is_root && stat.perm & 0o1000 != 0;
        if stat.perm & 0o022 != 0 && !sticky {
            let who = "may be written to by other users".to_owned();
            return Err(unsafe_as(
                who,
                "take that from them (chmod go-w)".to_owned(),
            ));
        }
        Ok(())
    }
}

/// The default root of root's own store.
const DEFAULT: &str = "/var/lib/unionfs";
