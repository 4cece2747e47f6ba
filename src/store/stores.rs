//! All stores of a user, searched as one. The cli's way into the store.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::containers::{self, Container};
use super::error::{Error, Result};
use super::image::Image;
use super::reference::{Query, Reference};
use super::roots::{self, Environment};
use super::single::Store;
use super::{CacheId, Digest};

/// How many candidates an ambiguous prefix lists.
const CANDIDATES: usize = 20;

/// The stores that were found, in search order.
#[derive(Debug)]
pub struct Stores {
    stores: Vec<Store>,
    skipped: Vec<Error>,
}

/// What looking for a name gave.
enum ByName<'s> {
    Found(&'s Store, Digest),
    Unknown,
    /// No store has a repositories.json; this is where the first should be.
    NoNames(PathBuf),
}

impl Stores {
    /// Finds the stores: only `explicit` where given (`--root`), else all of
    /// [`Environment::candidates`]. Having none is an error.
    pub fn discover(explicit: Option<&Path>, environment: &Environment) -> Result<Self> {
        if let Some(path) = explicit {
            let stores = roots::open(path)?;
            let skipped = Vec::new();
            return Ok(Self { stores, skipped });
        }
        let searched = environment.candidates();
        let mut found = Self {
            stores: Vec::new(),
            skipped: Vec::new(),
        };
        for path in &searched {
            match roots::open(path) {
                Ok(stores) => found.add(stores),
                Err(error) if roots::is_absent(&error) => (),
                Err(error) => found.skipped.push(error),
            }
        }
        match (found.stores.is_empty(), found.skipped.is_empty()) {
            (false, _) => Ok(found),
            (true, true) => Err(Error::NoStore { searched }),
            (true, false) => Err(found.skipped.swap_remove(0)),
        }
    }

    /// Two candidates may be one directory: it is searched once.
    fn add(&mut self, stores: Vec<Store>) {
        let known = |store: &Store| self.stores.iter().any(|s| s.root() == store.root());
        if !stores.iter().any(known) {
            self.stores.extend(stores);
        }
    }

    /// The stores, in search order.
    pub fn all(&self) -> &[Store] {
        &self.stores
    }

    /// Why places that may hold a store could not be read; worth a warning.
    pub fn skipped(&self) -> &[Error] {
        &self.skipped
    }

    fn roots(&self) -> Vec<PathBuf> {
        let mut roots: Vec<PathBuf> = Vec::new();
        for store in &self.stores {
            if roots.last().is_none_or(|last| last != store.root()) {
                roots.push(store.root().to_owned());
            }
        }
        roots
    }

    /// The image a user means: a name wins over an ID prefix, the first store that
    /// has the name wins over others, as in Docker.
    pub fn find(&self, text: &str) -> Result<Image> {
        let unknown = || Error::UnknownImage {
            name: text.to_owned(),
            searched: self.roots(),
        };
        match Query::parse(text)? {
            Query::Id(id) => {
                for store in &self.stores {
                    if store.contains(&id)? {
                        return store.image(&id);
                    }
                }
                Err(unknown())
            }
            Query::Name { reference, prefix } => {
                let by_name = self.by_name(&reference)?;
                if let ByName::Found(store, id) = by_name {
                    return store.image(&id);
                }
                if let Some(prefix) = prefix
                    && let Some((store, id)) = self.by_prefix(&prefix)?
                {
                    return store.image(&id);
                }
                match by_name {
                    ByName::NoNames(path) => Err(Error::NoRepositories {
                        name: text.to_owned(),
                        path,
                    }),
                    _ => Err(unknown()),
                }
            }
        }
    }

    fn by_name(&self, name: &Reference) -> Result<ByName<'_>> {
        let mut any = false;
        for store in &self.stores {
            if let Some(repositories) = store.repositories()? {
                any = true;
                let found = repositories.get(name)?;
                // As in podman, a short name is also that of an image built here.
                let local = name.local().filter(|_| store.records.is_some());
                let found = match (found, local) {
                    (None, Some(local)) => repositories.get(&local)?,
                    (found, _) => found,
                };
                if let Some(id) = found {
                    return Ok(ByName::Found(store, id));
                }
            }
        }
        Ok(match self.stores.first() {
            Some(store) if !any => ByName::NoNames(store.repositories_path()),
            _ => ByName::Unknown,
        })
    }

    fn by_prefix(&self, prefix: &str) -> Result<Option<(&Store, Digest)>> {
        let mut matches: BTreeMap<Digest, &Store> = BTreeMap::new();
        for store in &self.stores {
            for id in store.ids()? {
                if id.hex().starts_with(prefix) {
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
            candidates.push(match names.is_empty() {
                true => id.to_string(),
                false => format!("{id} ({})", names.join(" ")),
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

    /// The container a user means: a full ID wins over a name, a name over an ID prefix.
    pub fn container(&self, text: &str) -> Result<Container> {
        let mut prefixed: Vec<(&Store, CacheId)> = Vec::new();
        let mut named = None;
        for store in &self.stores {
            for id in store.layerdb().containers()? {
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
        match prefixed.as_slice() {
            [] => Err(Error::UnknownContainer {
                name: text.to_owned(),
                searched: self.roots(),
            }),
            [(store, id)] => containers::load(store, id),
            several => Err(Error::AmbiguousContainer {
                prefix: text.to_owned(),
                candidates: several
                    .iter()
                    .take(CANDIDATES)
                    .map(|(_, id)| id.to_string())
                    .collect(),
            }),
        }
    }
}
