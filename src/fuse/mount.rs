//! Attaches a FUSE file system to its mountpoint: if this process may mount, on exactly the
//! directory that was opened and checked; else through fusermount3. Options of the `fuse` type:
//! Linux `Documentation/filesystems/fuse/fuse.rst`.

use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::MountFlags;

use super::config::MountConfig;
use super::connection_control::Control;
use super::error::{Error, Result};
use super::keeper::Keeper;
use super::mountpoint::Mountpoint;
use super::own_mount::{Connectedness, MountId, OwnMount};
use super::{FS_TYPE, FUSE_MAGIC, fusermount, mountinfo, unmount};

mod new_calls;

/// A mount of this process. Dropping it detaches the mount if it still exists.
#[derive(Debug)]
pub(super) struct Attachment {
    own: OwnMount,
    control: Arc<Control>,
    /// Its root, until the mount is asked for an answer. An open root keeps the mount in use. A
    /// mount of the caller has none.
    root: Mutex<Option<OwnedFd>>,
    mounted_by: MountedBy,
    /// The keeper of a server in a sandbox, which detaches the mount for it.
    keeper: Option<Arc<Keeper>>,
    taken_away: AtomicBool,
}

/// Who has mounted, and unmounts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum MountedBy {
    /// This process.
    Us,
    /// The program that started it, which passed the connection.
    Caller,
}

impl Attachment {
    /// Whether the mount belongs to the program that started this process.
    pub(super) fn is_callers(&self) -> bool {
        self.mounted_by == MountedBy::Caller
    }

    /// Returns the mountpoint, absolute and without symlinks.
    pub(super) fn mountpoint(&self) -> &Path {
        self.own.mountpoint()
    }

    /// Returns its identity.
    pub(super) fn own(&self) -> &OwnMount {
        &self.own
    }

    /// Returns its connection.
    pub(super) fn control(&self) -> &Arc<Control> {
        &self.control
    }

    /// Hands the work that a server in a sandbox may not do to `keeper`.
    pub(super) fn prepare_sandbox(&mut self, keeper: Arc<Keeper>) {
        self.keeper = Some(keeper);
    }

    /// Returns the keeper of a server in a sandbox.
    pub(super) fn keeper(&self) -> Option<&Arc<Keeper>> {
        self.keeper.as_ref()
    }

    /// Asks the mount for an answer, which only a server can give. Call it once.
    ///
    /// # Errors
    /// Those of statfs(2); ENOTCONN if it was asked before.
    pub(super) fn answers(&self) -> io::Result<()> {
        if self.is_callers() {
            // The handshake has been made, and there is no path to the mount.
            return Ok(());
        }
        let root = self.root.lock().take();
        answers(root.ok_or(Errno::NOTCONN)?)
    }

    /// Detaches the mount if it still exists. This happens once.
    pub(super) fn take_away(&self) {
        if self.taken_away.swap(true, Ordering::Relaxed) {
            return;
        }
        if let Err(error) = self.detach() {
            tracing::warn!(%error, "mount left behind");
        }
    }

    /// Detaches the mount if it exists. Other mounts on top of it or in its place stay.
    pub(super) fn detach(&self) -> Result<()> {
        let connection = if self.control.is_connected() {
            Connectedness::Connected
        } else {
            Connectedness::Ended
        };
        match &self.keeper {
            Some(keeper) => keeper.detach(self.mountpoint(), connection),
            None => self.own.detach(connection).map(|_| ()),
        }
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        self.take_away();
    }
}

/// Mounts, after detaching a dead mount on the mountpoint. The descriptor is the connection, in
/// which the kernel has queued INIT.
pub(super) fn attach(config: &MountConfig) -> Result<(OwnedFd, Attachment)> {
    if let Some(connection) = &config.connection {
        return attach_to(connection, &config.mountpoint);
    }
    let (place, _) = unmount::without_dead(&config.mountpoint)?;
    if let Some(checked) = config.checked
        && place.id()? != checked
    {
        return Err(Error::Mountpoint {
            path: config.mountpoint.clone(),
            source: io::Error::other("it was replaced by another directory after it was checked"),
        });
    }
    let (device, root) = match mount_directly(config, &place)? {
        Some(mounted) => mounted,
        None => {
            let device = fusermount::mount(config, place.path())?;
            (device, root_on(place.path(), config)?)
        }
    };
    let failed = |source: io::Error| Error::Session {
        path: place.path().to_owned(),
        source,
    };
    let own = OwnMount::new(&root, place.path()).map_err(failed)?;
    let control = Control::new(device.try_clone().map_err(failed)?, own.id().device);
    let attachment = Attachment {
        own,
        control: Arc::new(control),
        root: Mutex::new(Some(root)),
        mounted_by: MountedBy::Us,
        keeper: None,
        taken_away: AtomicBool::new(false),
    };
    Ok((device, attachment))
}

/// Takes the connection of a mount that the caller made. `name` is its name for messages.
fn attach_to(connection: &OwnedFd, name: &Path) -> Result<(OwnedFd, Attachment)> {
    let failed = |source: io::Error| Error::Session {
        path: name.to_owned(),
        source,
    };
    let device = connection.try_clone().map_err(failed)?;
    // Without a number the connection can neither be aborted nor read ahead for.
    let number = (0, number_of(&device).unwrap_or(0));
    let control = Control::new(device.try_clone().map_err(failed)?, number);
    let attachment = Attachment {
        own: OwnMount::of_caller(name),
        control: Arc::new(control),
        root: Mutex::new(None),
        mounted_by: MountedBy::Caller,
        keeper: None,
        taken_away: AtomicBool::new(false),
    };
    Ok((device, attachment))
}

/// Returns the number of a connection, which is the minor device number of its file system: the
/// line `fuse_connection` of fdinfo (Linux 6.17). `None` if the kernel does not report it.
fn number_of(device: &OwnedFd) -> Option<u32> {
    let file = format!("/proc/thread-self/fdinfo/{}", device.as_raw_fd());
    let text = std::fs::read_to_string(file).ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("fuse_connection:"));
    line?.trim().parse().ok()
}

/// The number of a descriptor in a path `/dev/fd/N`, as libfuse takes it for a mount that the
/// caller has made.
fn descriptor(path: &Path) -> Option<i32> {
    let number = path.as_os_str().as_bytes().strip_prefix(b"/dev/fd/")?;
    let digits = !number.is_empty() && number.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(number)
        .ok()
        .filter(|_| digits)?
        .parse()
        .ok()
}

/// Takes the connection of a mount that the caller of this program has made, if `path` is
/// `/dev/fd/N` and N is an open /dev/fuse with which this program was started. That is the form of
/// libfuse 3.3, which Apptainer uses. The program gets no right by it: it serves a connection that
/// its caller could serve.
///
/// # Errors
/// [`Error::Device`].
pub fn caller_mount(path: &Path) -> Result<Option<OwnedFd>> {
    let Some(number) = descriptor(path) else {
        return Ok(None);
    };
    crate::sys::fuse::take_inherited(number).map_err(Error::Device)
}

/// Mounts without the helper. `None` if this process may not mount.
fn mount_directly(config: &MountConfig, place: &Mountpoint) -> Result<Option<(OwnedFd, OwnedFd)>> {
    // In a user namespace the kernel may accept only the second form.
    for extra in [MountFlags::empty(), MountFlags::NODEV | MountFlags::NOSUID] {
        // The helper opens the device with the rights of the user, so it would fail too.
        let flags = config.flags | extra;
        match mount_once(config, flags, open_device()?, place) {
            Ok(mounted) => return Ok(Some(mounted)),
            Err(Error::Mount { source, .. })
                if source.raw_os_error() == Some(Errno::PERM.raw_os_error()) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// Mounts on exactly the directory of `place`. Returns the device and the root of the new mount.
fn mount_once(
    config: &MountConfig,
    flags: MountFlags,
    mut device: OwnedFd,
    place: &Mountpoint,
) -> Result<(OwnedFd, OwnedFd)> {
    let options = options(config)?;
    let failed = |error: Errno| Error::Mount {
        path: place.path().to_owned(),
        source: error.into(),
    };
    if new_calls::can_hold(config, &options) {
        match new_calls::mount(config, flags, &options, &device, place) {
            // Linux before 5.2, or a filter of system calls, which may also say EPERM. If that refuses
            // only some of the calls, the device has been used for a mount that nobody sees.
            Err(Errno::NOSYS | Errno::PERM) => device = open_device()?,
            other => return other.map(|root| (device, root)).map_err(failed),
        }
    }
    let data = mount_data(&options, device.as_raw_fd())?;
    let target = place.proc_path();
    rustix::mount::mount(&config.fsname, &target, FS_TYPE, flags, data.as_c_str())
        .map_err(failed)?;
    let root = root_on(place.path(), config)?;
    Ok((device, root))
}

/// Returns the root of the new mount on `path`, if the kernel does not return it.
fn root_on(path: &Path, config: &MountConfig) -> Result<OwnedFd> {
    let not_fuse = || Error::NotFuse {
        path: path.to_owned(),
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let root = rustix::fs::open(path, flags, Mode::empty()).map_err(|_| not_fuse())?;
    let id = MountId::of(&root).map_err(|_| not_fuse())?;
    let mounts = mountinfo::list().map_err(|_| not_fuse())?;
    let ours = |entry: &&mountinfo::MountEntry| entry.is_fuse() && entry.source == config.fsname;
    id.entry(&mounts).filter(ours).ok_or_else(not_fuse)?;
    Ok(root)
}

/// Checks, before anything is made for a mount on `mountpoint`, that there is a FUSE device, and a
/// helper for a user who needs one.
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

/// Opens the device for `count` workers that cannot open it themselves; fewer if that fails.
pub(super) fn spare_devices(count: usize) -> Vec<OwnedFd> {
    (0..count).map_while(|_| open_device().ok()).collect()
}

/// Asks the mount with this root for an answer. Closes the root, which would keep the mount in use.
///
/// # Errors
/// Those of statfs(2); an error if it is not a FUSE mount.
pub(super) fn answers(root: OwnedFd) -> io::Result<()> {
    let answer = rustix::fs::fstatfs(&root)?;
    if u64::try_from(answer.f_type).ok() == Some(FUSE_MAGIC) {
        Ok(())
    } else {
        Err(io::Error::other("no FUSE file system is mounted there"))
    }
}

/// Returns the options of the `fuse` type: flags, and names with their values.
fn options(config: &MountConfig) -> Result<Vec<(&'static str, Option<OsString>)>> {
    if config.fsname.as_bytes().contains(&0) {
        return Err(Error::Option {
            option: "fsname",
            problem: "holds a NUL byte",
        });
    }
    let uid = rustix::process::getuid().as_raw().to_string();
    let gid = rustix::process::getgid().as_raw().to_string();
    let mut options = vec![
        ("rootmode", Some("40000".into())),
        ("user_id", Some(uid.into())),
        ("group_id", Some(gid.into())),
    ];
    if config.is_checked() {
        options.push(("default_permissions", None));
    }
    if config.allow_other {
        options.push(("allow_other", None));
    }
    if let Some(context) = selinux_context(config)? {
        options.push(("context", Some(context.to_owned())));
    }
    Ok(options)
}

/// Returns the options in the form of mount(2).
fn mount_data(options: &[(&'static str, Option<OsString>)], fd: i32) -> Result<CString> {
    let mut data = format!("fd={fd}").into_bytes();
    for (name, value) in options {
        data.push(b',');
        data.extend_from_slice(name.as_bytes());
        match value {
            Some(value) if *name == "context" => {
                data.extend_from_slice(b"=\"");
                data.extend_from_slice(value.as_bytes());
                data.push(b'"');
            }
            Some(value) => {
                data.push(b'=');
                data.extend_from_slice(value.as_bytes());
            }
            None => {}
        }
    }
    CString::new(data).map_err(|_| Error::Option {
        option: "context",
        problem: "holds a NUL byte",
    })
}

/// Returns the `context=` to pass to the kernel. Without SELinux the kernel would refuse the
/// option, and it has no meaning then: podman passes it only if SELinux is on.
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
        let data = mount_data(&options(&config).unwrap(), 7).unwrap();
        let data = data.into_string().unwrap();
        assert!(data.starts_with("fd=7,rootmode=40000,user_id="), "{data}");
        assert!(data.contains(",default_permissions,allow_other"), "{data}");
        config.context = Some("a\"b".into());
        assert!(matches!(options(&config), Err(Error::Option { .. })));
    }

    #[test]
    fn numbers_of_descriptors() {
        for (path, number) in [
            ("/dev/fd/5", Some(5)),
            ("/dev/fd/12", Some(12)),
            ("/dev/fd/", None),
            ("/dev/fd/+5", None),
            ("/dev/fd/5/a", None),
            ("/dev/fd/99999999999", None),
            ("dev/fd/5", None),
        ] {
            assert_eq!(descriptor(Path::new(path)), number, "{path}");
        }
        // Nothing of this process is taken: its files have FD_CLOEXEC.
        let own = open_device();
        if let Ok(own) = &own {
            let path = format!("/dev/fd/{}", own.as_raw_fd());
            assert!(caller_mount(Path::new(&path)).unwrap().is_none());
        }
        assert!(caller_mount(Path::new("/dev/fd/0")).unwrap().is_none());
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
