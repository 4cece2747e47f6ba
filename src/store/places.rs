//! The places of stores: directories that are found and opened before anything in them is read. A
//! process can thus confine itself to them first, or open in them what a confined process has
//! found.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::OFlags;

use super::confined_dir::ConfinedDir;
use super::containers_storage::RunLists;
use super::discovery::{self, Candidate, Environment, Known};
use super::drivers::devicemapper::{self, PoolFiles};
use super::error::{Error, Result};
use super::image_name::NamedStore;
use super::{UnnamedLayer, containerd, drivers, named_layer, unnamed_layer, writable};
use crate::layer::OpenDir;
use crate::oci::Reference;

/// The places where stores may be: directories that exist and of which nothing has been read.
#[derive(Debug, Default)]
pub struct Places {
    pub(super) roots: Vec<PathBuf>,
    /// The paths that were searched.
    pub(super) searched: Vec<PathBuf>,
    pub(super) skipped: Vec<Error>,
    pub(super) explicit: bool,
    /// The roots that names of images name, as they are written and as they are.
    pub(super) named_roots: Vec<(PathBuf, PathBuf)>,
    /// The roots that no search has found, only names of images.
    only_named: Vec<PathBuf>,
    /// Directories that are not searched, but to which records in the roots may refer.
    others: Vec<PathBuf>,
    /// The pools of stores of the driver devicemapper.
    pools: Vec<(PathBuf, Arc<PoolFiles>)>,
    /// The only namespace of containerd that counts.
    namespace: Option<String>,
    /// The roots with podman's run roots that belong to them.
    run_roots: Vec<(PathBuf, Vec<PathBuf>)>,
    /// The lists in run roots, with the roots of their stores.
    run_lists: Vec<(PathBuf, Arc<RunLists>)>,
    /// As [`Environment::short_names`].
    pub(super) short_names: BTreeMap<String, Vec<Reference>>,
}

impl Places {
    /// Finds the places: only `explicit` if given (`--root`), else all of
    /// [`Environment::candidates`] that exist.
    ///
    /// # Errors
    /// The error of opening `explicit`.
    pub fn find(explicit: Option<&Path>, environment: &Environment) -> Result<Self> {
        let mut places = Self {
            explicit: explicit.is_some(),
            namespace: (environment.containerd_namespace.as_ref())
                .map(|name| name.to_string_lossy().into_owned()),
            short_names: environment.short_names.clone(),
            ..Self::default()
        };
        if let Some(path) = explicit {
            places.add_root(path)?;
            // Docker may keep its images in its own containerd.
            match places.add_root(&path.join(discovery::DOCKERS_CONTAINERD)) {
                Err(error) if !discovery::is_absent(&error) => places.skipped.push(error),
                _ => {}
            }
            return Ok(places);
        }
        let (candidates, problems) = environment.candidates_and_problems();
        places.skipped = problems;
        for Candidate { root, run_roots } in candidates {
            match places.add_root(&root) {
                Ok(found) if !run_roots.is_empty() => places.run_roots.push((found, run_roots)),
                Ok(_) => (),
                Err(error) if discovery::is_absent(&error) => (),
                Err(error) => places.skipped.push(error),
            }
            places.searched.push(root);
        }
        Ok(places)
    }

    /// Adds a directory and returns its path. Several candidates may be the same directory.
    fn add_root(&mut self, path: &Path) -> Result<PathBuf> {
        let root = ConfinedDir::open(path)?;
        if !self.roots.iter().any(|known| known == root.path()) {
            self.roots.push(root.path().to_owned());
        }
        Ok(root.path().to_owned())
    }

    /// Adds the store that the name of an image names. Other names do not find its images.
    ///
    /// # Errors
    /// Those of opening its directories.
    pub fn add_named(&mut self, store: &NamedStore) -> Result<()> {
        for root in std::iter::once(&store.root).chain(&store.image_stores) {
            let before = self.roots.len();
            let found = self.add_root(root)?;
            if self.roots.len() > before {
                self.only_named.push(found.clone());
            }
            if *root == store.root {
                if let Some(run_root) = &store.run_root {
                    self.run_roots.push((found.clone(), vec![run_root.clone()]));
                }
                self.named_roots.push((root.clone(), found));
            }
        }
        Ok(())
    }

    /// Returns the roots that are searched only for names that name them.
    pub(super) fn only_named(&self) -> Vec<PathBuf> {
        self.only_named.clone()
    }

    /// Opens the lists in the run roots of podman's stores, for a process that confines itself before
    /// it searches containers. The environment is that of [`Places::find`]. A run root that cannot be
    /// read is a reason for a warning.
    pub fn open_run_lists(&mut self, environment: &Environment) {
        if self.explicit {
            self.run_roots = self.run_roots_of_explicit(environment);
        }
        for (root, run_roots) in &self.run_roots {
            let owner = ConfinedDir::open(root).and_then(|root| root.owner());
            let Ok(owner) = owner else { continue };
            for run_root in run_roots {
                match RunLists::open(run_root, owner) {
                    Ok(Some(lists)) => self.run_lists.push((root.clone(), Arc::new(lists))),
                    Ok(None) => (),
                    Err(error) => self.skipped.push(error),
                }
            }
        }
    }

    /// Returns the run roots of the store that the user names: the one that the user names, or those
    /// of storage.conf if the store is there.
    fn run_roots_of_explicit(&self, environment: &Environment) -> Vec<(PathBuf, Vec<PathBuf>)> {
        let Some(root) = self.roots.first() else {
            return Vec::new();
        };
        if let Some(run_root) = &environment.run_root {
            return vec![(root.clone(), vec![run_root.clone()])];
        }
        let (mut candidates, _) = environment.candidates_and_problems();
        candidates.retain(|candidate| {
            let is_it = |found: ConfinedDir| found.path() == root;
            !candidate.run_roots.is_empty() && ConfinedDir::open(&candidate.root).is_ok_and(is_it)
        });
        let run_roots = candidates.into_iter().map(|found| found.run_roots);
        run_roots.map(|found| (root.clone(), found)).collect()
    }

    /// Returns a copy, without the reasons why places were skipped.
    #[must_use]
    pub fn again(&self) -> Self {
        Self {
            roots: self.roots.clone(),
            searched: self.searched.clone(),
            skipped: Vec::new(),
            explicit: self.explicit,
            named_roots: self.named_roots.clone(),
            only_named: self.only_named.clone(),
            others: self.others.clone(),
            pools: self.pools.clone(),
            namespace: self.namespace.clone(),
            run_roots: self.run_roots.clone(),
            run_lists: self.run_lists.clone(),
            short_names: self.short_names.clone(),
        }
    }

    /// Returns the reasons why places that may hold a store could not be opened, once. They are
    /// worth a warning.
    pub fn take_skipped(&mut self) -> Vec<Error> {
        if self.roots.is_empty() {
            // The reason is then returned as the error.
            Vec::new()
        } else {
            std::mem::take(&mut self.skipped)
        }
    }

    /// Opens the files of the pools of stores of the driver devicemapper, for a process that
    /// confines itself before it reads them: `given`, or those that the stores contain. Only this
    /// function checks whether the kernel uses them.
    ///
    /// # Errors
    /// Those of opening a store's files; a store without such files is no error.
    pub fn open_pools(&mut self, given: Option<Arc<PoolFiles>>) -> Result<()> {
        for path in &self.roots {
            let root = ConfinedDir::open(path)?;
            if !root.exists(Path::new("image").join(devicemapper::NAME))? {
                continue;
            }
            let files = match &given {
                Some(given) => Arc::clone(given),
                None => match PoolFiles::of_store(&root) {
                    Ok(files) => Arc::new(files),
                    // The error is reported when the pool is needed.
                    Err(Error::Pool { .. }) => continue,
                    Err(error) => return Err(error),
                },
            };
            self.pools.push((path.clone(), files));
        }
        Ok(())
    }

    /// What is known of the store in a root.
    pub(super) fn known(&self, root: &Path) -> Known {
        let mut pools = self.pools.iter();
        let pool = pools.find(|(path, _)| path == root);
        let lists = self.run_lists.iter().filter(|(path, _)| path == root);
        Known {
            pool: pool.map(|(_, files)| Arc::clone(files)),
            namespace: self.namespace.clone(),
            run_lists: lists.map(|(_, lists)| Arc::clone(lists)).collect(),
        }
    }

    /// Whether one of the stores has a record of a named read-write layer, valid or not, or changes of
    /// mounts without a name.
    pub fn have_named(&self) -> bool {
        let records =
            |root: &PathBuf| ConfinedDir::open(root).and_then(|root| root.list(named_layer::DIR));
        let mut found = self.roots.iter().map(records);
        found.any(|names| names.is_ok_and(|names| !names.is_empty()))
            || self.roots.iter().any(|root| unnamed_layer::exist_in(root))
    }

    /// Returns the roots of other stores that the read-write layers in these places refer to, as in
    /// their records. Damaged records are ignored.
    pub fn sources(&self) -> Vec<PathBuf> {
        let mut sources = Vec::new();
        let stores = self.roots.iter().flat_map(|root| discovery::open(root));
        for store in stores.flatten() {
            let named = store.all_named().into_iter().flatten().flatten();
            sources.extend(named.filter_map(|named| Some(named.source?.root)));
        }
        let unnamed = self.roots.iter().map(|root| UnnamedLayer::all(root));
        let origins = unnamed.flatten().flatten().filter_map(|layer| layer.origin);
        sources.extend(origins.map(|origin| origin.source.root));
        sources.retain(|source| !self.roots.contains(source));
        sources.sort();
        sources.dedup();
        sources
    }

    /// Returns the directory, absolute and without symlinks, if there could be a store in it.
    pub fn store_at(path: &Path) -> Option<PathBuf> {
        if !path.is_absolute() {
            return None;
        }
        let root = ConfinedDir::open(path).ok()?;
        let podmans = ["images", "layers"].into_iter().flat_map(|of| {
            let drivers = drivers::PODMAN.iter();
            drivers.map(move |name| format!("{name}-{of}"))
        });
        let others = ["image", containerd::METADATA, containerd::SNAPSHOTS];
        let mut places = podmans.chain(others.map(str::to_owned));
        let found = places.any(|place| root.exists(place).unwrap_or(false));
        found.then(|| root.path().to_owned())
    }

    /// Returns the directories, absolute and without symlinks.
    pub fn roots(&self) -> &[PathBuf] {
        &self.roots
    }

    /// Adds stores that are not searched, but to which layers may refer.
    pub fn add_others(&mut self, others: Vec<PathBuf>) {
        self.others = others;
    }

    /// Returns a directory on each file system that layers may be on, opened for reading, with its
    /// device number: of the stores and of the drivers' directories in them.
    pub fn file_systems(&self) -> Vec<(u64, OwnedFd)> {
        let mut found: Vec<(u64, OwnedFd)> = Vec::new();
        for root in self.roots.iter().chain(&self.others) {
            let Ok(root) = ConfinedDir::open(root) else {
                continue;
            };
            let dockers = [".", "overlay2", "overlay", "fuse-overlayfs", "vfs", "aufs"];
            let snapshots = containerd::SNAPSHOTTERS.map(containerd::snapshotter_dir);
            for place in dockers.map(PathBuf::from).into_iter().chain(snapshots) {
                let Ok(Some(dir)) = root.dir(&place, OFlags::RDONLY) else {
                    continue;
                };
                let dev = rustix::fs::fstat(&dir).map(|stat| stat.st_dev);
                if let Ok(dev) = dev
                    && !found.iter().any(|(known, _)| *known == dev)
                {
                    found.push((dev, dir));
                }
            }
        }
        found
    }
}

/// Open roots of stores.
#[derive(Debug)]
pub struct Roots(Vec<ConfinedDir>);

impl Roots {
    /// Opens the roots.
    ///
    /// # Errors
    /// Those of opening a root; [`Error::Io`] with ESTALE if the path leads to another directory by
    /// now.
    pub fn open(paths: &[PathBuf]) -> Result<Self> {
        let open = |path: &PathBuf| {
            let root = ConfinedDir::open(path)?;
            if root.path() == path {
                Ok(root)
            } else {
                Err(Error::io("open", path, rustix::io::Errno::STALE))
            }
        };
        Ok(Self(paths.iter().map(open).collect::<Result<_>>()?))
    }

    /// Returns the path of a root.
    pub fn path(&self, number: usize) -> Option<&Path> {
        self.0.get(number).map(ConfinedDir::path)
    }

    /// Opens a directory below a root, without following symlinks.
    ///
    /// # Errors
    /// Those of openat2(2); [`Error::NotAStore`] if there is no such root.
    pub fn layer_dir(&self, number: usize, path: &Path) -> Result<OpenDir> {
        match self.0.get(number) {
            Some(root) => root.layer_dir(path),
            None => Err(Error::NotAStore {
                path: path.to_owned(),
            }),
        }
    }

    /// As [`super::Stores::into_held`].
    ///
    /// # Errors
    /// [`Error::InUse`] if another process keeps the removal lock too long.
    pub fn hold(&self) -> Result<Vec<File>> {
        let held = self
            .0
            .iter()
            .map(writable::hold)
            .collect::<Result<Vec<_>>>()?;
        Ok(held.into_iter().flatten().collect())
    }
}
