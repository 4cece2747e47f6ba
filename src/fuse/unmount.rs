//! Unmounting, and recognising mounts whose server died. Called by `session` (signals)
//! and by the cli (`umount`, and `mount` over a dead mount).

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, UnmountFlags};

use super::error::{Error, Result};
use super::{fusermount, mountinfo, runtime};

/// Unmounts the FUSE file system on `mountpoint`: with umount2(2), or through fusermount3
/// where this user may not. `lazy` detaches it even while in use (MNT_DETACH): its server
/// then ends when the last user is gone.
///
/// # Errors
/// [`Error::NotFuse`] when something else, or nothing, is mounted there;
/// [`Error::Unmount`] with the system's reason (in use, not permitted).
pub fn unmount(mountpoint: &Path, lazy: bool) -> Result<()> {
    let path = resolve(mountpoint)?;
    if !mountinfo::find(&path).is_some_and(|m| m.is_fuse()) {
        return Err(Error::NotFuse { path });
    }
    let mut flags = UnmountFlags::NOFOLLOW;
    if lazy {
        flags |= UnmountFlags::DETACH;
    }
    match rustix::mount::unmount(&path, flags) {
        Ok(()) => Ok(()),
        Err(Errno::PERM) => unmount_with_helper(path, lazy),
        Err(Errno::BUSY) => Err(Error::Unmount {
            path,
            text:
                "still in use (a process has a file open or works there); end it, or unmount lazily"
                    .into(),
        }),
        Err(error) => Err(Error::Unmount {
            path,
            text: error.to_string(),
        }),
    }
}

fn unmount_with_helper(path: PathBuf, lazy: bool) -> Result<()> {
    let Some(helper) = fusermount::find_helper() else {
        return Err(Error::Unmount {
            path,
            text: "not permitted, and fusermount3 is not installed (install the package fuse3)"
                .into(),
        });
    };
    let mut command = Command::new(helper);
    command.args(["-u", "-q"]);
    if lazy {
        command.arg("-z");
    }
    command.arg("--").arg(&path);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    match command.output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(Error::Unmount {
            text: fusermount::message(&output.stderr),
            path,
        }),
        Err(error) => Err(Error::Unmount {
            path,
            text: error.to_string(),
        }),
    }
}

/// Whether the server of a FUSE mount on `path` is gone: every access answers ENOTCONN,
/// or ECONNABORTED while the server is just ending.
pub fn is_dead_mount(path: &Path) -> bool {
    matches!(
        rustix::fs::statfs(path),
        Err(Errno::NOTCONN | Errno::CONNABORTED)
    )
}

/// Detaches the dead mounts on `path`, all of them when they are stacked.
///
/// # Errors
/// As [`unmount`].
pub fn detach_dead(path: &Path) -> Result<()> {
    let mut found = false;
    while is_dead_mount(path) {
        unmount(path, true)?;
        found = true;
    }
    if found {
        // Drops their records, before a new mount here makes them look alive.
        runtime::list();
    }
    Ok(())
}

fn resolve(mountpoint: &Path) -> Result<PathBuf> {
    mountinfo::absolute(mountpoint).map_err(|source| Error::Mountpoint {
        path: mountpoint.to_owned(),
        source,
    })
}

/// Aborts a FUSE connection through fusectl: its server reads ENODEV and ends, whoever
/// still uses the mount gets ENOTCONN. `minor` is the minor device number of the mount.
pub(super) fn abort_connection(minor: u32) -> io::Result<()> {
    open_abort(minor)?.write_all(b"1")
}

/// The file of fusectl that aborts a connection when something is written to it.
///
/// # Errors
/// Those of open(2), and of mounting fusectl where it is not.
pub(super) fn open_abort(minor: u32) -> io::Result<File> {
    let file = PathBuf::from(minor.to_string()).join("abort");
    let usual = Path::new("/sys/fs/fuse/connections").join(&file);
    match File::options().write(true).open(&usual) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => open_unlisted(&file),
        result => result,
    }
}

/// Where fusectl is not mounted (containers): a mount of it that is attached nowhere.
fn open_unlisted(file: &Path) -> io::Result<File> {
    let context = rustix::mount::fsopen("fusectl", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_create(&context)?;
    let root = rustix::mount::fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )?;
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let abort = rustix::fs::openat(&root, file, flags, Mode::empty())?;
    Ok(File::from(abort))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_fuse_mount_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(
            unmount(dir.path(), false),
            Err(Error::NotFuse { .. })
        ));
        assert!(matches!(
            unmount(&dir.path().join("a/b"), false),
            Err(Error::Mountpoint { .. })
        ));
        assert!(!is_dead_mount(dir.path()));
        assert!(detach_dead(dir.path()).is_ok());
    }
}
