//! Finds stores: `--root`, `$UNIONFS_ROOT`, our own default, Docker's, podman's, containerd's.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::io::Errno;

use super::confined_dir::ConfinedDir;
use super::drivers::devicemapper::{self, PoolFiles};
use super::error::{Error, Result};
use super::image_store::Store;
use super::records::Records;
use super::storage_conf::{Configured, RunRoot};
use super::{containerd, containers_storage, drivers};
use crate::oci::Reference;
use crate::sys::process;
use containers_storage::RunLists;

/// The store of a containerd that dockerd has started, below Docker's data root.
pub(super) const DOCKERS_CONTAINERD: &str = "containerd/daemon";

/// The part of a process's environment that decides where stores are.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Environment {
    /// `$UNIONFS_STORE`, else `$UNIONFS_ROOT`: our own store.
    pub unionfs_root: Option<OsString>,
    /// `$XDG_DATA_HOME`; ignored unless absolute (XDG base directory specification).
    pub xdg_data_home: Option<OsString>,
    /// `$XDG_CONFIG_HOME`; ignored unless absolute.
    pub xdg_config_home: Option<OsString>,
    /// `$XDG_RUNTIME_DIR`; ignored unless absolute.
    pub xdg_runtime_dir: Option<OsString>,
    /// `$HOME`.
    pub home: Option<OsString>,
    /// `$USER`.
    pub user: Option<OsString>,
    /// `$CONTAINERS_STORAGE_CONF`: if set, the only storage.conf that is read.
    pub storage_conf: Option<OsString>,
    /// The run root of podman's store at the place that the user names, or of all of podman's stores
    /// if the user names no place.
    pub run_root: Option<PathBuf>,
    /// `$CONTAINERD_NAMESPACE`: the only namespace of containerd's stores whose images and containers are
    /// found.
    pub containerd_namespace: Option<OsString>,
    /// The system's storage.conf: of these files the first that is there.
    pub system_storage_conf: Vec<PathBuf>,
    /// The other names that short names may have, as registries.conf says: they are looked for if no
    /// image has the name itself.
    pub short_names: BTreeMap<String, Vec<Reference>>,
    /// Whether the process is root outside of any user namespace. In `podman unshare` and similar
    /// environments the places are those of the user.
    pub root: bool,
}

impl Environment {
    /// Returns the environment of this process.
    pub fn current() -> Self {
        let var = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        Self {
            unionfs_root: var("UNIONFS_STORE").or_else(|| var("UNIONFS_ROOT")),
            xdg_data_home: var("XDG_DATA_HOME"),
            xdg_config_home: var("XDG_CONFIG_HOME"),
            xdg_runtime_dir: var("XDG_RUNTIME_DIR"),
            home: var("HOME"),
            user: var("USER"),
            storage_conf: var("CONTAINERS_STORAGE_CONF"),
            run_root: None,
            containerd_namespace: var("CONTAINERD_NAMESPACE"),
            system_storage_conf: ["/etc", "/usr/share"]
                .map(|dir| Path::new(dir).join("containers/storage.conf"))
                .into(),
            short_names: BTreeMap::new(),
            root: process::is_root_of_machine(),
        }
    }

    fn data_home(&self) -> Option<PathBuf> {
        self.below_home(self.xdg_data_home.as_ref(), ".local/share")
    }

    pub(super) fn config_home(&self) -> Option<PathBuf> {
        self.below_home(self.xdg_config_home.as_ref(), ".config")
    }

    fn below_home(&self, xdg: Option<&OsString>, default: &str) -> Option<PathBuf> {
        let xdg = xdg.map(PathBuf::from);
        let home = self.home.as_ref().map(PathBuf::from);
        xdg.filter(|path| path.is_absolute()).or_else(|| {
            let home = home.filter(|path| path.is_absolute())?;
            Some(home.join(default))
        })
    }

    /// Returns the root of our own store, which also holds uppers: `$UNIONFS_STORE`, `$UNIONFS_ROOT`, else
    /// `/var/lib/unionfs` for root, `$XDG_DATA_HOME/unionfs` for others. It need not exist.
    ///
    /// # Errors
    /// [`Error::NoHome`] if neither of the variables nor HOME is set.
    pub fn own_root(&self) -> Result<PathBuf> {
        if let Some(root) = &self.unionfs_root {
            return Ok(PathBuf::from(root));
        }
        if self.root {
            return Ok(PathBuf::from("/var/lib/unionfs"));
        }
        let home = self.data_home().ok_or(Error::NoHome)?;
        Ok(home.join("unionfs"))
    }

    /// Returns every place where a store may be, in search order: our own, Docker's, podman's,
    /// containerd's. Those that storage.conf names (containers-storage.conf(5)) come before
    /// podman's default places.
    pub fn candidates(&self) -> Vec<PathBuf> {
        let candidates = self.places(Configured::read(self)).into_iter();
        candidates.map(|candidate| candidate.root).collect()
    }

    /// As [`Environment::candidates`], with their run roots and the reasons why storage.conf files
    /// could not be used.
    pub(super) fn candidates_and_problems(&self) -> (Vec<Candidate>, Vec<Error>) {
        let mut configured = Configured::read(self);
        let problems = std::mem::take(&mut configured.problems);
        (self.places(configured), problems)
    }

    fn places(&self, configured: Configured) -> Vec<Candidate> {
        let mut places = Vec::new();
        let other = Candidate::without_run_root;
        places.extend(self.own_root().ok().map(other));
        places.push(other(PathBuf::from("/var/lib/docker")));
        let home = self.data_home();
        places.extend(home.as_ref().map(|home| other(home.join("docker"))));
        let default_run_roots = || match (&self.run_root, &configured.default_run_root) {
            (Some(given), _) => vec![given.clone()],
            (None, Some(configured)) => vec![configured.clone()],
            (None, None) => self.run_roots(),
        };
        places.extend(configured.roots.iter().map(|place| Candidate {
            root: place.root.clone(),
            run_roots: match (&place.run_root, &self.run_root) {
                (RunRoot::None, _) => Vec::new(),
                (_, Some(given)) => vec![given.clone()],
                (RunRoot::At(run_root), None) => vec![run_root.clone()],
                (RunRoot::Default, None) => self.run_roots(),
            },
        }));
        if self.root {
            // Only for root: other users would get a warning each time.
            places.push(Candidate {
                root: PathBuf::from("/var/lib/containers/storage"),
                run_roots: default_run_roots(),
            });
        }
        places.extend(home.as_ref().map(|home| Candidate {
            root: home.join("containers/storage"),
            run_roots: default_run_roots(),
        }));
        if self.root {
            places.push(other(PathBuf::from("/var/lib/containerd")));
            places.push(other(Path::new("/var/lib/docker").join(DOCKERS_CONTAINERD)));
        }
        places.extend(home.iter().map(|home| other(home.join("containerd"))));
        places.extend(home.map(|home| other(home.join("docker").join(DOCKERS_CONTAINERD))));
        places
    }

    /// Returns podman's default run roots: for root of the machine that of the system, for others
    /// those of the user (containers/storage, types/utils.go).
    fn run_roots(&self) -> Vec<PathBuf> {
        if self.root {
            return vec![PathBuf::from("/run/containers/storage")];
        }
        let uid = rustix::process::geteuid().as_raw();
        let given = self.xdg_runtime_dir.as_ref().map(PathBuf::from);
        let given = given.filter(|path| path.is_absolute());
        let others = [
            PathBuf::from(format!("/run/user/{uid}")),
            PathBuf::from(format!("/tmp/containers-user-{uid}")),
        ];
        let dirs = match given {
            Some(given) => vec![given],
            None => others.into(),
        };
        dirs.into_iter().map(|dir| dir.join("containers")).collect()
    }
}

/// A place where a store may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) root: PathBuf,
    /// The directories in which podman may keep records of containers of the store there.
    pub(super) run_roots: Vec<PathBuf>,
}

impl Candidate {
    fn without_run_root(root: PathBuf) -> Self {
        Self {
            root,
            run_roots: Vec::new(),
        }
    }
}

/// Opens the stores in one root, one per driver, in the order of [`drivers::NAMES`].
pub(crate) fn open(path: &Path) -> Result<Vec<Store>> {
    open_with(path, &Known::default())
}

/// What is known of a store before it is opened.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    /// The files of the pool of the driver devicemapper.
    pub(super) pool: Option<Arc<PoolFiles>>,
    /// The only namespace of containerd whose images and containers count.
    pub(super) namespace: Option<String>,
    /// The lists of podman's run roots that belong to the store.
    pub(super) run_lists: Vec<Arc<RunLists>>,
}

/// As [`open`], with what is known of the store.
pub(super) fn open_with(path: &Path, known: &Known) -> Result<Vec<Store>> {
    let root = Arc::new(ConfinedDir::open(path)?);
    let owner = root.owner()?;
    let mut stores = Vec::new();
    let mut unknown = None;
    for name in root.list("image")? {
        let dir = Path::new("image").join(&name);
        if !root.exists(dir.join("repositories.json"))? && !root.exists(dir.join("imagedb"))? {
            continue;
        }
        let driver = match (name.to_str(), &known.pool) {
            (Some(devicemapper::NAME), Some(pool)) => Some(drivers::of_pool(Some(pool.clone()))),
            (Some(name), _) => drivers::by_name(name, owner),
            (None, _) => None,
        };
        match driver {
            Some(driver) => stores.push(Store::new(root.clone(), driver, None)),
            None => unknown = Some(name),
        }
    }
    for name in drivers::PODMAN {
        if let Some(records) = containers_storage::Records::open(&root, name, &known.run_lists)? {
            let driver = drivers::of_podman(&root, name, owner)?;
            let records = Some(Records::Podman(records));
            stores.extend(driver.map(|driver| Store::new(root.clone(), driver, records)));
        }
    }
    stores.sort_by_key(|store| drivers::NAMES.iter().position(|n| *n == store.driver()));
    stores.extend(
        containerd::open(&root, known.namespace.as_deref())?
            .into_iter()
            .map(|found| {
                let driver = drivers::of_containerd(found.name, owner);
                Store::new(root.clone(), driver, Some(Records::Containerd(found)))
            }),
    );
    match (stores.is_empty(), unknown) {
        (false, _) => Ok(stores),
        (true, Some(driver)) => Err(Error::UnknownDriver {
            path: root.path().to_owned(),
            driver: driver.to_string_lossy().into_owned(),
        }),
        (true, None) => Err(Error::NotAStore {
            path: root.path().to_owned(),
        }),
    }
}

/// Whether the error means that a root that the user did not name can be skipped without a warning.
pub(crate) fn is_absent(error: &Error) -> bool {
    matches!(error, Error::NotAStore { .. })
        || matches!(error.errno(), Some(Errno::NOENT | Errno::NOTDIR))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn environment(
        unionfs_root: Option<&str>,
        xdg: Option<&str>,
        home: Option<&str>,
        root: bool,
    ) -> Environment {
        Environment {
            unionfs_root: unionfs_root.map(Into::into),
            xdg_data_home: xdg.map(Into::into),
            home: home.map(Into::into),
            root,
            ..Environment::default()
        }
    }

    #[test]
    fn roots_are_searched_in_order() {
        let candidates = |e: Environment| -> Vec<String> {
            let paths = e.candidates();
            paths.iter().map(|p| p.display().to_string()).collect()
        };
        assert_eq!(
            candidates(environment(None, None, Some("/root"), true)),
            [
                "/var/lib/unionfs",
                "/var/lib/docker",
                "/root/.local/share/docker",
                "/var/lib/containers/storage",
                "/root/.local/share/containers/storage",
                "/var/lib/containerd",
                "/var/lib/docker/containerd/daemon",
                "/root/.local/share/containerd",
                "/root/.local/share/docker/containerd/daemon"
            ]
        );
        assert_eq!(
            candidates(environment(None, Some("/x"), Some("/home/u"), false)),
            [
                "/x/unionfs",
                "/var/lib/docker",
                "/x/docker",
                "/x/containers/storage",
                "/x/containerd",
                "/x/docker/containerd/daemon"
            ]
        );
        assert_eq!(
            candidates(environment(
                Some("/s"),
                Some("relative"),
                Some("/home/u"),
                false
            )),
            [
                "/s",
                "/var/lib/docker",
                "/home/u/.local/share/docker",
                "/home/u/.local/share/containers/storage",
                "/home/u/.local/share/containerd",
                "/home/u/.local/share/docker/containerd/daemon"
            ]
        );
        assert_eq!(
            candidates(environment(None, None, None, false)),
            ["/var/lib/docker"]
        );
        let temp = tempfile::tempdir().unwrap();
        let conf = |name: &str, text: &str| {
            let file = temp.path().join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(&file, text).unwrap();
            file
        };
        let system = conf(
            "storage.conf",
            "[storage]\ngraphroot = '/g'\nrootless_storage_path = '$HOME/r/${UID}'\n\
             [storage.options]\nadditionalimagestores = ['/a', 'relative', '/b/$NONE']\n",
        );
        conf(
            "home/.config/containers/storage.conf",
            "[storage]\ngraphroot = '/own'\nimagestore = '/images'\n",
        );
        let home = temp.path().join("home").display().to_string();
        let uid = rustix::process::geteuid().as_raw();
        let configured = |root: bool, only: Option<&Path>| {
            let mut environment = environment(None, Some("/x"), Some(&home), root);
            let absent = temp.path().join("absent.conf");
            environment.system_storage_conf = vec![absent, system.clone()];
            environment.storage_conf = only.map(Into::into);
            let all = candidates(environment);
            let from = all.iter().position(|path| path == "/x/docker").unwrap() + 1;
            let to = all.iter().position(|path| path == "/x/containers/storage");
            all[from..to.unwrap()].to_vec()
        };
        assert_eq!(
            configured(true, None),
            ["/g", "/a", "/b/$NONE", "/var/lib/containers/storage"]
        );
        let rootless = format!("{home}/r/{uid}");
        assert_eq!(
            configured(false, None),
            ["/images", "/own", &rootless, "/a", "/b/$NONE"]
        );
        let only = conf("only.conf", "[storage]\ngraphroot = '/only'\n");
        assert_eq!(configured(false, Some(&only)), ["/only"]);
        let bad = conf("bad.conf", "[storage\n");
        let environment = Environment {
            storage_conf: Some(bad.clone().into()),
            ..environment(None, None, None, false)
        };
        let (candidates, problems) = environment.candidates_and_problems();
        let roots: Vec<&Path> = candidates.iter().map(|c| c.root.as_path()).collect();
        assert_eq!(roots, [Path::new("/var/lib/docker")]);
        assert!(problems[0].to_string().contains("bad.conf"), "{problems:?}");
        let homeless = self::environment(None, None, None, false);
        assert!(matches!(homeless.own_root(), Err(Error::NoHome)));
    }
}
