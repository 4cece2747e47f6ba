//! `--policy` and `--insecure-policy`: which signature policy is used, as for skopeo. They apply to the
//! whole command, also to the images of archives that it takes.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::error::Usage;
use unionfs::registry::ConfigurationFiles;

/// The options.
#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct PolicyArgs {
    /// Accept images as this file says, and no other [default: ~/.config/containers/policy.json, else /etc/containers/policy.json]
    #[arg(
        long,
        value_name = "FILE",
        global = true,
        conflicts_with = "insecure_policy"
    )]
    policy: Option<PathBuf>,
    /// Accept all images, whatever policy.json says
    #[arg(long, global = true)]
    insecure_policy: bool,
}

/// Where the policy is.
#[derive(Clone, Debug)]
enum Policy {
    /// In this file.
    File(PathBuf),
    /// Nowhere: everything is accepted.
    None,
}

static POLICY: OnceLock<Policy> = OnceLock::new();

impl PolicyArgs {
    /// Makes the options those of this process.
    ///
    /// # Errors
    /// [`Usage`] for a file that does not exist: without it, everything would be accepted.
    pub(super) fn apply(self) -> Result<(), Usage> {
        let policy = match (self.policy, self.insecure_policy) {
            (Some(path), _) => Policy::File(must_exist(&path)?),
            (None, true) => Policy::None,
            (None, false) => return Ok(()),
        };
        POLICY.get_or_init(|| policy);
        Ok(())
    }
}

fn must_exist(path: &Path) -> Result<PathBuf, Usage> {
    if path.exists() {
        return Ok(std::path::absolute(path).unwrap_or_else(|_| path.to_owned()));
    }
    let text = format!(
        "--policy {path:?} does not exist: containers-policy.json(5) describes the file; \
         --insecure-policy accepts all images"
    );
    Err(Usage(text))
}

/// Returns the options as a user writes them.
pub(super) fn words() -> Vec<OsString> {
    match POLICY.get() {
        None => Vec::new(),
        Some(Policy::File(path)) => vec!["--policy".into(), path.into()],
        Some(Policy::None) => vec!["--insecure-policy".into()],
    }
}

/// Returns the configuration of registries, with the policy that the options choose.
pub(super) fn configuration() -> ConfigurationFiles {
    let mut files = ConfigurationFiles::of_user();
    match POLICY.get() {
        None => {}
        Some(Policy::File(path)) => files.policies = vec![path.clone()],
        Some(Policy::None) => files.policies.clear(),
    }
    files
}
