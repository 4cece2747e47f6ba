//! Finds, measures and removes what crashes and removals leave in our own store.

use std::collections::HashSet;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use serde::Serialize;

use super::{DRIVER, Exclusive, InUse, downloads};
use crate::oci::Digest;
use crate::store::confined_dir::SMALL;
use crate::store::error::{Error, Result};
use crate::store::image::lossy;
use crate::store::{CacheId, Image, Name, UnnamedLayer, kept, named_layer};

/// The kind of garbage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum GarbageKind {
    /// An unused image, if the caller asks for such images.
    Image,
    /// A layer that no image and no container has.
    Layer,
    /// A layer's record whose removal was interrupted.
    Removing,
    /// A layer directory that no record names.
    LayerDirectory,
    /// A short name in `overlay2/l` that leads to no layer.
    ShortName,
    /// A file or directory that was being written.
    Staging,
    /// Notes on an image that does not exist.
    ImageMetadata,
    /// The record of a named layer that was never finished, or is half removed.
    NameRecord,
    /// A catalog of layers that do not exist, or one that was never finished; found by the cli.
    Catalog,
    /// A blob from a registry, complete or partial, that no running `pull` uses.
    Download,
    /// An object that is kept whole, of no name.
    Kept,
    /// The changes of a mount without a name, if the caller asks for them.
    Changes,
}

/// The images that [`Exclusive::unused`] finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unused {
    /// Only images without a name, from which no image with a name was made.
    Nameless,
    /// Also images with names.
    All,
}

/// A file or directory that is not needed.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Garbage {
    /// The kind.
    pub kind: GarbageKind,
    /// The path.
    #[serde(serialize_with = "lossy")]
    pub path: PathBuf,
    /// The bytes on the disk.
    pub bytes: u64,
    /// The ID of a [`GarbageKind::Image`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<Digest>,
    /// Its names.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<Name>,
    /// The chain ID of a [`GarbageKind::Layer`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layer: Option<Digest>,
}

impl Garbage {
    pub(super) fn of_unnamed(layer: &UnnamedLayer) -> Self {
        let diff = layer.diff();
        Self {
            kind: GarbageKind::Changes,
            bytes: layer.disk_usage(),
            path: diff.parent().unwrap_or(&diff).to_owned(),
            image: None,
            names: Vec::new(),
            layer: None,
        }
    }
}

/// A search for garbage.
struct Search<'e> {
    exclusive: &'e Exclusive<'e>,
    in_use: InUse<'e>,
    /// Images that will be removed.
    going: &'e [Digest],
    /// Directories of the driver that are needed or already found.
    kept: HashSet<CacheId>,
    found: Vec<Garbage>,
}

impl<'e> Exclusive<'e> {
    /// Returns images that nothing uses, in an order in which they can be removed: not read-write
    /// layers, not images that stay, not `kept`. [`Unused::Nameless`] are those that `docker image
    /// prune` removes: a killed command leaves such images, and an import without a name makes one.
    /// `kept` tells whether an image stays, because it is mounted or for another reason; `None` is
    /// a damaged image.
    ///
    /// # Errors
    /// [`Error::Io`], and others if the records of the store are damaged: then nothing may be removed.
    pub fn unused(
        &self,
        which: Unused,
        kept: &dyn Fn(Option<&Image>) -> bool,
    ) -> Result<Vec<Digest>> {
        let store = self.store();
        let mut used: HashSet<Digest> = HashSet::new();
        for named in store.all_named()? {
            used.insert(named?.image);
        }
        if which == Unused::Nameless {
            let names = self.repositories()?;
            used.extend(names.all().filter_map(|entry| Some(entry.ok()?.1)));
        }
        let mut left = Vec::new();
        for id in store.imagedb().ids()? {
            let parent = store.imagedb().metadata(&id)?.parent;
            if kept(store.image(&id).ok().as_ref()) {
                used.insert(id);
            }
            left.push((id, parent));
        }
        let mut dangling = Vec::new();
        loop {
            let parents: HashSet<Digest> = left.iter().filter_map(|(_, parent)| *parent).collect();
            let keep = |id: &Digest| used.contains(id) || parents.contains(id);
            let before = dangling.len();
            left.retain(|(id, _)| {
                let keep = keep(id);
                if !keep {
                    dangling.push(*id);
                }
                keep
            });
            if dangling.len() == before {
                return Ok(dangling);
            }
        }
    }

    /// Returns everything that is not needed, now or after the removal of the images `going`,
    /// including these images. Layers of live mounts are needed. The order is one in which
    /// everything can be removed.
    ///
    /// # Errors
    /// Also if an image or container is so damaged that its layers are unknown: they would be taken
    /// for garbage.
    pub fn garbage(&'e self, in_use: InUse<'e>, going: &'e [Digest]) -> Result<Vec<Garbage>> {
        let mut search = Search {
            exclusive: self,
            in_use,
            going,
            kept: HashSet::new(),
            found: Vec::new(),
        };
        search.images()?;
        search.names()?;
        search.layers()?;
        search.directories()?;
        search.short_names()?;
        for dir in ["image/overlay2/layerdb/tmp", "unionfs/tmp"] {
            search.all_of(GarbageKind::Staging, dir)?;
        }
        search.metadata()?;
        search.downloads()?;
        search.kept()?;
        let mut found = search.found;
        // Images stay in the order in which they can be removed.
        let path = |garbage: &Garbage| garbage.image.is_none().then(|| garbage.path.clone());
        found.sort_by_cached_key(|garbage| (garbage.kind, path(garbage)));
        Ok(found)
    }

    /// Removes what killed commands have left incomplete. Complete layers that no image has stay,
    /// and so do downloads: the same command, run again, continues with them.
    ///
    /// # Errors
    /// As [`Exclusive::garbage`].
    pub fn sweep(&self, in_use: InUse<'_>) -> Result<()> {
        for garbage in self.garbage(in_use, &[])? {
            if let GarbageKind::Removing
            | GarbageKind::LayerDirectory
            | GarbageKind::ShortName
            | GarbageKind::Staging = garbage.kind
            {
                self.remove_garbage(&garbage, in_use)?;
            }
        }
        Ok(())
    }

    /// Removes garbage that [`Exclusive::garbage`] found under the same lock; whether it is removed. An
    /// image or a layer that a live mount has by now stays.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn remove_garbage(&self, garbage: &Garbage, in_use: InUse<'_>) -> Result<bool> {
        let root = self.confined_root();
        let elsewhere = || Error::io("remove", &garbage.path, Errno::XDEV);
        let path = root.relative(&garbage.path).ok_or_else(elsewhere)?;
        match (garbage.kind, &garbage.layer) {
            (GarbageKind::Image, _) => match &garbage.image {
                Some(id) => return self.forget(id, in_use),
                None => return Err(elsewhere()),
            },
            (GarbageKind::Layer, Some(layer)) => return self.remove_layer(layer, in_use),
            (GarbageKind::ShortName | GarbageKind::NameRecord, _) => root.remove_file(path)?,
            (GarbageKind::Changes, _) => match path.file_name().and_then(|name| name.to_str()) {
                // One that is mounted by now stays.
                Some(id) => match self.remove_unnamed(id) {
                    Err(Error::InUse { .. }) => return Ok(false),
                    removed => removed?,
                },
                None => return Err(elsewhere()),
            },
            // A download that a pull uses again stays.
            (GarbageKind::Download, _) => {
                return downloads::if_free(root, path, || root.remove_file(path));
            }
            (GarbageKind::Kept, _) => {
                let name = path.file_name().and_then(|name| name.to_str());
                let object = name.and_then(Digest::from_hex);
                self.remove_kept(&object.ok_or_else(elsewhere)?)?;
            }
            _ => root.remove_tree(path)?,
        }
        Ok(true)
    }
}

impl Search<'_> {
    fn add(&mut self, kind: GarbageKind, relative: impl AsRef<Path>) {
        let root = self.exclusive.confined_root();
        self.found.push(Garbage {
            kind,
            bytes: root.disk_usage(&relative),
            path: root.full(relative),
            image: None,
            names: Vec::new(),
            layer: None,
        });
    }

    fn list(&self, dir: &str) -> Result<Vec<std::ffi::OsString>> {
        self.exclusive.store().root.list(dir)
    }

    fn all_of(&mut self, kind: GarbageKind, dir: &str) -> Result<()> {
        for name in self.list(dir)? {
            self.add(kind, Path::new(dir).join(name));
        }
        Ok(())
    }

    fn images(&mut self) -> Result<()> {
        let imagedb = self.exclusive.store().imagedb();
        for id in self.going {
            self.add(GarbageKind::Image, imagedb.content(id));
            if let Some(garbage) = self.found.last_mut() {
                garbage.image = Some(*id);
                garbage.names = self.exclusive.names(id)?;
            }
        }
        Ok(())
    }

    fn names(&mut self) -> Result<()> {
        let store = self.exclusive.store();
        for name in store.named_names()? {
            if let Some(named) = store.named_record(&name)?
                && !store.is_complete(&named)?
            {
                self.add(
                    GarbageKind::NameRecord,
                    Path::new(named_layer::DIR).join(name),
                );
            }
        }
        Ok(())
    }

    /// Finds layers that are not needed, and records that are half removed.
    fn layers(&mut self) -> Result<()> {
        let needed = self.exclusive.needed_layers(self.going)?;
        self.kept = self.exclusive.needed_dirs(&needed)?;
        let dir = self.exclusive.store().layerdb().dir.join("sha256");
        let mut going_too = HashSet::new();
        for name in self.exclusive.store().root.list(&dir)? {
            let path = dir.join(&name);
            match name.to_str().and_then(Digest::from_hex) {
                Some(chain) if needed.contains(&chain) => (),
                Some(chain) => going_too.extend(self.layer(chain, &path)?),
                None if name.as_bytes().ends_with(b"-removing") => {
                    self.add(GarbageKind::Removing, path);
                }
                None => (),
            }
        }
        // These directories are removed or kept with their layers, so they are not orphans.
        self.kept.extend(going_too);
        Ok(())
    }

    /// Adds a layer that no image and no container has; returns its directory.
    fn layer(&mut self, chain: Digest, path: &Path) -> Result<Option<CacheId>> {
        let cache_id = self
            .exclusive
            .store()
            .root
            .read(path.join("cache-id"), SMALL)?;
        let cache_id = cache_id.and_then(|bytes| CacheId::parse(bytes.trim_ascii()));
        let cache_id = cache_id.filter(|id| !self.kept.contains(id));
        if cache_id.as_ref().is_some_and(|id| self.is_used(id)) {
            return Ok(cache_id);
        }
        self.add(GarbageKind::Layer, path);
        if let Some(garbage) = self.found.last_mut() {
            let dir = cache_id.as_ref();
            let dir = dir.map(|id| self.exclusive.writable.layer_dir(id.as_str()));
            garbage.bytes += dir.map_or(0, |dir| self.exclusive.confined_root().disk_usage(dir));
            garbage.layer = Some(chain);
        }
        Ok(cache_id)
    }

    fn is_used(&self, cache_id: &CacheId) -> bool {
        let dir = self.exclusive.writable.layer_dir(cache_id.as_str());
        self.in_use
            .layer(&self.exclusive.confined_root().full(dir.join("diff")))
            .is_some()
    }

    fn directories(&mut self) -> Result<()> {
        for name in self.list(DRIVER)? {
            let Some(id) = CacheId::parse(name.as_bytes()) else {
                continue;
            };
            if id.as_str() != "l" && !self.kept.contains(&id) && !self.is_used(&id) {
                self.add(
                    GarbageKind::LayerDirectory,
                    Path::new(DRIVER).join(id.as_str()),
                );
            }
        }
        Ok(())
    }

    /// Finds links whose target directory has another short name, or will be removed too.
    fn short_names(&mut self) -> Result<()> {
        let known: HashSet<PathBuf> = self
            .kept
            .iter()
            .filter_map(|id| self.exclusive.link_of(id))
            .collect();
        for name in self.list("overlay2/l")? {
            let path = Path::new("overlay2/l").join(name);
            if !known.contains(&path) {
                self.add(GarbageKind::ShortName, path);
            }
        }
        Ok(())
    }

    fn downloads(&mut self) -> Result<()> {
        for name in self.list(downloads::DIR)? {
            let relative = Path::new(downloads::DIR).join(name);
            if downloads::if_free(self.exclusive.confined_root(), &relative, || Ok(()))? {
                self.add(GarbageKind::Download, relative);
            }
        }
        Ok(())
    }

    fn kept(&mut self) -> Result<()> {
        let store = self.exclusive.store();
        let needed = store.kept_objects(self.going)?;
        for object in store.kept_dirs()? {
            if !needed.contains(&object) {
                self.add(GarbageKind::Kept, Path::new(kept::DIR).join(object.hex()));
            }
        }
        Ok(())
    }

    fn metadata(&mut self) -> Result<()> {
        let dir = "image/overlay2/imagedb/metadata/sha256";
        let imagedb = self.exclusive.store().imagedb();
        for name in self.list(dir)? {
            let id = name.to_str().and_then(Digest::from_hex);
            let Some(id) = id else { continue };
            if !imagedb.contains(&id)? {
                self.add(GarbageKind::ImageMetadata, Path::new(dir).join(name));
            }
        }
        Ok(())
    }
}
