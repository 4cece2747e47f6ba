//! An empty mount namespace (mount_namespaces(7), pivot_root(2)).
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags,
};
use rustix::thread::{CapabilitySet, LinkNameSpaceType, UnshareFlags};

use super::daemon::{self, Pending};

/// Gives this process a mount namespace of its own with an empty, read-only root directory. It
/// contains only `proc`: the processes without the rest of /proc, or, where that may not be
/// mounted, only this process. Open files stay open and lead where they led before.
///
/// The process must have one thread. After an error it is in the namespace where it was.
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN; those of the system calls for mounts (Linux 5.12). After
/// ENOTRECOVERABLE the process must end; see `in_new_namespace`.
pub fn leave() -> Result<(), Errno> {
    in_new_namespace(|| {
        // Later the /proc of this process cannot be found any more.
        let proc = match all_processes() {
            Ok(all) => Proc::All(all),
            Err(error) => {
                tracing::debug!(%error, "no proc of its own: threads follow no caller");
                Proc::OfThisProcess(own_process()?)
            }
        };
        to_empty_root(&proc)
    })
}

/// What an empty root directory has in `proc`: a mount.
enum Proc {
    All(OwnedFd),
    OfThisProcess(OwnedFd),
}

/// An empty mount namespace that another process makes meanwhile. Making one takes as long as the
/// rest of a small mount: it copies all mounts, and unmounts the copies.
#[derive(Debug)]
pub struct Prepared(Pending);

impl Prepared {
    /// Starts the process that makes it. This process must have one thread and end soon, as it does
    /// not wait for the other. `None` if this process lacks the right.
    ///
    /// # Errors
    /// Those of capget(2), socketpair(2) and fork(2).
    pub fn start() -> io::Result<Option<Self>> {
        let own = rustix::thread::capabilities(None)?.effective;
        if !own.contains(CapabilitySet::SYS_ADMIN) {
            return Ok(None);
        }
        let made = daemon::descriptor_of(|| {
            // With the files of one process it would be of no use to another.
            in_new_namespace(|| to_empty_root(&Proc::All(all_processes()?)))?;
            Ok(present()?)
        })?;
        Ok(Some(Self(made)))
    }

    /// As [`leave`], into this namespace.
    ///
    /// # Errors
    /// EPIPE if it could not be made; those of setns(2), after which the process is where it was.
    pub fn enter(self) -> Result<(), Errno> {
        let made = self.0.take();
        let made = made.map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::PIPE))?;
        rustix::thread::move_into_link_name_space(made.as_fd(), Some(LinkNameSpaceType::Mount))
    }
}

impl AsFd for Prepared {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Makes an empty directory with `proc` the root directory of this new namespace.
fn to_empty_root(proc: &Proc) -> Result<(), Errno> {
    let root = empty_root()?;
    replace_root(&root, || {
        let (proc, place) = match proc {
            Proc::All(all) => (all, c"proc"),
            Proc::OfThisProcess(own) => {
                let place = c"proc/self";
                rustix::fs::mkdirat(&root, place, Mode::from_raw_mode(0o555))?;
                (own, place)
            }
        };
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        rustix::mount::move_mount(proc, "", &root, place, flags)
    })?;
    seal_root()
}

/// Returns the /proc of this process as a mount of its own.
fn own_process() -> Result<OwnedFd, Errno> {
    let path = format!("/proc/{}", std::process::id());
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    rustix::mount::open_tree(CWD, path, flags)
}

/// Calls `enter` in a new mount namespace, a copy of the present one. If `enter` fails, the process
/// returns to the namespace, the root directory and the working directory that it had: entering a
/// namespace leads out of a chroot.
///
/// # Errors
/// Those of `enter`; those of open(2) and unshare(2), which change nothing. ENOTRECOVERABLE if the
/// process cannot return. It must end then, because it may be outside of its chroot.
pub(super) fn in_new_namespace(enter: impl FnOnce() -> Result<(), Errno>) -> Result<(), Errno> {
    let before = present()?;
    let path = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open("/", path, Mode::empty())?;
    let here = rustix::fs::open(".", path, Mode::empty())?;
    // SAFETY: only the namespace is left, no table of descriptors.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }?;
    enter().map_err(|error| match go_back(&before, &root, &here) {
        Ok(()) => error,
        Err(_) => Errno::NOTRECOVERABLE,
    })
}

fn go_back(before: &OwnedFd, root: &OwnedFd, here: &OwnedFd) -> Result<(), Errno> {
    // Copies of all mounts would keep the mounts alive. A process without the right to do this has
    // not left the root directory either.
    let kind = Some(LinkNameSpaceType::Mount);
    let moved = rustix::thread::move_into_link_name_space(before.as_fd(), kind);
    let back = rustix::process::fchdir(root).and_then(|()| rustix::process::chroot("."));
    if let Err(error) = back {
        let (is, was) = (rustix::fs::stat("/")?, rustix::fs::fstat(root)?);
        if moved.is_ok() || (is.st_dev, is.st_ino) != (was.st_dev, was.st_ino) {
            return Err(error);
        }
    }
    rustix::process::fchdir(here)
}

/// Makes the mount `root` the root directory of this namespace, after `fill` has attached other
/// mounts to it. All earlier mounts leave the namespace.
///
/// # Errors
/// Those of `fill`, setns(2), mount(2), move_mount(2) and pivot_root(2).
pub(super) fn replace_root(
    root: &OwnedFd,
    fill: impl FnOnce() -> Result<(), Errno>,
) -> Result<(), Errno> {
    to_root_of_namespace()?;
    // Unmounts here have no effect on other namespaces.
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private)?;
    let path = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let old_root = rustix::fs::open("/", path, Mode::empty())?;
    rustix::mount::move_mount(root, "", CWD, "/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    fill()?;
    pivot(root, &old_root)
}

/// In a chroot the root directory may not be a mount. Then nothing could be mounted on it alone.
fn to_root_of_namespace() -> Result<(), Errno> {
    let kind = Some(LinkNameSpaceType::Mount);
    rustix::thread::move_into_link_name_space(present()?.as_fd(), kind)
}

/// Opens the mount namespace of this thread. That of the process may be another one: a thread that
/// has left it would return to it, and what is meant for a new namespace would affect all threads.
fn present() -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    rustix::fs::open("/proc/thread-self/ns/mnt", flags, Mode::empty())
}

/// Makes the mount `root` the root directory and unmounts `old_root`, which was the root before.
fn pivot(root: &OwnedFd, old_root: &OwnedFd) -> Result<(), Errno> {
    rustix::process::fchdir(root)?;
    rustix::process::pivot_root(".", ".")?;
    // The old root is on top of the new one, so "." would be the new one.
    rustix::process::fchdir(old_root)?;
    rustix::mount::unmount(".", UnmountFlags::DETACH)?;
    rustix::process::chdir("/")
}

/// Forbids writing to the root directory, executing from it, and opening devices in it.
pub(super) fn seal_root() -> Result<(), Errno> {
    let flags = MountFlags::BIND
        | MountFlags::RDONLY
        | MountFlags::NOSUID
        | MountFlags::NODEV
        | MountFlags::NOEXEC;
    rustix::mount::mount_remount("/", flags, "")
}

fn empty_root() -> Result<OwnedFd, Errno> {
    let context = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in [("size", "16k"), ("nr_inodes", "8"), ("mode", "0555")] {
        rustix::mount::fsconfig_set_string(&context, key, value)?;
    }
    rustix::mount::fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let root = rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    rustix::fs::mkdirat(&root, "proc", Mode::from_raw_mode(0o555))?;
    Ok(root)
}

/// Returns a read-only proc that contains only processes.
fn all_processes() -> Result<OwnedFd, Errno> {
    let context = rustix::mount::fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(&context, "subset", "pid")?;
    rustix::mount::fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}
