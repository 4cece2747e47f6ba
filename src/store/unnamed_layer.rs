//! The changes of mounts without a name (`unionfs mount IMAGE DIR`): directories that
//! `temporary_upper` makes, and that stay after the unmount.
//!
//! ```text
//! <own root>/rw/<ID>/origin.json    {"image", "image_name", "created", "source": {"root", "driver"}}
//!                    diff/ work/    the upper
//! ```
//! The record says what the changes were made to. Uppers of older versions, of containers, and of
//! images without layers have none. The directories need no store of ours beside them.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::confined_dir::ConfinedDir;
use super::error::{Error, Result};
use super::named_layer::SourceStore;
use super::temporary_upper::{DIR, UPPER_DIALECT};
use super::{CacheId, Container, containers};
use crate::layer::{LayerSpec, UpperSpec};
use crate::oci::{Digest, json};

/// The name of the record.
pub(super) const ORIGIN: &str = "origin.json";
/// The size limit of a record, in bytes.
const LIMIT: u64 = 64 << 10;
/// The number of hexadecimal digits of an ID.
const ID_LENGTH: usize = 32;
/// The fewest digits that mean an ID.
const SHORTEST: usize = 4;

/// What the changes were made to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnnamedOrigin {
    /// The image.
    pub image: Digest,
    /// The name of that image at that time.
    pub image_name: String,
    /// The time of the mount, in seconds since 1970.
    pub created: u64,
    /// The store of the image.
    pub source: SourceStore,
}

/// The changes of a mount without a name.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct UnnamedLayer {
    /// The name of the directory: 32 hexadecimal digits.
    pub id: String,
    /// The root in which it is.
    pub root: PathBuf,
    /// What the changes were made to, if that is recorded.
    pub origin: Option<UnnamedOrigin>,
}

impl UnnamedLayer {
    /// Whether the text has the form of an ID.
    pub fn is_id(text: &str) -> bool {
        text.len() == ID_LENGTH && is_prefix(text)
    }

    /// Returns the directory of all, absolute and without symlinks, if it exists.
    pub fn place(root: &Path) -> Option<PathBuf> {
        let root = ConfinedDir::existing(root).ok()??;
        root.exists(DIR).ok()?.then(|| root.full(DIR))
    }

    /// Returns all in the store with this root, sorted by ID; none if it does not exist. Damaged
    /// records count as missing.
    ///
    /// # Errors
    /// [`Error::Io`] if the directory cannot be read.
    pub fn all(root: &Path) -> Result<Vec<Self>> {
        let Some(dir) = ConfinedDir::existing(root)? else {
            return Ok(Vec::new());
        };
        let mut ids = ids(&dir)?;
        ids.sort();
        let layer = |id: String| Self {
            origin: origin(&dir, &id).ok().flatten(),
            root: dir.path().to_owned(),
            id,
        };
        Ok(ids.into_iter().map(layer).collect())
    }

    /// Returns those that a user may mean: by the ID, the beginning of one, or the directory.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn meant_by(root: &Path, text: &str) -> Result<Vec<Self>> {
        meant_by(&[root.to_owned()], text)
    }

    /// Returns the directory that has the changes.
    pub fn diff(&self) -> PathBuf {
        self.root.join(DIR).join(&self.id).join("diff")
    }

    /// Returns the ID of the changes in a directory, if it is one of an upper without a name.
    pub fn id_of(diff: &Path) -> Option<&str> {
        let (dir, name) = (diff.parent()?, diff.file_name()?);
        let id = dir.file_name()?.to_str()?;
        let is_one = name == "diff" && dir.parent()?.ends_with(DIR) && Self::is_id(id);
        is_one.then_some(id)
    }

    /// Returns the bytes that the changes use on the disk; files that cannot be read are not counted.
    pub fn disk_usage(&self) -> u64 {
        let root = ConfinedDir::open(&self.root);
        root.map_or(0, |root| root.disk_usage(Path::new(DIR).join(&self.id)))
    }

    /// Returns the layers, verified.
    ///
    /// # Errors
    /// [`Error::UnknownOrigin`] if it is not recorded what the changes were made to; those of
    /// [`super::Store::image`] for the image.
    pub fn load(&self) -> Result<Container> {
        let root = ConfinedDir::open(&self.root)?;
        let dir = Path::new(DIR).join(&self.id);
        let origin = origin(&root, &self.id)?;
        let origin = origin.ok_or_else(|| Error::UnknownOrigin { path: self.diff() })?;
        let id = CacheId::parse(self.id.as_bytes());
        let id = id.ok_or_else(|| Error::UnknownOrigin { path: self.diff() })?;
        let image = containers::image_elsewhere(&origin.image, &origin.source)?;
        Ok(Container {
            id,
            name: None,
            image: Some(origin.image),
            source: Some(origin.source),
            parent: image.layers.last().map(|layer| layer.chain_id),
            layers: image.layers,
            init: None,
            running: false,
            in_place: true,
            whole: false,
            upper: UpperSpec {
                layer: LayerSpec {
                    dir: root.layer_dir(dir.join("diff"))?,
                    dialect: UPPER_DIALECT,
                },
                work: root.layer_dir(dir.join("work"))?,
            },
        })
    }
}

/// The search for changes by what a user writes: the ID, the beginning of one, or the directory.
pub(super) fn meant_by(roots: &[PathBuf], text: &str) -> Result<Vec<UnnamedLayer>> {
    let id = match Path::new(text) {
        path if path.is_absolute() => {
            let diff = if path.ends_with("diff") {
                path.to_owned()
            } else {
                path.join("diff")
            };
            match UnnamedLayer::id_of(&diff) {
                Some(id) => id.to_owned(),
                None => return Ok(Vec::new()),
            }
        }
        _ => text.strip_prefix("rw/").unwrap_or(text).to_owned(),
    };
    if !is_prefix(&id) {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for root in roots {
        let all = UnnamedLayer::all(root)?;
        found.extend(all.into_iter().filter(|layer| layer.id.starts_with(&id)));
    }
    Ok(found)
}

/// Whether a root has such changes.
pub(super) fn exist_in(root: &Path) -> bool {
    let root = ConfinedDir::existing(root).ok().flatten();
    root.is_some_and(|root| ids(&root).is_ok_and(|ids| !ids.is_empty()))
}

fn ids(root: &ConfinedDir) -> Result<Vec<String>> {
    let names = root.list(DIR)?.into_iter();
    let names = names.filter_map(|name| name.into_string().ok());
    Ok(names.filter(|name| UnnamedLayer::is_id(name)).collect())
}

fn is_prefix(text: &str) -> bool {
    let digit = |byte: u8| byte.is_ascii_digit() || matches!(byte, b'a'..=b'f');
    (SHORTEST..=ID_LENGTH).contains(&text.len()) && text.bytes().all(digit)
}

fn origin(root: &ConfinedDir, id: &str) -> Result<Option<UnnamedOrigin>> {
    let path = Path::new(DIR).join(id).join(ORIGIN);
    let bytes = root.read(&path, LIMIT)?;
    bytes
        .map(|bytes| Ok(json::parse(&root.full(&path), &bytes)?))
        .transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_told_from_names() {
        let id = "0123456789abcdef0123456789abcdef";
        assert!(UnnamedLayer::is_id(id) && !UnnamedLayer::is_id(&id[1..]));
        assert!(!UnnamedLayer::is_id("empty") && is_prefix("0123"));
        assert!(!is_prefix("012") && !is_prefix("web1") && !is_prefix("../x"));
        let diff = format!("/var/lib/unionfs/rw/{id}/diff");
        assert_eq!(UnnamedLayer::id_of(Path::new(&diff)), Some(id));
        for other in ["/var/lib/unionfs/rw/empty/diff", "/diff", "/a/rw/x"] {
            assert_eq!(UnnamedLayer::id_of(Path::new(other)), None);
        }
    }

    #[test]
    fn what_is_in_the_directory_is_found_and_nothing_else() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().canonicalize().unwrap();
        assert!(!exist_in(&root) && UnnamedLayer::all(&root).unwrap().is_empty());
        let one = "0123456789abcdef0123456789abcdef";
        let two = "0123ffffffffffffffffffffffffffff";
        for name in [one, two, "empty", "UPPER"] {
            std::fs::create_dir_all(root.join("rw").join(name).join("diff")).unwrap();
        }
        std::fs::write(root.join("rw").join(one).join(ORIGIN), "{}").unwrap();
        let found = |text: &str| {
            let found = meant_by(std::slice::from_ref(&root), text).unwrap();
            found.into_iter().map(|layer| layer.id).collect::<Vec<_>>()
        };
        assert!(exist_in(&root));
        assert_eq!(found("0123"), [one, two]);
        assert_eq!(found("rw/01234"), [one]);
        let path = root.join("rw").join(two);
        assert_eq!(found(path.to_str().unwrap()), [two]);
        assert_eq!(found(path.join("diff").to_str().unwrap()), [two]);
        assert!(found("empty").is_empty() && found("/etc").is_empty());
        let all = UnnamedLayer::all(&root).unwrap();
        // A damaged record is no record.
        assert_eq!((all.len(), &all[0].origin), (2, &None));
        let error = all[1].load().unwrap_err();
        assert!(matches!(error, Error::UnknownOrigin { .. }), "{error}");
    }
}
