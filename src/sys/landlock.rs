//! Landlock (landlock(7)): which files the calling thread, and what it starts later, may open,
//! make, remove and move; no TCP, no abstract sockets and no signals to others where the kernel
//! knows of these. It holds beside permission bits and capabilities.

use std::io;
use std::os::fd::BorrowedFd;

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, CompatLevel, Compatible as _, LandlockStatus,
    PathBeneath, Ruleset, RulesetAttr as _, RulesetCreatedAttr as _, RulesetStatus, Scope,
};

/// The newest version of the interface that is asked for; older kernels restrict less.
const NEWEST: ABI = ABI::V6;

/// What may be done beneath a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beneath {
    /// Files are read, directories listed. Executing counts: the kernel opens a passed-through
    /// program in the name of the server.
    Read,
    /// Files are read, and nothing is executed.
    Look,
    /// All but opening devices for their ioctls.
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

/// Who may be reached over the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// Nobody.
    No,
    /// Anybody, by connecting to them.
    Connect,
}

/// Restricts what may be done to `places`. Returns the version of the interface.
///
/// # Errors
/// [`io::ErrorKind::Unsupported`] without Landlock, and with its first version, which lets nobody
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
