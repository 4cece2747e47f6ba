//! Removes or measures a tree below an open directory. Each directory is opened from its parent's
//! descriptor.
//!
//! Invariant: no symlink is followed and no mount is entered, even if another process exchanges
//! names meanwhile. While a tree of any depth is removed, the number of open descriptors is
//! bounded.

use std::collections::HashSet;
use std::ffi::{CStr, OsStr};
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt as _;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::layer::at::At;
use crate::sys::openat2::openat2;

/// The number of directories that are open at once while a tree is removed. Deeper directories are
/// moved up first.
const DEPTH: usize = 64;

/// A directory whose entries are being read.
struct Level {
    dir: Dir,
    name: Vec<u8>,
    /// Whether the mode of the directory forbade access and was changed to 0700.
    opened_up: bool,
}

impl Level {
    /// Opens the directory `name`. If its mode forbids that, the mode is changed to 0700 first.
    fn open(above: BorrowedFd<'_>, name: &[u8]) -> Result<Self, Errno> {
        match open_dir(above, name) {
            Err(Errno::ACCESS) => {
                At::new(above, name).chmod(0o700)?;
                Ok(Self {
                    opened_up: true,
                    ..Self::of(open_dir(above, name)?, name)
                })
            }
            other => Ok(Self::of(other?, name)),
        }
    }

    fn of(dir: Dir, name: &[u8]) -> Self {
        Self {
            dir,
            name: name.to_owned(),
            opened_up: false,
        }
    }

    /// Changes the directory. If its mode forbids that, the mode is changed to 0700 first.
    fn change(&mut self, call: impl Fn(BorrowedFd<'_>) -> Result<(), Errno>) -> Result<(), Errno> {
        match call(self.dir.fd()?) {
            Err(Errno::ACCESS) if !self.opened_up => {
                self.opened_up = true;
                At::fd(self.dir.fd()?).chmod(0o700)?;
                call(self.dir.fd()?)
            }
            other => other,
        }
    }
}

/// Opens a directory in another, without following symlinks. A mountpoint is EBUSY.
fn open_dir(above: BorrowedFd<'_>, name: &[u8]) -> Result<Dir, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let inside = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    match openat2(above, name, flags, Mode::empty(), inside) {
        Err(Errno::XDEV) => Err(Errno::BUSY),
        other => Dir::new(other?),
    }
}

fn is_dots(name: &CStr) -> bool {
    matches!(name.to_bytes(), b"." | b"..")
}

/// Removes a file or a tree.
///
/// # Errors
/// ENOENT if the name does not exist; EBUSY if something is mounted there; those of unlink(2).
pub(super) fn remove(above: BorrowedFd<'_>, name: &OsStr) -> Result<(), Errno> {
    match rustix::fs::unlinkat(above, name, AtFlags::empty()) {
        Err(Errno::ISDIR) => {}
        other => return other,
    }
    loop {
        let moved_up = empty(above, name.as_bytes())?;
        match rustix::fs::unlinkat(above, name, AtFlags::REMOVEDIR) {
            // The listing may have missed directories that were moved here.
            Err(Errno::NOTEMPTY | Errno::EXIST) if moved_up => {}
            other => return other,
        }
    }
}

/// Removes everything in a directory; returns whether a directory was moved into it meanwhile.
fn empty(above: BorrowedFd<'_>, name: &[u8]) -> Result<bool, Errno> {
    let mut moved_up = false;
    let mut levels = vec![Level::open(above, name)?];
    while let Some(level) = levels.last_mut() {
        let Some(entry) = level.dir.next().transpose()? else {
            let done = levels.pop();
            if let (Some(done), Some(level)) = (done, levels.last_mut()) {
                level.change(|dir| gone(dir, &done.name, AtFlags::REMOVEDIR))?;
            }
            continue;
        };
        if is_dots(entry.file_name()) {
            continue;
        }
        let name = entry.file_name().to_bytes().to_owned();
        let removed = match entry.file_type() {
            FileType::Directory => Err(Errno::ISDIR),
            _ => level.change(|dir| gone(dir, &name, AtFlags::empty())),
        };
        match removed {
            Ok(()) => {}
            Err(Errno::ISDIR) if levels.len() < DEPTH => descend(&mut levels, &name)?,
            Err(Errno::ISDIR) => {
                move_up(&mut levels, &name)?;
                moved_up = true;
            }
            Err(errno) => return Err(errno),
        }
    }
    Ok(moved_up)
}

/// Opens a subdirectory for removal. If the name is no directory any more, it is removed.
fn descend(levels: &mut Vec<Level>, name: &[u8]) -> Result<(), Errno> {
    let Some(level) = levels.last_mut() else {
        return Ok(());
    };
    match Level::open(level.dir.fd()?, name) {
        Ok(below) => levels.push(below),
        Err(Errno::NOENT) => {}
        Err(Errno::NOTDIR | Errno::LOOP) => {
            level.change(|dir| gone(dir, name, AtFlags::empty()))?;
        }
        Err(errno) => return Err(errno),
    }
    Ok(())
}

/// Moves a directory that is too deep to the top, under a random name.
fn move_up(levels: &mut [Level], name: &[u8]) -> Result<(), Errno> {
    let [top, .., level] = levels else {
        return Ok(());
    };
    let mut random = [0; 16];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
    let aside = format!(".unionfs-{:032x}", u128::from_ne_bytes(random));
    let top = top.dir.fd()?;
    match level.change(|dir| rustix::fs::renameat(dir, name, top, &*aside)) {
        // The rename also changes the directory's `..` entry, which its own mode may forbid.
        Err(Errno::ACCESS) => {
            At::new(level.dir.fd()?, name).chmod(0o700)?;
            level.change(|dir| rustix::fs::renameat(dir, name, top, &*aside))
        }
        other => other,
    }
}

/// Calls unlink(2). It is no error if the name does not exist.
fn gone(dir: BorrowedFd<'_>, name: &[u8], flags: AtFlags) -> Result<(), Errno> {
    match rustix::fs::unlinkat(dir, name, flags) {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

/// Returns the bytes on the disk. Each inode counts once; files that cannot be read do not count.
pub(super) fn disk_usage(above: BorrowedFd<'_>, name: &OsStr) -> u64 {
    let mut usage = Usage::default();
    if let Ok(true) = usage.add(above, name.as_bytes()) {
        let mut levels: Vec<Dir> = open_dir(above, name.as_bytes()).into_iter().collect();
        while let Some(dir) = levels.last_mut() {
            let Some(Ok(entry)) = dir.next() else {
                levels.pop();
                continue;
            };
            if is_dots(entry.file_name()) {
                continue;
            }
            let Ok(fd) = dir.fd() else { continue };
            let name = entry.file_name().to_bytes();
            if let Ok(true) = usage.add(fd, name) {
                let below = open_dir(fd, name);
                levels.extend(below);
            }
        }
    }
    usage.bytes
}

#[derive(Default)]
struct Usage {
    bytes: u64,
    seen: HashSet<(u64, u64)>,
}

impl Usage {
    /// Counts a name; returns whether it is a directory.
    fn add(&mut self, dir: BorrowedFd<'_>, name: &[u8]) -> Result<bool, Errno> {
        let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let is_dir = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        if is_dir || stat.st_nlink == 1 || self.seen.insert((stat.st_dev, stat.st_ino)) {
            // st_blocks counts units of 512 bytes for every block size of the file system
            // (stat(2)).
            let blocks = u64::try_from(stat.st_blocks).unwrap_or(0);
            self.bytes = self.bytes.saturating_add(blocks.saturating_mul(512));
        }
        Ok(is_dir)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::fd::AsFd as _;
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    use std::path::Path;

    use super::*;

    fn remove_in(dir: &Path, name: &str) -> Result<(), Errno> {
        remove(File::open(dir).unwrap().as_fd(), OsStr::new(name))
    }

    #[test]
    fn a_tree_goes_and_nothing_that_its_symlinks_lead_to() {
        let temp = tempfile::tempdir().unwrap();
        let tree = temp.path().join("tree/a/b");
        fs::create_dir_all(&tree).unwrap();
        fs::create_dir(temp.path().join("kept")).unwrap();
        fs::write(temp.path().join("kept/file"), "x").unwrap();
        symlink(temp.path().join("kept"), tree.join("link")).unwrap();
        symlink("nowhere", tree.join("dangling")).unwrap();
        fs::write(tree.join("file"), "x").unwrap();
        fs::set_permissions(&tree, fs::Permissions::from_mode(0o000)).unwrap();
        symlink("tree", temp.path().join("to tree")).unwrap();
        remove_in(temp.path(), "to tree").unwrap();
        assert!(tree.exists());
        remove_in(temp.path(), "tree").unwrap();
        assert_eq!(remove_in(temp.path(), "tree"), Err(Errno::NOENT));
        assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 1);
        assert!(temp.path().join("kept/file").exists());
    }

    #[test]
    fn a_tree_deeper_than_descriptors_reach_goes() {
        let temp = tempfile::tempdir().unwrap();
        let mut dir: rustix::fd::OwnedFd = File::open(temp.path()).unwrap().into();
        for depth in 0..3 * DEPTH {
            let name = if depth == 0 { "tree" } else { "d" };
            rustix::fs::mkdirat(&dir, name, Mode::from_raw_mode(0o755)).unwrap();
            let flags = OFlags::RDONLY | OFlags::DIRECTORY;
            let next = rustix::fs::openat(&dir, name, flags, Mode::empty()).unwrap();
            rustix::fs::mkdirat(&next, "beside", Mode::from_raw_mode(0o500)).unwrap();
            dir = next;
        }
        remove_in(temp.path(), "tree").unwrap();
        assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 0);
    }

    #[test]
    fn usage_counts_each_inode_once() {
        let temp = tempfile::tempdir().unwrap();
        fs::create_dir(temp.path().join("tree")).unwrap();
        let of = || disk_usage(File::open(temp.path()).unwrap().as_fd(), OsStr::new("tree"));
        let empty = of();
        fs::write(temp.path().join("tree/file"), vec![1; 100 << 10]).unwrap();
        let one = of();
        assert!(one >= empty + (100 << 10), "{empty} {one}");
        fs::hard_link(temp.path().join("tree/file"), temp.path().join("tree/g")).unwrap();
        assert_eq!(of(), one);
    }
}
