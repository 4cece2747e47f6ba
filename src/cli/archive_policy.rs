//! The signature policy for archives. It is read before the sandbox is entered, when the kind of the
//! archive is not known: there is a verdict for each kind.

use std::path::Path;

use super::policy_args;
use unionfs::archive::Source;

/// skopeo's names of the kinds.
const TRANSPORTS: [&str; 4] = ["docker-archive", "oci-archive", "oci", "dir"];

/// What policy.json says of an archive.
#[derive(Debug)]
pub(super) struct Verdicts(Vec<(&'static str, Option<String>)>);

impl Verdicts {
    /// Reads the policy for the archive at `path`; `None` stands for standard input.
    pub(super) fn of(path: Option<&Path>) -> Self {
        let files = policy_args::configuration();
        let path = path.unwrap_or(Path::new("-"));
        let full = path.canonicalize();
        let path = full.as_deref().unwrap_or(path);
        let verdict = |transport| {
            let refusal = files.accept_archive(transport, path).err();
            (transport, refusal.map(|error| error.to_string()))
        };
        Self(TRANSPORTS.map(verdict).to_vec())
    }

    /// Fails if the policy accepts the archive as none of the kinds that it is.
    pub(super) fn require(&self, source: &Source) -> anyhow::Result<()> {
        let kinds = source.transports()?;
        let fitting = self.0.iter().filter(|(kind, _)| kinds.contains(kind));
        let mut refusals = Vec::new();
        for (_, refusal) in fitting {
            match refusal {
                None => return Ok(()),
                Some(refusal) => refusals.push(refusal),
            }
        }
        match refusals.first() {
            None => Ok(()),
            Some(refusal) => anyhow::bail!("{refusal}"),
        }
    }
}
