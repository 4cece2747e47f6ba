//! Access to the files below a directory, and to no others. The kernel resolves every path with
//! `openat2(RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS)`, and the size of a file is bounded before the
//! file is read. [`change`] has the operations that write.

mod change;
mod tree;

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::error::{Error, Result};
use crate::layer::OpenDir;
use crate::layer::dir::path_of;
use crate::sys::openat2::openat2;
use crate::sys::stat::begins_mount;
use crate::sys::walk::{self, Trust};

/// The size limit of a file that holds one digest, ID or number, in bytes.
pub(crate) const SMALL: u64 = 4 << 10;

/// A directory whose content is read as hostile data.
#[derive(Debug)]
pub(crate) struct ConfinedDir {
    path: PathBuf,
    fd: OwnedFd,
    /// The directory in which [`Self::link`] looked last.
    links: Mutex<Option<(String, OwnedFd)>>,
}

impl ConfinedDir {
    /// Opens the root itself. A symlink is followed only here.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        Self::opened(path, walk::open_directory(path, Trust::of_root()))
    }

    /// As [`Self::open`]; `None` if the directory does not exist.
    pub(crate) fn existing(path: &Path) -> Result<Option<Self>> {
        match Self::open(path) {
            Err(error) if error.errno() == Some(Errno::NOENT) => Ok(None),
            other => other.map(Some),
        }
    }

    /// As [`Self::open`], for our own store: makes missing directories, accessible to this user
    /// only.
    pub(crate) fn make(path: &Path) -> Result<Self> {
        Self::opened(path, walk::make_directory(path, Trust::of_root(), 0o700))
    }

    /// Returns the confined form of a directory that is already open.
    pub(crate) fn of(dir: &OpenDir) -> Result<Self> {
        let fd = rustix::io::fcntl_dupfd_cloexec(dir, 0)
            .map_err(|errno| Error::io("open", dir.path(), errno))?;
        Ok(Self {
            path: dir.path().to_owned(),
            fd,
            links: Mutex::new(None),
        })
    }

    fn opened(path: &Path, opened: io::Result<OwnedFd>) -> Result<Self> {
        let fd = opened.map_err(|source| Error::opening(path, source))?;
        // The path of the open directory: the given name may be that of another directory by now.
        let path = path_of(&fd).ok_or_else(|| Error::io("open", path, Errno::NOENT))?;
        let links = Mutex::new(None);
        Ok(Self { path, fd, links })
    }

    /// Returns the path of the root, absolute and without symlinks.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the absolute form of a path below the root, for messages and results.
    pub(crate) fn full(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.path.join(relative)
    }

    fn open_at(&self, relative: &Path, flags: OFlags) -> std::result::Result<OwnedFd, Errno> {
        openat2(
            &self.fd,
            relative,
            flags | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS,
        )
    }

    fn error(&self, action: &'static str, relative: &Path, errno: Errno) -> Error {
        let path = self.full(relative);
        match errno {
            Errno::LOOP | Errno::XDEV => Error::Symlink { path },
            errno => Error::io(action, &path, errno),
        }
    }

    pub(crate) fn failed(&self, action: &'static str, relative: &Path, error: &io::Error) -> Error {
        let errno = Errno::from_io_error(error).unwrap_or(Errno::IO);
        Error::io(action, &self.full(relative), errno)
    }

    /// Returns a path below the root relative to the root; `None` for any other path.
    pub(crate) fn relative<'p>(&self, full: &'p Path) -> Option<&'p Path> {
        full.strip_prefix(&self.path).ok()
    }

    /// Opens a regular file for reading; `None` if it does not exist.
    pub(crate) fn file(&self, relative: impl AsRef<Path>) -> Result<Option<File>> {
        Ok(self.sized(relative.as_ref())?.map(|(file, _)| file))
    }

    /// As [`Self::file`], with its size in bytes.
    fn sized(&self, relative: &Path) -> Result<Option<(File, u64)>> {
        let not_a_file = || Error::NotAFile {
            path: self.full(relative),
        };
        // The type is checked before the file is opened, because opening a device may have side
        // effects. The check uses a descriptor: a path could lead through symlinks of the store's
        // owner.
        let look = self.open_at(relative, OFlags::PATH | OFlags::NOFOLLOW);
        if look.is_ok_and(|found| is_node(&found)) {
            return Err(not_a_file());
        }
        // NONBLOCK: if the file has become a FIFO meanwhile, the open must not hang.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let fd = match self.open_at(relative, flags) {
            Ok(fd) => fd,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            // open(2) of a socket always fails.
            Err(Errno::NXIO) => return Err(not_a_file()),
            Err(errno) => return Err(self.error("read", relative, errno)),
        };
        let stat = rustix::fs::fstat(&fd).map_err(|e| self.error("read", relative, e))?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {
                let size = u64::try_from(stat.st_size).unwrap_or(u64::MAX);
                Ok(Some((File::from(fd), size)))
            }
            _ => Err(not_a_file()),
        }
    }

    /// Reads a regular file of at most `limit` bytes; `None` if it does not exist.
    pub(crate) fn read(&self, relative: impl AsRef<Path>, limit: u64) -> Result<Option<Vec<u8>>> {
        let relative = relative.as_ref();
        let Some((file, size)) = self.sized(relative)? else {
            return Ok(None);
        };
        let too_large = || Error::TooLarge {
            path: self.full(relative),
            limit,
        };
        if size > limit {
            return Err(too_large());
        }
        let bytes = read_whole(file, size, limit).map_err(|e| {
            let errno = Errno::from_io_error(&e).unwrap_or(Errno::IO);
            self.error("read", relative, errno)
        })?;
        if bytes.len() as u64 > limit {
            return Err(too_large());
        }
        Ok(Some(bytes))
    }

    /// Opens a directory below the root; `None` if it does not exist.
    pub(crate) fn dir(&self, relative: &Path, flags: OFlags) -> Result<Option<OwnedFd>> {
        match self.open_at(relative, flags | OFlags::DIRECTORY) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(self.error("open", relative, errno)),
        }
    }

    /// Returns the names in a directory, sorted; empty if there is no such directory.
    pub(crate) fn list(&self, relative: impl AsRef<Path>) -> Result<Vec<OsString>> {
        let relative = relative.as_ref();
        let Some(fd) = self.dir(relative, OFlags::RDONLY)? else {
            return Ok(Vec::new());
        };
        let fail = |errno| self.error("list", relative, errno);
        let mut names = Vec::new();
        for entry in Dir::new(fd).map_err(fail)? {
            let entry = entry.map_err(fail)?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                names.push(OsStr::from_bytes(name).to_owned());
            }
        }
        names.sort();
        Ok(names)
    }

    /// Whether a file of any type has that name.
    pub(crate) fn exists(&self, relative: impl AsRef<Path>) -> Result<bool> {
        let relative = relative.as_ref();
        match self.open_at(relative, OFlags::PATH | OFlags::NOFOLLOW) {
            Ok(_) | Err(Errno::LOOP) => Ok(true),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(false),
            Err(errno) => Err(self.error("look up", relative, errno)),
        }
    }

    /// Opens a layer's directory. The descriptor stays valid when names change later.
    pub(crate) fn layer_dir(&self, relative: impl AsRef<Path>) -> Result<OpenDir> {
        let relative = relative.as_ref();
        let path = self.full(relative);
        match OpenDir::open_by(&path, |flags| self.open_at(relative, flags)) {
            Ok(dir) => Ok(dir),
            Err(Errno::NOENT) => Err(Error::LayerDirMissing { path }),
            Err(Errno::NOTDIR) => Err(Error::LayerNotDirectory { path }),
            Err(errno) => Err(self.error("open", relative, errno)),
        }
    }

    /// Whether the path is a mountpoint in this mount namespace.
    pub(crate) fn is_mount_root(&self, relative: impl AsRef<Path>) -> bool {
        let found = self.open_at(relative.as_ref(), OFlags::PATH);
        found.and_then(begins_mount).unwrap_or(false)
    }

    /// Returns the target of the symlink `name` in a directory; `None` if there is no such entry.
    /// The directory itself is reached without symlinks, and stays open for the next symlink in it.
    pub(crate) fn link(&self, dir: &str, name: &str) -> Result<Option<OsString>> {
        let mut kept = self.links.lock();
        let fd = match kept.take().filter(|(path, _)| path == dir) {
            Some((_, fd)) => fd,
            None => match self.dir(Path::new(dir), OFlags::PATH)? {
                Some(fd) => fd,
                None => return Ok(None),
            },
        };
        let target = rustix::fs::readlinkat(&fd, name, Vec::new());
        *kept = Some((dir.to_owned(), fd));
        match target {
            Ok(target) => Ok(Some(OsString::from_vec(target.into_bytes()))),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(self.error("read link", &Path::new(dir).join(name), errno)),
        }
    }

    /// Returns the owner of the root directory.
    pub(crate) fn owner(&self) -> Result<u32> {
        let stat = rustix::fs::statat(&self.fd, "", AtFlags::EMPTY_PATH)
            .map_err(|e| Error::io("stat", &self.path, e))?;
        Ok(stat.st_uid)
    }
}

/// Whether the file is a device or a FIFO.
fn is_node(found: &OwnedFd) -> bool {
    use FileType::{BlockDevice, CharacterDevice, Fifo};
    let kind = walk::kind(found);
    matches!(kind, Some(CharacterDevice | BlockDevice | Fifo))
}

/// Reads a file of `size` bytes; if the file has grown since, up to `limit` bytes and one more. If
/// the size is right, this is a single read(2).
fn read_whole(mut file: File, size: u64, limit: u64) -> io::Result<Vec<u8>> {
    // One more byte, so that the first read reaches the end of the file.
    let first = usize::try_from(size.saturating_add(1)).unwrap_or(usize::MAX);
    let mut bytes = vec![0; first];
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read(rest) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
        if filled as u64 == size {
            break;
        }
    }
    bytes.truncate(filled);
    if filled == first {
        file.take(limit.saturating_sub(size))
            .read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_recognised() {
        let root = ConfinedDir::open(Path::new("/")).unwrap();
        assert!(root.is_mount_root("proc"));
        assert!(!root.is_mount_root("proc/sys"));
        assert!(!root.is_mount_root("no/such/directory"));
    }

    #[test]
    fn a_layer_stays_what_it_was_when_it_was_opened() {
        let temp = tempfile::tempdir().unwrap();
        for name in ["layer", "other"] {
            std::fs::create_dir(temp.path().join(name)).unwrap();
            std::fs::write(temp.path().join(name).join("name"), name).unwrap();
        }
        let root = ConfinedDir::open(temp.path()).unwrap();
        let layer = root.layer_dir("layer").unwrap();
        std::fs::rename(temp.path().join("layer"), temp.path().join("aside")).unwrap();
        std::os::unix::fs::symlink("other", temp.path().join("layer")).unwrap();
        let inside = std::fs::read_to_string(layer.by_descriptor().join("name"));
        assert_eq!(inside.unwrap(), "layer");
        let error = root.layer_dir("layer").unwrap_err();
        assert!(matches!(error, Error::Symlink { .. }), "{error:?}");
    }
}
