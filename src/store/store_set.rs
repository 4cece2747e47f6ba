//! All stores of a user, searched as one.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use super::containers::{self, Container};
use super::discovery::{self, Environment, Known};
use super::error::{Error, Result};
use super::image::Image;
use super::image_name::ImageName;
use super::image_store::Store;
use super::records::Records;
use super::{CacheId, Name, NamedLayer, Places, UnnamedLayer, near_names, unnamed_layer, writable};
use crate::oci::Digest;
use crate::oci::reference::{Query, Reference};

/// The number of candidates that the error of an ambiguous prefix lists.
const CANDIDATES: usize = 20;

/// The stores that were found, in search order.
#[derive(Debug, Default)]
pub struct Stores {
    stores: Vec<Store>,
    /// The places that were searched, also those without a store.
    places: Vec<PathBuf>,
    /// The roots that names of images name, as they are written and as they are.
    named_roots: Vec<(PathBuf, PathBuf)>,
    /// The roots that are searched only for names that name them.
    only_named: Vec<PathBuf>,
    skipped: Vec<Error>,
    /// As [`Environment::short_names`].
    short_names: BTreeMap<String, Vec<Reference>>,
    /// Locks that keep the found images and layers from being removed, see [`Stores::into_held`].
    held: Vec<File>,
}

/// The result of the search for a name.
enum ByName<'s> {
    Found(&'s Store, Digest),
    Unknown,
    /// No store has a repositories.json; the path is where the first store should have it.
    NoNames(PathBuf),
}

impl Stores {
    /// Finds the stores: only `explicit` if given (`--root`), else all of
    /// [`Environment::candidates`]. Having none is an error.
    ///
    /// # Errors
    /// Those of [`Places::find`] and of [`Stores::open`].
    pub fn discover(explicit: Option<&Path>, environment: &Environment) -> Result<Self> {
        let mut places = Places::find(explicit, environment)?;
        places.open_run_lists(environment);
        Self::open(places)
    }

    /// Opens the stores in these places. Having none is an error.
    ///
    /// # Errors
    /// [`Error::NoStore`] if there is none; the error of the only place that may hold a store.
    pub fn open(mut places: Places) -> Result<Self> {
        let mut found = Self {
            skipped: std::mem::take(&mut places.skipped),
            places: places.roots.clone(),
            only_named: places.only_named(),
            named_roots: std::mem::take(&mut places.named_roots),
            short_names: std::mem::take(&mut places.short_names),
            ..Self::default()
        };
        let mut of_explicit = None;
        for path in &places.roots {
            match found.add(path, &places.known(path)) {
                Ok(()) => (),
                // A root of Docker may have its images in the containerd below it.
                Err(error) if places.explicit => drop(of_explicit.get_or_insert(error)),
                Err(error) if discovery::is_absent(&error) && !found.only_named.contains(path) => {}
                Err(error) => found.skipped.push(error),
            }
        }
        found.join_podmans();
        if let Some(error) = of_explicit.filter(|_| found.stores.is_empty()) {
            return Err(error);
        }
        match (found.stores.is_empty(), found.skipped.is_empty()) {
            (false, _) => Ok(found),
            // Changes of mounts without a name need no store beside them.
            (true, true) if places.roots.iter().any(|root| has_changes(root)) => Ok(found),
            (true, true) => Err(Error::NoStore {
                searched: places.searched,
            }),
            (true, false) => Err(found.skipped.swap_remove(0)),
        }
    }

    /// Two stores may have one root: it is searched once.
    fn add(&mut self, path: &Path, known: &Known) -> Result<()> {
        let stores = discovery::open_with(path, known)?;
        if let Some(store) = stores.first() {
            self.held.extend(writable::hold(&store.root)?);
        }
        self.stores.extend(stores);
        Ok(())
    }

    /// Connects podman's stores: images of one may lie on layers of another
    /// (`additionalimagestores`).
    fn join_podmans(&mut self) {
        let records = self
            .stores
            .iter()
            .filter_map(|store| store.records.as_ref());
        let lists: Vec<_> = records.filter_map(Records::podmans_layers).collect();
        for store in &mut self.stores {
            if let Some(Records::Podman(records)) = &mut store.records {
                records.add_layers_of(lists.iter());
            }
        }
    }

    /// Returns files that keep other processes from removing images and layers of our own store as
    /// long as they are open. `Stores` keeps them open while it lives, a mount until it is live.
    pub fn into_held(self) -> Vec<File> {
        self.held
    }

    /// Returns the stores, in search order.
    pub fn all(&self) -> &[Store] {
        &self.stores
    }

    /// Returns the reasons why places that may hold a store could not be read. They are worth a
    /// warning.
    pub fn skipped(&self) -> &[Error] {
        &self.skipped
    }

    fn roots(&self) -> Vec<PathBuf> {
        roots(self.stores.iter())
    }

    /// Finds the image that a user means: a name wins over an ID prefix, and the first store that
    /// has the name wins over others, as in Docker. If none has it, the other names of a short name
    /// count ([`Environment::short_names`]). An [`ImageName`] restricts the search to some stores.
    ///
    /// # Errors
    /// [`Error::UnknownImage`], [`Error::AmbiguousImage`] or [`Error::NoRepositories`] if no image
    /// fits; those of [`Store::image`] if the image is damaged; [`Error::Oci`] if the text is not a
    /// reference; [`Error::StoreName`].
    pub fn find(&self, text: &str) -> Result<Image> {
        let (store, id) = self.locate(text)?;
        store.image(&id)
    }

    /// As [`Stores::find`], but returns only the image's store and ID: the image may be damaged.
    ///
    /// # Errors
    /// Those of [`Stores::find`], except for faults of the image itself.
    pub fn locate(&self, text: &str) -> Result<(&Store, Digest)> {
        let wanted = ImageName::parse(text)?;
        let stores = self.searched_for(&wanted);
        let namespace = wanted.namespace();
        let local = Reference::local(wanted.name());
        let found = match (Query::parse(wanted.name())?, wanted.id) {
            (Query::Id(id), _) => by_id(&stores, &id, namespace)?,
            (Query::Name { reference, .. }, Some(id)) => {
                by_name_and_id(&stores, &reference, local.as_ref(), &id)?
            }
            (Query::Name { reference, prefix }, None) => {
                match by_name(&stores, &reference, local.as_ref(), namespace)? {
                    ByName::Found(store, id) => Some((store, id)),
                    missing => {
                        let mut found = self.by_short_name(&stores, &wanted)?;
                        if let (None, Some(prefix)) = (&found, prefix) {
                            found = by_prefix(&stores, &prefix, namespace)?;
                        }
                        if let (None, ByName::NoNames(path)) = (&found, missing) {
                            let name = text.to_owned();
                            return Err(Error::NoRepositories { name, path });
                        }
                        found
                    }
                }
            }
        };
        found.ok_or_else(|| Error::UnknownImage {
            name: text.to_owned(),
            searched: match wanted.store() {
                Some(store) if stores.is_empty() => vec![store.root.clone()],
                _ => roots(stores.iter().copied()),
            },
            near: near_names::near(wanted.name(), all_names(stores.iter().copied())),
        })
    }

    /// Searches for the other names of a short name.
    fn by_short_name<'s>(
        &self,
        stores: &[&'s Store],
        wanted: &ImageName<'_>,
    ) -> Result<Option<(&'s Store, Digest)>> {
        for other in self.short_names.get(wanted.name()).into_iter().flatten() {
            if let ByName::Found(store, id) = by_name(stores, other, None, wanted.namespace())? {
                return Ok(Some((store, id)));
            }
        }
        Ok(None)
    }

    /// Returns the stores that are searched for a name.
    fn searched_for(&self, wanted: &ImageName<'_>) -> Vec<&Store> {
        let root_of = |root: &Path| {
            let mut named = self.named_roots.iter();
            named.find_map(|(written, at)| (written == root).then(|| at.clone()))
        };
        let is_searched = |store: &&Store| wanted.searches(store, &self.only_named, root_of);
        self.stores.iter().filter(is_searched).collect()
    }

    /// Returns all names of images; those that cannot be read are left out.
    pub fn image_names(&self) -> impl Iterator<Item = Name> {
        all_names(self.stores.iter())
    }

    /// Returns the names of all containers and named layers; those that cannot be read are left out.
    pub fn container_names(&self) -> Vec<String> {
        let named = self.named().into_iter().filter_map(Result::ok);
        let mut names: Vec<String> = named.map(|(_, named)| named.name).collect();
        for store in &self.stores {
            for id in store.containers().unwrap_or_default() {
                names.extend(containers::name_of(store, &id));
            }
        }
        names
    }

    /// Returns all named layers, with their stores; damaged records as errors.
    pub fn named(&self) -> Vec<Result<(&Store, NamedLayer)>> {
        let mut all = Vec::new();
        for store in &self.stores {
            match store.all_named() {
                Ok(named) => all.extend(named.into_iter().map(|n| n.map(|n| (store, n)))),
                Err(error) => all.push(Err(error)),
            }
        }
        all
    }

    /// Returns the changes of mounts without a name. Places that cannot be read are left out.
    pub fn unnamed(&self) -> Vec<UnnamedLayer> {
        let all = self.places.iter().map(|root| UnnamedLayer::all(root));
        all.flatten().flatten().collect()
    }

    /// Finds the container or named layer that a user means: a full ID wins over a name, a name
    /// over an ID prefix. The changes of a mount without a name have an ID too.
    ///
    /// # Errors
    /// [`Error::UnknownContainer`] or [`Error::AmbiguousContainer`] if no container fits; those of
    /// [`Store::image`] if one of its layers is damaged.
    pub fn container(&self, text: &str) -> Result<Container> {
        for store in &self.stores {
            if let Some(named) = store.named(text)? {
                return containers::load_named(store, &named);
            }
        }
        let mut prefixed: Vec<(&Store, CacheId)> = Vec::new();
        let mut named = None;
        for store in &self.stores {
            for id in store.containers()? {
                if id.as_str() == text {
                    return containers::load(store, &id);
                }
                if named.is_none() && containers::has_name(store, &id, text) {
                    named = Some((store, id));
                } else if !text.is_empty() && id.as_str().starts_with(text) {
                    prefixed.push((store, id));
                }
            }
        }
        if let Some((store, id)) = named {
            return containers::load(store, &id);
        }
        let mut unnamed = unnamed_layer::meant_by(&self.places, text)?;
        if prefixed.is_empty()
            && unnamed.len() == 1
            && let Some(layer) = unnamed.pop()
        {
            return layer.load();
        }
        let candidates = prefixed.iter().map(|(_, id)| id.to_string());
        let candidates = candidates.chain(unnamed.iter().map(|layer| layer.id.clone()));
        let candidates: Vec<String> = candidates.take(CANDIDATES).collect();
        match prefixed.as_slice() {
            [] if unnamed.is_empty() => Err(Error::UnknownContainer {
                name: text.to_owned(),
                searched: self.roots(),
            }),
            [(store, id)] if unnamed.is_empty() => containers::load(store, id),
            _ => Err(Error::AmbiguousContainer {
                prefix: text.to_owned(),
                candidates,
            }),
        }
    }
}

fn has_changes(root: &Path) -> bool {
    UnnamedLayer::place(root).is_some()
}

/// Returns all names of images in these stores; those that cannot be read are left out.
fn all_names<'s>(stores: impl Iterator<Item = &'s Store>) -> impl Iterator<Item = Name> {
    let lists = stores.filter_map(|store| store.repositories().ok()?);
    lists.flat_map(|list| {
        let names: Vec<Name> = list.all().filter_map(|entry| Some(entry.ok()?.0)).collect();
        names
    })
}

/// Finds the image that a digest means in these stores. `namespace`: the only one of containerd that
/// counts, here and below.
fn by_id<'s>(
    stores: &[&'s Store],
    digest: &Digest,
    namespace: Option<&str>,
) -> Result<Option<(&'s Store, Digest)>> {
    for &store in stores {
        if let Some(id) = store.meant_by(digest, namespace)? {
            return Ok(Some((store, id)));
        }
    }
    Ok(None)
}

/// Finds the image with that ID in these stores, which must also have the name. `local`: as
/// [`by_name`].
fn by_name_and_id<'s>(
    stores: &[&'s Store],
    name: &Reference,
    local: Option<&Reference>,
    id: &Digest,
) -> Result<Option<(&'s Store, Digest)>> {
    for &store in stores {
        let names = store.names_of(id)?;
        let is_it = |found: &Name| found.is(name) || local.is_some_and(|local| found.is(local));
        if names.iter().any(is_it) {
            return Ok(Some((store, *id)));
        }
    }
    Ok(None)
}

/// Finds the image with that name in these stores. `local`: the name that a short one also means where
/// images are built under `localhost/`.
fn by_name<'s>(
    stores: &[&'s Store],
    name: &Reference,
    local: Option<&Reference>,
    namespace: Option<&str>,
) -> Result<ByName<'s>> {
    let mut any = false;
    for &store in stores {
        if let Some(repositories) = store.repositories_in(namespace)? {
            any = true;
            let found = repositories.get(name)?;
            // As in podman, a short name also means an image that was built locally.
            let has_local = store.records.as_ref().is_some_and(Records::has_local_names);
            let found = match (found, local.filter(|_| has_local)) {
                (None, Some(local)) => repositories.get(local)?,
                (found, _) => found,
            };
            if let Some(id) = found {
                return Ok(ByName::Found(store, id));
            }
        }
    }
    Ok(match stores.first() {
        Some(store) if !any => ByName::NoNames(store.repositories_path()),
        _ => ByName::Unknown,
    })
}

/// Finds the image whose ID begins with the prefix in these stores.
fn by_prefix<'s>(
    stores: &[&'s Store],
    prefix: &str,
    namespace: Option<&str>,
) -> Result<Option<(&'s Store, Digest)>> {
    let mut matches: BTreeMap<Digest, &Store> = BTreeMap::new();
    for &store in stores {
        for (digest, id) in store.digests(namespace)? {
            if digest.hex().starts_with(prefix) {
                matches.entry(id).or_insert(store);
            }
        }
    }
    if matches.len() <= 1 {
        return Ok(matches.pop_first().map(|(id, store)| (store, id)));
    }
    let mut candidates = Vec::new();
    for (id, store) in matches.iter().take(CANDIDATES) {
        let names = match store.repositories()? {
            Some(repositories) => repositories
                .all()
                .filter_map(Result::ok)
                .filter(|(_, i)| i == id)
                .map(|(name, _)| name.to_string())
                .collect::<Vec<_>>(),
            None => Vec::new(),
        };
        candidates.push(if names.is_empty() {
            id.to_string()
        } else {
            format!("{id} ({})", names.join(" "))
        });
    }
    if matches.len() > CANDIDATES {
        candidates.push(format!("{} more", matches.len() - CANDIDATES));
    }
    Err(Error::AmbiguousImage {
        prefix: prefix.to_owned(),
        candidates,
    })
}

/// Returns each root once: several stores may have the same root.
fn roots<'s>(stores: impl Iterator<Item = &'s Store>) -> Vec<PathBuf> {
    let mut roots: Vec<PathBuf> = Vec::new();
    for store in stores {
        if roots.last().is_none_or(|last| last != store.root()) {
            roots.push(store.root().to_owned());
        }
    }
    roots
}
