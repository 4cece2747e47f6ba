//! `repositories.json`: maps image names to image IDs.
//!
//! Format (moby, reference/store.go):
//! `{"Repositories": {"<familiar name>": {"<name>:<tag>": "sha256:<id>", "<name>@sha256:…": …}}}`

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize, Serializer};

use super::error::{Error, Result};
use crate::oci::reference::Reference;
use crate::oci::text::excerpt;
use crate::oci::{Digest, json};

/// The size limit of a repositories.json, in bytes.
pub(crate) const LIMIT: u64 = 64 << 20;

#[derive(Deserialize)]
struct Raw {
    #[serde(rename = "Repositories")]
    repositories: Option<BTreeMap<String, Option<BTreeMap<String, String>>>>,
}

/// The names of a store's images.
#[derive(Debug)]
pub(crate) struct Repositories {
    path: PathBuf,
    names: BTreeMap<String, BTreeMap<String, String>>,
}

impl Repositories {
    /// Reads the file's bytes. A bad entry is an error only when it is used.
    pub(crate) fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        let raw: Raw = json::parse(path, bytes)?;
        let names = raw.repositories.unwrap_or_default();
        Ok(Self {
            path: path.to_owned(),
            names: names
                .into_iter()
                .filter_map(|(name, keys)| Some((name, keys?)))
                .collect(),
        })
    }

    /// Makes a list of names of another store, in any form that a user may write. `path` is for
    /// messages.
    pub(crate) fn of_names<'a>(
        path: &Path,
        named: impl Iterator<Item = (&'a str, &'a Digest)>,
    ) -> Self {
        let mut names: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
        for (name, id) in named {
            let (repository, key) = match Reference::parse(name) {
                Ok(reference) => (reference.familiar_name(), reference.key()),
                // `Repositories::all` reports it as an error.
                Err(_) => (name.to_owned(), name.to_owned()),
            };
            let keys = names.entry(repository).or_default();
            keys.insert(key, id.to_string());
        }
        Self {
            path: path.to_owned(),
            names,
        }
    }

    /// Returns the image of a name; `None` if there is no such name.
    pub(crate) fn get(&self, reference: &Reference) -> Result<Option<Digest>> {
        let keys = self.names.get(&reference.familiar_name());
        match keys.and_then(|keys| keys.get(&reference.key())) {
            None => Ok(None),
            Some(id) => self.id(id).map(Some),
        }
    }

    /// Gives a name to an image; returns the image that had it. A damaged entry is replaced.
    pub(crate) fn set(&mut self, reference: &Reference, id: &Digest) -> Option<Digest> {
        let keys = self.names.entry(reference.familiar_name()).or_default();
        let previous = keys.insert(reference.key(), id.to_string());
        previous.and_then(|id| Digest::parse(&id))
    }

    /// Removes a name; returns the image that had it, `None` if there was no such name.
    pub(crate) fn remove(&mut self, reference: &Reference) -> Result<Option<Digest>> {
        let repository = reference.familiar_name();
        let Some(keys) = self.names.get_mut(&repository) else {
            return Ok(None);
        };
        let Some(id) = keys.remove(&reference.key()) else {
            return Ok(None);
        };
        if keys.is_empty() {
            self.names.remove(&repository);
        }
        self.id(&id).map(Some)
    }

    /// Removes all names of an image; returns whether there were any.
    pub(crate) fn remove_all(&mut self, id: &Digest) -> bool {
        let id = id.to_string();
        let mut removed = false;
        self.names.retain(|_, keys| {
            let before = keys.len();
            keys.retain(|_, theirs| *theirs != id);
            removed |= keys.len() < before;
            !keys.is_empty()
        });
        removed
    }

    /// Returns the file's bytes.
    pub(crate) fn to_json(&self) -> Vec<u8> {
        serde_json::json!({ "Repositories": self.names })
            .to_string()
            .into_bytes()
    }

    fn id(&self, text: &str) -> Result<Digest> {
        Digest::parse(text).ok_or_else(|| Error::Malformed {
            path: self.path.clone(),
            found: excerpt(text.as_bytes()),
            expected: "an image ID (sha256: and 64 hexadecimal digits)",
        })
    }

    /// Returns every name with its image, in the file's order; bad entries as errors.
    pub(crate) fn all(&self) -> impl Iterator<Item = Result<(Name, Digest)>> {
        self.names.iter().flat_map(move |(repository, keys)| {
            keys.iter().map(move |(key, id)| {
                let name = Name::parse(repository, key).ok_or_else(|| Error::Malformed {
                    path: self.path.clone(),
                    found: excerpt(key.as_bytes()),
                    expected: "an image name of its repository",
                })?;
                Ok((name, self.id(id)?))
            })
        })
    }
}

/// One name of an image in a store. Displays as `app:1` or `app@sha256:…`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Name {
    /// The familiar name: `busybox`, `user/app`, `host:5000/app`.
    pub repository: String,
    /// The tag, in names by tag.
    pub tag: Option<String>,
    /// The registry's digest, in names by digest.
    pub digest: Option<String>,
}

impl Name {
    /// Whether a reference means this name.
    pub fn is(&self, reference: &Reference) -> bool {
        self.repository == reference.familiar_name() && self.to_string() == reference.key()
    }

    /// Parses a key of repositories.json; `None` if it is not a key of `repository`.
    fn parse(repository: &str, key: &str) -> Option<Self> {
        let reference = Reference::parse(key).ok()?;
        (reference.familiar_name() == repository && reference.key() == key).then(|| Self {
            repository: repository.to_owned(),
            tag: reference.tag().map(str::to_owned),
            digest: reference.digest().map(str::to_owned),
        })
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        match &self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

impl Serialize for Name {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Repositories> {
        Repositories::parse(Path::new("/s/repositories.json"), text.as_bytes())
    }

    #[test]
    fn names_are_found_by_tag_and_by_digest() {
        let (one, two) = (Digest::of(b"1"), Digest::of(b"2"));
        let text = format!(
            r#"{{"Repositories":{{"app":{{"app:1":"{one}","app@{two}":"{one}","app:bad":"x","b:1":"{one}"}},
               "gone":null,"r.io:5/a":{{"r.io:5/a:latest":"{two}"}}}}}}"#
        );
        let names = parse(&text).unwrap();
        let get = |name: &str| names.get(&Reference::parse(name).unwrap());
        assert_eq!(get("docker.io/library/app:1").unwrap(), Some(one));
        assert_eq!(get(&format!("app:9@{two}")).unwrap(), Some(one));
        assert_eq!(get("r.io:5/a").unwrap(), Some(two));
        assert_eq!(get("app").unwrap(), None);
        assert_eq!(get("gone").unwrap(), None);
        assert_eq!(get("b:1").unwrap(), None);
        let error = get("app:bad").unwrap_err().to_string();
        assert!(
            error.contains("repositories.json") && error.contains("\"x\""),
            "{error}"
        );
        let (good, bad): (Vec<_>, Vec<_>) = names.all().partition(Result::is_ok);
        assert_eq!((good.len(), bad.len()), (3, 2));
    }

    #[test]
    fn malformed_files_are_refused_and_empty_ones_are_empty() {
        for text in [
            "",
            "[]",
            "{",
            r#"{"Repositories":[]}"#,
            r#"{"Repositories":{"a":{"a:1":1}}}"#,
        ] {
            assert!(
                matches!(parse(text), Err(Error::Oci(crate::oci::Error::Json { .. }))),
                "{text}"
            );
        }
        for text in ["{}", r#"{"Repositories":null}"#, r#"{"Repositories":{}}"#] {
            assert_eq!(parse(text).unwrap().all().count(), 0, "{text}");
        }
    }
}
