//! Removes images and layers: first the names, then the image, then from the top down the layers
//! that no other image or container has.

use std::collections::HashSet;
use std::fs::File;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

use super::images::removing_name;
use super::{Exclusive, Writable, with_patience};
use crate::oci::{Digest, Query, Reference, chain_id};
use crate::store::confined_dir::SMALL;
use crate::store::error::{Error, Result};
use crate::store::{CacheId, Image, Name, near_names};

/// The live mounts, at the moment of a question.
///
/// A mount holds the lock of the store for readers until it is live. The answer to a question that is
/// asked while readers are excluded therefore stays true. A function that finds the mount of a layer is
/// one, too.
pub trait LiveMounts {
    /// Returns the mountpoint of a mount that uses a directory as a layer.
    fn layer(&self, diff: &Path) -> Option<PathBuf>;

    /// Returns the mountpoint of a mount of an image.
    fn image(&self, image: &Image) -> Option<PathBuf> {
        self.layer(image.layers.last()?.place.path())
    }
}

impl<F: Fn(&Path) -> Option<PathBuf>> LiveMounts for F {
    fn layer(&self, diff: &Path) -> Option<PathBuf> {
        self(diff)
    }
}

/// No live mounts: for a store of which nothing can be mounted.
#[derive(Clone, Copy, Debug)]
pub struct NoMounts;

impl LiveMounts for NoMounts {
    fn layer(&self, _: &Path) -> Option<PathBuf> {
        None
    }
}

/// The live mounts of this machine.
pub type InUse<'f> = &'f dyn LiveMounts;

/// The result of an image's removal.
#[derive(Clone, Debug, Default, serde::Serialize)]
#[non_exhaustive]
pub struct Removed {
    /// The names that were removed.
    pub untagged: Vec<Name>,
    /// The image that was removed.
    pub image: Option<Digest>,
    /// The chain IDs of the layers that were removed, top first.
    pub layers: Vec<Digest>,
}

/// The record, relative to the store's root, and the directory of a layer that is being removed.
#[derive(Debug)]
struct Going {
    record: PathBuf,
    cache_id: Option<CacheId>,
}

/// Returns the error for an image that cannot be removed because it is mounted.
pub fn in_use_on(image: &Digest, mountpoint: &Path) -> Error {
    let mountpoint = mountpoint.display();
    Error::InUse {
        what: format!("image {image}"),
        by: format!(
            "it is mounted on {mountpoint}, unmount it first (unionfs umount {mountpoint})"
        ),
    }
}

impl Writable {
    /// Waits until no process reads the store. Must not be called while this process has a
    /// [`crate::store::Stores`] of the same store: it would wait for itself.
    pub(super) fn exclude_readers(&self) -> Result<File> {
        with_patience(self.root(), "reads it", || {
            self.flock("removing", FlockOperation::NonBlockingLockExclusive)
        })
    }
}

impl Exclusive<'_> {
    /// Finds the image of this store that a user means. Also returns the name, if it was found by
    /// name.
    ///
    /// # Errors
    /// [`Error::UnknownImage`] or [`Error::AmbiguousImage`] if no image fits; [`Error::Io`] and
    /// others for the file of names.
    pub fn find(&self, text: &str) -> Result<(Digest, Option<Reference>)> {
        let unknown = || Error::UnknownImage {
            name: text.to_owned(),
            searched: vec![self.writable.root().to_owned()],
            near: self.repositories().map_or_else(
                |_| Vec::new(),
                |names| near_names::near(text, names.all().filter_map(|e| Some(e.ok()?.0))),
            ),
        };
        let (reference, prefix) = match Query::parse(text)? {
            Query::Id(id) if self.store().imagedb().contains(&id)? => return Ok((id, None)),
            Query::Id(_) => return Err(unknown()),
            Query::Name { reference, prefix } => (reference, prefix),
        };
        if let Some(id) = self.repositories()?.get(&reference)? {
            return Ok((id, Some(reference)));
        }
        let Some(prefix) = prefix else {
            return Err(unknown());
        };
        let mut ids = self.store().imagedb().ids()?;
        ids.retain(|id| id.hex().starts_with(&prefix));
        match ids.as_slice() {
            [] => Err(unknown()),
            [id] => Ok((*id, None)),
            several => Err(Error::AmbiguousImage {
                prefix,
                candidates: several.iter().take(20).map(Digest::to_string).collect(),
            }),
        }
    }

    /// Returns all names of an image.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::Malformed`] for the file of names.
    pub fn names(&self, id: &Digest) -> Result<Vec<Name>> {
        let names = self.repositories()?;
        let all = names.all().filter_map(Result::ok);
        Ok(all.filter(|(_, i)| i == id).map(|(name, _)| name).collect())
    }

    /// Removes a name; returns the image that had it. The image stays, and what was kept of the name goes.
    /// Must not be called while this process has a [`crate::store::Stores`] of the same store.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::Malformed`] for the file of names.
    pub fn untag(&self, name: &Reference) -> Result<Option<Digest>> {
        let mut names = self.repositories()?;
        let had = names.remove(name)?;
        if had.is_some() {
            self.write_repositories(&names)?;
            self.drop_unnamed_kept()?;
        }
        Ok(had)
    }

    /// Removes an image with all its names, and its layers that no other image and no container
    /// has.
    ///
    /// # Errors
    /// [`Error::InUse`] if a container or live mount needs it; then nothing is removed. The error
    /// of another image whose layers are unknown, because it may have these layers.
    pub fn remove_image(&self, id: &Digest, in_use: InUse<'_>) -> Result<Removed> {
        for named in self.store().all_named()? {
            let named = named?;
            if named.source.is_none() && named.image == *id {
                return Err(Error::InUse {
                    what: format!("image {id}"),
                    by: format!(
                        "read-write layer {0:?} is on it, remove that first (unionfs rm {0})",
                        named.name
                    ),
                });
            }
        }
        let needed = self.needed_layers(std::slice::from_ref(id))?;
        // The layers of a damaged image are unknown; prune finds them.
        let config = self.store().imagedb().config(id).ok();
        let mut layers = chain_id::chain_ids(&config.map(|c| c.diff_ids).unwrap_or_default());
        layers.retain(|layer| !needed.contains(layer));
        layers.reverse();
        let kept = self.needed_dirs(&needed)?;
        let mut going = Vec::new();
        for layer in &layers {
            going.extend(self.going(layer, &kept)?);
        }
        let untagged = self.names(id)?;
        // From here on no mount begins, and every mount that has begun is recorded.
        let readers = self.writable.exclude_readers()?;
        // The layers may stay for other images, and the image may be mounted still.
        let mut users = going.iter().filter_map(|going| self.user_of(going, in_use));
        if let Some(mountpoint) = self.user_of_image(id, in_use).or_else(|| users.next()) {
            return Err(in_use_on(id, &mountpoint));
        }
        let mut names = self.repositories()?;
        if names.remove_all(id) {
            self.write_repositories(&names)?;
        }
        self.remove_config(id)?;
        self.set_aside(&mut going)?;
        drop(readers);
        for going in &going {
            self.delete(going)?;
        }
        self.drop_unnamed_kept()?;
        Ok(Removed {
            untagged,
            image: Some(*id),
            layers,
        })
    }

    /// Removes an image with its names, unless it is mounted by now; whether it is removed. Its layers
    /// stay; `garbage` finds them. Names and read-write layers are not looked at again, because they
    /// change only under the lock of the store.
    pub(super) fn forget(&self, id: &Digest, in_use: InUse<'_>) -> Result<bool> {
        let _readers = self.writable.exclude_readers()?;
        if self.user_of_image(id, in_use).is_some() {
            return Ok(false);
        }
        // A name must not lead to an image that is gone.
        let mut names = self.repositories()?;
        if names.remove_all(id) {
            self.write_repositories(&names)?;
        }
        self.remove_config(id)?;
        Ok(true)
    }

    fn remove_config(&self, id: &Digest) -> Result<()> {
        let content = self.store().imagedb().content(id);
        let root = self.confined_root();
        root.remove_file(&content)?;
        root.sync_names(&content)?;
        let metadata = self.writable.image_dir("imagedb/metadata/sha256");
        root.remove_tree(metadata.join(id.hex()))
    }

    /// Removes those of the layers, base first, that no image or container has: layers that were
    /// committed for an image that then failed. Must not be called while this process has a
    /// [`crate::store::Stores`] of the same store.
    ///
    /// # Errors
    /// [`Error::Io`], and others if the records of the store are damaged: then nothing may be removed.
    pub fn discard_layers(&self, layers: &[Digest]) -> Result<()> {
        let needed = self.needed_layers(&[])?;
        for layer in layers.iter().rev().filter(|l| !needed.contains(l)) {
            self.remove_layer(layer, &NoMounts)?;
        }
        Ok(())
    }

    /// Removes one layer, unless an image, a container or a live mount has it; whether it is removed.
    pub(super) fn remove_layer(&self, layer: &Digest, in_use: InUse<'_>) -> Result<bool> {
        let needed = self.needed_layers(&[])?;
        if needed.contains(layer) {
            return Ok(false);
        }
        let kept = self.needed_dirs(&needed)?;
        let mut going: Vec<Going> = self.going(layer, &kept)?.into_iter().collect();
        let readers = self.writable.exclude_readers()?;
        going.retain(|going| self.user_of(going, in_use).is_none());
        self.set_aside(&mut going)?;
        drop(readers);
        going.iter().try_for_each(|going| self.delete(going))?;
        Ok(!going.is_empty())
    }

    /// Returns the layers of all images but some, and of all containers.
    pub(super) fn needed_layers(&self, except: &[Digest]) -> Result<HashSet<Digest>> {
        let mut needed = HashSet::new();
        let imagedb = self.store().imagedb();
        for id in imagedb.ids()? {
            if !except.contains(&id) {
                needed.extend(chain_id::chain_ids(&imagedb.config(&id)?.diff_ids));
            }
        }
        let layerdb = self.store().layerdb();
        for container in layerdb.containers()? {
            let mount = layerdb.mount(&container)?;
            if let Some(parent) = mount.and_then(|mount| mount.parent) {
                needed.extend(chain_id::chain_ids(&layerdb.diffs_below(&parent)?));
            }
        }
        Ok(needed)
    }

    /// Returns the directories of needed layers and of all containers.
    ///
    /// # Errors
    /// Fails if a record cannot be read, because its directory would seem to be an orphan.
    pub(super) fn needed_dirs(&self, needed: &HashSet<Digest>) -> Result<HashSet<CacheId>> {
        let layerdb = self.store().layerdb();
        let mut dirs = HashSet::new();
        for chain in needed {
            if self.store().root.exists(layerdb.layer(chain))? {
                dirs.insert(layerdb.record(chain)?.cache_id);
            }
        }
        for id in layerdb.containers()? {
            if let Some(mount) = layerdb.mount(&id)? {
                dirs.insert(mount.mount_id);
                dirs.extend(mount.init_id);
            }
        }
        for name in self.store().named_names()? {
            if let Some(named) = self.store().named_record(&name)?
                && self.store().is_complete(&named)?
            {
                dirs.insert(named.mount_id);
            }
        }
        Ok(dirs)
    }

    /// Returns the record and directory of a layer, even if damaged; `None` if it has no record.
    /// The directory is included only if its name is one of our form and not in `kept`.
    fn going(&self, layer: &Digest, kept: &HashSet<CacheId>) -> Result<Option<Going>> {
        let record = self.store().layerdb().layer(layer);
        if !self.store().root.exists(&record)? {
            return Ok(None);
        }
        let cache_id = self.store().root.read(record.join("cache-id"), SMALL)?;
        Ok(Some(Going {
            cache_id: cache_id
                .and_then(|bytes| CacheId::parse(bytes.trim_ascii()))
                .filter(|id| Digest::from_hex(id.as_str()).is_some() && !kept.contains(id)),
            record,
        }))
    }

    /// Returns the mountpoint of a live mount that has the layer.
    fn user_of(&self, going: &Going, in_use: InUse<'_>) -> Option<PathBuf> {
        let cache_id = going.cache_id.as_ref()?;
        let diff = self.writable.layer_dir(cache_id.as_str()).join("diff");
        in_use.layer(&self.confined_root().full(diff))
    }

    /// Returns the mountpoint of a live mount of an image. A damaged image cannot be mounted.
    fn user_of_image(&self, id: &Digest, in_use: InUse<'_>) -> Option<PathBuf> {
        let image = self.store().image(id).ok()?;
        in_use.image(&image)
    }

    /// Removes layers from layerdb, in the order given.
    fn set_aside(&self, layers: &mut [Going]) -> Result<()> {
        self.known.lock().clear();
        for going in layers.iter_mut() {
            let aside = removing_name(&going.record)?;
            self.confined_root().rename(&going.record, &aside)?;
            going.record = aside;
        }
        // All records are in one directory, so one sync is enough.
        layers.first().map_or(Ok(()), |going| {
            self.confined_root().sync_names(&going.record)
        })
    }

    fn delete(&self, going: &Going) -> Result<()> {
        let root = self.confined_root();
        if let Some(cache_id) = &going.cache_id {
            if let Some(link) = self.link_of(cache_id) {
                root.remove_file(&link)?;
            }
            root.remove_tree(self.writable.layer_dir(cache_id.as_str()))?;
        }
        root.remove_tree(&going.record)
    }

    /// Returns the link in `overlay2/l/` that leads to a layer directory, if the directory names
    /// one.
    pub(super) fn link_of(&self, cache_id: &CacheId) -> Option<PathBuf> {
        let file = Path::new(super::DRIVER)
            .join(cache_id.as_str())
            .join("link");
        let bytes = self.store().root.read(file, SMALL).ok()??;
        let link = CacheId::parse(bytes.trim_ascii())?;
        Some(self.writable.short_link(link.as_str()))
    }
}
