//! Makes files from the entries of a tar, below one directory and nowhere else.
//!
//! A parent directory is found by `openat2(RESOLVE_IN_ROOT)`: symlinks on the way, which earlier
//! entries may have made, are resolved as for a process whose root is the layer. Docker unpacks in
//! the same way. The last component is never followed.

use std::ffi::CString;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{Dir, Mode, OFlags, ResolveFlags, XattrFlags};
use rustix::io::Errno;

use super::clean;
use super::device_stand_in;
use super::directory_metadata::{DeferredDirectories, DirectoryMetadata};
use super::error::{Error, Result};
use super::header::{Entry, EntryKind};
use crate::layer::Dialect;
use crate::layer::at::{At, is_valid_name, timestamps};
use crate::layer::markers::is_marker_xattr;
use crate::layer::recorded::is_reserved;
use crate::layer::types::FileKind;
use crate::oci::text::excerpt;
use crate::sys::interrupt;
use crate::sys::openat2::openat2;

/// Makes the files of a layer.
pub(super) struct Extractor<'d> {
    pub(super) root: BorrowedFd<'d>,
    pub(super) dialect: Dialect,
    /// Whether files get their owners: only root can change owners.
    owners: bool,
    /// The parent used last.
    parent: Option<(Vec<u8>, OwnedFd)>,
    /// Whether a file was placed through a symlink: then its tar-split line needs the symlink to
    /// stay.
    through_symlink: bool,
    /// Modes and times of directories, which are set when their content is complete.
    directories: DeferredDirectories<'d>,
    /// The bytes of files, each inode once, and of symlinks' targets.
    size: u64,
    /// The number of xattrs that could not be set.
    lost: u64,
    /// The number of device nodes that are empty files.
    stand_ins: u64,
}

/// Opens a path of the layer as for a process whose root is the layer.
pub(super) fn open_in(
    root: BorrowedFd<'_>,
    path: &[u8],
    flags: OFlags,
) -> std::result::Result<OwnedFd, Errno> {
    open_beneath(root, path, flags, ResolveFlags::empty())
}

pub(super) fn open_beneath(
    root: BorrowedFd<'_>,
    path: &[u8],
    flags: OFlags,
    resolve: ResolveFlags,
) -> std::result::Result<OwnedFd, Errno> {
    let path: &[u8] = if path.is_empty() { b"." } else { path };
    let flags = flags | OFlags::CLOEXEC;
    let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    // EAGAIN means that a file was renamed meanwhile, anywhere on the system.
    loop {
        match openat2(root, path, flags, Mode::empty(), inside | resolve) {
            Err(Errno::AGAIN) => {}
            other => return other,
        }
    }
}

/// The depth limit of a directory that a later entry replaces. Through symlinks a tar can make
/// deeper directories than a path can name, and each level needs a descriptor and stack here.
const MAX_REPLACED_DEPTH: usize = 256;

/// Set last on a directory, because files made in the directory inherit it.
const DEFAULT_ACL: &[u8] = b"system.posix_acl_default";

pub(super) const DIR: OFlags = OFlags::PATH.union(OFlags::DIRECTORY);

/// Splits a path into its directory and its last component.
pub(super) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&b| b == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

impl<'d> Extractor<'d> {
    pub(super) fn new(root: BorrowedFd<'d>, dialect: Dialect) -> Self {
        Self {
            root,
            dialect,
            owners: rustix::process::geteuid().is_root(),
            parent: None,
            through_symlink: false,
            directories: DeferredDirectories::new(root),
            size: 0,
            lost: 0,
            stand_ins: 0,
        }
    }

    /// Begins the records of a plain user's layer, before its first entry.
    pub(super) fn begin(&self) -> Result<()> {
        if self.owners {
            return Ok(());
        }
        let root = At::fd(self.root);
        root.record(0, 0, 0o755)
            .map_err(|e| Error::place(b"./", "record the owner", e))
    }

    /// Returns the layer's size as Docker counts it.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Returns the number of xattrs that the file system, or the permissions of a plain user, did
    /// not allow.
    pub(super) fn lost(&self) -> u64 {
        self.lost
    }

    /// Returns the number of device nodes that are empty files, since only root can make device
    /// nodes.
    pub(super) fn stand_ins(&self) -> u64 {
        self.stand_ins
    }

    /// Returns the directory with that path, and makes it if it does not exist.
    pub(super) fn directory(&mut self, entry: &[u8], path: &[u8]) -> Result<&OwnedFd> {
        let known = self.parent.as_ref().is_some_and(|(known, _)| known == path);
        if !known {
            let found = match open_beneath(self.root, path, DIR, ResolveFlags::NO_SYMLINKS) {
                Err(Errno::LOOP) => {
                    self.through_symlink = true;
                    open_in(self.root, path, DIR)
                }
                other => other,
            };
            let fd = match found {
                Err(Errno::NOENT) => self.make_parents(entry, path)?,
                other => other.map_err(|e| Error::place(entry, "open the directory of it", e))?,
            };
            self.parent = Some((path.to_vec(), fd));
        }
        match &self.parent {
            Some((_, fd)) => Ok(fd),
            None => Err(Error::place(
                entry,
                "open the directory of it",
                Errno::NOENT,
            )),
        }
    }

    fn make_parents(&self, entry: &[u8], path: &[u8]) -> Result<OwnedFd> {
        let fail = |action| move |e| Error::place(entry, action, e);
        let mut above = open_in(self.root, b"", DIR).map_err(fail("open the layer for it"))?;
        let ends = path.iter().enumerate().filter(|&(_, &b)| b == b'/');
        for end in ends.map(|(at, _)| at).chain([path.len()]) {
            let part = &path[..end];
            let next = match open_in(self.root, part, DIR) {
                Err(Errno::NOENT) => {
                    // mkdir(2) returns EEXIST for a dangling symlink.
                    let at = At::new(above.as_fd(), split(part).1);
                    at.mkdir(0o755)
                        .and_then(|()| at.chmod(0o755))
                        .and_then(|()| {
                            if self.owners {
                                Ok(())
                            } else {
                                at.record(0, 0, 0o755)
                            }
                        })
                        .map_err(fail("create the directory of it"))?;
                    at.open_dir_path()
                }
                other => other,
            };
            above = next.map_err(fail("open the directory of it"))?;
        }
        Ok(above)
    }

    /// Returns the directory and name of an entry; `None` for the layer's root.
    fn target<'p>(&mut self, name: &[u8], path: &'p [u8]) -> Result<Option<(&OwnedFd, &'p [u8])>> {
        if path.is_empty() {
            return Ok(None);
        }
        let (parent, last) = split(path);
        Ok(Some((self.directory(name, parent)?, last)))
    }

    /// Makes an entry without content, including whiteouts. `path` is its cleaned name.
    pub(super) fn node(&mut self, path: &[u8], entry: &Entry) -> Result<()> {
        if path.is_empty() {
            return self.root_entry(entry);
        }
        match entry.kind {
            EntryKind::Directory => self.make_directory(path, entry),
            EntryKind::HardLink => self.hard_link(path, entry),
            EntryKind::Symlink => {
                self.make(path, entry, "create the symlink", |at| {
                    at.symlink(&entry.link)
                })?;
                self.size += entry.link.len() as u64;
                // The symlink may be on the path of the cached directory.
                self.parent = None;
                self.metadata(path, entry)
            }
            EntryKind::CharDevice | EntryKind::BlockDevice | EntryKind::Fifo => {
                let kind = match entry.kind {
                    EntryKind::CharDevice => FileKind::CharDevice,
                    EntryKind::BlockDevice => FileKind::BlockDevice,
                    _ => FileKind::Fifo,
                };
                let action = match kind {
                    FileKind::Fifo => "create the fifo",
                    _ => "create the device node",
                };
                let made = self.make(path, entry, action, |at| {
                    match at.mknod(kind, entry.perm, entry.device) {
                        // A whiteout has no stand-in.
                        Err(Errno::PERM) if entry.device != (0, 0) && kind != FileKind::Fifo => {
                            at.mknod(FileKind::Regular, 0o600, (0, 0))?;
                            device_stand_in::set(at, entry)?;
                            Ok(FileKind::Regular)
                        }
                        made => made.map(|()| kind),
                    }
                })?;
                self.stand_ins += u64::from(made != kind);
                self.metadata(path, entry)
            }
            EntryKind::Regular | EntryKind::Global => Ok(()),
        }
    }

    fn root_entry(&mut self, entry: &Entry) -> Result<()> {
        match entry.kind {
            EntryKind::Directory => self.metadata(b"", entry),
            EntryKind::Global => Ok(()),
            _ => {
                let what = "replaces the layer's root; not a valid layer";
                Err(Error::entry(&entry.name, what))
            }
        }
    }

    /// Calls `make` on the path, and again after removing an earlier entry there if necessary.
    fn make<T>(
        &mut self,
        path: &[u8],
        entry: &Entry,
        action: &'static str,
        make: impl Fn(At<'_>) -> std::result::Result<T, Errno>,
    ) -> Result<T> {
        for again in [true, false] {
            let Some((dir, last)) = self.target(&entry.name, path)? else {
                break;
            };
            match make(At::new(dir.as_fd(), last)) {
                Err(Errno::EXIST) if again => self.replace(path, entry)?,
                other => return other.map_err(|e| Error::place(&entry.name, action, e)),
            }
        }
        Err(Error::place(&entry.name, action, Errno::EXIST))
    }

    /// Creates the file of a regular entry, to be written by the caller.
    pub(super) fn create(&mut self, path: &[u8], entry: &Entry) -> Result<OwnedFd> {
        if path.is_empty() {
            self.root_entry(entry)?;
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        self.make(path, entry, "create the file", |at| at.open(flags, 0o600))
    }

    /// Completes a regular file: sets its owner, mode, xattrs and times.
    pub(super) fn finish_file(&mut self, entry: &Entry, fd: &OwnedFd, size: u64) -> Result<()> {
        self.size = self.size.saturating_add(size);
        let at = At::opened(fd.as_fd());
        self.own(at, entry)?;
        let owners = self.owners;
        self.lost += xattrs(at, entry, |name| owners || !is_reserved(name))?;
        let fail = |action| move |e| Error::place(&entry.name, action, e);
        let mode = Mode::from_raw_mode(self.mode(entry));
        rustix::fs::fchmod(fd, mode).map_err(fail("set the mode"))?;
        let times = timestamps(entry.atime, entry.mtime);
        rustix::fs::futimens(fd, &times).map_err(fail("set the times"))
    }

    fn make_directory(&mut self, path: &[u8], entry: &Entry) -> Result<()> {
        let fail = |e| Error::place(&entry.name, "create the directory", e);
        let mut opaque = false;
        let merged = {
            let Some((dir, last)) = self.target(&entry.name, path)? else {
                return Ok(());
            };
            let at = At::new(dir.as_fd(), last);
            match at.mkdir(0o700) {
                Ok(()) => true,
                Err(Errno::EXIST) => {
                    let stat = at.stat().map_err(fail)?;
                    opaque = stat.is_chardev_whiteout();
                    stat.kind == FileKind::Directory
                }
                Err(e) => return Err(fail(e)),
            }
        };
        if !merged {
            self.make(path, entry, "create the directory", |at| at.mkdir(0o700))?;
        }
        if opaque {
            // `.wh.NAME` came before NAME: the content of the lower layers stays hidden.
            self.set_opaque(&entry.name, path)?;
        }
        self.metadata(path, entry)
    }

    fn hard_link(&mut self, path: &[u8], entry: &Entry) -> Result<()> {
        let Some(source) = clean(&entry.link).filter(|link| !link.is_empty()) else {
            let link = excerpt(&entry.link);
            let what = format!("is a hard link to {link}, outside of the layer; refused");
            return Err(Error::entry(&entry.name, what));
        };
        if source == path {
            return Ok(());
        }
        let fail = |e| Error::place(&entry.name, "find the target of the hard link", e);
        let (parent, last) = split(&source);
        let from = open_in(self.root, parent, DIR).map_err(fail)?;
        let from = At::new(from.as_fd(), last);
        let target = from.stat().map_err(fail)?;
        let there = self.target(&entry.name, path)?;
        let there = there.map(|(dir, last)| At::new(dir.as_fd(), last).stat());
        if there.is_some_and(|stat| stat.is_ok_and(|s| (s.dev, s.ino) == (target.dev, target.ino)))
        {
            // The same link again.
            return Ok(());
        }
        self.make(path, entry, "create the hard link", |at| from.link_to(at))
    }

    /// Sets owner, mode, xattrs and times of any file but a regular one; `path` is its path.
    fn metadata(&mut self, path: &[u8], entry: &Entry) -> Result<()> {
        let (parent, last) = split(path);
        let root = self.root;
        let at = match path {
            b"" => None,
            _ => Some(self.directory(&entry.name, parent)?.try_clone()),
        };
        let parent = at.transpose().map_err(|e| {
            let errno = Errno::from_io_error(&e).unwrap_or(Errno::IO);
            Error::place(&entry.name, "open the directory of it", errno)
        })?;
        let at = match &parent {
            None => At::fd(root),
            Some(dir) => At::new(dir.as_fd(), last),
        };
        self.own(at, entry)?;
        let owners = self.owners;
        let is_free = |name: &[u8]| owners || !is_reserved(name);
        self.lost += xattrs(at, entry, |name| name != DEFAULT_ACL && is_free(name))?;
        let fail = |action| move |e| Error::place(&entry.name, action, e);
        if entry.kind == EntryKind::Directory {
            // Until the directory is complete, this process must be able to write to it.
            at.chmod(entry.perm | 0o700).map_err(fail("set the mode"))?;
            let mut xattrs = entry.xattrs.iter();
            let acl = xattrs.find(|(name, _)| name == DEFAULT_ACL);
            let late = DirectoryMetadata {
                perm: self.mode(entry),
                atime: entry.atime,
                mtime: entry.mtime,
                acl: acl.map(|(_, value)| value.clone()),
            };
            self.directories.insert(path, late)?;
            return Ok(());
        }
        if entry.kind != EntryKind::Symlink {
            at.chmod(self.mode(entry)).map_err(fail("set the mode"))?;
        }
        let times = timestamps(entry.atime, entry.mtime);
        at.set_times(&times).map_err(fail("set the times"))
    }

    /// Returns the mode of an entry. A user who is not root must be able to read and remove their
    /// own layers.
    fn mode(&self, entry: &Entry) -> u32 {
        match entry.kind {
            _ if self.owners => entry.perm,
            EntryKind::Directory => entry.perm | 0o700,
            _ => entry.perm | 0o400,
        }
    }

    fn own(&self, at: At<'_>, entry: &Entry) -> Result<()> {
        if !self.owners {
            return self.record(at, entry);
        }
        at.chown(Some(entry.uid), Some(entry.gid))
            .map_err(|e| Error::place(&entry.name, "set the owner", e))
    }

    /// Records owner and mode beside a file of a plain user's store, while the user may write it.
    fn record(&self, at: At<'_>, entry: &Entry) -> Result<()> {
        match entry.kind {
            EntryKind::Regular | EntryKind::Directory => at
                .record(entry.uid, entry.gid, entry.perm)
                .map_err(|e| Error::place(&entry.name, "record the owner", e)),
            // Stand-ins of devices have their record; links and FIFOs can have none.
            _ => Ok(()),
        }
    }

    /// Sets the modes and times of directories, inner ones first.
    pub(super) fn finish(&mut self) -> Result<()> {
        self.parent = None;
        let (root, mut lost) = (self.root, 0);
        self.directories.drain(|path, late| {
            interrupt::check()?;
            let (parent, last) = split(path);
            // A later entry has replaced the directory.
            let Ok(dir) = open_in(root, parent, DIR) else {
                return Ok(());
            };
            let dir = match path {
                b"" => Ok(dir),
                _ => At::new(dir.as_fd(), last).open_dir_path(),
            };
            let Ok(dir) = dir else {
                return Ok(());
            };
            let fail = |action| move |e| Error::place(path, action, e);
            let at = At::fd(dir.as_fd());
            if late.perm & 0o700 != 0o700 {
                at.chmod(late.perm).map_err(fail("set the mode"))?;
            }
            if let Some(acl) = &late.acl {
                lost += xattr(at, path, DEFAULT_ACL, acl)?;
            }
            let times = timestamps(late.atime, late.mtime);
            at.set_times(&times).map_err(fail("set the times"))
        })?;
        self.lost += lost;
        Ok(())
    }

    /// Removes what an earlier entry left at a path.
    fn replace(&mut self, path: &[u8], entry: &Entry) -> Result<()> {
        self.parent = None;
        let (parent, last) = split(path);
        let dir = open_in(self.root, parent, DIR)
            .map_err(|e| Error::place(&entry.name, "open the directory of it", e))?;
        self.remove(At::new(dir.as_fd(), last), &entry.name, 0)
    }

    /// Removes a file or directory. Fails if tar-split needs the content.
    fn remove(&mut self, at: At<'_>, name: &[u8], depth: usize) -> Result<()> {
        let fail = |e| Error::place(name, "replace the earlier entry", e);
        let stat = at.stat().map_err(fail)?;
        match stat.kind {
            FileKind::Regular if stat.size > 0 => {
                let what = "replaces a file that the same layer has before it; \
                            such layers are not supported, flatten the image";
                return Err(Error::entry(name, what));
            }
            FileKind::Directory if depth >= MAX_REPLACED_DEPTH => {
                let what = "replaces a directory tree that is hundreds of levels deep; \
                            such layers are not supported, flatten the image";
                return Err(Error::entry(name, what));
            }
            FileKind::Directory => {
                self.empty(at, name, depth)?;
                return at.rmdir().map_err(fail);
            }
            FileKind::Symlink if self.through_symlink => {
                let what = "replaces a symlink, and files were placed through one; \
                            such layers are not supported, flatten the image";
                return Err(Error::entry(name, what));
            }
            // Other names of the symlink may stay.
            FileKind::Symlink if stat.nlink == 1 => {
                self.size = self.size.saturating_sub(stat.size);
            }
            _ => {}
        }
        at.unlink().map_err(fail)
    }

    fn empty(&mut self, at: At<'_>, name: &[u8], depth: usize) -> Result<()> {
        let fail = |e| Error::place(name, "replace the earlier entry", e);
        let fd = at
            .open(OFlags::RDONLY | OFlags::DIRECTORY, 0)
            .map_err(fail)?;
        let mut names = Vec::new();
        for found in Dir::read_from(&fd).map_err(fail)? {
            let found = found.map_err(fail)?.file_name().to_bytes().to_vec();
            if is_valid_name(&found) {
                names.push(found);
            }
        }
        for inner in names {
            self.remove(At::new(fd.as_fd(), &inner), name, depth + 1)?;
        }
        Ok(())
    }
}

/// Sets the xattrs of an entry. Markers of an overlay are not taken from a tar, because a layer
/// hides names by whiteouts. Returns the number of xattrs that could not be set.
fn xattrs(at: At<'_>, entry: &Entry, wanted: impl Fn(&[u8]) -> bool) -> Result<u64> {
    let mut lost = 0;
    for (name, value) in entry.xattrs.iter().filter(|(name, _)| wanted(name)) {
        if is_marker_xattr(name) {
            tracing::debug!(entry = ?entry.name.escape_ascii(), "overlay marker in a tar dropped");
            continue;
        }
        lost += xattr(at, &entry.name, name, value)?;
    }
    Ok(lost)
}

/// Sets an xattr; returns 1 if it could not be set, otherwise 0.
fn xattr(at: At<'_>, entry: &[u8], name: &[u8], value: &[u8]) -> Result<u64> {
    let Ok(name) = CString::new(name) else {
        let what = "xattr with NUL in its name; not a valid layer";
        return Err(Error::entry(entry, what));
    };
    match at.set_xattr(&name, value, XattrFlags::empty()) {
        Ok(()) => Ok(0),
        // The file system or the permissions of a plain user do not allow it. As in Docker, this is
        // no error.
        Err(Errno::OPNOTSUPP | Errno::PERM) => Ok(1),
        Err(e) => Err(Error::place(entry, "set an xattr", e)),
    }
}
