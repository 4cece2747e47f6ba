//! Reads `storage.conf`: where podman, buildah, skopeo and CRI-O keep their stores.
//!
//! ```toml
//! [storage]
//! graphroot = "/var/lib/containers/storage"
//! imagestore = "/srv/images"
//! rootless_storage_path = "$HOME/.local/share/containers/storage"
//! [storage.options]
//! additionalimagestores = ["/usr/share/images"]
//! ```
//! (containers-storage.conf(5).) The first file that exists is used: `$CONTAINERS_STORAGE_CONF`
//! alone if it is set, else `/etc/containers/storage.conf`, else
//! `/usr/share/containers/storage.conf`. A plain user's own file
//! (`$XDG_CONFIG_HOME/containers/storage.conf`) is read before those, and of the system's files
//! only `rootless_storage_path` and the additional stores apply to plain users.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::discovery::Environment;
use super::error::{Error, Result};
use crate::oci::text::excerpt;
use crate::sys::walk::{self, Trust};

/// The size limit of a file, in bytes.
const LIMIT: u64 = 1 << 20;

/// The places of stores that the files name, in the order in which podman looks for images.
#[derive(Debug, Default)]
pub(super) struct Configured {
    pub(super) roots: Vec<PathBuf>,
    /// The reasons why files could not be used.
    pub(super) problems: Vec<Error>,
}

#[derive(Debug, Default, Deserialize)]
struct StorageConf {
    #[serde(default)]
    storage: Storage,
}

#[derive(Debug, Default, Deserialize)]
struct Storage {
    graphroot: Option<String>,
    imagestore: Option<String>,
    rootless_storage_path: Option<String>,
    #[serde(default)]
    options: Options,
}

#[derive(Debug, Default, Deserialize)]
struct Options {
    #[serde(default)]
    additionalimagestores: Vec<String>,
}

impl Configured {
    /// Reads the files that apply to this environment.
    pub(super) fn read(environment: &Environment) -> Self {
        let mut found = Self::default();
        if let Some(file) = &environment.storage_conf {
            found.add(Path::new(file), environment, Whose::Callers);
            return found;
        }
        if !environment.root
            && let Some(home) = environment.config_home()
        {
            let file = home.join("containers/storage.conf");
            found.add(&file, environment, Whose::Callers);
        }
        let mut system = environment.system_storage_conf.iter();
        let whose = if environment.root {
            Whose::Callers
        } else {
            Whose::Systems
        };
        // Only the first file that exists is used.
        system.any(|file| found.add(file, environment, whose));
        found
    }

    /// Adds what a file says. Returns whether the file exists.
    fn add(&mut self, file: &Path, environment: &Environment, whose: Whose) -> bool {
        match read(file) {
            Ok(None) => return false,
            Ok(Some(conf)) => {
                let roots = conf.storage.roots(whose);
                let roots = roots.filter_map(|text| expand(text, environment));
                self.roots.extend(roots);
            }
            Err(error) => self.problems.push(error),
        }
        true
    }
}

/// The users to whom a file's directories apply.
#[derive(Clone, Copy)]
enum Whose {
    Callers,
    /// The caller is a plain user, and the file is the system's.
    Systems,
}

impl Storage {
    fn roots(&self, whose: Whose) -> impl Iterator<Item = &str> {
        let own = match whose {
            Whose::Callers => [self.imagestore.as_ref(), self.graphroot.as_ref()],
            Whose::Systems => [self.rootless_storage_path.as_ref(), None],
        };
        let all = own.into_iter().flatten();
        let all = all.chain(&self.options.additionalimagestores);
        all.map(String::as_str)
    }
}

/// Reads a file; `None` if it does not exist.
fn read(path: &Path) -> Result<Option<StorageConf>> {
    let io = |error: io::Error| Error::Foreign {
        path: path.to_owned(),
        source: error,
    };
    let file = match walk::open_file(path, Trust::of_root()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(io)?,
    };
    let mut text = String::new();
    let read = file.take(LIMIT).read_to_string(&mut text);
    read.map_err(io)?;
    let parsed: std::result::Result<StorageConf, toml::de::Error> = toml::from_str(&text);
    let parsed = parsed.map_err(|error| Error::StorageConf {
        path: path.to_owned(),
        reason: excerpt(error.message().as_bytes()),
    });
    parsed.map(Some)
}

/// Replaces `$HOME`, `$UID` and `$USER` in a path; `None` if a variable is not set or the result is
/// not absolute.
fn expand(text: &str, environment: &Environment) -> Option<PathBuf> {
    let mut path = text.to_owned();
    let home = environment.home.as_ref().and_then(|home| home.to_str());
    let user = environment.user.as_ref().and_then(|user| user.to_str());
    let uid = rustix::process::geteuid().as_raw().to_string();
    for (name, value) in [("HOME", home), ("UID", Some(uid.as_str())), ("USER", user)] {
        for form in [format!("${{{name}}}"), format!("${name}")] {
            if path.contains(&form) {
                path = path.replace(&form, value?);
            }
        }
    }
    let path = PathBuf::from(path);
    path.is_absolute().then_some(path)
}
