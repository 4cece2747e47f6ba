//! Names of images with the store in which they are, as in skopeo (containers-transports(5)).
//!
//! ```text
//! docker://NAME                          any store, as NAME alone: what was pulled by this name
//! docker-daemon:NAME                     Docker's stores, also the one that it has in containerd
//! containers-storage:NAME                podman's stores
//! containers-storage:[ROOT]NAME          podman's store at ROOT, and no other
//! containers-storage:[DRIVER@ROOT+RUNROOT:OPTION,…]NAME
//! ```
//! RUNROOT and the options may be left out. Of the options, those that name additional stores count
//! (`overlay.imagestore=DIR`). podman's images also have names with an ID: `NAME@ID`, the digits
//! without `sha256:`.

use std::path::{Path, PathBuf};

use super::error::{Error, Result};
use super::image_store::Store;
use super::records::Records;
use crate::oci::Digest;

const REGISTRY: &str = "docker://";
const DOCKER: &str = "docker-daemon:";
const PODMAN: &str = "containers-storage:";

/// The namespace of containerd that has Docker's images.
const DOCKERS_NAMESPACE: &str = "moby";

/// A name, and the stores that are searched for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageName<'t> {
    scope: Scope,
    name: &'t str,
    /// The ID that the image with this name has.
    pub(super) id: Option<Digest>,
}

/// The stores that are searched for a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    Any,
    Docker,
    Podman,
    One(NamedStore),
}

/// A store of podman's that a name names.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NamedStore {
    /// The driver; `None`: any.
    pub driver: Option<String>,
    /// The graph root, absolute.
    pub root: PathBuf,
    /// The run root, absolute.
    pub run_root: Option<PathBuf>,
    /// The additional stores, on whose layers images may lie.
    pub image_stores: Vec<PathBuf>,
}

impl<'t> ImageName<'t> {
    /// Splits a text into the stores and the name.
    ///
    /// # Errors
    /// [`Error::StoreName`] if the part in brackets names no store.
    pub fn parse(text: &'t str) -> Result<Self> {
        if let Some(name) = text.strip_prefix(REGISTRY) {
            return Ok(Self::of(Scope::Any, name));
        }
        if let Some(name) = text.strip_prefix(DOCKER) {
            return Ok(Self::of(Scope::Docker, name));
        }
        let Some(rest) = text.strip_prefix(PODMAN) else {
            return Ok(Self::of(Scope::Any, text));
        };
        let (scope, name) = match rest.strip_prefix('[') {
            None => (Scope::Podman, rest),
            Some(rest) => {
                let (store, name) = rest
                    .split_once(']')
                    .ok_or_else(|| bad(text, "the bracket is not closed"))?;
                let store = NamedStore::parse(store).map_err(|fault| bad(text, fault))?;
                (Scope::One(store), name)
            }
        };
        if name.is_empty() {
            return Err(bad(text, "the name of the image is missing"));
        }
        let with_id = name.rsplit_once('@');
        match with_id.and_then(|(name, id)| Some((name, Digest::from_hex(id)?))) {
            Some((name, id)) => Ok(Self {
                id: Some(id),
                ..Self::of(scope, name)
            }),
            None => Ok(Self::of(scope, name)),
        }
    }

    fn of(scope: Scope, name: &'t str) -> Self {
        Self {
            scope,
            name,
            id: None,
        }
    }

    /// Returns the name without the part that says where the image is.
    pub fn name(&self) -> &'t str {
        self.name
    }

    /// Returns the one store that is searched, if the name names one.
    pub fn store(&self) -> Option<&NamedStore> {
        match &self.scope {
            Scope::One(store) => Some(store),
            _ => None,
        }
    }

    /// Returns the only namespace of containerd that counts; `None`: all.
    pub(super) fn namespace(&self) -> Option<&'static str> {
        (self.scope == Scope::Docker).then_some(DOCKERS_NAMESPACE)
    }

    /// Whether a store is searched. `only_named` are the roots that are searched only if a name names
    /// them; `root_of` returns the open root of a store that is named.
    pub(super) fn searches(
        &self,
        store: &Store,
        only_named: &[PathBuf],
        root_of: impl Fn(&Path) -> Option<PathBuf>,
    ) -> bool {
        let is_found = !only_named.iter().any(|root| root == store.root());
        match (&self.scope, &store.records) {
            (Scope::Any, _)
            | (Scope::Podman, Some(Records::Podman(_)))
            | (Scope::Docker, Some(Records::Containerd(_))) => is_found,
            (Scope::Docker, None) => is_found && !store.is_ours(),
            (Scope::One(named), Some(Records::Podman(_))) => {
                let driver = named.driver.as_deref();
                driver.is_none_or(|driver| driver == store.driver())
                    && root_of(&named.root).as_deref() == Some(store.root())
            }
            _ => false,
        }
    }
}

impl NamedStore {
    /// Parses `[DRIVER@]ROOT[+RUNROOT][:OPTIONS]`.
    fn parse(text: &str) -> std::result::Result<Self, &'static str> {
        let (driver, rest) = match text.split_once('@') {
            Some(("", _)) => return Err("the driver before @ is missing"),
            // Other words for podman's driver.
            Some(("overlay2", rest)) => (Some("overlay"), rest),
            Some((driver, rest)) => (Some(driver), rest),
            None => (None, text),
        };
        let (rest, options) = rest.split_once(':').unwrap_or((rest, ""));
        let (root, run_root) = match rest.split_once('+') {
            Some((root, run_root)) => (root, Some(run_root)),
            None => (rest, None),
        };
        let absolute = |path: &str| {
            let path = PathBuf::from(path);
            let is_one = path.is_absolute();
            is_one
                .then_some(path)
                .ok_or("the directories of a store are absolute paths")
        };
        let stores = options.split(',').filter_map(|option| {
            let (key, value) = option.split_once('=')?;
            let key = key.trim();
            let is_one = key == "imagestore" || key.ends_with(".imagestore");
            is_one.then(|| absolute(value))
        });
        Ok(Self {
            driver: driver.map(str::to_owned),
            root: absolute(root)?,
            run_root: run_root.map(absolute).transpose()?,
            image_stores: stores.collect::<std::result::Result<_, _>>()?,
        })
    }
}

fn bad(text: &str, fault: &'static str) -> Error {
    Error::StoreName {
        name: text.to_owned(),
        fault,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(text: &str) -> (Scope, &str) {
        let name = ImageName::parse(text).unwrap();
        (name.scope, name.name)
    }

    #[test]
    fn prefixes_name_engines() {
        assert_eq!(parts("docker-daemon:app:1"), (Scope::Docker, "app:1"));
        let of_podman = parts("containers-storage:localhost/app");
        assert_eq!(of_podman, (Scope::Podman, "localhost/app"));
        for any in [
            "app:1",
            "docker-daemon",
            "docker.io/library/docker-daemon:1",
        ] {
            assert_eq!(parts(any), (Scope::Any, any));
        }
    }

    #[test]
    fn brackets_name_one_store() {
        let store = |driver: Option<&str>, root: &str, run_root: Option<&str>| NamedStore {
            driver: driver.map(str::to_owned),
            root: root.into(),
            run_root: run_root.map(Into::into),
            image_stores: Vec::new(),
        };
        for (text, named) in [
            ("[/g]", store(None, "/g", None)),
            ("[vfs@/g]", store(Some("vfs"), "/g", None)),
            ("[overlay2@/g+/r]", store(Some("overlay"), "/g", Some("/r"))),
            (
                "[overlay@/g+/r:overlay.mountopt=nodev]",
                store(Some("overlay"), "/g", Some("/r")),
            ),
            (
                "[overlay@/g:overlay.imagestore=/a,.imagestore=/b]",
                NamedStore {
                    image_stores: vec!["/a".into(), "/b".into()],
                    ..store(Some("overlay"), "/g", None)
                },
            ),
        ] {
            let text = format!("containers-storage:{text}localhost/app:1");
            assert_eq!(parts(&text), (Scope::One(named), "localhost/app:1"));
        }
        for bad in [
            "[/g",
            "[]",
            "[@/g]",
            "[g]",
            "[vfs@]",
            "[/g+r]",
            "[/g:x.imagestore=a]",
        ] {
            let text = format!("containers-storage:{bad}app");
            let error = ImageName::parse(&text).unwrap_err();
            assert!(matches!(error, Error::StoreName { .. }), "{text}: {error}");
        }
        for missing in ["containers-storage:", "containers-storage:[/g]"] {
            assert!(ImageName::parse(missing).is_err(), "{missing}");
        }
    }

    #[test]
    fn a_name_may_have_an_id() {
        let id = Digest::of(b"");
        let text = format!("containers-storage:app:1@{}", id.hex());
        let name = ImageName::parse(&text).unwrap();
        assert_eq!((name.name, name.id), ("app:1", Some(id)));
        let text = format!("containers-storage:app@{id}");
        assert_eq!(ImageName::parse(&text).unwrap().id, None);
    }
}
