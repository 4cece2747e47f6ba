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
use std::path::{Component, Path, PathBuf};

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

    /// Opens a directory below the root as a root of its own; `None` if it does not exist. Several
    /// files in one directory are read faster through it.
    pub(crate) fn below(&self, relative: impl AsRef<Path>) -> Result<Option<Self>> {
        let relative = relative.as_ref();
        match self.open_at(relative, OFlags::PATH | OFlags::DIRECTORY) {
            Ok(fd) => Ok(Some(Self {
                path: self.full(relative),
                fd,
                links: Mutex::new(None),
            })),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(errno) => Err(self.error("open", relative, errno)),
        }
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
        // effects.
        match self.look_kind(relative) {
            Ok(kind) if is_node(kind) => return Err(not_a_file()),
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            // The open has the reason.
            Ok(_) | Err(_) => {}
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

    /// Returns the type of a file, which is not followed if it is a symlink.
    fn look_kind(&self, relative: &Path) -> std::result::Result<FileType, Errno> {
        // A longer path could lead through symlinks of the store's owner: it needs a descriptor.
        if is_name(relative) {
            let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
            let stat = rustix::fs::statat(&self.fd, relative, flags)?;
            return Ok(FileType::from_raw_mode(stat.st_mode));
        }
        let found = self.open_at(relative, OFlags::PATH | OFlags::NOFOLLOW)?;
        Ok(FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode))
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

    /// Whether a directory below the root belongs to root or to this user, and no other user may
    /// change the names in it; also if there is no such directory. An empty path is the root.
    ///
    /// # Errors
    /// Those of statx(2).
    pub(crate) fn belongs_to_us(&self, relative: &Path) -> Result<bool> {
        let ours = if relative.as_os_str().is_empty() {
            walk::belongs_to_us(&self.fd)
        } else {
            match self.dir(relative, OFlags::PATH)? {
                Some(dir) => walk::belongs_to_us(&dir),
                None => return Ok(true),
            }
        };
        ours.map_err(|error| self.failed("stat", relative, &error))
    }

    /// Returns the device number of the root directory's file system.
    pub(crate) fn device(&self) -> Result<u64> {
        let stat = rustix::fs::fstat(&self.fd);
        stat.map(|stat| stat.st_dev)
            .map_err(|e| Error::io("stat", &self.path, e))
    }

    /// Returns the owner of the root directory.
    pub(crate) fn owner(&self) -> Result<u32> {
        let stat = rustix::fs::statat(&self.fd, "", AtFlags::EMPTY_PATH)
            .map_err(|e| Error::io("stat", &self.path, e))?;
        Ok(stat.st_uid)
    }
}

/// Whether a file of that type is a device or a FIFO.
fn is_node(kind: FileType) -> bool {
    use FileType::{BlockDevice, CharacterDevice, Fifo};
    matches!(kind, CharacterDevice | BlockDevice | Fifo)
}

/// Whether the path is one plain name.
fn is_name(path: &Path) -> bool {
    let mut parts = path.components();
    matches!((parts.next(), parts.next()), (Some(Component::Normal(name)), None) if name == path.as_os_str())
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
    fn a_directory_below_the_root_confines_as_the_root_does() {
        let temp = tempfile::tempdir().unwrap();
        let inside = temp.path().join("a/b");
        std::fs::create_dir_all(&inside).unwrap();
        std::fs::write(inside.join("file"), "text").unwrap();
        std::fs::write(temp.path().join("outside"), "secret").unwrap();
        for (target, name) in [("../../outside", "up"), ("file", "link")] {
            std::os::unix::fs::symlink(target, inside.join(name)).unwrap();
        }
        std::os::unix::fs::symlink("b", temp.path().join("a/alias")).unwrap();
        let mode = Mode::from_bits_retain(0o600);
        let fifo = inside.join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, fifo, FileType::Fifo, mode, 0).unwrap();
        let root = ConfinedDir::open(temp.path()).unwrap();
        let below = root.below("a/b").unwrap().unwrap();
        assert_eq!(below.path(), root.full("a/b"));
        assert_eq!(below.read("file", SMALL).unwrap().unwrap(), b"text");
        assert!(below.read("none", SMALL).unwrap().is_none());
        assert!(below.read("file/none", SMALL).unwrap().is_none());
        for link in ["up", "link", "../../outside", ".."] {
            let error = below.read(link, SMALL).unwrap_err();
            assert!(matches!(error, Error::Symlink { .. }), "{link}: {error:?}");
        }
        for name in ["fifo", "."] {
            let error = below.read(name, SMALL).unwrap_err();
            assert!(matches!(error, Error::NotAFile { .. }), "{name}: {error:?}");
        }
        assert!(matches!(root.below("a/alias"), Err(Error::Symlink { .. })));
        assert!(root.below("a/none").unwrap().is_none());
        assert!(root.below("a/b/file").unwrap().is_none());
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
