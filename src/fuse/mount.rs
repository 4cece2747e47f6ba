//! Attaches a FUSE file system to its mountpoint: by mount(2) where this process may,
//! else through fusermount3. Called by `session`. Options of the `fuse` type: Linux
//! `Documentation/filesystems/fuse/fuse.rst`.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::MountFlags;

use super::config::MountConfig;
use super::error::{Error, Result};
use super::keeper::Keeper;
use super::{FS_TYPE, FUSE_MAGIC, fusermount, mountinfo, unmount};

/// A mount of ours. Dropping it takes the mount away (lazily) if it is still there.
#[derive(Debug)]
pub(super) struct Attachment {
    /// Absolute, without symlinks.
    pub(super) mountpoint: PathBuf,
    /// Device number of the mount, by which it is recognised.
    device: (u32, u32),
    /// Of a server in a sandbox: what it can no longer reach by a path.
    outside: Option<Outside>,
    taken_away: AtomicBool,
}

/// What is opened before a server enters its sandbox.
#[derive(Debug)]
struct Outside {
    keeper: Arc<Keeper>,
    /// Of fusectl: ends the connection.
    abort: Option<File>,
    /// Of sysfs.
    read_ahead: Option<File>,
    /// The root of the mount, until it has answered: no longer, or it would be in use.
    root: Mutex<Option<OwnedFd>>,
}

impl Attachment {
    /// Minor device number: the name of the connection in fusectl.
    pub(super) fn minor(&self) -> u32 {
        self.device.1
    }

    /// Lets the kernel read ahead `kib` KiB of a file at a time, where it would take 128. Root
    /// may ask for that, where sysfs can be written.
    pub(super) fn read_ahead(&self, kib: u32) {
        let file = self.read_ahead_file();
        let text = kib.to_string();
        let written = match &self.outside {
            None => std::fs::write(&file, text),
            Some(Outside {
                read_ahead: Some(file),
                ..
            }) => (&*file).write_all(text.as_bytes()),
            Some(_) => Err(io::ErrorKind::PermissionDenied.into()),
        };
        if let Err(error) = written {
            tracing::debug!(file, %error, "readahead stays as it is");
        }
    }

    fn read_ahead_file(&self) -> String {
        let (major, minor) = self.device;
        format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb")
    }

    /// Opens what is needed after the sandbox has been entered; `keeper` does the rest.
    pub(super) fn prepare_sandbox(&mut self, keeper: Arc<Keeper>) {
        let write = |path: &str| File::options().write(true).open(path);
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        self.outside = Some(Outside {
            keeper,
            abort: unmount::open_abort(self.minor())
                .map_err(|error| tracing::debug!(%error, "the connection cannot be aborted"))
                .ok(),
            read_ahead: write(&self.read_ahead_file()).ok(),
            root: Mutex::new(rustix::fs::open(&self.mountpoint, flags, Mode::empty()).ok()),
        });
    }

    /// The keeper, of a server in a sandbox.
    pub(super) fn keeper(&self) -> Option<&Arc<Keeper>> {
        self.outside.as_ref().map(|outside| &outside.keeper)
    }

    /// The same mount for another process: what is opened for this one is left out.
    pub(super) fn place(&self) -> Self {
        Self {
            mountpoint: self.mountpoint.clone(),
            device: self.device,
            outside: None,
            taken_away: AtomicBool::new(false),
        }
    }

    /// Asks the mount for an answer, which only a server can give. To be called once.
    ///
    /// # Errors
    /// Those of statfs(2).
    pub(super) fn answers(&self) -> io::Result<()> {
        let root = self
            .outside
            .as_ref()
            .and_then(|held| held.root.lock().take());
        match root {
            Some(root) => is_fuse(&rustix::fs::fstatfs(root)?),
            None => is_fuse(&rustix::fs::statfs(&self.mountpoint)?),
        }
    }

    /// What ends the connection, whoever still uses the mount.
    pub(super) fn aborter(&self) -> impl Fn() -> io::Result<()> + Send + Sync + 'static {
        let minor = self.minor();
        let held = self.outside.as_ref().map(|held| {
            let abort = held.abort.as_ref();
            abort.and_then(|file| file.try_clone().ok())
        });
        move || match &held {
            None => unmount::abort_connection(minor),
            Some(Some(file)) => (&*file).write_all(b"1"),
            Some(None) => Err(io::ErrorKind::PermissionDenied.into()),
        }
    }

    /// Whether our mount is on its mountpoint, and topmost there.
    pub(super) fn is_attached(&self) -> bool {
        mountinfo::find(&self.mountpoint).is_some_and(|m| m.is_fuse() && m.device == self.device)
    }

    /// The end: detaches the mount if it is still there. Once.
    pub(super) fn take_away(&self) {
        if self.taken_away.swap(true, Ordering::Relaxed) {
            return;
        }
        if let Err(error) = self.detach() {
            tracing::warn!(%error, "mount left behind");
        }
    }

    /// Detaches the mount if it is there; what others mounted over it stays.
    pub(super) fn detach(&self) -> Result<()> {
        if let Some(keeper) = self.keeper() {
            keeper.detach(self)
        } else if self.is_attached() {
            unmount(&self.mountpoint, true)
        } else {
            Ok(())
        }
    }
}

fn is_fuse(answer: &rustix::fs::StatFs) -> io::Result<()> {
    if u64::try_from(answer.f_type).ok() == Some(FUSE_MAGIC) {
        Ok(())
    } else {
        Err(io::Error::other("no FUSE file system is mounted there"))
    }
}

/// Waits until the mount on `mountpoint` answers.
///
/// # Errors
/// Those of statfs(2), or that it is no FUSE file system.
pub(super) fn answers(mountpoint: &Path) -> io::Result<()> {
    is_fuse(&rustix::fs::statfs(mountpoint)?)
}

impl Drop for Attachment {
    fn drop(&mut self) {
        self.take_away();
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
    Ok((
        fd,
        Attachment {
            mountpoint,
            device,
            outside: None,
            taken_away: AtomicBool::new(false),
        },
    ))
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

/// The device, for `count` workers that could not open it themselves; fewer where it cannot be
/// opened.
pub(super) fn spare_devices(count: usize) -> Vec<OwnedFd> {
    (0..count).map_while(|_| open_device().ok()).collect()
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
