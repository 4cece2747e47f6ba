//! The destination of `unionfs cp`.
//!
//! The bytes of the image are hostile, and another user may own the directory. So every file is
//! made in an open directory, under a new name, and gets its name by a rename, which replaces a
//! symlink and does not follow it. Directories are entered without following symlinks. Owners and
//! modes are set through descriptors.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;

use super::command_sandbox::Cage;
use super::cp::copy_name;
use super::warn;
use unionfs::changes::{Node, Visit};
use unionfs::layer::dir::path_of;
use unionfs::sys::interrupt;
use unionfs::sys::openat2::openat2;
use unionfs::sys::walk::{self, Trust};
use unionfs::union::{Attr, FileKind, Ino};

/// The owners of copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owners {
    /// The caller. Set-id bits are dropped.
    Caller,
    /// Those of the originals.
    Kept,
}

/// The destination as the caller named it, before the sandbox is entered.
pub(super) struct Target {
    /// The path as given, for messages.
    given: PathBuf,
    /// The directory that is changed, absolute and without symlinks.
    dir: PathBuf,
    /// The name in it; `None`: the destination is the directory.
    name: Option<OsString>,
    /// Whether the name must be a directory.
    slash: bool,
}

/// The place of a copy.
pub(super) struct Place {
    dir: OwnedFd,
    /// The name of the copy; `None`: the content of the directory goes into `dir`.
    name: Option<OsString>,
}

impl Target {
    /// Finds the destination, and allows changing its directory. Symlinks that another user
    /// controls are not followed where root copies.
    pub(super) fn prepare(cage: &mut Cage, given: &Path) -> anyhow::Result<Self> {
        let failed = || format!("cannot write to {given:?}");
        let (dir, name) = match walk::open_directory(given, Trust::of_root()) {
            Ok(dir) => (dir, None),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                let (dir, name) =
                    walk::open_parent(given, Trust::of_root()).with_context(failed)?;
                (dir, Some(name))
            }
            Err(error) => return Err(error).with_context(failed),
        };
        let dir = path_of(&dir).with_context(failed)?;
        cage.change(&dir).with_context(failed)?;
        Ok(Self {
            given: given.to_owned(),
            dir,
            name,
            slash: given.as_os_str().as_bytes().ends_with(b"/"),
        })
    }

    /// Decides where the copy goes, by the rules of `docker cp`.
    pub(super) fn place(self, node: &Node<'_>, path: &[u8]) -> anyhow::Result<Place> {
        let given = &self.given;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::NO_SYMLINKS;
        let dir = openat2(rustix::fs::CWD, &self.dir, flags, Mode::empty(), resolve);
        let dir = dir.with_context(|| format!("cannot write to {given:?}"))?;
        let Some(name) = self.name else {
            let name = copy_name(path, node).map(OsStr::to_owned);
            return Ok(Place { dir, name });
        };
        let is_dir = node.attr().kind == FileKind::Directory;
        anyhow::ensure!(
            is_dir || !self.slash,
            "directory {given:?} does not exist: make it first, or leave the slash out"
        );
        let there = rustix::fs::statat(&dir, &name, AtFlags::SYMLINK_NOFOLLOW);
        anyhow::ensure!(
            there.is_err() || !is_dir,
            "{given:?} is not a directory, and a directory cannot replace it"
        );
        Ok(Place {
            dir,
            name: Some(name),
        })
    }
}

/// Bytes copied at a time.
const CHUNK: usize = 256 << 10;

/// A directory that is being filled.
struct Open {
    fd: OwnedFd,
    /// `None`: it existed before, and keeps its attributes.
    attr: Option<Attr>,
}

/// A copy under way.
struct Copying<'c> {
    owners: Owners,
    /// Called with the number of bytes that were copied.
    passed: &'c dyn Fn(u64),
    /// The name of the copy in the first directory; empty if the content goes into it.
    start: PathBuf,
    /// The directories on the current path.
    dirs: Vec<Open>,
    /// The copies of files with several names, by their paths below the first directory.
    links: HashMap<Ino, PathBuf>,
    buffer: Vec<u8>,
    /// The number of files that were left out.
    skipped: u64,
}

impl Place {
    /// Copies a file with everything below it. `passed` is called with the number of bytes of each
    /// step.
    pub(super) fn copy(
        self,
        node: Node<'_>,
        owners: Owners,
        passed: &dyn Fn(u64),
    ) -> anyhow::Result<()> {
        let mut copying = Copying {
            owners,
            passed,
            start: self.name.clone().unwrap_or_default().into(),
            dirs: vec![Open {
                fd: self.dir,
                attr: None,
            }],
            links: HashMap::new(),
            buffer: vec![0; CHUNK],
            skipped: 0,
        };
        let into = self.name.is_none();
        for visit in node.walk() {
            interrupt::check()?;
            match visit? {
                Visit::Left(_) => copying.leave()?,
                // The content goes into the directory itself.
                Visit::Entry(path, _) if path.is_empty() && into => {
                    let fd = copying.here()?.try_clone_to_owned()?;
                    copying.dirs.push(Open { fd, attr: None });
                }
                Visit::Entry(path, node) => {
                    let name = match (&self.name, path.is_empty()) {
                        (Some(name), true) => name.clone(),
                        _ => {
                            let last = path.rsplit(|byte| *byte == b'/').next();
                            OsString::from_vec(last.unwrap_or_default().to_vec())
                        }
                    };
                    let copied = copying.one(&node, &name, &path);
                    copied.with_context(|| shown(node.path()))?;
                }
            }
        }
        if copying.skipped > 0 {
            warn(format_args!(
                "{} sockets and device nodes were left out",
                copying.skipped
            ));
        }
        Ok(())
    }
}

fn shown(path: &[u8]) -> String {
    format!("/{}", String::from_utf8_lossy(path))
}

impl Copying<'_> {
    fn here(&self) -> io::Result<BorrowedFd<'_>> {
        let open = self.dirs.last().ok_or(io::ErrorKind::NotFound)?;
        Ok(open.fd.as_fd())
    }

    /// Copies a file, whose path below the start of the copy this is.
    fn one(&mut self, node: &Node<'_>, name: &OsStr, path: &[u8]) -> anyhow::Result<()> {
        let attr = *node.attr();
        if attr.kind == FileKind::Directory {
            return self.enter(name, attr);
        }
        if attr.nlink > 1
            && let Some(first) = self.links.get(&attr.ino)
        {
            return self.hard_link(first, name);
        }
        if !self.make(node, &attr, name)? {
            self.skipped += 1;
            return Ok(());
        }
        if attr.nlink > 1 {
            // A file that is the start has no other names below it.
            let path = OsStr::from_bytes(path);
            self.links.insert(attr.ino, self.start.join(path));
        }
        Ok(())
    }

    /// Makes or enters a directory. One that exists keeps its attributes.
    fn enter(&mut self, name: &OsStr, attr: Attr) -> anyhow::Result<()> {
        let here = self.here()?;
        // The mode is set at the end, when everything is in it.
        let made = match rustix::fs::mkdirat(here, name, Mode::RWXU) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(errno) => return Err(errno.into()),
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = match rustix::fs::openat(here, name, flags, Mode::empty()) {
            Err(Errno::NOTDIR | Errno::LOOP) => {
                anyhow::bail!("the destination has a file or symlink in place of the directory")
            }
            opened => opened?,
        };
        let attr = made.then_some(attr);
        self.dirs.push(Open { fd, attr });
        Ok(())
    }

    fn leave(&mut self) -> anyhow::Result<()> {
        let Some(Open { fd, attr }) = self.dirs.pop() else {
            return Ok(());
        };
        let Some(attr) = attr else {
            return Ok(());
        };
        self.own(fd.as_fd(), &attr)?;
        rustix::fs::fchmod(&fd, self.mode(&attr))?;
        Ok(rustix::fs::futimens(&fd, &times(&attr))?)
    }

    fn hard_link(&self, first: &Path, name: &OsStr) -> anyhow::Result<()> {
        let (Some(root), Some(dir), Some(first)) =
            (self.dirs.first(), first.parent(), first.file_name())
        else {
            anyhow::bail!("the first copy has no name");
        };
        let dir = if dir.as_os_str().is_empty() {
            Path::new(".")
        } else {
            dir
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let dir = openat2(&root.fd, dir, flags, Mode::empty(), resolve)?;
        let here = self.here()?;
        let made = under_new_name(here, |new| {
            rustix::fs::linkat(&dir, first, here, new, AtFlags::empty())
        })?;
        made.name_it(here, name)
    }

    /// Makes a file. Returns false if it is left out.
    fn make(&mut self, node: &Node<'_>, attr: &Attr, name: &OsStr) -> anyhow::Result<bool> {
        let here = self.here()?.try_clone_to_owned()?;
        let here = here.as_fd();
        let made = match attr.kind {
            FileKind::Regular => return self.regular(node, attr, here, name).map(|()| true),
            FileKind::Socket | FileKind::Directory => return Ok(false),
            FileKind::Symlink => {
                let target = OsString::from_vec(node.target()?);
                under_new_name(here, |new| rustix::fs::symlinkat(&target, here, new))?
            }
            FileKind::Fifo | FileKind::BlockDevice | FileKind::CharDevice => {
                // A device of the image would be one of this system.
                if attr.kind != FileKind::Fifo && self.owners == Owners::Caller {
                    return Ok(false);
                }
                let kind = FileType::from_raw_mode(attr.kind.mode_bits());
                let device = rustix::fs::makedev(attr.rdev.0, attr.rdev.1);
                let new = under_new_name(here, |new| {
                    rustix::fs::mknodat(here, new, kind, Mode::RUSR | Mode::WUSR, device)
                });
                match new {
                    Err(Errno::PERM) if attr.kind != FileKind::Fifo => return Ok(false),
                    new => new?,
                }
            }
        };
        // The name could lead to another file by now: only the one that was made is changed.
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(here, &made.name, flags, Mode::empty())?;
        let stat = rustix::fs::fstat(&fd)?;
        let is_it = FileType::from_raw_mode(stat.st_mode)
            == FileType::from_raw_mode(attr.kind.mode_bits())
            && stat.st_nlink == 1;
        anyhow::ensure!(is_it, "another user has exchanged the copy");
        if self.owners == Owners::Kept {
            let owner = (Uid::from_raw(attr.uid), Gid::from_raw(attr.gid));
            let empty = AtFlags::EMPTY_PATH;
            allow(rustix::fs::chownat(
                &fd,
                c"",
                Some(owner.0),
                Some(owner.1),
                empty,
            ))?;
        }
        if attr.kind != FileKind::Symlink {
            let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&fd));
            rustix::fs::chmod(&path, self.mode(attr))?;
        }
        let nofollow = AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::utimensat(here, &made.name, &times(attr), nofollow)?;
        made.name_it(here, name)?;
        Ok(true)
    }

    fn regular(
        &mut self,
        node: &Node<'_>,
        attr: &Attr,
        here: BorrowedFd<'_>,
        name: &OsStr,
    ) -> anyhow::Result<()> {
        let mut file = None;
        let flags =
            OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = under_new_name(here, |new| {
            file = Some(rustix::fs::openat(
                here,
                new,
                flags,
                Mode::RUSR | Mode::WUSR,
            )?);
            Ok(())
        })?;
        let file = File::from(file.context("no file was made")?);
        let mut offset = 0;
        loop {
            interrupt::check()?;
            let read = node.read(offset, &mut self.buffer)?;
            if read == 0 {
                break;
            }
            let data = &self.buffer[..read];
            // Zeros become holes.
            if data.iter().any(|byte| *byte != 0) {
                file.write_all_at(data, offset)?;
            }
            offset += read as u64;
            (self.passed)(read as u64);
        }
        file.set_len(offset)?;
        (&file).flush()?;
        self.own(file.as_fd(), attr)?;
        self.copy_xattrs(node, file.as_fd())?;
        // After the owner, whose change drops set-id bits.
        rustix::fs::fchmod(&file, self.mode(attr))?;
        rustix::fs::futimens(&file, &times(attr))?;
        made.name_it(here, name)
    }

    fn own(&self, file: BorrowedFd<'_>, attr: &Attr) -> rustix::io::Result<()> {
        if self.owners == Owners::Caller {
            return Ok(());
        }
        let owner = (Uid::from_raw(attr.uid), Gid::from_raw(attr.gid));
        allow(rustix::fs::fchown(file, Some(owner.0), Some(owner.1)))
    }

    /// Copies the users' own xattrs; file capabilities and ACLs only with the owners.
    fn copy_xattrs(&self, node: &Node<'_>, file: BorrowedFd<'_>) -> anyhow::Result<()> {
        for (name, value) in node.xattrs()? {
            let with_owner =
                name == b"security.capability" || name.starts_with(b"system.posix_acl");
            let copied = name.starts_with(b"user.") || with_owner && self.owners == Owners::Kept;
            if copied {
                // The file system of the destination may know no xattrs, or no ACLs.
                match rustix::fs::fsetxattr(file, &*name, &value, XattrFlags::empty()) {
                    Err(Errno::PERM | Errno::OPNOTSUPP | Errno::NOSPC) | Ok(()) => {}
                    Err(errno) => return Err(errno.into()),
                }
            }
        }
        Ok(())
    }

    /// The mode of a copy. Set-id bits would give the rights of the caller, so they need the owner
    /// of the original.
    fn mode(&self, attr: &Attr) -> Mode {
        let kept = match (self.owners, attr.kind) {
            (Owners::Kept, _) => 0o7777,
            (Owners::Caller, FileKind::Directory) => 0o1777,
            (Owners::Caller, _) => 0o777,
        };
        Mode::from_raw_mode(attr.perm & kept)
    }
}

/// A plain user may not give files away: they stay the user's, as with tar.
fn allow(changed: rustix::io::Result<()>) -> rustix::io::Result<()> {
    match changed {
        Err(Errno::PERM) if !rustix::process::geteuid().is_root() => Ok(()),
        changed => changed,
    }
}

fn times(attr: &Attr) -> Timestamps {
    let time = Timespec {
        tv_sec: attr.mtime.sec,
        tv_nsec: attr.mtime.nsec.into(),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

/// A file that does not have its name yet. Dropping it removes the file.
struct Made<'d> {
    dir: BorrowedFd<'d>,
    name: OsString,
}

impl Made<'_> {
    /// Gives the file its name, and replaces a file or symlink that has it.
    fn name_it(self, dir: BorrowedFd<'_>, name: &OsStr) -> anyhow::Result<()> {
        match rustix::fs::renameat(self.dir, &self.name, dir, name) {
            Err(Errno::ISDIR) => {
                anyhow::bail!("the destination has a directory in place of the file")
            }
            // Two names of one file already: rename(2) leaves both.
            renamed => Ok(renamed?),
        }
    }
}

impl Drop for Made<'_> {
    fn drop(&mut self) {
        // After the rename there is no such file.
        let _ = rustix::fs::unlinkat(self.dir, &self.name, AtFlags::empty());
    }
}

/// Makes a file under a name that nothing has.
fn under_new_name(
    dir: BorrowedFd<'_>,
    mut make: impl FnMut(&OsStr) -> rustix::io::Result<()>,
) -> rustix::io::Result<Made<'_>> {
    loop {
        let mut random = [0; 8];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
        let number = u64::from_ne_bytes(random);
        let name = OsString::from(format!(".unionfs-{number:016x}"));
        match make(&name) {
            Err(Errno::EXIST) => {}
            made => return made.map(|()| Made { dir, name }),
        }
    }
}
