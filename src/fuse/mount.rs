//! Attaches a FUSE file system to its mountpoint: by mount(2) where this process may,
//! else through fusermount3. Called by `session`. Options of the `fuse` type: Linux
//! `Documentation/filesystems/fuse/fuse.rst`.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::MountFlags;

use super::config::MountConfig;
use super::error::{Error, Result};
use super::{FS_TYPE, fusermount, mountinfo, unmount};

/// A mount of ours. Dropping it takes the mount away (lazily) if it is still there.
#[derive(Debug)]
pub(super) struct Attachment {
    /// Absolute, without symlinks.
    pub(super) mountpoint: PathBuf,
    /// Device number of the mount, by which it is recognised.
    device: (u32, u32),
}

impl Attachment {
    /// Minor device number: the name of the connection in fusectl.
    pub(super) fn minor(&self) -> u32 {
        self.device.1
    }

    /// Lets the kernel read ahead `kib` KiB of a file at a time, where it would take 128. Root
    /// may ask for that, where sysfs can be written.
    pub(super) fn read_ahead(&self, kib: u32) {
        let (major, minor) = self.device;
        let file = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
        if let Err(error) = std::fs::write(&file, kib.to_string()) {
            tracing::debug!(file, %error, "readahead stays as it is");
        }
    }

    /// Whether our mount is on its mountpoint, and topmost there.
    pub(super) fn is_attached(&self) -> bool {
        mountinfo::find(&self.mountpoint).is_some_and(|m| m.is_fuse() && m.device == self.device)
    }

    /// Detaches the mount if it is there; what others mounted over it stays.
    pub(super) fn detach(&self) -> Result<()> {
        if self.is_attached() {
            unmount(&self.mountpoint, true)
        } else {
            Ok(())
        }
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        if let Err(error) = self.detach() {
            tracing::warn!(%error, "mount left behind");
        }
    }
}

/// Mounts, after detaching a dead mount left on the mountpoint. The descriptor is the
/// connection: the kernel has queued INIT on it.
pub(super) fn attach(config: &MountConfig) -> Result<(OwnedFd, Attachment)> {
    let failed = |source: io::Error| Error::Mountpoint {
        path: config.mountpoint.clone(),
        source,
    };
    unmount::detach_dead(&config.mountpoint)?;
    let mountpoint = config.mountpoint.canonicalize().map_err(failed)?;
    if !mountpoint.metadata().map_err(failed)?.is_dir() {
        return Err(failed(Errno::NOTDIR.into()));
    }
    let (fd, device) = match mount_directly(config, &mountpoint)? {
        Some(fd) => (fd, mountinfo::device(&mountpoint)),
        None => (fusermount::mount(config, &mountpoint)?, None),
    };
    let listed = || mountinfo::find(&mountpoint).filter(mountinfo::MountEntry::is_fuse);
    let device = device
        .or_else(|| listed().map(|m| m.device))
        .ok_or_else(|| Error::NotFuse {
            path: mountpoint.clone(),
        })?;
    Ok((fd, Attachment { mountpoint, device }))
}

/// `None`: this process may not mount.
fn mount_directly(config: &MountConfig, mountpoint: &Path) -> Result<Option<OwnedFd>> {
    // The helper opens the device with the user's rights: it cannot do better.
    let fd = open_device()?;
    let data = mount_data(config, fd.as_raw_fd())?;
    // In a user namespace the kernel may insist on the second form.
    for extra in [MountFlags::empty(), MountFlags::NODEV | MountFlags::NOSUID] {
        let flags = config.flags | extra;
        match rustix::mount::mount(&config.fsname, mountpoint, FS_TYPE, flags, data.as_c_str()) {
            Ok(()) => return Ok(Some(fd)),
            Err(Errno::PERM) => {}
            Err(error) => {
                return Err(Error::Mount {
                    path: mountpoint.to_owned(),
                    source: error.into(),
                });
            }
        }
    }
    Ok(None)
}

/// Tells before anything is made for a mount on `mountpoint` that it would fail: there is
/// no FUSE device, or no helper for a user who needs one.
///
/// # Errors
/// [`Error::NoDevice`], [`Error::Device`], [`Error::NoFusermount`].
pub fn preflight(mountpoint: &Path) -> Result<()> {
    let is_root = rustix::process::geteuid().is_root();
    match open_device() {
        Err(error @ Error::NoDevice) => Err(error),
        Err(error) if is_root => Err(error),
        _ if is_root || fusermount::find_helper().is_some() => Ok(()),
        _ => Err(Error::NoFusermount {
            path: mountpoint.to_owned(),
        }),
    }
}

fn open_device() -> Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    rustix::fs::open("/dev/fuse", flags, Mode::empty()).map_err(|error| match error {
        Errno::NOENT | Errno::NODEV | Errno::NXIO => Error::NoDevice,
        other => Error::Device(other.into()),
    })
}

/// Whether workers can open the device again for descriptors of their own.
pub(super) fn can_reopen_device() -> bool {
    open_device().is_ok()
}

fn mount_data(config: &MountConfig, fd: i32) -> Result<CString> {
    if config.fsname.as_bytes().contains(&0) {
        return Err(Error::Option {
            option: "fsname",
            problem: "holds a NUL byte",
        });
    }
    let mut data = format!(
        "fd={fd},rootmode=40000,user_id={},group_id={},default_permissions",
        rustix::process::getuid().as_raw(),
        rustix::process::getgid().as_raw()
    )
    .into_bytes();
    if config.allow_other {
        data.extend_from_slice(b",allow_other");
    }
    if let Some(context) = selinux_context(config)? {
        data.extend_from_slice(b",context=\"");
        data.extend_from_slice(context.as_bytes());
        data.push(b'"');
    }
    CString::new(data).map_err(|_| Error::Option {
        option: "context",
        problem: "holds a NUL byte",
    })
}

/// The `context=` to pass on. Without SELinux the kernel would refuse the option, and it
/// means nothing: podman passes it only where SELinux is on.
fn selinux_context(config: &MountConfig) -> Result<Option<&OsStr>> {
    let Some(context) = config.context.as_deref() else {
        return Ok(None);
    };
    if context.as_bytes().contains(&b'"') {
        return Err(Error::Option {
            option: "context",
            problem: "holds a quote",
        });
    }
    if !Path::new("/sys/fs/selinux/enforce").exists() {
        tracing::debug!(?context, "SELinux is off: context ignored");
        return Ok(None);
    }
    Ok(Some(context))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_of_mount() {
        let mut config = MountConfig::new("/mnt");
        config.allow_other = true;
        config.context = Some("u:r:t".into());
        let data = mount_data(&config, 7).unwrap().into_string().unwrap();
        assert!(data.starts_with("fd=7,rootmode=40000,user_id="), "{data}");
        assert!(data.contains(",default_permissions,allow_other"), "{data}");
        config.context = Some("a\"b".into());
        assert!(matches!(mount_data(&config, 7), Err(Error::Option { .. })));
    }

    #[test]
    fn unusable_mountpoints() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, b"").unwrap();
        for path in [file, dir.path().join("absent")] {
            let error = attach(&MountConfig::new(&path)).unwrap_err();
            assert!(matches!(error, Error::Mountpoint { .. }), "{error}");
            assert!(
                error.to_string().contains(path.to_str().unwrap()),
                "{error}"
            );
        }
    }
}
