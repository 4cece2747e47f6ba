//! Controls a FUSE connection from outside, through files that have its device number as their
//! name: aborting, and reading ahead.
//!
//! After the file system is gone, the next one may get the same number. So the file is opened
//! first, and used only if the connection still exists then: the number belonged to this connection
//! when the file was opened, and an open file does not change.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

/// The connection of a mount.
#[derive(Debug)]
pub(super) struct Control {
    /// /dev/fuse, on the connection.
    device: OwnedFd,
    number: (u32, u32),
    /// The files that were opened before the sandbox was entered. The sandbox has no path to them.
    files: OnceLock<Files>,
}

/// A file is `None` if it could not be opened.
#[derive(Debug)]
struct Files {
    abort: Option<OwnedFd>,
    read_ahead: Option<OwnedFd>,
}

impl Control {
    /// Returns the connection of `device`. `number` is the device number of its file system.
    pub(super) fn new(device: OwnedFd, number: (u32, u32)) -> Self {
        Self {
            device,
            number,
            files: OnceLock::new(),
        }
    }

    /// Opens the files for [`Self::abort`] and [`Self::read_ahead`]. Call it before a sandbox is
    /// entered. A mount that was made for this is returned: unmounting takes long, so a copy of this
    /// process is to close it last.
    pub(super) fn open_files(&self) -> Option<OwnedFd> {
        let (mut abort, mut made) = (None, None);
        match open_abort_in(self.number.1) {
            Ok((file, mount)) => (abort, made) = (Some(file), mount),
            Err(error) => tracing::debug!(%error, "the connection cannot be aborted"),
        }
        self.files.get_or_init(|| Files {
            abort,
            read_ahead: self.open_read_ahead().ok(),
        });
        made
    }

    /// Whether the file system is neither gone nor aborted.
    pub(super) fn is_connected(&self) -> bool {
        let mut fds = [PollFd::new(&self.device, PollFlags::IN)];
        let now = Timespec::default();
        rustix::io::retry_on_intr(|| poll(&mut fds, Some(&now))).is_ok()
            && !fds[0].revents().contains(PollFlags::ERR)
    }

    /// Makes the kernel read ahead `kib` KiB of a file at a time; its default is 128. Only root may
    /// do this, and only if sysfs is writable.
    pub(super) fn read_ahead(&self, kib: u32) {
        let opened;
        let file = match self.files.get() {
            Some(files) => files.read_ahead.as_ref().ok_or(Errno::ACCESS),
            None => {
                opened = self.open_read_ahead();
                opened.as_ref().map_err(|error| *error)
            }
        };
        if let Err(error) = file.and_then(|file| self.write(file, kib.to_string().as_bytes())) {
            tracing::debug!(%error, "readahead stays as it is");
        }
    }

    fn open_read_ahead(&self) -> rustix::io::Result<OwnedFd> {
        let (major, minor) = self.number;
        let file = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
        rustix::fs::open(file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
    }

    /// Aborts the connection. Its server reads ENODEV and ends, and programs that use the mount get
    /// ENOTCONN. It has no effect on a connection that is gone.
    ///
    /// # Errors
    /// Those of [`open_abort`], and of write(2).
    pub(super) fn abort(&self) -> io::Result<()> {
        let opened;
        let file = match self.files.get() {
            Some(files) => files.abort.as_ref().ok_or(Errno::ACCESS)?,
            None => {
                opened = open_abort(self.number.1)?;
                &opened
            }
        };
        match self.write(file, b"1") {
            Err(Errno::NODEV) => Ok(()),
            other => Ok(other?),
        }
    }

    fn write(&self, file: &OwnedFd, bytes: &[u8]) -> rustix::io::Result<()> {
        if self.is_connected() {
            rustix::io::write(file, bytes).map(|_| ())
        } else {
            Err(Errno::NODEV)
        }
    }
}

/// Opens the file that aborts the connection with this minor device number. The file stays with
/// that connection. The caller must check the number after this.
///
/// # Errors
/// ENOENT if there is no such connection; EACCES if it belongs to another user; EPERM if fusectl is
/// not mounted and may not be.
pub(super) fn open_abort(minor: u32) -> io::Result<OwnedFd> {
    open_abort_in(minor).map(|(file, _)| file)
}

/// As [`open_abort`], with the mount that was made to find the file.
fn open_abort_in(minor: u32) -> io::Result<(OwnedFd, Option<OwnedFd>)> {
    let file = PathBuf::from(minor.to_string()).join("abort");
    let usual = Path::new("/sys/fs/fuse/connections").join(&file);
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    match rustix::fs::open(&usual, flags, Mode::empty()) {
        // fusectl is not mounted (containers). A new mount of it is used that has no mountpoint.
        Err(Errno::NOENT) => {
            let made = fusectl()?;
            let file = rustix::fs::openat(&made, &file, flags, Mode::empty())?;
            Ok((file, Some(made)))
        }
        result => Ok((result?, None)),
    }
}

fn fusectl() -> rustix::io::Result<OwnedFd> {
    let context = rustix::mount::fsopen("fusectl", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_create(&context)?;
    rustix::mount::fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )
}
