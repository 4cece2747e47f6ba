//! The rights of a process that has opened what it needs: capabilities, a mount namespace, Landlock
//! and a filter of system calls, and which process keeps which. The mechanisms are in
//! [`crate::sys`]; this is the policy. Nothing else in the library needs it: a program that does
//! not ask for a sandbox gets none.
//!
//! A sandbox holds for the calling thread and threads that it starts later, so it is entered while
//! there is one thread. It cannot be left.

mod calls;
pub mod command;
pub mod daemon;
pub mod layers;

use std::fmt;
use std::io;

use rustix::io::Errno;
use rustix::thread::CapabilitySet;
use serde::{Deserialize, Serialize};

/// A capability that a confined process of root keeps, and the reason.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Kept {
    /// The capability.
    pub capability: CapabilitySet,
    /// Its name in capabilities(7), without `CAP_`.
    pub name: &'static str,
    /// The processes that need it.
    pub needed: Needed,
    /// The operation that fails without it.
    pub reason: &'static str,
}

/// The processes that need a capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needed {
    /// All.
    Always,
    /// Those that change files.
    ToChange,
}

const fn kept(
    capability: CapabilitySet,
    name: &'static str,
    needed: Needed,
    reason: &'static str,
) -> Kept {
    Kept {
        capability,
        name,
        needed,
        reason,
    }
}

/// Returns the capabilities of a table that are kept for this purpose.
fn kept_for(table: &[Kept], purpose: Needed) -> CapabilitySet {
    let needed = |kept: &&Kept| purpose == Needed::ToChange || kept.needed == Needed::Always;
    let all = table.iter().filter(needed).map(|kept| kept.capability);
    all.fold(CapabilitySet::empty(), |set, one| set | one)
}

/// Returns the names of those capabilities of a table that are in `set`.
fn names(table: &[Kept], set: CapabilitySet) -> Vec<String> {
    let held = table.iter().filter(|kept| set.contains(kept.capability));
    held.map(|kept| kept.name.to_owned()).collect()
}

/// The option `sandbox=`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Mode {
    /// no_new_privs, the few capabilities that are needed, an empty mount namespace, Landlock, and
    /// a filter of system calls that kills the process. A part that is not possible is left out
    /// with a warning.
    #[default]
    Auto,
    /// No sandbox.
    Off,
    /// All parts of `Auto`, or an error that names the missing part.
    Strict,
}

/// The parts that are in force, as `stats` and `ps` show them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct InForce {
    /// No program that it starts can gain rights.
    pub no_new_privs: bool,
    /// The capabilities that it has kept.
    pub capabilities: Vec<String>,
    /// Its mount namespace shows only the layers.
    #[serde(default)]
    pub mount_namespace: bool,
    /// The layers are in private mounts: no `..` leads out of them, and lowers are read-only.
    #[serde(default)]
    pub private_layers: bool,
    /// The ABI of Landlock whose rights are restricted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub landlock: Option<u32>,
    /// System calls are filtered.
    #[serde(default)]
    pub seccomp: bool,
}

impl fmt::Display for InForce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        if self.no_new_privs {
            parts.push("no_new_privs".to_owned());
        }
        if self.mount_namespace {
            parts.push("mount namespace".to_owned());
        }
        if self.private_layers {
            parts.push("private layers".to_owned());
        }
        if let Some(abi) = self.landlock {
            parts.push(format!("landlock {abi}"));
        }
        if self.seccomp {
            parts.push("seccomp".to_owned());
        }
        parts.push(match self.capabilities.as_slice() {
            [] => "no capabilities".to_owned(),
            some => some.join(" "),
        });
        f.write_str(&parts.join(", "))
    }
}

/// Whether the process is outside of its chroot and must end.
fn is_final(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::NOTRECOVERABLE.raw_os_error())
}

/// Returns the result of a part of the sandbox. `None`: the part is missing, which `mode` permits.
fn part<T, E>(mode: Mode, what: &str, outcome: Result<T, E>) -> io::Result<Option<T>>
where
    E: Into<io::Error>,
{
    match outcome.map_err(Into::into) {
        Ok(done) => Ok(Some(done)),
        // A process that cannot return must end.
        Err(error) if mode == Mode::Strict || is_final(&error) => {
            let text = match mode {
                Mode::Strict => format!("sandbox=strict is not possible: {what}: {error}"),
                _ => format!("the sandbox cannot be entered: {what}: {error}"),
            };
            Err(io::Error::new(error.kind(), text))
        }
        Err(error) => {
            // A warning is given only for a part that could be expected. A plain user has no more.
            match error.kind() {
                io::ErrorKind::PermissionDenied if !rustix::process::geteuid().is_root() => {
                    tracing::debug!(%error, "the sandbox lacks a part: {what}");
                }
                _ => tracing::warn!(%error, "the sandbox lacks a part: {what}"),
            }
            Ok(None)
        }
    }
}
