//! Names of images in registries, with skopeo's `docker://` before them or without it, and the sandbox of
//! commands that only ask a registry.

use super::command_sandbox::SandboxArgs;
use super::error::Usage;
use super::registry_args::Credentials;
use unionfs::oci::Reference;
use unionfs::registry::{Access, Purpose};

/// skopeo's name of registries.
pub(super) const REGISTRY: &str = "docker://";

/// Whether a text names an image of a registry in skopeo's spelling.
pub(super) fn is_one(text: &str) -> bool {
    text.starts_with(REGISTRY)
}

/// Whether a text names an image in a store of an engine.
pub(super) fn is_of_engine(text: &str) -> bool {
    ["docker-daemon:", "containers-storage:"]
        .iter()
        .any(|kind| text.starts_with(kind))
}

/// The other kinds of names that skopeo has. No registry has an image of these names without a host.
const OTHERS: [&str; 6] = [
    "oci:",
    "oci-archive:",
    "docker-archive:",
    "dir:",
    "docker-daemon:",
    "containers-storage:",
];

/// Returns the name of an image in a registry, without skopeo's `docker://`.
///
/// # Errors
/// [`Usage`] with what to do, for a name of another kind. `docker.io/library/NAME` names an image of that
/// name.
pub(super) fn of_registry(text: &str, remedy: impl FnOnce() -> String) -> Result<&str, Usage> {
    if OTHERS.iter().any(|kind| text.starts_with(kind)) {
        let remedy = remedy();
        return Err(Usage(format!("{text:?} is not in a registry: {remedy}")));
    }
    Ok(text.strip_prefix(REGISTRY).unwrap_or(text))
}

/// Finds the name in the configuration, reads what is needed to ask for it, and enters the sandbox of the
/// command.
pub(super) fn ask(
    text: &str,
    purpose: Purpose,
    credentials: &Credentials,
    sandbox: &SandboxArgs,
    command: &str,
) -> anyhow::Result<(Reference, Access)> {
    let mut access = credentials.access()?;
    let other = || format!("`unionfs inspect {text}` shows it");
    let name = only(&access, of_registry(text, other)?)?;
    access.look_up_ways(&name, purpose)?;
    let mut cage = sandbox.cage(command)?;
    cage.talk()?;
    cage.enter()?;
    Ok((name, access))
}

/// Returns the only image that a name may mean.
pub(super) fn only(access: &Access, text: &str) -> anyhow::Result<Reference> {
    match access.candidates(text)?.as_slice() {
        [name] => Ok(name.clone()),
        names => {
            let names: Vec<String> = names.iter().map(Reference::to_string).collect();
            let text = format!("{text:?} may be {}: write one of them", names.join(" or "));
            Err(Usage(text).into())
        }
    }
}
