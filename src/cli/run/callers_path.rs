//! Opens the file that another process names in a system call: its path begins at that process' root
//! or working directory, and symlinks lead to where they lead for that process.
//!
//! The process is one of the container of a plain user, and has the same user ID as this process.
//! What is opened here decides nothing about rights: the caller of these functions changes only
//! files of the container's own root file system, which this user may change anyway. Whether the
//! process could have opened the file itself is therefore not asked.
//!
//! Invariant: a file is opened with O_PATH, so nothing happens to it, whatever it is.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt as _;

use rustix::fs::{CWD, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

/// The longest path, with the zero behind it (PATH_MAX).
const MAX_PATH: usize = 4096;
/// How many symlinks a path may have, as in the kernel (MAXSYMLINKS).
const MAX_SYMLINKS: u32 = 40;
/// The size of the pieces in which memory is read. No piece crosses a page.
const PIECE: u64 = 256;
/// `PROC_SUPER_MAGIC` of linux/magic.h.
const PROC: u64 = 0x9fa0;

/// A process that waits for an answer.
pub(super) struct Caller {
    /// Its directory in our /proc.
    proc: OwnedFd,
}

/// What happens to a symlink at the end of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AtEnd {
    Follow,
    Keep,
}

/// Returns a descriptor of a file, without opening the file itself.
fn open(dir: impl AsFd, name: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::PATH | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::empty())
}

impl Caller {
    /// # Errors
    /// Those of open(2), if the thread has ended.
    pub(super) fn of_thread(thread: u32) -> Result<Self, Errno> {
        let proc = open(CWD, format!("/proc/{thread}").as_bytes(), OFlags::DIRECTORY)?;
        Ok(Self { proc })
    }

    /// Returns the memory of the process, at the addresses that it uses itself.
    ///
    /// # Errors
    /// Those of open(2): this process may not write it.
    pub(super) fn memory(&self) -> Result<File, Errno> {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        rustix::fs::openat(&self.proc, "mem", flags, Mode::empty()).map(File::from)
    }

    /// Reads a path from the memory of the process.
    ///
    /// # Errors
    /// `None` if the memory cannot be read by us; EFAULT and ENAMETOOLONG as the kernel gives them.
    pub(super) fn path_at(&self, address: u64) -> Result<Vec<u8>, Option<Errno>> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let memory = rustix::fs::openat(&self.proc, "mem", flags, Mode::empty());
        let memory = File::from(memory.map_err(|_| None::<Errno>)?);
        let mut path = Vec::new();
        while path.len() < MAX_PATH {
            let at = address.wrapping_add(path.len() as u64);
            let mut piece = [0; PIECE as usize];
            let piece = &mut piece[..(PIECE - at % PIECE) as usize];
            let read = memory.read_at(piece, at).unwrap_or(0);
            if read == 0 {
                return Err(Some(Errno::FAULT));
            }
            let piece = &piece[..read];
            match piece.iter().position(|byte| *byte == 0) {
                Some(end) => {
                    path.extend_from_slice(&piece[..end]);
                    break;
                }
                None => path.extend_from_slice(piece),
            }
        }
        if path.len() >= MAX_PATH {
            return Err(Some(Errno::NAMETOOLONG));
        }
        Ok(path)
    }

    /// Returns the file of a descriptor of the process; its working directory for AT_FDCWD.
    ///
    /// # Errors
    /// EBADF.
    pub(super) fn descriptor(&self, number: i32) -> Result<OwnedFd, Errno> {
        let path = if number == libc::AT_FDCWD {
            "cwd".to_owned()
        } else {
            format!("fd/{number}")
        };
        open(&self.proc, path.as_bytes(), OFlags::empty()).map_err(|error| match error {
            Errno::NOENT => Errno::BADF,
            other => other,
        })
    }

    /// Returns the file of a path that begins at a descriptor of the process.
    ///
    /// # Errors
    /// Those of path_resolution(7).
    pub(super) fn file(&self, dir: i32, path: &[u8], at_end: AtEnd) -> Result<OwnedFd, Errno> {
        if path.is_empty() {
            return Err(Errno::NOENT);
        }
        let root = open(&self.proc, b"root", OFlags::DIRECTORY)?;
        let start = if path[0] == b'/' {
            root.try_clone().map_err(|_| Errno::MFILE)?
        } else {
            self.descriptor(dir)?
        };
        self.walk(root.as_fd(), start, path, at_end)
    }

    fn walk(
        &self,
        root: BorrowedFd<'_>,
        start: OwnedFd,
        path: &[u8],
        at_end: AtEnd,
    ) -> Result<OwnedFd, Errno> {
        let again = |fd: BorrowedFd<'_>| fd.try_clone_to_owned().map_err(|_| Errno::MFILE);
        let root_stat = rustix::fs::fstat(root)?;
        let is_root =
            |stat: &Stat| (stat.st_dev, stat.st_ino) == (root_stat.st_dev, root_stat.st_ino);
        let mut here = start;
        let mut links = 0;
        // The names that are to come, the next one last. A path that ends with a slash names a
        // directory, as with a dot behind it.
        let mut names = names_of(path);
        while let Some(name) = names.pop() {
            let stat = rustix::fs::fstat(&here)?;
            if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
                return Err(Errno::NOTDIR);
            }
            if name == b"." || name == b".." && is_root(&stat) {
                continue;
            }
            if let Some(own) = self.own_directory(&here, &name)? {
                here = own;
                continue;
            }
            let next = open(&here, &name, OFlags::NOFOLLOW)?;
            let stat = rustix::fs::fstat(&next)?;
            let is_link = FileType::from_raw_mode(stat.st_mode) == FileType::Symlink;
            if !is_link || names.is_empty() && at_end == AtEnd::Keep {
                here = next;
                continue;
            }
            links += 1;
            if links > MAX_SYMLINKS {
                return Err(Errno::LOOP);
            }
            if is_of_proc(&next)? {
                // Its text is not where it leads.
                here = open(&here, &name, OFlags::empty())?;
                continue;
            }
            let target = rustix::fs::readlinkat(&next, "", Vec::new())?.into_bytes();
            if target.first() == Some(&b'/') {
                here = again(root)?;
            }
            names.extend(names_of(&target));
        }
        Ok(here)
    }

    /// Returns the directory of the process in its /proc, if this name says it: there, `self` is who
    /// asks.
    fn own_directory(&self, dir: &OwnedFd, name: &[u8]) -> Result<Option<OwnedFd>, Errno> {
        if !matches!(name, b"self" | b"thread-self") || !is_of_proc(dir)? {
            return Ok(None);
        }
        open(&self.proc, b".", OFlags::DIRECTORY).map(Some)
    }
}

/// Returns the names of a path, the first one last.
fn names_of(path: &[u8]) -> Vec<Vec<u8>> {
    let names = path
        .split(|byte| *byte == b'/')
        .filter(|name| !name.is_empty());
    let mut names: Vec<Vec<u8>> = names.map(<[u8]>::to_vec).collect();
    if path.ends_with(b"/") {
        names.push(b".".to_vec());
    }
    names.reverse();
    names
}

fn is_of_proc(fd: &OwnedFd) -> Result<bool, Errno> {
    Ok(rustix::fs::fstatfs(fd)?.f_type as u64 == PROC)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd as _;
    use std::os::unix::fs::{MetadataExt as _, symlink};

    /// A caller with the root directory and working directory of this process.
    fn ourselves() -> Caller {
        Caller::of_thread(std::process::id()).unwrap()
    }

    #[test]
    fn paths_lead_to_where_the_kernel_leads() {
        let scratch = tempfile::tempdir().unwrap();
        let dir = scratch.path();
        std::fs::create_dir_all(dir.join("a/b")).unwrap();
        std::fs::write(dir.join("a/file"), "").unwrap();
        symlink("b/../file", dir.join("a/near")).unwrap();
        symlink(dir.join("a/near"), dir.join("far")).unwrap();
        symlink("loop", dir.join("loop")).unwrap();
        symlink("a", dir.join("dir")).unwrap();
        symlink("absent", dir.join("dangling")).unwrap();
        let open_dir = File::open(dir).unwrap();
        let number = open_dir.as_raw_fd();
        let found = |path: &str, at_end| -> Result<(u64, u64), Errno> {
            let file = ourselves().file(number, path.as_bytes(), at_end)?;
            let stat = rustix::fs::fstat(&file)?;
            Ok((stat.st_dev, stat.st_ino))
        };
        let absolute = dir.join("a/near").to_str().unwrap().to_owned();
        let up = format!("{}{}", "../".repeat(60), absolute.trim_start_matches('/'));
        let through_proc = format!("/proc/self/fd/{number}/a/../far");
        for path in [
            "a",
            "a/file",
            "a/near",
            "far",
            "loop",
            "dir",
            "dir/",
            "dir/file",
            "dangling",
            "absent",
            "a/file/",
            "a/file/..",
            "./a//b/",
            "..",
            ".",
            "",
            &absolute,
            &up,
            &through_proc,
        ] {
            for (at_end, flags) in [
                (AtEnd::Follow, OFlags::empty()),
                (AtEnd::Keep, OFlags::NOFOLLOW),
            ] {
                let expected = open(&open_dir, path.as_bytes(), flags)
                    .and_then(rustix::fs::fstat)
                    .map(|stat| (stat.st_dev, stat.st_ino));
                assert_eq!(found(path, at_end), expected, "{path:?} {at_end:?}");
            }
        }
        assert_eq!(
            found("/proc/self/nothing", AtEnd::Follow),
            Err(Errno::NOENT)
        );
        let own = ourselves()
            .file(number, b"/proc/self/exe", AtEnd::Follow)
            .unwrap();
        let exe = std::fs::metadata("/proc/self/exe").unwrap();
        assert_eq!(rustix::fs::fstat(&own).unwrap().st_ino, exe.ino());
        assert_eq!(ourselves().descriptor(i32::MAX).unwrap_err(), Errno::BADF);
    }

    #[test]
    fn paths_are_read_from_memory() {
        let at = |text: &[u8]| ourselves().path_at(text.as_ptr() as u64);
        assert_eq!(at(b"/a/path\0more"), Ok(b"/a/path".to_vec()));
        assert_eq!(at(b"\0"), Ok(Vec::new()));
        let mut long = vec![b'x'; MAX_PATH];
        long.push(0);
        assert_eq!(at(&long), Err(Some(Errno::NAMETOOLONG)));
        long[MAX_PATH - 1] = 0;
        assert_eq!(at(&long).map(|path| path.len()), Ok(MAX_PATH - 1));
        assert_eq!(ourselves().path_at(8), Err(Some(Errno::FAULT)));
    }
}
