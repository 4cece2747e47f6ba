//! Reads the two bolt files: names of images, keys of snapshots, directories of snapshots.
//!
//! ```text
//! meta.db      v1 / <namespace> / images / <name> / target / {digest, mediatype, size}
//!                               / snapshots / <snapshotter> / <key> / {name, parent}
//! metadata.db  v1 / snapshots / <name of meta.db> / {id, kind, parent, size}
//! ```
//! The key of an unpacked layer is its chain ID; `name` is its key in the snapshotter's own file,
//! where `id` (a varint) is the number of its directory.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::path::Path;

use super::SNAPSHOTTERS;
use super::bolt::{self, Bucket, Entry, Fault, Transaction};
use crate::oci::Digest;
use crate::oci::text::excerpt;
use crate::store::error::{Error, Result};

/// The namespaces that come first, in this order; the others follow by name.
const FIRST: [&[u8]; 3] = [b"moby", b"default", b"k8s.io"];
/// Kinds of snapshots (snapshots/snapshotter.go: KindView is 1).
const ACTIVE: u8 = 2;
const COMMITTED: u8 = 3;

/// An image's name and its target.
#[derive(Clone, Debug)]
pub(super) struct Named {
    pub(super) namespace: String,
    pub(super) name: String,
    /// The digest of an index or a manifest.
    pub(super) target: Digest,
}

/// A container, or a writable snapshot without a container.
#[derive(Clone, Debug)]
pub(super) struct Container {
    pub(super) namespace: String,
    /// The container's ID, or the snapshot's key.
    pub(super) id: String,
    /// The name that nerdctl has given the container.
    pub(super) name: Option<String>,
    pub(super) snapshotter: Option<String>,
    pub(super) key: String,
}

/// The content of meta.db.
#[derive(Debug, Default)]
pub(super) struct Metadata {
    /// The images in the order of the search for a name.
    pub(super) images: Vec<Named>,
    pub(super) containers: Vec<Container>,
    /// The name in the snapshotter's own file, by snapshotter, namespace and key.
    snapshots: BTreeMap<&'static str, BTreeMap<(String, String), Vec<u8>>>,
}

impl Metadata {
    /// Returns the snapshotter's own name of a snapshot of this namespace and key.
    pub(super) fn snapshot(&self, snapshotter: &str, key: &(String, String)) -> Option<&Vec<u8>> {
        self.snapshots.get(snapshotter)?.get(key)
    }

    /// Returns all snapshots of a snapshotter: namespace and key, and its own name.
    pub(super) fn all(
        &self,
        snapshotter: &str,
    ) -> impl Iterator<Item = (&(String, String), &Vec<u8>)> {
        self.snapshots.get(snapshotter).into_iter().flatten()
    }
}

/// A snapshot in the snapshotter's file.
#[derive(Clone, Debug)]
pub(super) struct Snapshot {
    /// The number that is the name of its directory.
    pub(super) id: u64,
    /// The name of the parent.
    pub(super) parent: Option<Vec<u8>>,
    /// The bytes on the disk, as the snapshotter has counted them.
    pub(super) size: u64,
    pub(super) is_committed: bool,
    /// Whether it is writable.
    pub(super) is_active: bool,
}

/// Reads meta.db.
///
/// # Errors
/// [`Error::Bolt`].
pub(super) fn read_metadata(file: &File, path: &Path, only: Option<&str>) -> Result<Metadata> {
    bolt::read(file, |db| metadata(db, only)).map_err(|fault| of_file(path, fault))
}

/// Reads the file of a snapshotter.
///
/// # Errors
/// [`Error::Bolt`].
pub(super) fn read_snapshots(file: &File, path: &Path) -> Result<HashMap<Vec<u8>, Snapshot>> {
    bolt::read(file, snapshots).map_err(|fault| of_file(path, fault))
}

/// Returns the numbers of the directories of committed snapshots, which are not written any more.
///
/// # Errors
/// [`Error::Bolt`].
pub(crate) fn committed(file: &File, path: &Path) -> Result<HashSet<u64>> {
    let snapshots = read_snapshots(file, path)?;
    let mut committed = HashSet::new();
    let mut others = HashSet::new();
    for snapshot in snapshots.into_values() {
        let set = if snapshot.is_committed {
            &mut committed
        } else {
            &mut others
        };
        set.insert(snapshot.id);
    }
    Ok(&committed - &others)
}

fn of_file(path: &Path, fault: Fault) -> Error {
    Error::Bolt {
        path: path.to_owned(),
        fault: fault.to_string(),
    }
}

fn metadata(db: &Transaction<'_>, only: Option<&str>) -> std::result::Result<Metadata, Fault> {
    let mut found = Metadata::default();
    let Some(version) = db.bucket(&db.root(), &[b"v1"])? else {
        return Ok(found);
    };
    for (namespace, bucket) in in_order(buckets(db, &version)?) {
        if only.is_some_and(|only| namespace != only.as_bytes()) {
            continue;
        }
        let namespace = text(&namespace);
        if let Some(images) = db.bucket(&bucket, &[b"images"])? {
            for (name, image) in buckets(db, &images)? {
                let target = db.bucket(&image, &[b"target"])?;
                let digest = target.map(|target| db.value(&target, b"digest"));
                let digest = digest.transpose()?.flatten();
                // A name without a valid digest has no target.
                let digest =
                    digest.and_then(|digest| Digest::parse(std::str::from_utf8(&digest).ok()?));
                if let (Some(target), Ok(name)) = (digest, String::from_utf8(name)) {
                    let namespace = namespace.clone();
                    found.images.push(Named {
                        namespace,
                        name,
                        target,
                    });
                }
            }
        }
        if let Some(containers) = db.bucket(&bucket, &[b"containers"])? {
            for (id, container) in buckets(db, &containers)? {
                found
                    .containers
                    .extend(self::container(db, &namespace, id, &container)?);
            }
        }
        for snapshotter in SNAPSHOTTERS {
            let path = [&b"snapshots"[..], snapshotter.as_bytes()];
            let Some(all) = db.bucket(&bucket, &path)? else {
                continue;
            };
            let known = found.snapshots.entry(snapshotter).or_default();
            for (key, snapshot) in buckets(db, &all)? {
                let name = db.value(&snapshot, b"name")?;
                if let (Ok(key), Some(name)) = (String::from_utf8(key), name) {
                    known.insert((namespace.clone(), key), name);
                }
            }
        }
    }
    Ok(found)
}

/// Reads a container's record; `None` if it has no snapshot.
fn container(
    db: &Transaction<'_>,
    namespace: &str,
    id: Vec<u8>,
    bucket: &Bucket,
) -> std::result::Result<Option<Container>, Fault> {
    let string = |bytes: Option<Vec<u8>>| bytes.and_then(|bytes| String::from_utf8(bytes).ok());
    let key = string(db.value(bucket, b"snapshotKey")?);
    let labels = db.bucket(bucket, &[b"labels"])?;
    let name = labels
        .map(|labels| db.value(&labels, b"nerdctl/name"))
        .transpose()?;
    let snapshotter = string(db.value(bucket, b"snapshotter")?);
    Ok(key.zip(string(Some(id))).map(|(key, id)| Container {
        namespace: namespace.to_owned(),
        id,
        name: string(name.flatten()),
        snapshotter,
        key,
    }))
}

/// Returns the buckets in a bucket.
fn buckets(
    db: &Transaction<'_>,
    bucket: &Bucket,
) -> std::result::Result<Vec<(Vec<u8>, Bucket)>, Fault> {
    let mut found = Vec::new();
    db.each(bucket, &mut |key, entry| {
        if let Entry::Bucket(bucket) = entry {
            found.push((key.to_vec(), bucket));
        }
        Ok::<(), Fault>(())
    })?;
    Ok(found)
}

fn in_order(mut namespaces: Vec<(Vec<u8>, Bucket)>) -> Vec<(Vec<u8>, Bucket)> {
    let rank = |name: &[u8]| FIRST.iter().position(|first| *first == name);
    namespaces.sort_by_key(|(name, _)| rank(name).unwrap_or(FIRST.len()));
    namespaces
}

/// Returns a namespace's name, also for messages: containerd allows letters, digits, `_.-`.
fn text(name: &[u8]) -> String {
    String::from_utf8(name.to_vec()).unwrap_or_else(|_| excerpt(name))
}

fn snapshots(db: &Transaction<'_>) -> std::result::Result<HashMap<Vec<u8>, Snapshot>, Fault> {
    let mut found = HashMap::new();
    let Some(all) = db.bucket(&db.root(), &[b"v1", b"snapshots"])? else {
        return Ok(found);
    };
    for (name, bucket) in buckets(db, &all)? {
        let value = |key: &[u8]| db.value(&bucket, key);
        let Some(id) = value(b"id")?.and_then(|bytes| varint(&bytes)) else {
            continue;
        };
        let kind = value(b"kind")?.and_then(|kind| kind.first().copied());
        // Signed numbers are zigzag-encoded; a size is positive.
        let size = value(b"size")?
            .and_then(|bytes| varint(&bytes))
            .unwrap_or(0)
            / 2;
        let parent = value(b"parent")?.filter(|parent| !parent.is_empty());
        let snapshot = Snapshot {
            id,
            parent,
            size,
            is_committed: kind == Some(COMMITTED),
            is_active: kind == Some(ACTIVE),
        };
        found.insert(name, snapshot);
    }
    Ok(found)
}

/// Decodes an unsigned varint (encoding/binary of Go): seven bits a byte, the lowest first.
fn varint(bytes: &[u8]) -> Option<u64> {
    let mut number = 0_u64;
    for (at, byte) in bytes.iter().enumerate().take(10) {
        let bits = u64::from(byte & 0x7f);
        number |= bits.checked_shl(7 * u32::try_from(at).ok()?)?;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varints() {
        assert_eq!(varint(&[1]), Some(1));
        assert_eq!(varint(&[0x80, 0xc0, 0x02]), Some(40960));
        assert_eq!(varint(&[0xff; 9]), None);
        assert_eq!(varint(&[]), None);
        assert_eq!(varint(&[0xff; 20]), None);
    }
}
