//! The sandbox of a process that serves a mount.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};

use rustix::fs::{Mode as FileMode, OFlags};
use rustix::thread::CapabilitySet;

use super::{InForce, Kept, Mode, Needed, calls, kept, kept_for, names, part};
use crate::sys::landlock::{Beneath, Network};
use crate::sys::namespace::Prepared;
use crate::sys::seccomp::Call;
use crate::sys::{capabilities, landlock, namespace, seccomp};

/// All capabilities that are kept. docs/ARCHITECTURE.md has the same table. These are missing on
/// purpose: CAP_SYS_RESOURCE, so that the upper's file system applies the quota of a file's owner;
/// CAP_SETUID and CAP_SETGID, since the daemon never acts as another user.
pub const KEPT: [Kept; 10] = [
    kept(
        CapabilitySet::CHOWN,
        "CHOWN",
        Needed::ToChange,
        "new files belong to the caller, copies to the owner of the original",
    ),
    kept(
        CapabilitySet::SYS_NICE,
        "SYS_NICE",
        Needed::Always,
        "threads that give way to their callers (SCHED_IDLE) take their policy back",
    ),
    kept(
        CapabilitySet::DAC_OVERRIDE,
        "DAC_OVERRIDE",
        Needed::ToChange,
        "files are written whoever owns them; the kernel has checked the caller",
    ),
    kept(
        CapabilitySet::DAC_READ_SEARCH,
        "DAC_READ_SEARCH",
        Needed::Always,
        "files are read whoever owns them",
    ),
    kept(
        CapabilitySet::FOWNER,
        "FOWNER",
        Needed::ToChange,
        "modes, times, ACLs and removal from sticky directories, whoever owns the file",
    ),
    kept(
        CapabilitySet::FSETID,
        "FSETID",
        Needed::ToChange,
        "set-id bits stay where the kernel has not asked to drop them",
    ),
    kept(
        CapabilitySet::LINUX_IMMUTABLE,
        "LINUX_IMMUTABLE",
        Needed::ToChange,
        "chattr +i and +a",
    ),
    kept(
        CapabilitySet::SYS_ADMIN,
        "SYS_ADMIN",
        Needed::Always,
        "trusted.* xattrs (markers of layers), FUSE_DEV_IOC_BACKING_OPEN (passthrough)",
    ),
    kept(
        CapabilitySet::MKNOD,
        "MKNOD",
        Needed::ToChange,
        "device nodes, whiteouts among them",
    ),
    kept(
        CapabilitySet::SETFCAP,
        "SETFCAP",
        Needed::ToChange,
        "security.capability of files",
    ),
];

/// The settings of the sandbox.
#[derive(Debug)]
#[non_exhaustive]
pub struct Daemon<'a> {
    /// The mode.
    pub mode: Mode,
    /// The directories that are only read.
    pub read: Vec<BorrowedFd<'a>>,
    /// The directories that are changed. If there are none, the capabilities for changes are
    /// dropped too.
    pub write: Vec<BorrowedFd<'a>>,
    /// Whether [`super::layers::enclose`] has put the layers into private mounts.
    pub private_layers: bool,
    /// Whether io_uring may be used for requests to the kernel, which the filter of system calls
    /// does not see. The other parts hold for it.
    pub rings: bool,
    /// The empty mount namespace, if another process makes it.
    pub namespace: Option<Prepared>,
}

impl<'a> Daemon<'a> {
    /// Creates a sandbox for a server whose layers are not private, without io_uring.
    #[must_use]
    pub fn new(mode: Mode, read: Vec<BorrowedFd<'a>>, write: Vec<BorrowedFd<'a>>) -> Self {
        Self {
            mode,
            read,
            write,
            private_layers: false,
            rings: false,
            namespace: None,
        }
    }

    /// Enters the sandbox. The process must have one thread and must have opened everything that it
    /// needs. Afterwards only paths in `/proc` lead somewhere.
    ///
    /// # Errors
    /// With [`Mode::Strict`], the error of the part that is not possible.
    pub fn enter(self) -> io::Result<InForce> {
        let mut in_force = InForce::default();
        let mode = self.mode;
        if mode == Mode::Off {
            return Ok(in_force);
        }
        in_force.private_layers = self.private_layers;
        let rights = Rights {
            read: &self.read,
            write: &self.write,
            capabilities: self.capabilities(),
            rings: self.rings,
        };
        rights.confine(mode, self.namespace, in_force)
    }

    fn capabilities(&self) -> CapabilitySet {
        let purpose = if self.write.is_empty() {
            Needed::Always
        } else {
            Needed::ToChange
        };
        kept_for(&KEPT, purpose)
    }
}

/// Confines a process that builds a catalog beside a server. It reads layers and writes to one
/// directory of its user. The process must have one thread and must have opened everything that it
/// needs.
///
/// # Errors
/// As [`Daemon::enter`].
pub fn enter_beside(
    mode: Mode,
    layers: &[BorrowedFd<'_>],
    catalogs: BorrowedFd<'_>,
) -> io::Result<InForce> {
    let in_force = InForce::default();
    if mode == Mode::Off {
        return Ok(in_force);
    }
    let rights = Rights {
        read: layers,
        write: &[catalogs],
        capabilities: kept_for(&KEPT, Needed::Always),
        rings: false,
    };
    rights.confine(mode, None, in_force)
}

/// What a confined process may still do.
struct Rights<'r> {
    read: &'r [BorrowedFd<'r>],
    write: &'r [BorrowedFd<'r>],
    capabilities: CapabilitySet,
    /// Whether it may use io_uring.
    rings: bool,
}

impl Rights<'_> {
    fn confine(
        &self,
        mode: Mode,
        namespace: Option<Prepared>,
        mut in_force: InForce,
    ) -> io::Result<InForce> {
        let prepared = namespace.map(Prepared::enter);
        let done = match prepared {
            Some(Ok(())) => Ok(()),
            // What that process could not do, this one may not be able to do either, with a reason.
            None | Some(Err(_)) => namespace::leave(),
        };
        in_force.mount_namespace = part(mode, "the mount namespace", done)?.is_some();
        let done = capabilities::set_no_new_privs();
        in_force.no_new_privs = part(mode, "no_new_privs", done)?.is_some();
        let done = capabilities::keep_only(self.capabilities);
        if let Some(kept) = part(mode, "capabilities", done)? {
            in_force.capabilities = names(&KEPT, kept);
        }
        in_force.landlock = part(mode, "Landlock", restrict_files(self.read, self.write))?;
        let done = seccomp::restrict(&self.calls(), calls::UNKNOWN);
        in_force.seccomp = part(mode, "the filter of system calls", done)?.is_some();
        Ok(in_force)
    }

    fn calls(&self) -> Vec<Call> {
        let mut allowed = calls::of_daemon();
        if self.rings {
            allowed.extend(calls::of_rings());
        }
        allowed
    }
}

fn restrict_files(read: &[BorrowedFd<'_>], write: &[BorrowedFd<'_>]) -> io::Result<u32> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    // The process opens its own descriptors again through it, and reads the CPUs of callers.
    let proc = rustix::fs::open("/proc", flags, FileMode::empty())?;
    let mut places = vec![(proc.as_fd(), Beneath::Look)];
    places.extend(read.iter().map(|dir| (*dir, Beneath::Read)));
    places.extend(write.iter().map(|dir| (*dir, Beneath::Write)));
    landlock::restrict(&places, Network::No)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_table_is_what_is_kept() {
        let text = include_str!("../../docs/ARCHITECTURE.md");
        let (_, table) = text.split_once("| capability | read-only mount |").unwrap();
        let rows = table
            .lines()
            .skip(2)
            .take_while(|line| line.starts_with('|'));
        let expected = KEPT.iter().map(|kept| {
            let reading = match kept.needed {
                Needed::Always => "yes",
                Needed::ToChange => "no",
            };
            format!("| {} | {reading} | {} |", kept.name, kept.reason)
        });
        assert!(rows.eq(expected), "docs/ARCHITECTURE.md and KEPT differ");
    }
}
