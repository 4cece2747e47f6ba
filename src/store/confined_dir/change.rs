//! Changing what is below a store's root, and nothing else: every name is looked up in a directory
//! that the kernel reached from the root without a symlink, and the call is made in that directory.
//!
//! Invariant: no system call of this file takes an absolute path, and none follows a symlink. So it
//! does not matter who exchanges names meanwhile: what is written, is written below the root that
//! was checked, and what is removed was below it.
//!
//! Files survive a crash whole: they are written under a new name, synced, and renamed.

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
use crate::sys::process::is_root_of_machine;

impl ConfinedDir {
    /// The directory that a name is in, and the name.
    fn above(&self, relative: &Path) -> std::result::Result<(OwnedFd, OsString), Errno> {
        let name = relative.file_name().ok_or(Errno::INVAL)?;
        let above = match relative.parent() {
            Some(above) if !above.as_os_str().is_empty() => above,
            _ => Path::new("."),
        };
        let dir = self.open_at(above, OFlags::PATH | OFlags::DIRECTORY)?;
        Ok((dir, name.to_owned()))
    }

    /// A system call on a name in its directory.
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

    /// Opens a file in any way that open(2) knows; a symlink is refused.
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
        rustix::fs::openat2(&self.fd, relative, flags, mode, resolve)
            .map(File::from)
            .map_err(|errno| Error::io("open", &self.full(relative), errno))
    }

    /// Makes a directory of exactly that mode; false where it exists.
    pub(crate) fn make_dir(&self, relative: impl AsRef<Path>, mode: u32) -> Result<bool> {
        let relative = relative.as_ref();
        let wanted = Mode::from_raw_mode(mode);
        self.at("create", relative, |dir, name| {
            match rustix::fs::mkdirat(dir, name, wanted) {
                Err(Errno::EXIST) => return Ok(false),
                other => other?,
            }
            // The umask has taken bits away.
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let made = rustix::fs::openat(dir, name, flags, Mode::empty())?;
            rustix::fs::fchmod(&made, wanted)?;
            Ok(true)
        })
    }

    /// Makes a directory that must not exist.
    pub(crate) fn new_dir(&self, relative: impl AsRef<Path>, mode: u32) -> Result<()> {
        let relative = relative.as_ref();
        if self.make_dir(relative, mode)? {
            Ok(())
        } else {
            Err(Error::io("create", &self.full(relative), Errno::EXIST))
        }
    }

    /// Makes a directory and those above it, all with `mode`.
    pub(crate) fn make_dirs(&self, relative: impl AsRef<Path>, mode: u32) -> Result<()> {
        let relative = relative.as_ref();
        let missing: Vec<&Path> = relative.ancestors().collect();
        let missing = missing.into_iter().rev();
        for dir in missing.filter(|dir| !dir.as_os_str().is_empty()) {
            self.make_dir(dir, mode)?;
        }
        Ok(())
    }

    /// Creates a file that must not exist.
    pub(crate) fn create(&self, relative: impl AsRef<Path>, mode: u32) -> Result<File> {
        let relative = relative.as_ref();
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        self.at("create", relative, |dir, name| {
            rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(mode)).map(File::from)
        })
    }

    /// Writes a file that must not exist, and syncs it.
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

    /// Writes a file in place of another or of none: readers see the old or the new one.
    /// `staging` is a directory on the same file system.
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

    /// A file without a name in the directory `staging`.
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

    /// Gives a file or directory another name, in place of a file that has it.
    pub(crate) fn rename(&self, from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<()> {
        let (from, to) = (from.as_ref(), to.as_ref());
        let (old, was) = self
            .above(from)
            .map_err(|errno| self.error("rename", from, errno))?;
        self.at("rename", to, |new, name| {
            rustix::fs::renameat(&old, &was, new, name)
        })
    }

    /// Exchanges two names, at once where the file system can; else one after the other.
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

    /// Renames what is synced already, and makes the new name durable.
    pub(crate) fn publish(&self, from: impl AsRef<Path>, to: impl AsRef<Path>) -> Result<()> {
        self.rename(from, to.as_ref())?;
        self.sync_names(to)
    }

    /// Makes the names durable that are in the directory of `relative`.
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

    /// Writes everything back that was changed on the file system of a directory.
    pub(crate) fn sync_all(&self, relative: impl AsRef<Path>) -> Result<()> {
        let relative = relative.as_ref();
        let opened = self.open_at(relative, OFlags::RDONLY | OFlags::DIRECTORY);
        let opened = opened.map_err(|errno| self.error("open", relative, errno))?;
        rustix::fs::syncfs(&opened).map_err(|errno| self.error("sync", relative, errno))
    }

    /// Removes a file; one that is gone is no error.
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

    /// Removes a file, or a directory with all below it; what is gone is no error. Symlinks are
    /// removed, not followed; EBUSY where something is mounted in it.
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

    /// Bytes that a file or a tree takes on the disk, each inode once; what cannot be read
    /// counts nothing.
    pub(crate) fn disk_usage(&self, relative: impl AsRef<Path>) -> u64 {
        let above = self.above(relative.as_ref());
        above.map_or(0, |(dir, name)| tree::disk_usage(dir.as_fd(), &name))
    }

    /// What a name stands for, a symlink for itself; `None`: there is none.
    pub(crate) fn look(&self, relative: impl AsRef<Path>) -> Result<Option<Stat>> {
        let looked = self.at("look up", relative.as_ref(), |dir, name| {
            rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)
        });
        match looked {
            Err(error) if matches!(error.errno(), Some(Errno::NOENT | Errno::NOTDIR)) => Ok(None),
            other => other.map(Some),
        }
    }

    /// Makes sure that nobody else decides on the names in a directory that we are about to write
    /// to: it belongs to root and others may not write to it. In the root of the store itself, ""
    /// here, they may where they cannot rename what is ours (sticky).
    ///
    /// Only root of the machine asks: others have no more rights than they would give away.
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

/// Where root's own store is, unless told otherwise.
const DEFAULT: &str = "/var/lib/unionfs";
