//! Reads `storage.conf`: where podman, buildah, skopeo and CRI-O keep their stores.
//!
//! ```toml
//! [storage]
//! graphroot = "/var/lib/containers/storage"
//! runroot = "/run/containers/storage"
//! imagestore = "/srv/images"
//! rootless_storage_path = "$HOME/.local/share/containers/storage"
//! [storage.options]
//! additionalimagestores = ["/usr/share/images"]
//! ```
//! (containers-storage.conf(5).) The first file that exists is used: `$CONTAINERS_STORAGE_CONF`
//! alone if it is set, else `/etc/containers/storage.conf`, else
//! `/usr/share/containers/storage.conf`. A plain user's own file
//! (`$XDG_CONFIG_HOME/containers/storage.conf`) is read before those, and of the system's files
//! only `rootless_storage_path` and the additional stores apply to plain users. A transient store
//! (`transient_store = true`, or an option of podman) has the records of its containers in the run
//! root. The file need not say so: the run root is looked at in any case.

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
    pub(super) roots: Vec<PodmansPlace>,
    /// The run root of the default place, if a file names one without a place of its own.
    pub(super) default_run_root: Option<PathBuf>,
    /// The reasons why files could not be used.
    pub(super) problems: Vec<Error>,
}

/// A place of a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PodmansPlace {
    pub(super) root: PathBuf,
    pub(super) run_root: RunRoot,
}

/// The run root of a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum RunRoot {
    /// The store has images only.
    None,
    Default,
    At(PathBuf),
}

#[derive(Debug, Default, Deserialize)]
struct StorageConf {
    #[serde(default)]
    storage: Storage,
}

#[derive(Debug, Default, Deserialize)]
struct Storage {
    graphroot: Option<String>,
    runroot: Option<String>,
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
            Ok(Some(conf)) => self.add_all(&conf.storage, environment, whose),
            Err(error) => self.problems.push(error),
        }
        true
    }

    fn add_all(&mut self, storage: &Storage, environment: &Environment, whose: Whose) {
        let expanded = |text: &String| expand(text, environment);
        let images_only = |root: PathBuf| PodmansPlace {
            root,
            run_root: RunRoot::None,
        };
        match whose {
            Whose::Callers => {
                let run_root = storage.runroot.as_ref().and_then(expanded);
                let image_store = storage.imagestore.as_ref().and_then(expanded);
                self.roots.extend(image_store.map(images_only));
                match (storage.graphroot.as_ref().and_then(expanded), run_root) {
                    (Some(root), run_root) => self.roots.push(PodmansPlace {
                        root,
                        run_root: run_root.map_or(RunRoot::Default, RunRoot::At),
                    }),
                    (None, run_root) => self.default_run_root = run_root,
                }
            }
            Whose::Systems => {
                let root = storage.rootless_storage_path.as_ref().and_then(expanded);
                self.roots.extend(root.map(|root| PodmansPlace {
                    root,
                    run_root: RunRoot::Default,
                }));
            }
        }
        let additional = storage.options.additionalimagestores.iter();
        self.roots
            .extend(additional.filter_map(expanded).map(images_only));
    }
}

/// The users to whom a file's directories apply.
#[derive(Clone, Copy)]
enum Whose {
    Callers,
    /// The caller is a plain user, and the file is the system's.
    Systems,
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
    parse(path, &text).map(Some)
}

fn parse(path: &Path, text: &str) -> Result<StorageConf> {
    let parsed: std::result::Result<StorageConf, toml::de::Error> = toml::from_str(text);
    parsed.map_err(|error| Error::StorageConf {
        path: path.to_owned(),
        reason: excerpt(error.message().as_bytes()),
    })
}

/// Reads a text as the file of the caller and as that of the system. Returns the places and the error.
#[cfg(feature = "fuzzing")]
pub(super) fn read_text(text: &str, environment: &Environment) -> (Configured, Option<Error>) {
    let mut found = Configured::default();
    match parse(Path::new("/fuzzing"), text) {
        Err(error) => (found, Some(error)),
        Ok(conf) => {
            found.add_all(&conf.storage, environment, Whose::Callers);
            found.add_all(&conf.storage, environment, Whose::Systems);
            (found, None)
        }
    }
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
