//! Mounts by fsopen(2), fsconfig(2), fsmount(2) and move_mount(2) (Linux 5.2). The mount exists and
//! is known before it is put on a directory, which is given as a descriptor.

use std::ffi::OsString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount,
};

use super::{MountConfig, Mountpoint};

/// The maximum length of a value for fsconfig(2), including its NUL.
const LONGEST: usize = 256;

/// Whether all values can be passed in this way.
pub(super) fn can_hold(config: &MountConfig, options: &[(&str, Option<OsString>)]) -> bool {
    let values = options.iter().filter_map(|(_, value)| value.as_ref());
    values
        .chain([&config.fsname])
        .all(|value| value.len() < LONGEST)
}

/// Mounts. Returns the root of the new mount.
pub(super) fn mount(
    config: &MountConfig,
    flags: MountFlags,
    options: &[(&str, Option<OsString>)],
    device: &OwnedFd,
    place: &Mountpoint,
) -> Result<OwnedFd, Errno> {
    let context = fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let context = context.as_fd();
    fsconfig_set_string(context, "source", &config.fsname)?;
    fsconfig_set_string(context, "subtype", "unionfs")?;
    fsconfig_set_string(context, "fd", device.as_raw_fd().to_string())?;
    for (name, value) in options {
        match value {
            Some(value) => fsconfig_set_string(context, *name, value)?,
            None => fsconfig_set_flag(context, *name)?,
        }
    }
    for (flag, name) in OF_THE_FILE_SYSTEM {
        if flags.contains(flag) {
            fsconfig_set_flag(context, name)?;
        }
    }
    fsconfig_create(context)?;
    let root = fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, attributes(flags))?;
    let both_open =
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(&root, c"", place, c"", both_open)?;
    Ok(root)
}

/// The flags of the file system. Read-only is also a flag of the mount.
const OF_THE_FILE_SYSTEM: [(MountFlags, &str); 3] = [
    (MountFlags::RDONLY, "ro"),
    (MountFlags::SYNCHRONOUS, "sync"),
    (MountFlags::DIRSYNC, "dirsync"),
];

/// The flags of the mount. Without one of them, access times are as with `relatime`.
const OF_THE_MOUNT: [(MountFlags, MountAttrFlags); 6] = [
    (MountFlags::RDONLY, MountAttrFlags::MOUNT_ATTR_RDONLY),
    (MountFlags::NOSUID, MountAttrFlags::MOUNT_ATTR_NOSUID),
    (MountFlags::NODEV, MountAttrFlags::MOUNT_ATTR_NODEV),
    (MountFlags::NOEXEC, MountAttrFlags::MOUNT_ATTR_NOEXEC),
    (
        MountFlags::NODIRATIME,
        MountAttrFlags::MOUNT_ATTR_NODIRATIME,
    ),
    (MountFlags::NOATIME, MountAttrFlags::MOUNT_ATTR_NOATIME),
];

fn attributes(flags: MountFlags) -> MountAttrFlags {
    let mut attributes = MountAttrFlags::empty();
    for (flag, attribute) in OF_THE_MOUNT {
        attributes.set(attribute, flags.contains(flag));
    }
    // As in mount(2), the later flag has effect.
    if flags.contains(MountFlags::STRICTATIME) {
        attributes.remove(MountAttrFlags::MOUNT_ATTR_NOATIME);
        attributes.insert(MountAttrFlags::MOUNT_ATTR_STRICTATIME);
    }
    attributes
}
