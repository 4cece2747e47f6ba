//! The configuration of registries that administrators share between tools: which registries are
//! used and by which mirrors they are reached (`registries_conf`, `daemon_json`, `hosts_toml`), and
//! which images are accepted (`policy`).
//!
//! Invariant: these files decide whom we trust. A file is used only if it belongs to root or to this
//! user and nobody else may write to it, and no symlink of another user is followed to it.

pub(super) mod daemon_json;
pub(super) mod hosts_toml;
pub(super) mod policy;
pub(super) mod registries_conf;
mod trusted_file;

use std::path::PathBuf;

use super::error::Result;
use crate::oci::Reference;
pub(super) use trusted_file::{bad, read, read_if_allowed};

/// The paths of the configuration files. Files that do not exist are skipped.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct ConfigurationFiles {
    /// The places of registries.conf; the first that exists is used.
    pub registries: Vec<PathBuf>,
    /// The directories with further files `*.conf`, which change what registries.conf says.
    pub drop_ins: Vec<PathBuf>,
    /// Files with aliases that podman has recorded.
    pub aliases: Vec<PathBuf>,
    /// The places of Docker's daemon.json; the first that exists is used, and only if there is no
    /// registries.conf.
    pub daemons: Vec<PathBuf>,
    /// The directories that contain `HOST/hosts.toml`.
    pub hosts: Vec<PathBuf>,
    /// The places of policy.json; the first that exists is used.
    pub policies: Vec<PathBuf>,
}

impl ConfigurationFiles {
    /// Returns the files of this process's user, in the places where podman, skopeo, containerd and
    /// Docker have them: first those in `$HOME/.config`, then those in `/etc`. The dockerd of root reads
    /// `/etc/docker/daemon.json` only, one of a plain user that in `$XDG_CONFIG_HOME/docker`.
    pub fn of_user() -> Self {
        let var = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let dir = |name| {
            var(name)
                .map(PathBuf::from)
                .filter(|path| path.is_absolute())
        };
        let home = dir("HOME").map(|home| home.join(".config"));
        let places = |name: &str| -> Vec<PathBuf> {
            let bases = home.clone().into_iter().chain([PathBuf::from("/etc")]);
            bases.map(|base| base.join(name)).collect()
        };
        let own = home.as_ref().map(|home| home.join("containers"));
        let system = PathBuf::from("/etc/containers");
        let has_own = own
            .as_ref()
            .is_some_and(|own| own.join("registries.conf").exists());
        let drop_ins = match (dir("CONTAINERS_REGISTRIES_CONF_DIR"), own) {
            (Some(given), _) => vec![given],
            (None, Some(own)) if has_own => vec![own.join("registries.conf.d")],
            (None, own) => [Some(system), own]
                .into_iter()
                .flatten()
                .map(|base| base.join("registries.conf.d"))
                .collect(),
        };
        let is_root = rustix::process::geteuid().is_root();
        let rootless = dir("XDG_CONFIG_HOME").or(home.clone());
        let rootless = rootless.filter(|_| !is_root);
        let daemons = rootless.into_iter().chain([PathBuf::from("/etc")]);
        let cache = if is_root {
            Some(PathBuf::from("/var/cache"))
        } else {
            dir("XDG_CACHE_HOME").or_else(|| dir("HOME").map(|home| home.join(".cache")))
        };
        Self {
            registries: match dir("CONTAINERS_REGISTRIES_CONF") {
                Some(given) => vec![given],
                None => places("containers/registries.conf"),
            },
            drop_ins,
            aliases: cache
                .map(|cache| cache.join("containers/short-name-aliases.conf"))
                .into_iter()
                .collect(),
            daemons: daemons
                .map(|base| base.join("docker/daemon.json"))
                .collect(),
            hosts: places("containerd/certs.d"),
            policies: places("containers/policy.json"),
        }
    }

    /// Returns the other names that a name without a host may have in a store, as podman looks for
    /// it: that of the alias, else those in the search registries.
    ///
    /// # Errors
    /// [`super::Error::Configuration`] if a file cannot be used.
    pub fn meanings(&self, text: &str) -> Result<Vec<Reference>> {
        Ok(self.registries()?.meanings(text))
    }

    /// Reads the configuration of registries.
    pub(super) fn registries(&self) -> Result<registries_conf::Registries> {
        registries_conf::read_all(self)
    }
}
