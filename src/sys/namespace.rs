//! A mount namespace in which there is nothing (mount_namespaces(7), pivot_root(2)).
#![allow(unsafe_code)]

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags,
};
use rustix::thread::{LinkNameSpaceType, UnshareFlags};

/// Gives this process a mount namespace of its own with an empty root directory that cannot be
/// written to. In it is only `proc`: the processes, without the rest of /proc, or where that may
/// not be mounted this process alone. What is open stays open, and leads where it led before.
///
/// The process must have one thread. On failure it is where it was.
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN; EINVAL where the root directory is no mount that can be left;
/// those of the system calls for mounts (Linux 5.12).
pub fn leave() -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let before = rustix::fs::open("/proc/self/ns/mnt", flags, Mode::empty())?;
    let own = own_process()?;
    // SAFETY: only the namespace is left, no table of descriptors.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }?;
    leave_root(own).inspect_err(|_| {
        // Copies of all mounts would keep them from going away.
        let kind = Some(LinkNameSpaceType::Mount);
        let _ = rustix::thread::move_into_link_name_space(before.as_fd(), kind);
        let _ = rustix::process::chdir("/");
    })
}

/// What /proc says of this process, as a mount of its own.
fn own_process() -> Result<OwnedFd, Errno> {
    let path = format!("/proc/{}", std::process::id());
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    rustix::mount::open_tree(CWD, path, flags)
}

fn leave_root(own: OwnedFd) -> Result<(), Errno> {
    // What is unmounted here is not unmounted elsewhere.
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private)?;
    let path = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let old_root = rustix::fs::open("/", path, Mode::empty())?;
    let root = empty_root()?;
    rustix::mount::move_mount(&root, "", CWD, "/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    let (proc, place) = match all_processes() {
        Ok(all) => (all, c"proc".to_owned()),
        Err(error) => {
            tracing::debug!(%error, "no proc of its own: threads follow no caller");
            rustix::fs::mkdirat(&root, "proc/self", Mode::from_raw_mode(0o555))?;
            (own, c"proc/self".to_owned())
        }
    };
    rustix::mount::move_mount(
        &proc,
        "",
        &root,
        place,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )?;
    pivot(&root, &old_root)?;
    seal_root()
}

/// Makes the mount `root` the root directory; `old_root` is what it was before, which goes away.
pub(super) fn pivot(root: &OwnedFd, old_root: &OwnedFd) -> Result<(), Errno> {
    rustix::process::fchdir(root)?;
    rustix::process::pivot_root(".", ".")?;
    // The old root is on top of the new one, and "." would be the new one.
    rustix::process::fchdir(old_root)?;
    rustix::mount::unmount(".", UnmountFlags::DETACH)?;
    rustix::process::chdir("/")
}

/// Nothing is written to the root directory any more, nor executed or opened as a device there.
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

/// A proc of nothing but processes, which nobody writes to.
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
