//! A runtime directory, opened and checked once: it belongs to this user, no other user can write
//! to it, and no symlink that another user controls leads to it. All calls use its descriptor, so
//! that it cannot be exchanged for another directory. Symlinks in it are not followed.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::sys::walk::{self, Trust};
use crate::union::upper_lock;

/// The maximum size of a record. A larger file is not one of ours.
const MAX_FILE: u64 = 16 << 20;

/// The open directory.
pub(in crate::fuse) struct Directory {
    dir: OwnedFd,
}

impl Directory {
    /// Opens an existing directory.
    ///
    /// # Errors
    /// Those of openat(2); EACCES with the reason for one that other users could have changed.
    pub(in crate::fuse) fn open(path: &Path) -> io::Result<Self> {
        let (above, name) = above(path)?;
        Self::open_in(&above, name)
    }

    /// Opens a directory for writing. It is made (0700) if absent.
    ///
    /// # Errors
    /// As [`Self::open`]; an error if it is not writable.
    pub(super) fn make(path: &Path) -> io::Result<Self> {
        let (above, name) = above(path)?;
        match rustix::fs::mkdirat(&above, name, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        let made = Self::open_in(&above, name)?;
        let access = Access::WRITE_OK | Access::EXEC_OK;
        match rustix::fs::accessat(&made.dir, c".", access, AtFlags::EACCESS) {
            // Linux before 5.8, or a filter of system calls that says EPERM. The old call asks for the
            // real user, who is the effective one, unless a program with set-user-ID has started this.
            Err(Errno::NOSYS | Errno::PERM) => {
                rustix::fs::accessat(&made.dir, c".", access, AtFlags::empty())?;
            }
            other => other?,
        }
        Ok(made)
    }

    fn open_in(above: &OwnedFd, name: &OsStr) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = rustix::fs::openat(above, name, flags, Mode::empty())?;
        let st = rustix::fs::fstat(&dir)?;
        let refuse = |why| Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
        if st.st_uid != rustix::process::geteuid().as_raw() {
            refuse("belongs to another user")
        } else if st.st_mode & 0o022 != 0 {
            refuse("writable by others")
        } else {
            Ok(Self { dir })
        }
    }

    /// Creates a file (0600) for writing. A leftover with that name is removed.
    ///
    /// # Errors
    /// Those of openat(2).
    pub(super) fn create(&self, name: &OsStr) -> io::Result<File> {
        self.remove(name)?;
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        Ok(rustix::fs::openat(&self.dir, name, flags, mode)?.into())
    }

    /// Renames a file.
    ///
    /// # Errors
    /// Those of renameat(2).
    pub(super) fn rename(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        Ok(rustix::fs::renameat(&self.dir, from, &self.dir, to)?)
    }

    /// Removes a file. It is no error if it does not exist.
    ///
    /// # Errors
    /// Those of unlinkat(2).
    pub(in crate::fuse) fn remove(&self, name: &OsStr) -> io::Result<()> {
        match rustix::fs::unlinkat(&self.dir, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes a lock file, unless a process holds it.
    ///
    /// # Errors
    /// EINVAL for another name; as [`upper_lock::remove`].
    pub(super) fn remove_lock(&self, name: &str) -> io::Result<()> {
        match name.strip_suffix(".lock") {
            Some(key) if !key.contains('/') => Ok(upper_lock::remove(&self.dir, name)?),
            _ => Err(Errno::INVAL.into()),
        }
    }

    /// Returns the content of a regular file.
    ///
    /// # Errors
    /// Those of openat(2) and read(2); EINVAL for a file of another type.
    pub(super) fn read(&self, name: &OsStr) -> io::Result<Vec<u8>> {
        // The open does not wait for a FIFO.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.dir, name, flags, Mode::empty())?;
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode);
        if kind != FileType::RegularFile {
            return Err(Errno::INVAL.into());
        }
        let mut bytes = Vec::new();
        File::from(file).take(MAX_FILE).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Returns the names in it, as far as it can be read.
    pub(super) fn names(&self) -> Vec<PathBuf> {
        let entries = rustix::fs::Dir::read_from(&self.dir);
        let entries = entries.into_iter().flatten().flatten();
        let name = |entry: rustix::fs::DirEntry| {
            PathBuf::from(OsStr::from_bytes(entry.file_name().to_bytes()))
        };
        entries.map(name).collect()
    }

    /// Returns a short path to a name in the directory, which is valid while the directory is open.
    /// The path of a socket may have only 107 bytes (unix(7)).
    pub(in crate::fuse) fn path_to(&self, name: &OsStr) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.dir.as_raw_fd())).join(name)
    }
}

impl From<Directory> for OwnedFd {
    fn from(directory: Directory) -> Self {
        directory.dir
    }
}

/// Returns the parent directory, and the name in it.
fn above(path: &Path) -> io::Result<(OwnedFd, &OsStr)> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let above = match path.parent() {
        Some(above) if above != Path::new("") => above,
        _ => Path::new("."),
    };
    let dir = walk::open_directory(above, Trust::in_first_user_namespace())?;
    Ok((dir, name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use testkit::need;
    use testkit::need::is_root;

    #[test]
    fn directories_of_others_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Directory::open(dir.path()).is_ok());
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(Directory::open(dir.path()).is_err());
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
        let link = dir.path().join("link");
        symlink(dir.path(), &link).unwrap();
        assert!(Directory::open(&link).is_err() && Directory::make(&link).is_err());
        assert!(Directory::open(&dir.path().join("absent")).is_err());
        assert!(Directory::make(&dir.path().join("absent/below")).is_err());
        assert!(Directory::make(&dir.path().join("absent")).is_ok());
        let mode = dir.path().join("absent").metadata().unwrap().permissions();
        assert_eq!(mode.mode() & 0o777, 0o700);
    }

    /// Tests as root, with a directory of another user on the way.
    #[test]
    fn nothing_is_made_behind_a_symlink_of_another_user() {
        need!(is_root());
        let dir = tempfile::tempdir().unwrap();
        let (theirs, ours) = (dir.path().join("theirs"), dir.path().join("ours"));
        fs::create_dir(&theirs).unwrap();
        fs::create_dir(&ours).unwrap();
        symlink(&ours, theirs.join("run")).unwrap();
        std::os::unix::fs::chown(&theirs, Some(65534), Some(65534)).unwrap();
        assert!(Directory::make(&theirs.join("run/unionfs")).is_err());
        assert!(Directory::make(&theirs.join("run")).is_err());
        assert_eq!(fs::read_dir(&ours).unwrap().count(), 0);
    }

    #[test]
    fn names_in_it_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        fs::write(&outside, "untouched").unwrap();
        let run = Directory::make(&dir.path().join("run")).unwrap();
        let name = OsStr::new("1-0.json");
        symlink(&outside, dir.path().join("run").join(name)).unwrap();
        assert!(run.read(name).is_err());
        drop(run.create(name).unwrap());
        assert_eq!(run.read(name).unwrap(), b"");
        assert_eq!(fs::read(&outside).unwrap(), b"untouched");
        run.rename(name, OsStr::new("2")).unwrap();
        assert!(run.names().contains(&PathBuf::from("2")));
        run.remove(OsStr::new("2")).unwrap();
        run.remove(OsStr::new("2")).unwrap();
    }
}
