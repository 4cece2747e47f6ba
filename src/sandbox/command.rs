//! The sandbox of a command that reads untrusted input: archives, answers of registries, the
//! metadata of stores.
//!
//! The process confines itself, and has no confined child: everything after the first byte of such
//! input is to be confined, so a parent would only forward signals, the terminal and the exit code.
//!
//! ```no_run
//! use unionfs::sandbox::{Mode, command::Command};
//!
//! let mut sandbox = Command::new(Mode::Auto);
//! sandbox.read("/var/lib/docker".as_ref())?;
//! let in_force = sandbox.enter()?;
//! println!("{in_force}");
//! assert!(std::fs::read_dir("/home").is_err());
//! # Ok::<(), std::io::Error>(())
//! ```

use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;

use rustix::fs::{Mode as FileMode, OFlags};
use rustix::io::Errno;
use rustix::thread::CapabilitySet;

use super::{InForce, Kept, Mode, Needed, calls, kept, kept_for, names};
use crate::sys::landlock::{Beneath, Network};
use crate::sys::narrow::{self, KeptPath, Link};
use crate::sys::{capabilities, landlock, seccomp};

/// All capabilities that are kept. docs/ARCHITECTURE.md has the same table.
pub const KEPT: [Kept; 8] = [
    kept(
        CapabilitySet::CHOWN,
        "CHOWN",
        Needed::ToChange,
        "files of a layer belong to whom the archive says",
    ),
    kept(
        CapabilitySet::DAC_OVERRIDE,
        "DAC_OVERRIDE",
        Needed::ToChange,
        "files are made in directories of other owners, whatever their modes",
    ),
    kept(
        CapabilitySet::DAC_READ_SEARCH,
        "DAC_READ_SEARCH",
        Needed::Always,
        "files of layers are read whoever owns them",
    ),
    kept(
        CapabilitySet::FOWNER,
        "FOWNER",
        Needed::ToChange,
        "modes, times, xattrs and removal of files that belong to others",
    ),
    kept(
        CapabilitySet::FSETID,
        "FSETID",
        Needed::ToChange,
        "set-group-ID bits of files in other groups",
    ),
    kept(
        CapabilitySet::MKNOD,
        "MKNOD",
        Needed::ToChange,
        "device nodes of a layer; they cannot be opened inside the sandbox",
    ),
    kept(
        CapabilitySet::SETFCAP,
        "SETFCAP",
        Needed::ToChange,
        "security.capability of files",
    ),
    kept(
        CapabilitySet::SYS_ADMIN,
        "SYS_ADMIN",
        Needed::Always,
        "trusted.* xattrs, which mark whiteouts and opaque directories",
    ),
];

/// The files and hosts that a command may reach. It is empty at first.
#[derive(Debug)]
pub struct Command {
    mode: Mode,
    places: Vec<KeptPath>,
    links: Vec<Link>,
    network: bool,
    quick: bool,
}

impl Command {
    /// Creates an empty sandbox.
    pub fn new(mode: Mode) -> Self {
        Self {
            mode,
            places: Vec::new(),
            links: Vec::new(),
            network: false,
            quick: false,
        }
    }

    /// Creates a sandbox that is entered quickly, for a process that only reads stores and reports
    /// what it finds. If Landlock is available, it replaces the mount namespace, and the filter
    /// refuses what Landlock does not know (modes, owners, xattrs). The process can read only its
    /// own files in /proc.
    pub fn quick(mode: Mode) -> Self {
        Self {
            quick: true,
            ..Self::new(mode)
        }
    }

    /// Returns the mode.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Allows reading a file, or a directory with everything beneath it. The path is absolute and
    /// has no symlinks.
    ///
    /// # Errors
    /// Those of openat2(2).
    pub fn read(&mut self, path: &Path) -> io::Result<()> {
        self.place(path, |_| ())
    }

    /// As [`Command::read`], and allows loading code from there.
    ///
    /// # Errors
    /// Those of openat2(2).
    pub fn load_code(&mut self, path: &Path) -> io::Result<()> {
        self.place(path, |place| place.code = true)
    }

    /// As [`Command::read`], and allows changes.
    ///
    /// # Errors
    /// Those of openat2(2).
    pub fn write(&mut self, path: &Path) -> io::Result<()> {
        self.place(path, |place| place.writable = true)
    }

    /// Makes a symlink at `path` that leads to `target`. Both are absolute.
    pub fn link(&mut self, path: &Path, target: &Path) {
        self.links.push(Link {
            path: path.to_owned(),
            target: target.to_owned(),
        });
    }

    fn place(&mut self, path: &Path, with: impl FnOnce(&mut KeptPath)) -> io::Result<()> {
        if self.mode == Mode::Off {
            return Ok(());
        }
        if let Some(place) = self.places.iter_mut().find(|place| place.path() == path) {
            with(place);
            return Ok(());
        }
        let mut place = KeptPath::at(path)?;
        with(&mut place);
        self.places.push(place);
        Ok(())
    }

    /// Allows connections to servers over the internet protocols, and the code that libc loads to
    /// find their addresses.
    pub fn talk(&mut self) {
        self.network = true;
    }

    /// Enters the sandbox. The process must have one thread, and must not have read any input or
    /// opened any directory: the descriptor of a directory leads where it led before. Descriptors
    /// that the process was started with are closed. The working directory changes.
    ///
    /// With [`Mode::Auto`], a part that the kernel or the caller's rights do not allow is left out.
    /// The other parts hold.
    ///
    /// # Errors
    /// With [`Mode::Strict`], the error of the part that is not possible.
    pub fn enter(self) -> io::Result<InForce> {
        let mut in_force = InForce::default();
        let mode = self.mode;
        if mode == Mode::Off {
            return Ok(in_force);
        }
        let done = capabilities::set_no_new_privs();
        in_force.no_new_privs = part(mode, "no_new_privs", done)?.is_some();
        if self.quick && mode == Mode::Auto {
            // One try is enough: what fails here also fails below.
            in_force.landlock = self.restrict_files().ok();
        }
        if in_force.landlock.is_none() {
            let done = narrow::keep_only(&self.places, &self.links);
            in_force.mount_namespace = part(mode, "the mount namespace", done)?.is_some();
            in_force.landlock = part(mode, "Landlock", self.restrict_files())?;
        }
        let (kept, filter) = (self.capabilities(), self.filter());
        drop(self);
        let done = narrow::close_inherited();
        part(mode, "closing of descriptors", done)?;
        let done = capabilities::keep_only(kept);
        if let Some(kept) = part(mode, "capabilities", done)? {
            in_force.capabilities = names(&KEPT, kept);
        }
        let done = filter.install();
        in_force.seccomp = part(mode, "the filter of system calls", done)?.is_some();
        Ok(in_force)
    }

    fn filter(&self) -> Filter {
        Filter {
            network: self.network,
            writes: self.writes(),
        }
    }

    fn writes(&self) -> bool {
        self.places.iter().any(|place| place.writable)
    }

    fn capabilities(&self) -> CapabilitySet {
        if self.quick {
            CapabilitySet::DAC_READ_SEARCH
        } else {
            let purpose = if self.writes() {
                Needed::ToChange
            } else {
                Needed::Always
            };
            kept_for(&KEPT, purpose)
        }
    }

    fn restrict_files(&self) -> io::Result<u32> {
        // The files about this process, and the directory of locks.
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let proc = if self.quick { "/proc/self" } else { "/proc" };
        let proc = rustix::fs::open(proc, flags, FileMode::empty());
        let proc = proc.as_ref().ok().map(|proc| (proc.as_fd(), Beneath::Look));
        let places = self.places.iter().map(|place| {
            let beneath = if place.writable {
                Beneath::Write
            } else {
                Beneath::Look
            };
            (place.as_fd(), beneath)
        });
        let places: Vec<_> = proc.into_iter().chain(places).collect();
        let network = if self.network {
            Network::Connect
        } else {
            Network::No
        };
        landlock::restrict(&places, network)
    }
}

/// What the filter of system calls lets the command do beside reading.
struct Filter {
    network: bool,
    writes: bool,
}

impl Filter {
    fn install(&self) -> io::Result<()> {
        let mut allowed = calls::of_command();
        if self.network {
            seccomp::refuse_sockets_but(&calls::INTERNET)?;
            allowed.extend(calls::of_network());
        }
        // The error is that of a read-only file system.
        let refused = if self.writes {
            Vec::new()
        } else {
            calls::changes()
        };
        let unknown = calls::UNKNOWN_TO_COMMANDS;
        seccomp::restrict_refusing(&allowed, &refused, Errno::ROFS, unknown)
    }
}

/// As for a daemon, but without a warning: a plain user never has all parts.
fn part<T, E>(mode: Mode, what: &str, outcome: Result<T, E>) -> io::Result<Option<T>>
where
    E: Into<io::Error>,
{
    match (outcome.map_err(Into::into), mode) {
        (Err(error), Mode::Auto) if !super::is_final(&error) => {
            tracing::debug!(%error, "the sandbox lacks a part: {what}");
            Ok(None)
        }
        (outcome, _) => super::part(mode, what, outcome),
    }
}
