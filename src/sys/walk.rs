//! The way to a file, one name at a time: symlinks are followed as the kernel follows them, but for
//! those that another user decides on.
//!
//! Where a directory on the way belongs to somebody else, or others may write to it, no symlink
//! and no `..` is followed from there on: its owner could lead us anywhere. In a directory such as
//! /tmp (sticky) symlinks of root and of ourselves are. In a user namespace, where we are nobody
//! outside of it, all names are followed.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Statx, StatxAttributes, StatxFlags,
};
use rustix::io::Errno;

use super::process;

/// What the kernel shows of owners that a user namespace does not have (fs.overflowuid).
const OVERFLOW_UID: u32 = 65534;

/// As the kernel has it (MAXSYMLINKS).
const MAX_LINKS: usize = 40;

/// Whom a directory on the way must belong to, so that symlinks in it are followed.
#[derive(Clone, Copy, Debug)]
pub enum Trust {
    /// Everybody: our rights end where those of the user end.
    All,
    /// Root and ourselves.
    RootAndUs,
}

impl Trust {
    /// Of a process that may reach what other users cannot: one in the first user namespace.
    pub fn in_first_user_namespace() -> Self {
        if process::in_initial_user_namespace() {
            Self::RootAndUs
        } else {
            Self::All
        }
    }

    /// The same, for root only: others reach by a symlink what they reach anyway.
    pub fn of_root() -> Self {
        if rustix::process::geteuid().is_root() {
            Self::in_first_user_namespace()
        } else {
            Self::All
        }
    }
}

/// Opens what `path` leads to, as `O_PATH`. Told of each root of a mount on the way that has no disk,
/// `on_mount` says whether another user decides on the names in it.
///
/// # Errors
/// Those of openat(2); EACCES with a text when another user decides where the path leads; those of
/// `on_mount`.
pub fn open<E: From<io::Error>>(
    path: &Path,
    trust: Trust,
    mut on_mount: impl FnMut(&OwnedFd) -> Result<bool, E>,
) -> Result<OwnedFd, E> {
    let mut walk = Walk::new(path, trust)?;
    while let Some(name) = walk.todo.pop_front() {
        walk.step(&name, &mut on_mount)?;
    }
    Ok(walk.dir)
}

/// A directory that root names, as `O_PATH`: symlinks that another user decides on are not
/// followed. A path without symlinks costs one system call.
///
/// # Errors
/// As [`open`]; ENOTDIR when it is not a directory.
pub fn open_directory(path: &Path, trust: Trust) -> io::Result<OwnedFd> {
    let whole = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    // A descriptor of ours: there is no name that somebody could exchange.
    let ours = path.starts_with("/proc/self/fd") || path.starts_with("/proc/thread-self/fd");
    if ours || matches!(trust, Trust::All) {
        return Ok(rustix::fs::open(path, whole, Mode::empty())?);
    }
    if !path.components().any(|part| part == Component::ParentDir) {
        let plain = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        match rustix::fs::openat2(CWD, path, whole, Mode::empty(), plain) {
            Err(Errno::LOOP) => {}
            other => return Ok(other?),
        }
    }
    let found = open(path, trust, |_| Ok::<_, io::Error>(false))?;
    match kind(&found) {
        Some(FileType::Directory) => Ok(found),
        _ => Err(Errno::NOTDIR.into()),
    }
}

/// A regular file that somebody names, open for reading: symlinks that another user decides on are
/// not followed, and a FIFO or a device in its place is not opened. A descriptor of ours
/// (`/dev/fd/N`, `/proc/self/fd/N`, `/dev/stdin`) may be anything: the shell opens a pipe for `<(…)`.
///
/// # Errors
/// As [`open`]; EINVAL with a text when it is not a regular file.
pub fn open_file(path: &Path, trust: Trust) -> io::Result<File> {
    if is_own_descriptor(path) {
        return File::open(path);
    }
    open_regular(open(path, trust, |_| Ok::<_, io::Error>(false))?)
}

/// As [`open_file`], of a name in a directory that is open; it is not a symlink.
///
/// # Errors
/// As [`open_file`].
pub fn open_file_in(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<File> {
    open_regular(rustix::fs::openat(dir, name, ANYTHING, Mode::empty())?)
}

/// Opens for reading, as open(2) does, what is held by `O_PATH`: a FIFO waits for a writer.
///
/// # Errors
/// Those of open(2).
pub fn open_again(found: &OwnedFd) -> io::Result<File> {
    File::open(format!("/proc/self/fd/{}", found.as_raw_fd()))
}

/// As [`open_again`], if it is a regular file.
fn open_regular(found: OwnedFd) -> io::Result<File> {
    if kind(&found) != Some(FileType::RegularFile) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "it is not a regular file",
        ));
    }
    // By its descriptor, as the name may be another file's by now.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let itself = format!("/proc/self/fd/{}", found.as_raw_fd());
    Ok(File::from(rustix::fs::open(itself, flags, Mode::empty())?))
}

/// Whether a path names what this process has open already.
pub fn is_own_descriptor(path: &Path) -> bool {
    let number = |name: &OsStr| {
        name.to_str()
            .is_some_and(|name| name.parse::<u32>().is_ok())
    };
    let dirs = ["/dev/fd", "/proc/self/fd"].map(Path::new);
    path == Path::new("/dev/stdin")
        || (path.parent().is_some_and(|dir| dirs.contains(&dir))
            && path.file_name().is_some_and(number))
}

/// Whether what a file says may be acted upon: it belongs to root or to us, and is for nobody else to
/// write (a group that we are in, and root's, count as ours). In a user namespace root outside of it
/// is nobody.
///
/// # Errors
/// Those of statx(2).
pub fn is_trusted(file: &File) -> io::Result<bool> {
    let st = look(file.as_fd(), OWNER | StatxFlags::GID)?;
    let (user, group) = (rustix::process::geteuid(), rustix::process::getegid());
    let nobody = st.stx_uid == OVERFLOW_UID && !process::in_initial_user_namespace();
    let owner = nobody || [0, user.as_raw()].contains(&st.stx_uid);
    let group = st.stx_mode & 0o020 == 0 || [0, group.as_raw()].contains(&st.stx_gid);
    Ok(owner && group && st.stx_mode & 0o002 == 0)
}

/// As [`open_directory`], but makes what is missing of the path, with `mode`, less the umask.
///
/// # Errors
/// As [`open_directory`], and those of mkdir(2).
pub fn make_directory(path: &Path, trust: Trust, mode: u32) -> io::Result<OwnedFd> {
    let absent = |e: &io::Error| Errno::from_io_error(e) == Some(Errno::NOENT);
    let missing = match open_directory(path, trust) {
        Err(e) if absent(&e) => e,
        other => return other,
    };
    let Some(Component::Normal(name)) = path.components().next_back() else {
        return Err(missing);
    };
    let above = match path.parent() {
        Some(above) if !above.as_os_str().is_empty() => make_directory(above, trust, mode)?,
        _ => open_directory(Path::new("."), trust)?,
    };
    match rustix::fs::mkdirat(&above, name, Mode::from_raw_mode(mode)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno.into()),
    }
    // Whoever exchanged it in between has us in no other directory than one of this name.
    Ok(rustix::fs::openat(&above, name, DIRECTORY, Mode::empty())?)
}

/// The directory that `path` is a name in, as [`open_directory`], and that name.
///
/// # Errors
/// As [`open_directory`]; EINVAL for a path that ends in no name.
pub fn open_parent(path: &Path, trust: Trust) -> io::Result<(OwnedFd, OsString)> {
    let Some(Component::Normal(name)) = path.components().next_back() else {
        return Err(Errno::INVAL.into());
    };
    let above = match path.parent() {
        Some(above) if !above.as_os_str().is_empty() => above,
        _ => Path::new("."),
    };
    Ok((open_directory(above, trust)?, name.to_owned()))
}

/// Makes sure that nobody else decides on what `name` in `dir` is: others may not write to the
/// directory, or it is sticky and the name belongs to whom we trust.
///
/// # Errors
/// EACCES with a text when another user may exchange it; those of stat(2).
pub fn require_own_name(dir: BorrowedFd<'_>, name: &OsStr, trust: Trust) -> io::Result<()> {
    let Trust::RootAndUs = trust else {
        return Ok(());
    };
    let trusted = [0, rustix::process::geteuid().as_raw()];
    let above = look(dir, OWNER)?;
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    let found = rustix::fs::statx(dir, name, flags, OWNER)?;
    let ours = !open_to_others(&above) || (is_sticky(&above) && trusted.contains(&found.stx_uid));
    if trusted.contains(&above.stx_uid) && ours {
        Ok(())
    } else {
        Err(foreign(&name.to_string_lossy()))
    }
}

/// The type of an open file; `None` when the kernel does not say.
pub fn kind(file: &OwnedFd) -> Option<FileType> {
    match look(file.as_fd(), StatxFlags::TYPE) {
        Ok(st) => Some(FileType::from_raw_mode(st.stx_mode.into())),
        // The root of a FUSE mount of somebody who let nobody else in.
        Err(Errno::ACCESS) => Some(FileType::Directory),
        Err(_) => None,
    }
}

/// On the way to a directory, one name at a time.
struct Walk {
    dir: OwnedFd,
    todo: VecDeque<OsString>,
    links: usize,
    /// Another user decides on names from here on.
    foreign: bool,
    /// Ours and root's; `None`: everybody.
    trusted: Option<[u32; 2]>,
}

impl Walk {
    fn new(path: &Path, trust: Trust) -> io::Result<Self> {
        let from = if path.is_absolute() {
            "/"
        } else if path.as_os_str().is_empty() {
            return Err(Errno::NOENT.into());
        } else {
            "."
        };
        let mut walk = Self {
            dir: rustix::fs::open(from, DIRECTORY, Mode::empty())?,
            todo: names(path).collect(),
            links: 0,
            foreign: false,
            trusted: match trust {
                Trust::All => None,
                Trust::RootAndUs => Some([0, rustix::process::geteuid().as_raw()]),
            },
        };
        walk.enter(look(walk.dir.as_fd(), OWNER)?);
        Ok(walk)
    }

    fn step<E: From<io::Error>>(
        &mut self,
        name: &OsStr,
        on_mount: &mut impl FnMut(&OwnedFd) -> Result<bool, E>,
    ) -> Result<(), E> {
        let error = |errno: Errno| E::from(errno.into());
        if name == ".." && self.foreign {
            return Err(foreign("..").into());
        }
        let last = self.todo.is_empty();
        // With O_DIRECTORY first: it has file systems mounted that wait for it (autofs).
        let next = match rustix::fs::openat(&self.dir, name, DIRECTORY, Mode::empty()) {
            Err(Errno::NOTDIR | Errno::LOOP) => {
                rustix::fs::openat(&self.dir, name, ANYTHING, Mode::empty()).map_err(error)?
            }
            other => other.map_err(error)?,
        };
        let st = match look(next.as_fd(), OWNER) {
            Err(Errno::ACCESS) if last => {
                self.dir = next;
                return Ok(());
            }
            other => other.map_err(error)?,
        };
        match FileType::from_raw_mode(st.stx_mode.into()) {
            FileType::Symlink => self.follow(&next, st.stx_uid, name)?,
            FileType::Directory => {
                if !last && is_mount_root(&st) && st.stx_dev_major == 0 {
                    // Its server says what owners it likes.
                    self.foreign |= on_mount(&next)? && self.trusted.is_some();
                }
                self.dir = next;
                self.enter(st);
            }
            _ if last => self.dir = next,
            _ => return Err(error(Errno::NOTDIR)),
        }
        Ok(())
    }

    /// Who decides on the names in the directory that was entered.
    fn enter(&mut self, st: Statx) {
        let Some(trusted) = self.trusted else {
            return;
        };
        self.foreign |= !trusted.contains(&st.stx_uid) || (open_to_others(&st) && !is_sticky(&st));
    }

    fn follow(&mut self, link: &OwnedFd, owner: u32, name: &OsStr) -> io::Result<()> {
        let trusted = self.trusted.is_none_or(|trusted| trusted.contains(&owner));
        let shared = || look(self.dir.as_fd(), OWNER).is_ok_and(|st| open_to_others(&st));
        if self.foreign || (!trusted && shared()) {
            return Err(foreign(&name.to_string_lossy()));
        }
        self.links += 1;
        if self.links > MAX_LINKS {
            return Err(Errno::LOOP.into());
        }
        let target = rustix::fs::readlinkat(link, c"", Vec::new())?;
        let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
        if target.is_absolute() {
            self.dir = rustix::fs::open("/", DIRECTORY, Mode::empty())?;
        }
        for name in names(&target).rev() {
            self.todo.push_front(name);
        }
        Ok(())
    }
}

/// Names of a path in order. A dot leads nowhere.
fn names(path: &Path) -> impl DoubleEndedIterator<Item = OsString> + '_ {
    path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    })
}

const ANYTHING: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const DIRECTORY: OFlags = ANYTHING.union(OFlags::DIRECTORY);
const OWNER: StatxFlags = StatxFlags::TYPE
    .union(StatxFlags::MODE)
    .union(StatxFlags::UID);

/// statx(2) of an open file, without asking a server.
///
/// # Errors
/// Those of statx(2).
pub fn look(file: BorrowedFd<'_>, mask: StatxFlags) -> rustix::io::Result<Statx> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    rustix::fs::statx(file, c"", flags, mask)
}

/// Whether a mount begins here; `false` is sure. Before Linux 5.8 the kernel does not say.
pub fn is_mount_root(st: &Statx) -> bool {
    !st.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT)
        || st.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)
}

fn open_to_others(st: &Statx) -> bool {
    st.stx_mode & 0o022 != 0
}

fn is_sticky(st: &Statx) -> bool {
    st.stx_mode & 0o1000 != 0
}

fn foreign(name: &str) -> io::Error {
    let text = format!(
        "{name:?} on the way is in a directory that another user may change, and could lead \
         anywhere: give the path without symlinks and .."
    );
    io::Error::new(io::ErrorKind::PermissionDenied, text)
}
