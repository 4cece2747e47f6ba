//! A mount namespace that contains only some places, each at its path, most of them read-only
//! (mount_namespaces(7), mount_setattr(2)). It also covers what Landlock does not know: modes,
//! owners and xattrs cannot be changed on a read-only mount, and a device node in a place cannot be
//! opened.
#![allow(unsafe_code)]

use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags};

use super::openat2::openat2;
use super::{namespace, submounts};

/// A place that stays: a file, or a directory with all mounts beneath it except the root
/// directories of containers.
#[derive(Debug)]
pub struct KeptPath {
    path: PathBuf,
    file: OwnedFd,
    kind: FileType,
    /// Whether it may be changed.
    pub writable: bool,
    /// Whether code may be executed from it.
    pub code: bool,
}

impl KeptPath {
    /// Opens the place at `path`, which is absolute and has no symlinks. It is read-only, and no
    /// code may be executed from it.
    ///
    /// # Errors
    /// Those of openat2(2): ELOOP if there is a symlink; EINVAL for a path that is not absolute.
    pub fn at(path: &Path) -> Result<Self, Errno> {
        if !path.is_absolute() || path.components().any(|part| part == Component::ParentDir) {
            return Err(Errno::INVAL);
        }
        let file = open_plainly(path)?;
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode);
        Ok(Self {
            path: path.to_owned(),
            file,
            kind,
            writable: false,
            code: false,
        })
    }

    /// Returns the path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the place is a directory.
    pub fn is_dir(&self) -> bool {
        self.kind == FileType::Directory
    }

    /// Returns the file or directory.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Returns the same file or directory as a new mount.
    fn mount(&self) -> Result<OwnedFd, Errno> {
        // The mount of the descriptor is not in this namespace.
        let file = open_plainly(&self.path)?;
        let (was, is) = (rustix::fs::fstat(&self.file)?, rustix::fs::fstat(&file)?);
        if (was.st_dev, was.st_ino) != (is.st_dev, is.st_ino) {
            return Err(Errno::STALE);
        }
        let mut attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
        if !self.writable {
            attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY;
        }
        if !self.code {
            attributes |= MountAttrFlags::MOUNT_ATTR_NOEXEC;
        }
        clone(&file, attributes)
    }
}

/// Another name of a place, which becomes a symlink.
#[derive(Debug)]
pub struct Link {
    /// The name, an absolute path.
    pub path: PathBuf,
    /// The target, an absolute path.
    pub target: PathBuf,
}

fn open_plainly(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let plain = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    openat2(CWD, path, flags, Mode::empty(), plain)
}

/// Copies the mounts from `file` on, and adds `attributes` to them.
fn clone(file: &OwnedFd, attributes: MountAttrFlags) -> Result<OwnedFd, Errno> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE
        | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = rustix::mount::open_tree(file, "", flags)?;
    set_attributes(tree.as_fd(), attributes)?;
    Ok(tree)
}

/// Gives this process a mount namespace of its own that contains only the places, symlinks to them,
/// and the /proc files of this process in `/proc/self`. The working directory is then `/`. Open
/// descriptors still lead where they led: those of directories must be closed before or right after
/// the call.
///
/// The process must have one thread. After an error it is in the namespace where it was.
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN; ESTALE if a place was exchanged; those of the system calls for
/// mounts (Linux 5.12). After ENOTRECOVERABLE the process must end; see
/// `namespace::in_new_namespace`.
pub fn keep_only(places: &[KeptPath], links: &[Link]) -> Result<(), Errno> {
    namespace::in_new_namespace(|| enter(places, links))
}

fn enter(places: &[KeptPath], links: &[Link]) -> Result<(), Errno> {
    // Paths begin at the present root directory, which in a chroot is not that of the namespace.
    let mut mounts: Vec<(&Path, FileType, OwnedFd)> = Vec::new();
    for place in places {
        mounts.push((&place.path, place.kind, place.mount()?));
    }
    let own = rustix::fs::open("/proc/self", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let own = clone(&own, sealed())?;
    // Places beneath others come after them.
    mounts.sort_by_key(|(path, ..)| path.components().count());
    let whole = mounts.iter().position(|(path, ..)| *path == Path::new("/"));
    let root = match whole {
        Some(at) => mounts.remove(at).2,
        None => {
            mounts.insert(0, (Path::new("/proc/self"), FileType::Directory, own));
            let root = empty_root()?;
            links.iter().try_for_each(|link| make_link(&root, link))?;
            root
        }
    };
    namespace::replace_root(&root, || {
        mounts.iter().try_for_each(|(path, kind, mount)| {
            let target = mountpoint(&root, path, *kind)?;
            attach(mount, target.as_fd())
        })
    })?;
    if whole.is_some() {
        return Ok(());
    }
    submounts::detach_unions(places.iter().map(KeptPath::path))?;
    namespace::seal_root()
}

fn attach(mount: &OwnedFd, dir: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(mount, "", dir, "", flags)
}

/// Opens `path` below the new root, and makes a directory or file there if it does not exist.
fn mountpoint(root: &OwnedFd, path: &Path, kind: FileType) -> Result<OwnedFd, Errno> {
    let names: Vec<&OsStr> = path
        .components()
        .filter_map(|part| match part {
            Component::Normal(name) => Some(name),
            _ => None,
        })
        .collect();
    let within = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let mut dir = rustix::io::fcntl_dupfd_cloexec(root, 0)?;
    for (at, name) in names.iter().enumerate() {
        let made = if kind == FileType::Directory || at + 1 < names.len() {
            rustix::fs::mkdirat(&dir, *name, Mode::from_raw_mode(0o755))
        } else {
            let mode = Mode::from_raw_mode(0o444);
            rustix::fs::mknodat(&dir, *name, FileType::RegularFile, mode, 0)
        };
        match made {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error),
        }
        dir = openat2(&dir, *name, flags, Mode::empty(), within)?;
    }
    Ok(dir)
}

fn make_link(root: &OwnedFd, link: &Link) -> Result<(), Errno> {
    let (Some(parent), Some(name)) = (link.path.parent(), link.path.file_name()) else {
        return Err(Errno::INVAL);
    };
    let dir = mountpoint(root, parent, FileType::Directory)?;
    match rustix::fs::symlinkat(&link.target, &dir, name) {
        Err(Errno::EXIST) => Ok(()),
        done => done,
    }
}

fn sealed() -> MountAttrFlags {
    MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC
}

fn empty_root() -> Result<OwnedFd, Errno> {
    let context = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in [("size", "64k"), ("nr_inodes", "1k"), ("mode", "0755")] {
        rustix::mount::fsconfig_set_string(&context, key, value)?;
    }
    rustix::mount::fsconfig_create(&context)?;
    let attributes = sealed() & !MountAttrFlags::MOUNT_ATTR_RDONLY;
    rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// Closes the descriptors by which the process could leave the namespace, except the standard
/// streams: those that a new program would inherit (this program opens none of these), and
/// directories. The process itself must have no directory open.
///
/// # Errors
/// Those of openat(2) and getdents(2) on /proc.
pub fn close_inherited() -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let list = rustix::fs::open("/proc/self/fd", flags, Mode::empty())?;
    let mut open = Vec::new();
    for entry in rustix::fs::Dir::read_from(&list)? {
        let number = entry?
            .file_name()
            .to_str()
            .ok()
            .and_then(|name| name.parse().ok());
        open.extend(number.filter(|number: &i32| *number > 2));
    }
    open.retain(|number| *number != list.as_raw_fd());
    for number in open {
        // SAFETY: the descriptor is open, or the calls return an error; it is not kept.
        let file = unsafe { BorrowedFd::borrow_raw(number) };
        let is_inherited = rustix::io::fcntl_getfd(file)
            .is_ok_and(|flags| !flags.contains(rustix::io::FdFlags::CLOEXEC));
        let is_dir = rustix::fs::fstat(file)
            .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory);
        if is_inherited || is_dir {
            // SAFETY: this process has no owner of it.
            unsafe { rustix::io::close(number) };
        }
    }
    Ok(())
}

/// `struct mount_attr` of linux/mount.h.
#[repr(C)]
struct Attributes {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

/// Adds attributes to a mount and all mounts beneath it, and makes them private.
fn set_attributes(mount: BorrowedFd<'_>, add: MountAttrFlags) -> Result<(), Errno> {
    /// AT_RECURSIVE of linux/fcntl.h.
    const RECURSIVE: u32 = 0x8000;
    let attributes = Attributes {
        set: add.bits().into(),
        clear: 0,
        propagation: libc::MS_PRIVATE,
        user_namespace: 0,
    };
    // SAFETY: the path is empty and the structure lives, both with the sizes that are given.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            AtFlags::EMPTY_PATH.bits() | RECURSIVE,
            &raw const attributes,
            size_of::<Attributes>(),
        )
    };
    match done {
        0 => Ok(()),
        _ => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)),
    }
}
