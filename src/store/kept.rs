//! What our own store keeps of a name besides its image: the object that the name has in a registry or an
//! archive, an index or a manifest, with all that it refers to, byte for byte. So an index of several
//! platforms, and the digests of compressed layers, survive the store.
//!
//! ```text
//! unionfs/kept/names.json     {"Names": {"app:1": {"<image ID>": "<digest of the object>"}}}
//!              <hex>/<hex>    a directory for each object, with its blobs by digest: the object itself,
//!                             manifests, configurations, layers as they are compressed
//! ```
//! An entry of names.json counts only while the name means that image, so that whatever gives the name to
//! another image (also an engine) ends it. An index may be kept without some of its images: their
//! manifests are missing then. A manifest that is there has all its blobs.
//!
//! Docker ignores these files. Nothing in them is trusted: readers compare each blob with its digest.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::confined_dir::ConfinedDir;
use super::error::{Error, Result};
use super::image_store::Store;
use super::repositories::Repositories;
use crate::oci::document::{self, Descriptor, MAX_DOCUMENT};
use crate::oci::{Digest, Platform, Reference, json};
use crate::sys::interrupt;

/// The directory, relative to the root.
pub(super) const DIR: &str = "unionfs/kept";
/// The file of names in it.
const NAMES: &str = "names.json";
/// The size limit of that file, in bytes.
const LIMIT: u64 = 64 << 20;

/// Which object is kept of a name.
#[derive(Debug, Default, Deserialize, Serialize)]
pub(super) struct KeptNames {
    /// For each name, as in repositories.json, the image that it means and the object.
    #[serde(rename = "Names")]
    names: BTreeMap<String, BTreeMap<String, String>>,
}

impl KeptNames {
    pub(super) fn path() -> PathBuf {
        Path::new(DIR).join(NAMES)
    }

    /// Reads the file; without one there are no names.
    pub(super) fn read(root: &ConfinedDir) -> Result<Self> {
        let path = Self::path();
        let bytes = root.read(&path, LIMIT)?;
        let parsed = bytes.map(|bytes| json::parse(&root.full(&path), &bytes));
        Ok(parsed.transpose()?.unwrap_or_default())
    }

    /// Returns the file's bytes.
    pub(super) fn to_json(&self) -> Vec<u8> {
        serde_json::json!(self).to_string().into_bytes()
    }

    /// Returns the object that is kept of a name that means the image.
    fn get(&self, name: &str, image: &Digest) -> Option<Digest> {
        let object = self.names.get(name)?.get(&image.to_string())?;
        Digest::parse(object)
    }

    /// Records an object. Entries of the name for other images than `current` are dropped.
    pub(super) fn set(
        &mut self,
        name: &Reference,
        (image, object): (&Digest, &Digest),
        current: Option<Digest>,
    ) {
        let images = self.names.entry(name.key()).or_default();
        let current = current.map(|id| id.to_string());
        images.retain(|image, _| current.as_ref() == Some(image));
        images.insert(image.to_string(), object.to_string());
    }

    /// Drops what is kept of a name that means the image, unless it is this object; returns whether
    /// something was.
    pub(super) fn drop_others(
        &mut self,
        name: &Reference,
        image: &Digest,
        object: &Digest,
    ) -> bool {
        let Some(images) = self.names.get_mut(&name.key()) else {
            return false;
        };
        let (image, object) = (image.to_string(), object.to_string());
        let before = images.len();
        images.retain(|theirs, kept| *theirs != image || *kept == object);
        images.len() < before
    }

    /// Drops entries that do not count any more; returns whether there were any.
    pub(super) fn drop_stale(&mut self, names: &Repositories) -> bool {
        let current: BTreeMap<String, String> = names
            .all()
            .filter_map(|entry| entry.ok())
            .map(|(name, id)| (name.to_string(), id.to_string()))
            .collect();
        let mut dropped = false;
        self.names.retain(|name, images| {
            let before = images.len();
            images.retain(|image, _| current.get(name) == Some(image));
            dropped |= images.len() < before;
            !images.is_empty()
        });
        dropped
    }
}

impl Store {
    /// Returns the object that is kept of an image that was found by this name; of one that was found in
    /// another way, of its first name that has one.
    pub(super) fn kept_object(
        &self,
        name: Option<&Reference>,
        image: &Digest,
    ) -> Result<Option<Digest>> {
        let kept = KeptNames::read(&self.root)?;
        let names = self.names_of(image)?;
        if let Some(name) = name
            && names.iter().any(|known| known.is(name))
        {
            return Ok(kept.get(&name.key(), image));
        }
        let mut found = names.iter();
        Ok(found.find_map(|name| kept.get(&name.to_string(), image)))
    }

    /// Returns the objects that are kept of names, except of those of some images.
    pub(super) fn kept_objects(&self, except: &[Digest]) -> Result<HashSet<Digest>> {
        let kept = KeptNames::read(&self.root)?;
        let Some(names) = self.repositories()? else {
            return Ok(HashSet::new());
        };
        let all = names.all().filter_map(Result::ok);
        let staying = all.filter(|(_, id)| !except.contains(id));
        let objects = staying.filter_map(|(name, id)| kept.get(&name.to_string(), &id));
        Ok(objects.collect())
    }

    /// Returns the objects that are kept of an image's names.
    pub(super) fn kept_objects_of(&self, image: &Digest) -> Result<HashSet<Digest>> {
        let kept = KeptNames::read(&self.root)?;
        let names = self.names_of(image)?;
        let objects = names.iter().map(|name| kept.get(&name.to_string(), image));
        Ok(objects.flatten().collect())
    }

    /// Returns the bytes of an object and all that is there of what it refers to.
    pub(super) fn kept_size(&self, object: &Digest) -> u64 {
        let dir = Path::new(DIR).join(object.hex());
        let names = self.root.list(&dir).unwrap_or_default();
        let looks = names.iter().map(|name| self.root.look(dir.join(name)));
        let sizes = looks.flatten().flatten().map(|stat| stat.st_size);
        sizes.fold(0, |sum, size| sum.saturating_add(size.unsigned_abs()))
    }

    /// Returns the objects that have a directory, sorted.
    pub(super) fn kept_dirs(&self) -> Result<Vec<Digest>> {
        let names = self.root.list(DIR)?;
        let objects = names.iter().filter_map(|name| name.to_str());
        Ok(objects.filter_map(Digest::from_hex).collect())
    }

    /// Checks an object and all that is there of what it refers to; returns its faults. `hashed` gets the
    /// number of further bytes that were read.
    pub(super) fn check_kept(
        &self,
        object: &Digest,
        hashed: &mut dyn FnMut(u64),
    ) -> Result<Vec<String>> {
        let root = &self.root;
        let mut faults = Vec::new();
        let fault = |digest: &Digest, what: &str| {
            let path = root.full(blob(object, digest));
            format!("{path:?} {what}; unionfs pull --all or load --all replaces it")
        };
        let Some(top) = document_in(root, object, object)? else {
            return Ok(vec![fault(object, "is missing")]);
        };
        if Digest::of(&top) != *object {
            return Ok(vec![fault(
                object,
                "is damaged: its SHA-256 is not its name",
            )]);
        }
        let get = |wanted: &Descriptor| -> Result<Option<(Digest, Vec<u8>)>> {
            let Some(bytes) = document_in(root, object, &wanted.digest)? else {
                return Ok(None);
            };
            if Digest::of(&bytes) == wanted.digest {
                return Ok(Some((wanted.digest, bytes)));
            }
            faults.push(fault(
                &wanted.digest,
                "is damaged: its SHA-256 is not its name",
            ));
            Ok(None)
        };
        let tree = document::tree((*object, top), get, Error::from)?;
        let mut once = HashSet::new();
        for descriptor in tree.iter().flat_map(|(_, parts)| &parts.blobs) {
            if !once.insert(descriptor.digest) {
                continue;
            }
            match root.file(blob(object, &descriptor.digest))? {
                None => faults.push(fault(&descriptor.digest, "is missing")),
                Some(file) => {
                    let path = root.full(blob(object, &descriptor.digest));
                    if hash(file, &path, hashed)? != descriptor.digest {
                        let what = "is damaged: its SHA-256 is not its name";
                        faults.push(fault(&descriptor.digest, what));
                    }
                }
            }
        }
        Ok(faults)
    }
}

/// Returns the path of a blob of an object, below the root.
pub(super) fn blob(object: &Digest, digest: &Digest) -> PathBuf {
    Path::new(DIR).join(object.hex()).join(digest.hex())
}

/// Reads a manifest or an index of an object, which is not compared yet.
fn document_in(root: &ConfinedDir, object: &Digest, digest: &Digest) -> Result<Option<Vec<u8>>> {
    root.read(blob(object, digest), MAX_DOCUMENT)
}

/// Returns the digest of a file's bytes.
pub(super) fn hash(file: File, path: &Path, passed: &mut dyn FnMut(u64)) -> Result<Digest> {
    let step = |count| {
        passed(count);
        Ok(interrupt::check()?)
    };
    Digest::of_reader(file, step, |error| {
        let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
        Error::io("read", path, errno)
    })
}

/// A platform of an index, and whether its image is kept.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct KeptPlatform {
    /// The platform: os/architecture[/variant].
    pub platform: String,
    /// The digest of the manifest.
    pub digest: Digest,
    /// Whether the image is there.
    pub kept: bool,
}

/// Returns the platforms of an index, in its order; none of a manifest. `read` returns a document.
pub(super) fn platforms(
    top: &[u8],
    is_there: impl Fn(&Digest) -> Result<bool>,
) -> Result<Vec<KeptPlatform>> {
    let mut found = Vec::new();
    for entry in document::parts(top)?.manifests {
        // Attestations are for the platform "unknown".
        let Some(platform) = entry.platform.filter(|platform| platform.os != "unknown") else {
            continue;
        };
        found.push(KeptPlatform {
            platform: plain(&platform),
            digest: entry.digest,
            kept: is_there(&entry.digest)?,
        });
    }
    Ok(found)
}

/// Shows a platform of a document, which may have any text.
fn plain(platform: &Platform) -> String {
    let text = platform.to_string();
    let shown = text.chars().filter(char::is_ascii_graphic);
    shown.take(60).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_counts_while_the_name_means_the_image() {
        let (one, two, object) = (Digest::of(b"1"), Digest::of(b"2"), Digest::of(b"o"));
        let name = Reference::parse("app:1").unwrap();
        let mut kept = KeptNames::default();
        kept.set(&name, (&one, &object), None);
        assert_eq!(kept.get("app:1", &one), Some(object));
        assert_eq!(kept.get("app:1", &two), None);
        // While the name is about to mean another image, both count.
        let other = Digest::of(b"p");
        kept.set(&name, (&two, &other), Some(one));
        assert_eq!(kept.get("app:1", &one), Some(object));
        assert_eq!(kept.get("app:1", &two), Some(other));
        let names = |id: &Digest| {
            let text = format!(r#"{{"Repositories":{{"app":{{"app:1":"{id}"}}}}}}"#);
            Repositories::parse(Path::new("x"), text.as_bytes()).unwrap()
        };
        assert!(kept.drop_stale(&names(&two)));
        assert_eq!(kept.get("app:1", &one), None);
        assert!(!kept.drop_stale(&names(&two)));
        assert!(!kept.drop_others(&name, &two, &other));
        assert!(kept.drop_others(&name, &two, &object));
        assert_eq!(kept.get("app:1", &two), None);
    }

    #[test]
    fn a_file_of_names_that_is_none_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join(DIR)).unwrap();
        let root = ConfinedDir::open(dir.path()).unwrap();
        assert!(KeptNames::read(&root).unwrap().names.is_empty());
        let image = Digest::of(b"i");
        for (text, is_read) in [
            ("", false),
            ("[]", false),
            (r#"{"Names":{"a:1":[]}}"#, false),
            (r#"{"Names":{"a:1":{"x":"sha256:../.."}}}"#, true),
            (
                &format!(r#"{{"Names":{{"a:1":{{"{image}":"../../etc"}}}}}}"#),
                true,
            ),
        ] {
            std::fs::write(dir.path().join(KeptNames::path()), text).unwrap();
            match KeptNames::read(&root) {
                Ok(names) => assert!(is_read && names.get("a:1", &image).is_none(), "{text}"),
                Err(error) => assert!(!is_read && error.to_string().contains(NAMES), "{text}"),
            }
        }
    }
}
