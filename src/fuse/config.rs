//! The settings of a mount. The cli or a user of the library fills them in; `mount` and `session`
//! read them.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::mount::MountFlags;
use serde::{Deserialize, Serialize};

use super::mountpoint::DirectoryId;
use super::runtime::Description;

/// The transport of requests from the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Transport {
    /// Requests are read from /dev/fuse and answered there.
    #[default]
    Classic,
    /// FUSE over io_uring: Linux 6.14 and newer, if the administrator has switched it on
    /// (`/sys/module/fuse/parameters/enable_uring`).
    Uring,
    /// The crate `fuser` reads requests from /dev/fuse. It is an independent implementation of the
    /// protocol (cargo feature `fuser`).
    Fuser,
}

impl Transport {
    /// Returns the value of the option `-o transport=`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Classic => "classic",
            Self::Uring => "uring",
            Self::Fuser => "fuser",
        }
    }
}

/// Whether the administrator has switched FUSE over io_uring on. `false` if this cannot be read.
pub fn offers_rings() -> bool {
    let switch = std::fs::read("/sys/module/fuse/parameters/enable_uring");
    switch.is_ok_and(|text| text.starts_with(b"Y"))
}

/// The path of file data to programs (option `io=`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum IoPolicy {
    /// The fastest policy for ordinary work at this mount, by the numbers in docs/BENCHMARKS.md:
    /// [`IoPolicy::Passthrough`] for writable mounts, if the kernel permits it and an overlay still
    /// fits on top of it; else [`IoPolicy::Cached`].
    #[default]
    Auto,
    /// Files are opened without a message. The server reads and writes their data, and the kernel
    /// caches it in its page cache.
    Cached,
    /// The kernel reads and writes the files of layers itself where it may (Linux 6.9,
    /// CAP_SYS_ADMIN). Each open costs a message.
    Passthrough,
    /// As [`IoPolicy::Passthrough`], also for files of a lower on a writable mount that are opened
    /// for reading: all mounts of a layer share their pages. While such a file is open, an open for
    /// writing waits, and after two seconds it fails with ETXTBSY.
    Shared,
}

impl IoPolicy {
    /// Returns the value of the option.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Cached => "cached",
            Self::Passthrough => "passthrough",
            Self::Shared => "shared",
        }
    }

    /// Whether the kernel must read and write files itself, else the mount fails.
    pub fn insists(self) -> bool {
        matches!(self, Self::Passthrough | Self::Shared)
    }
}

/// Who checks whether a program may use a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Permissions {
    /// The kernel, by the owners and modes that the mount shows (`default_permissions`).
    #[default]
    Kernel,
    /// Nobody: the mounting user, whose the files are, may do everything. Has an effect only on
    /// mounts that no other user can reach.
    Unchecked,
}

/// The settings of a mount.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct MountConfig {
    /// The directory to mount on, relative to the working directory.
    pub mountpoint: PathBuf,
    /// The directory that the caller checked. If `mountpoint` is another directory, the mount
    /// fails. Default: any directory.
    pub checked: Option<DirectoryId>,
    /// The connection of a mount that the caller of this program has made: an open /dev/fuse, see
    /// [`super::caller_mount`]. It is served, and nothing is mounted or unmounted; `mountpoint` is
    /// only a name for messages. Default: none.
    pub connection: Option<Arc<OwnedFd>>,
    /// The source shown in /proc/mounts. Default: `unionfs`.
    pub fsname: OsString,
    /// mount(2) flags. Default: none; devices and set-id files work, as on overlayfs.
    /// [`MountFlags::RDONLY`] is a read-only mount.
    pub flags: MountFlags,
    /// Whether users other than the mounting one may use the mount. Default: yes for root. A plain
    /// user needs `user_allow_other` in /etc/fuse.conf.
    pub allow_other: bool,
    /// Who checks permissions. Default: the kernel.
    pub permissions: Permissions,
    /// SELinux context of all files (`context=`), without quotes. Default: none.
    pub context: Option<OsString>,
    /// The number of worker threads. Each handles one request at a time. Default: one per CPU, at
    /// least 4.
    pub threads: usize,
    /// The transport. `None`, the default: io_uring if the kernel offers it and this process may
    /// use it. A transport that is given but not possible is an error.
    pub transport: Option<Transport>,
    /// Whether SIGTERM, SIGINT and SIGHUP unmount. Default: true. Their handlers stay installed
    /// until the process ends.
    pub handle_signals: bool,
    /// Whether to write a record and a control socket into the runtime directory, for
    /// `unionfs ps` and `stats`. Default: true.
    pub register: bool,
    /// The path of file data to programs. Default: auto.
    pub io: IoPolicy,
    /// Whether the kernel collects writes (option `writeback`). Not possible with
    /// [`IoPolicy::Passthrough`]. Default: false. Written data reaches the upper when the program
    /// closes or syncs the file, or later for mappings. Until then it is lost if the server dies,
    /// and ENOSPC comes late too.
    pub writeback: bool,
    /// Whether statx returns times of birth (option `nobtime`: no). Default: true. Only the answer
    /// to STATX has them, so a program that asks for them costs a message for the first stat of
    /// each file.
    pub births: bool,
    /// Whether files have extended attributes, and so ACLs and capabilities (option `noxattrs`:
    /// no). Default: true. Linux asks for the capability of each file before the first write and
    /// before each change of the owner.
    pub xattrs: bool,
    /// Whether the mount may be idmapped (option `allow_idmap`; Linux 6.12). Default: false. The
    /// kernel then says who calls only for requests that create files. The pool cannot serve users
    /// in turn, and with `transport=fuser` it is not possible.
    pub idmappable: bool,
    /// A description of the mounted object, for the record.
    pub description: Description,
}

/// Returns one for each CPU, and at least 4.
fn default_threads() -> usize {
    const LEAST: usize = 4;
    let ours = rustix::thread::sched_getaffinity(None).map(|set| set.count());
    match ours {
        Ok(cpus) if cpus as usize <= LEAST => LEAST,
        // This also reads the cgroups, which takes two dozen system calls.
        _ => std::thread::available_parallelism().map_or(LEAST, |n| n.get().max(LEAST)),
    }
}

impl MountConfig {
    /// Returns the defaults for a mount on `mountpoint`.
    pub fn new(mountpoint: impl AsRef<Path>) -> Self {
        Self {
            mountpoint: mountpoint.as_ref().to_owned(),
            checked: None,
            connection: None,
            fsname: "unionfs".into(),
            flags: MountFlags::empty(),
            allow_other: rustix::process::geteuid().is_root(),
            permissions: Permissions::Kernel,
            context: None,
            threads: default_threads(),
            transport: None,
            handle_signals: true,
            register: true,
            io: IoPolicy::Auto,
            writeback: false,
            births: true,
            xattrs: true,
            idmappable: false,
            description: Description::default(),
        }
    }

    /// Whether the kernel checks permissions.
    pub(super) fn is_checked(&self) -> bool {
        self.allow_other || self.permissions == Permissions::Kernel
    }

    /// Whether the mount is read-only.
    pub fn is_read_only(&self) -> bool {
        self.flags.contains(MountFlags::RDONLY)
    }

    /// Applies one option of `-o` (names of mount(8) and mount.fuse3(8); quotes around the value of
    /// `context` are removed). Returns `false` if it is not an option of the mount itself.
    pub fn apply_option(&mut self, option: &std::ffi::OsStr) -> bool {
        let bytes = option.as_bytes();
        if let Some((flag, set)) = flag_of(bytes) {
            self.flags.set(flag, set);
        } else if bytes == b"allow_other" {
            self.allow_other = true;
        } else if let Some(name) = bytes.strip_prefix(b"fsname=") {
            self.fsname = super::mountinfo::os(name).to_owned();
        } else if let Some(context) = bytes.strip_prefix(b"context=") {
            let bare = context
                .strip_prefix(b"\"")
                .and_then(|c| c.strip_suffix(b"\""))
                .unwrap_or(context);
            self.context = Some(super::mountinfo::os(bare).to_owned());
        } else {
            // This is always on. It is accepted so that callers need not filter it.
            return bytes == b"default_permissions";
        }
        true
    }
}

/// Returns the flag of a mount(8) option, and whether the option sets or clears it.
pub(super) fn flag_of(option: &[u8]) -> Option<(MountFlags, bool)> {
    Some(match option {
        b"ro" => (MountFlags::RDONLY, true),
        b"rw" => (MountFlags::RDONLY, false),
        b"nodev" => (MountFlags::NODEV, true),
        b"dev" => (MountFlags::NODEV, false),
        b"nosuid" => (MountFlags::NOSUID, true),
        b"suid" => (MountFlags::NOSUID, false),
        b"noexec" => (MountFlags::NOEXEC, true),
        b"exec" => (MountFlags::NOEXEC, false),
        b"noatime" => (MountFlags::NOATIME, true),
        b"atime" => (MountFlags::NOATIME, false),
        b"nodiratime" => (MountFlags::NODIRATIME, true),
        b"diratime" => (MountFlags::NODIRATIME, false),
        b"relatime" => (MountFlags::RELATIME, true),
        b"norelatime" => (MountFlags::RELATIME, false),
        b"strictatime" => (MountFlags::STRICTATIME, true),
        b"sync" => (MountFlags::SYNCHRONOUS, true),
        b"async" => (MountFlags::SYNCHRONOUS, false),
        b"dirsync" => (MountFlags::DIRSYNC, true),
        _ => return None,
    })
}

/// Returns the mount(8) names of the flags that are set; the inverse of [`flag_of`].
pub(super) fn flag_names(flags: MountFlags) -> Vec<&'static str> {
    [
        "ro",
        "nodev",
        "nosuid",
        "noexec",
        "noatime",
        "nodiratime",
        "relatime",
        "strictatime",
        "sync",
        "dirsync",
    ]
    .into_iter()
    .filter(|name| flag_of(name.as_bytes()).is_some_and(|(flag, _)| flags.contains(flag)))
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_set_and_clear() {
        let mut config = MountConfig::new("/mnt");
        config.allow_other = false;
        for option in ["ro", "nodev", "nosuid", "dev", "noatime", "allow_other"] {
            assert!(config.apply_option(option.as_ref()), "{option}");
        }
        assert!(config.is_read_only() && config.allow_other);
        assert_eq!(flag_names(config.flags), ["ro", "nosuid", "noatime"]);
        assert!(config.apply_option("rw".as_ref()));
        assert!(!config.is_read_only());
    }

    #[test]
    fn values_and_foreign_options() {
        let mut config = MountConfig::new("/mnt");
        assert!(config.apply_option("fsname=a,b".as_ref()));
        assert!(config.apply_option("context=\"u:r:t:s0:c1,c2\"".as_ref()));
        assert!(config.apply_option("default_permissions".as_ref()));
        assert_eq!(config.fsname, "a,b");
        assert_eq!(config.context.as_deref(), Some("u:r:t:s0:c1,c2".as_ref()));
        for option in ["", "lowerdir=/a", "volatile", "fsname", "RO"] {
            assert!(!config.apply_option(option.as_ref()), "{option}");
        }
    }
}
