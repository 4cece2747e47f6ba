//! A name in a directory that is held open, with the file that had it: to remove that file and no
//! other, without a path. A path could lead into the mount of the process that follows it.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::AtFlags;
use rustix::io::Errno;

/// The name of a file.
#[derive(Debug)]
pub struct HeldName {
    dir: OwnedFd,
    name: OsString,
    /// Device and inode number of the file.
    file: (u64, u64),
}

impl HeldName {
    /// Returns the name of an open file in a directory, which may be open as `O_PATH`.
    ///
    /// # Errors
    /// Those of fstat(2).
    pub fn new(dir: OwnedFd, name: OsString, file: &File) -> io::Result<Self> {
        let stat = rustix::fs::fstat(file)?;
        let file = (stat.st_dev, stat.st_ino);
        Ok(Self { dir, name, file })
    }

    /// Returns the directory.
    pub fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Removes the name if it is still that of the file. A user who may write to the directory can
    /// give it to another file in the moment before.
    ///
    /// # Errors
    /// Those of unlink(2), except ENOENT.
    pub fn remove(&self) -> io::Result<()> {
        let stat = match rustix::fs::statat(&self.dir, &self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(()),
            stat => stat?,
        };
        if (stat.st_dev, stat.st_ino) != self.file {
            return Ok(());
        }
        match rustix::fs::unlinkat(&self.dir, &self.name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_file_that_was_seen_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("name");
        let held = || {
            let file = File::create(&path).unwrap();
            let dir = File::open(dir.path()).unwrap().into();
            (HeldName::new(dir, "name".into(), &file).unwrap(), file)
        };
        let (first, _open) = held();
        std::fs::remove_file(&path).unwrap();
        let (second, _open) = held();
        first.remove().unwrap();
        assert!(path.exists(), "it is another file");
        second.remove().unwrap();
        assert!(!path.exists());
        second.remove().unwrap();
    }
}
