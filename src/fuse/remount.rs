//! Changes of the flags of a mount (`mount -o remount,…`), for example to read-only.

use std::ffi::OsStr;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::ffi::OsStrExt as _;

use rustix::mount::{MountFlags, mount_remount};

use super::config::flag_of;
use super::error::{Error, Result};
use super::unmount::Mount;

impl Mount {
    /// Changes the flags that `options` of mount(8) name (`ro`, `rw`, `nosuid`, `exec` …); the
    /// others stay. Other options have no effect. The kernel writes pending data first.
    ///
    /// # Errors
    /// [`Error::Remount`] with EBUSY if it becomes read-only while files are open for writing, with
    /// EPERM without CAP_SYS_ADMIN; [`Error::NotFuse`] for other file systems.
    pub fn remount<'o>(&self, options: impl Iterator<Item = &'o OsStr>) -> Result<()> {
        self.check()?;
        let mut flags = MountFlags::empty();
        let mut apply = |option: &[u8]| {
            if let Some((flag, set)) = flag_of(option) {
                flags.set(flag, set);
            }
        };
        let now = self.entry().options.as_bytes().split(|&b| b == b',');
        now.for_each(&mut apply);
        options.map(OsStr::as_bytes).for_each(&mut apply);
        // The path leads to the mount that is held open, whatever is mounted over it by now.
        let root = format!("/proc/thread-self/fd/{}", self.place().as_fd().as_raw_fd());
        mount_remount(root, flags, "").map_err(|errno| Error::Remount {
            path: self.path().to_owned(),
            source: errno.into(),
        })
    }
}
