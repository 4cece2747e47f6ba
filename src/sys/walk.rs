//! Opens a path one name at a time. Symlinks are followed as the kernel follows them, except those
//! that another user controls.
//!
//! After a directory that belongs to another user, or that others may write to, no symlink and no
//! `..` is followed: its owner could lead us anywhere. In a directory such as /tmp (sticky),
//! symlinks of root and of this user are followed. In a user namespace, where we have no rights
//! outside of it, all names are followed.
//!
//! In an idmapped mount, root's own files have another owner. podman passes such mounts of its store
//! with the mapping. There the owner that root is mapped to counts as root, if only root can reach
//! the mount.

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

use super::openat2::is_missing;
use super::stat::{mount_id, statx};
use super::{mountinfo, process};

/// The number that the kernel shows for owners that a user namespace does not have
/// (fs.overflowuid).
const OVERFLOW_UID: u32 = 65534;

/// The limit of the kernel (MAXSYMLINKS).
const MAX_LINKS: usize = 40;

/// The users whose directories may contain symlinks that are followed.
#[derive(Clone, Copy, Debug)]
pub enum Trust {
    /// All users: our rights end where those of the user end.
    All,
    /// Root and this user.
    RootAndUs,
    /// Root and this user, and this owner for root in idmapped mounts that only root can reach.
    RootAndMapped(u32),
}

impl Trust {
    /// The rule for a process that may reach what other users cannot: one in the first user
    /// namespace.
    pub fn in_first_user_namespace() -> Self {
        if process::in_initial_user_namespace() {
            Self::RootAndUs
        } else {
            Self::All
        }
    }

    /// The rule for root only: other users reach by a symlink only what they reach anyway.
    pub fn of_root() -> Self {
        if rustix::process::geteuid().is_root() {
            Self::in_first_user_namespace()
        } else {
            Self::All
        }
    }
}

/// Opens the file that `path` leads to, as `O_PATH`. For each root of a mount without a disk on the
/// way, `on_mount` decides whether another user controls the names in it.
///
/// # Errors
/// Those of openat(2); EACCES with a text if another user decides where the path leads; those of
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

/// Opens a directory that root names, as `O_PATH`. Symlinks that another user controls are not
/// followed. A path without symlinks costs one system call.
///
/// # Errors
/// As [`open`]; ENOTDIR if it is not a directory.
pub fn open_directory(path: &Path, trust: Trust) -> io::Result<OwnedFd> {
    let whole = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    // It is a descriptor of this process: there is no name that another user could exchange.
    let ours = path.starts_with("/proc/self/fd") || path.starts_with("/proc/thread-self/fd");
    if ours || matches!(trust, Trust::All) {
        return Ok(rustix::fs::open(path, whole, Mode::empty())?);
    }
    if !path.components().any(|part| part == Component::ParentDir) {
        let plain = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        match rustix::fs::openat2(CWD, path, whole, Mode::empty(), plain) {
            Err(Errno::LOOP) => {}
            // Before Linux 5.6 there is only the walk.
            Err(error) if is_missing(error) => {}
            other => return Ok(other?),
        }
    }
    let found = open(path, trust, |_| Ok::<_, io::Error>(false))?;
    match kind(&found) {
        Some(FileType::Directory) => Ok(found),
        _ => Err(Errno::NOTDIR.into()),
    }
}

/// Opens a regular file that a user names, for reading. Symlinks that another user controls are not
/// followed, and a FIFO or a device in its place is not opened. A descriptor of this process
/// (`/dev/fd/N`, `/proc/self/fd/N`, `/dev/stdin`) may be anything: the shell opens a pipe for
/// `<(…)`.
///
/// # Errors
/// As [`open`]; EINVAL with a text if it is not a regular file.
pub fn open_file(path: &Path, trust: Trust) -> io::Result<File> {
    if is_own_descriptor(path) {
        return File::open(path);
    }
    open_regular(open(path, trust, |_| Ok::<_, io::Error>(false))?)
}

/// As [`open_file`], for a name in an open directory. The name must not be a symlink.
///
/// # Errors
/// As [`open_file`].
pub fn open_file_in(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<File> {
    open_regular(rustix::fs::openat(dir, name, ANYTHING, Mode::empty())?)
}

/// Opens a file that is held by `O_PATH`, for reading, as open(2) does: a FIFO waits for a writer.
///
/// # Errors
/// Those of open(2).
pub fn open_again(found: &OwnedFd) -> io::Result<File> {
    File::open(format!("/proc/self/fd/{}", found.as_raw_fd()))
}

/// As [`open_again`], for a regular file only.
fn open_regular(found: OwnedFd) -> io::Result<File> {
    if kind(&found) != Some(FileType::RegularFile) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "it is not a regular file",
        ));
    }
    // The descriptor is opened, as the name may belong to another file by now.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let itself = format!("/proc/self/fd/{}", found.as_raw_fd());
    Ok(File::from(rustix::fs::open(itself, flags, Mode::empty())?))
}

/// Whether a path names a descriptor of this process.
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

/// Whether the content of a file may be trusted: it belongs to root or to this user, and no other
/// user may write to it (root's group and groups of this process are allowed). In a user namespace,
/// all users outside of it have one number, and count as root does.
///
/// # Errors
/// Those of statx(2).
pub fn is_trusted(file: &File) -> io::Result<bool> {
    let st = look(file.as_fd(), OWNER | StatxFlags::GID)?;
    let nobody = st.stx_uid == OVERFLOW_UID && !process::in_initial_user_namespace();
    let group = [0, rustix::process::getegid().as_raw()].contains(&st.stx_gid);
    let others = if group { 0o002 } else { 0o022 };
    Ok((nobody || is_own_or_roots(&st)) && st.stx_mode & others == 0)
}

/// Whether a file or directory belongs to root or to this user, and nobody else may write to it. In a
/// user namespace, users outside of it are others. The bits of the group are also the mask of an ACL,
/// so no group may write.
///
/// # Errors
/// Those of statx(2).
pub fn belongs_to_us(file: impl AsFd) -> io::Result<bool> {
    let st = look(file.as_fd(), OWNER | StatxFlags::GID)?;
    Ok(is_own_or_roots(&st) && !open_to_others(&st))
}

fn is_own_or_roots(st: &Statx) -> bool {
    [0, rustix::process::geteuid().as_raw()].contains(&st.stx_uid)
}

/// As [`open_directory`], but makes missing directories of the path, with `mode` and the umask.
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
    // A user who exchanged it meanwhile can lead us only to a directory of this name.
    Ok(rustix::fs::openat(&above, name, DIRECTORY, Mode::empty())?)
}

/// Opens the directory that contains the last name of `path`, as [`open_directory`]; returns it
/// with that name.
///
/// # Errors
/// As [`open_directory`]; EINVAL for a path that does not end in a name.
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

/// Checks that no other user can exchange `name` in `dir`: others may not write to the directory,
/// or it is sticky and the name belongs to a trusted user.
///
/// # Errors
/// EACCES with a text if another user may exchange it; those of stat(2).
pub fn require_own_name(dir: BorrowedFd<'_>, name: &OsStr, trust: Trust) -> io::Result<()> {
    if let Trust::All = trust {
        return Ok(());
    }
    let trusted = [0, rustix::process::geteuid().as_raw()];
    let above = look(dir, OWNER)?;
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    let found = statx(dir, name, flags, OWNER)?;
    let ours = !open_to_others(&above) || (is_sticky(&above) && trusted.contains(&found.stx_uid));
    if trusted.contains(&above.stx_uid) && ours {
        Ok(())
    } else {
        Err(foreign(&name.to_string_lossy()))
    }
}

/// Returns the type of an open file; `None` if the kernel does not tell it.
pub fn kind(file: &OwnedFd) -> Option<FileType> {
    match look(file.as_fd(), StatxFlags::TYPE) {
        Ok(st) => Some(FileType::from_raw_mode(st.stx_mode.into())),
        // It is the root of a FUSE mount whose owner allows no other user.
        Err(Errno::ACCESS) => Some(FileType::Directory),
        Err(_) => None,
    }
}

/// The state of a walk to a directory, one name at a time.
struct Walk {
    dir: OwnedFd,
    todo: VecDeque<OsString>,
    links: usize,
    /// Another user controls the names from here on.
    foreign: bool,
    /// The trusted owners; `None`: all.
    trusted: Option<[u32; 2]>,
    /// The owner that stands for root in `private_idmapped`.
    mapped_root: Option<u32>,
    /// Whether only root can reach the directory by the names so far.
    private: bool,
    /// The number of the idmapped mount that was entered and that only root can reach.
    private_idmapped: Option<u64>,
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
                Trust::RootAndUs | Trust::RootAndMapped(_) => {
                    Some([0, rustix::process::geteuid().as_raw()])
                }
            },
            mapped_root: match trust {
                Trust::RootAndMapped(owner) => Some(owner),
                Trust::All | Trust::RootAndUs => None,
            },
            private: false,
            private_idmapped: None,
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
        // The first try is with O_DIRECTORY, which mounts file systems that wait for it (autofs).
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
                    // The server of such a mount can show any owners.
                    self.foreign |= on_mount(&next)? && self.trusted.is_some();
                }
                self.dir = next;
                self.private &= name != "..";
                self.enter(st);
            }
            _ if last => self.dir = next,
            _ => return Err(error(Errno::NOTDIR)),
        }
        Ok(())
    }

    /// Decides who controls the names in the directory that was entered.
    fn enter(&mut self, st: Statx) {
        let Some(trusted) = self.trusted else {
            return;
        };
        if self.mapped_root.is_some() && self.private && !self.foreign && is_mount_root(&st) {
            self.private_idmapped = idmapped(&self.dir).or(self.private_idmapped);
        }
        let owned = trusted.contains(&st.stx_uid) || self.is_mapped_root(st.stx_uid);
        self.foreign |= !owned || (open_to_others(&st) && !is_sticky(&st));
        let others = st.stx_mode & 0o077;
        self.private |= !self.foreign && others == 0;
    }

    /// Whether this owner is root's in the idmapped mount of the current directory.
    fn is_mapped_root(&self, owner: u32) -> bool {
        self.mapped_root == Some(owner)
            && self.private_idmapped.is_some()
            && self.private_idmapped == mount_of(&self.dir)
    }

    fn follow(&mut self, link: &OwnedFd, owner: u32, name: &OsStr) -> io::Result<()> {
        let trusted = self.trusted.is_none_or(|trusted| trusted.contains(&owner));
        let shared = || look(self.dir.as_fd(), OWNER).map_or(true, |st| open_to_others(&st));
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
            self.private = false;
        }
        for name in names(&target).rev() {
            self.todo.push_front(name);
        }
        Ok(())
    }
}

/// Returns the names of a path in order, without dots.
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

/// Calls statx(2) for an open file without asking a server.
///
/// # Errors
/// Those of statx(2).
pub fn look(file: BorrowedFd<'_>, mask: StatxFlags) -> rustix::io::Result<Statx> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    statx(file, c"", flags, mask)
}

/// Whether a mount begins here. `false` is certain. Before Linux 5.8 the kernel does not tell it.
pub fn is_mount_root(st: &Statx) -> bool {
    !st.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT)
        || st.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)
}

fn mount_of(dir: &OwnedFd) -> Option<u64> {
    mount_id(dir).ok()
}

/// Returns the number of the mount of a directory if it is an idmapped mount.
fn idmapped(dir: &OwnedFd) -> Option<u64> {
    let id = mount_of(dir)?;
    let mounts = mountinfo::list().ok()?;
    let found = mounts.iter().find(|mount| mount.id == id)?;
    found.is_idmapped().then_some(id)
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
