//! Landlock (landlock(7)) restricts which files the calling thread, and threads and processes that
//! it starts later, may open, make, remove and move. It also forbids TCP, abstract sockets and
//! signals to other processes, if the kernel can do that. It adds to permission bits and
//! capabilities.

use std::io;
use std::os::fd::BorrowedFd;

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, CompatLevel, Compatible as _, LandlockStatus,
    PathBeneath, Ruleset, RulesetAttr as _, RulesetCreatedAttr as _, RulesetStatus, Scope,
};

/// The newest version of the interface that is used. Older kernels restrict less.
const NEWEST: ABI = ABI::V6;

/// The rights beneath a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beneath {
    /// Files may be read and executed, and directories listed. The kernel opens a program that is
    /// passed through with the rights of the server, so executing is needed.
    Read,
    /// Files may be read, but not executed.
    Look,
    /// Everything is allowed except ioctls on devices.
    Write,
}

impl Beneath {
    fn rights(self) -> landlock::BitFlags<AccessFs> {
        match self {
            Self::Read => AccessFs::ReadFile | AccessFs::ReadDir | AccessFs::Execute,
            Self::Look => AccessFs::ReadFile | AccessFs::ReadDir,
            Self::Write => AccessFs::from_all(NEWEST) & !AccessFs::IoctlDev,
        }
    }
}

/// The hosts that may be reached over the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// None.
    No,
    /// All, by connecting to them.
    Connect,
}

/// Restricts the process to `places`. Returns the version of the interface.
///
/// # Errors
/// [`io::ErrorKind::Unsupported`] without Landlock, and with its first version, which forbids every
/// rename from one directory to another; EPERM without `no_new_privs`.
pub fn restrict(places: &[(BorrowedFd<'_>, Beneath)], network: Network) -> io::Result<u32> {
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::Refer)
        .map_err(|error| io::Error::new(io::ErrorKind::Unsupported, error))?
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))
        .map_err(io::Error::other)?
        .scope(Scope::from_all(NEWEST))
        .map_err(io::Error::other)?;
    let tcp = match network {
        Network::No => AccessNet::from_all(NEWEST),
        Network::Connect => AccessNet::BindTcp.into(),
    };
    ruleset = ruleset.handle_access(tcp).map_err(io::Error::other)?;
    let mut created = ruleset.create().map_err(io::Error::other)?;
    for (place, beneath) in places {
        let rule = PathBeneath::new(place, beneath.rights());
        created = created.add_rule(rule).map_err(io::Error::other)?;
    }
    let status = created.restrict_self().map_err(io::Error::other)?;
    match (status.ruleset, status.landlock) {
        (RulesetStatus::NotEnforced, _) => Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "this kernel has no Landlock, or it is switched off (lsm=)",
        )),
        (_, LandlockStatus::Available { effective_abi, .. }) => {
            Ok((effective_abi as u32).min(NEWEST as u32))
        }
        _ => Ok(0),
    }
}
