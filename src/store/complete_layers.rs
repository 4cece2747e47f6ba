//! Directories that are complete layers of a store, recognized by their paths. podman, buildah, Docker
//! and containerd name such directories as lowers when they call a mount program, and do not say that
//! they are layers. The records of the store say which layers are complete: the store writes no files
//! of those again.
//!
//! ```text
//! <root>/overlay/<id>/diff          <root>/overlay-layers/layers.json                       podman, buildah, CRI-O
//! <root>/snapshots/<n>/fs           <root>/metadata.db                                      containerd
//! <root>/fuse-overlayfs/<id>/diff   <root>/image/fuse-overlayfs/layerdb/sha256/*/cache-id   Docker
//! ```
//! Docker gives each container a layer `<id>-init` on top of those of its image, which is no layer of an
//! image ([`is_of_one_container`]).
//!
//! A path only says which records are read. Whoever may write to the records could promise what is
//! not so; therefore they must belong to root or to this user. Their content is hostile data: a
//! process opens the files ([`LayerPaths::open`]), confines itself, and reads them then
//! ([`LayerRecords::promise`]). Docker's, each of them a word in a file of its own, are read when they are
//! opened.

use std::collections::HashSet;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use super::committed_layers::CommittedLayers;
use super::confined_dir::ConfinedDir;
use super::containerd;
use super::containers_storage::CompleteLayers;
use super::error::{Error, Result};
use super::layerdb::CacheId;
use crate::sys::stat::begins_mount;
use crate::sys::walk;

/// The kinds of stores, by the place of their layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    ContainersStorage,
    Containerd,
    Docker,
}

/// The driver of podman's whose layers a mount program gets.
const OVERLAY: &str = "overlay";
/// Docker's driver that calls a mount program.
const FUSE_OVERLAYFS: &str = "fuse-overlayfs";
/// The end of the ID of the layer that Docker makes for one container: its mount points, such as
/// `etc/hosts` (moby, daemon/initlayer).
const INIT: &str = "-init";

/// Whether this is the path of a layer that Docker made for one container, and put on top of those of
/// the image.
pub fn is_of_one_container(path: &Path) -> bool {
    LayerPath::parse(path)
        .is_some_and(|layer| layer.kind == Kind::Docker && layer.id.as_str().ends_with(INIT))
}

/// The directory of a layer.
#[derive(Clone, Debug)]
struct LayerPath {
    path: PathBuf,
    /// The directory of the records.
    root: PathBuf,
    kind: Kind,
    id: CacheId,
}

impl LayerPath {
    /// Recognizes the directory of a layer by its path.
    fn parse(path: &Path) -> Option<Self> {
        if path.as_os_str().as_bytes().contains(&b'\n') {
            return None;
        }
        let mut names = path.iter().rev().map(|name| name.to_str());
        let (last, id, above) = (names.next()??, names.next()??, names.next()??);
        let kind = match (last, above) {
            ("diff", OVERLAY) => Kind::ContainersStorage,
            ("fs", "snapshots") => Kind::Containerd,
            ("diff", FUSE_OVERLAYFS) => Kind::Docker,
            _ => return None,
        };
        Some(Self {
            path: path.to_owned(),
            root: path.ancestors().nth(3)?.to_owned(),
            kind,
            id: CacheId::parse(id.as_bytes())?,
        })
    }

    fn not_complete(&self, reason: &'static str) -> Error {
        Error::NotComplete {
            path: self.path.clone(),
            reason,
        }
    }
}

/// The paths of directories that look like those of layers, top first; at least one.
#[derive(Clone, Debug)]
pub struct LayerPaths(Vec<LayerPath>);

impl LayerPaths {
    /// Recognizes directories by their paths; `None` if one of them is not like a layer's.
    pub fn parse<'p>(paths: impl IntoIterator<Item = &'p Path>) -> Option<Self> {
        let layers: Option<Vec<_>> = paths.into_iter().map(LayerPath::parse).collect();
        layers.filter(|layers| !layers.is_empty()).map(Self)
    }

    /// Returns the directory of the records of the topmost layer.
    pub fn root(&self) -> &Path {
        self.0.first().map_or(Path::new(""), |layer| &layer.root)
    }

    /// Opens the records of these layers, whose open directories are `dirs`, in the same order.
    ///
    /// # Errors
    /// [`Error::NotComplete`] if a path leads to another directory now, or another user could have
    /// written the records; those of opening files.
    pub fn open<'d>(&self, dirs: impl IntoIterator<Item = BorrowedFd<'d>>) -> Result<LayerRecords> {
        let wanted = self.0.iter().map(|layer| layer.id.as_str()).collect();
        let mut records: Vec<(Records, Vec<LayerPath>)> = Vec::new();
        for (layer, dir) in self.0.iter().zip(dirs) {
            let same = |of: &&mut (Records, Vec<LayerPath>)| {
                let first = of.1.first();
                first.is_some_and(|first| (&first.root, first.kind) == (&layer.root, layer.kind))
            };
            let of = match records.iter_mut().find(same) {
                Some(of) => of,
                None => {
                    records.push((Records::open(layer, &wanted)?, Vec::new()));
                    records
                        .last_mut()
                        .ok_or_else(|| layer.not_complete(NO_RECORDS))?
                }
            };
            of.0.require_same(layer, dir)?;
            of.1.push(layer.clone());
        }
        Ok(LayerRecords(records))
    }
}

const NO_RECORDS: &str = "has no records of a store";

/// Open records of layers.
#[derive(Debug)]
pub struct LayerRecords(Vec<(Records, Vec<LayerPath>)>);

impl LayerRecords {
    /// Reads the records that are not read yet. Nothing writes to the layers any more if this returns no
    /// error.
    ///
    /// # Errors
    /// [`Error::NotComplete`] for a layer that is not complete, or that belongs to a container;
    /// those of reading the records.
    pub fn promise(&self) -> Result<()> {
        for (records, layers) in &self.0 {
            let complete = records.complete()?;
            let missing = layers
                .iter()
                .find(|layer| !complete.contains(layer.id.as_str()));
            if let Some(layer) = missing {
                return Err(layer.not_complete("is no complete layer by the records of its store"));
            }
        }
        Ok(())
    }
}

/// The open records of one store.
#[derive(Debug)]
struct Records {
    root: ConfinedDir,
    files: Files,
}

#[derive(Debug)]
enum Files {
    ContainersStorage(CompleteLayers),
    Containerd(File),
    /// The cache IDs, which are single words and are read when the records are opened.
    Docker(HashSet<String>),
}

impl Records {
    /// Opens the records of the store that has `layer`; `wanted` are the IDs of all layers.
    fn open(layer: &LayerPath, wanted: &HashSet<&str>) -> Result<Self> {
        let foreign = || layer.not_complete("has records that another user may change");
        let root = ConfinedDir::open(&layer.root)?;
        let missing = || layer.not_complete(NO_RECORDS);
        let files = match layer.kind {
            Kind::ContainersStorage => {
                let lists = CompleteLayers::open(&root, OVERLAY)?.ok_or_else(missing)?;
                if !lists.belong_to_us(&root, OVERLAY)? {
                    return Err(foreign());
                }
                Files::ContainersStorage(lists)
            }
            Kind::Containerd => {
                let name = containerd::SNAPSHOTS;
                let file = root.file(name)?.ok_or_else(missing)?;
                let ours = walk::belongs_to_us(&file);
                let ours = ours.map_err(|error| root.failed("stat", Path::new(name), &error))?;
                if !ours || !root.belongs_to_us(Path::new(""))? {
                    return Err(foreign());
                }
                Files::Containerd(file)
            }
            Kind::Docker => match CommittedLayers::read(&root, FUSE_OVERLAYFS, wanted)? {
                CommittedLayers::None => return Err(missing()),
                CommittedLayers::Foreign => return Err(foreign()),
                CommittedLayers::Ours(ids) => Files::Docker(ids),
            },
        };
        Ok(Self { root, files })
    }

    /// Requires that the path of a layer leads to its open directory, which is on the file system
    /// of the store: the records say nothing of what is mounted on a layer.
    fn require_same(&self, layer: &LayerPath, dir: BorrowedFd<'_>) -> Result<()> {
        let moved = || layer.not_complete("is not the directory that is mounted");
        let relative = self.root.relative(&layer.path).ok_or_else(moved)?;
        let found = self.root.dir(relative, OFlags::PATH)?.ok_or_else(moved)?;
        let stat = |dir| {
            let stat = rustix::fs::fstat(dir);
            stat.map(|stat| (stat.st_dev, stat.st_ino))
                .map_err(|errno| Error::io("stat", &layer.path, errno))
        };
        if stat(found.as_fd())? != stat(dir)? {
            return Err(moved());
        }
        let is_mount = begins_mount(&found);
        let is_mount = is_mount.map_err(|errno| Error::io("stat", &layer.path, errno))?;
        if is_mount || stat(dir)?.0 != self.root.device()? {
            return Err(layer.not_complete("is on another file system than its store"));
        }
        Ok(())
    }

    /// Returns the IDs of the complete layers.
    fn complete(&self) -> Result<HashSet<String>> {
        match &self.files {
            Files::ContainersStorage(lists) => lists.ids(),
            Files::Containerd(file) => {
                let path = self.root.full(containerd::SNAPSHOTS);
                let numbers = containerd::committed(file, &path)?;
                Ok(numbers.iter().map(u64::to_string).collect())
            }
            Files::Docker(ids) => Ok(ids.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(path: &str) -> Option<(Kind, String, String)> {
        let layer = LayerPath::parse(Path::new(path))?;
        let root = layer.root.to_str().unwrap().to_owned();
        Some((layer.kind, root, layer.id.to_string()))
    }

    #[test]
    fn layers_are_recognized_by_their_paths() {
        let found = |kind, root: &str, id: &str| Some((kind, root.to_owned(), id.to_owned()));
        assert_eq!(
            parsed("/s/overlay/ab1/diff"),
            found(Kind::ContainersStorage, "/s", "ab1")
        );
        assert_eq!(
            parsed("/c/io.containerd.snapshotter.v1.overlayfs/snapshots/7/fs"),
            found(
                Kind::Containerd,
                "/c/io.containerd.snapshotter.v1.overlayfs",
                "7"
            )
        );
        assert_eq!(
            parsed("/d/fuse-overlayfs/ab1-init/diff"),
            found(Kind::Docker, "/d", "ab1-init")
        );
        for other in [
            "/",
            "diff",
            "/overlay/ab1/diff/etc",
            "/s/overlay/ab1/merged",
            "/s/overlay/a b/diff",
            "/s\n/overlay/ab1/diff",
            "/s/overlay2/ab1/diff",
            "/s/vfs/dir/ab1",
            "/s/snapshots/7/work",
        ] {
            assert_eq!(parsed(other), None, "{other}");
        }
        let is_own = |path| is_of_one_container(Path::new(path));
        assert!(is_own("/d/fuse-overlayfs/ab1-init/diff"));
        assert!(!is_own("/d/fuse-overlayfs/ab1/diff"));
        assert!(!is_own("/s/overlay/ab1-init/diff"));
        let (one, none) = (Path::new("/s/overlay/ab1/diff"), Path::new("/etc"));
        assert!(LayerPaths::parse([one, none]).is_none());
        assert!(LayerPaths::parse([]).is_none());
        assert_eq!(LayerPaths::parse([one]).unwrap().root(), Path::new("/s"));
    }
}
