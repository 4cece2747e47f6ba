//! Makes and removes named read-write layers; `named_layer` has the format.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{FlockOperation, OFlags};
use rustix::io::Errno;

use super::staged::Made;
use super::{DRIVER, Exclusive, Garbage, InUse};
use crate::store::confined_dir::ConfinedDir;
use crate::store::error::{Error, Result};
use crate::store::named_layer::{DIR, NamedLayer, SourceStore};
use crate::store::temporary_upper::dress_like;
use crate::store::{CacheId, Image, UnnamedLayer, random, temporary_upper, unnamed_layer};

impl Exclusive<'_> {
    /// Makes an empty read-write layer on an image of this store or another.
    ///
    /// # Errors
    /// [`Error::NameTaken`], [`Error::BadName`].
    pub fn create_container(&self, name: &str, image: &Image) -> Result<NamedLayer> {
        if !NamedLayer::is_name(name) {
            return Err(Error::BadName {
                name: name.to_owned(),
            });
        }
        if self.store().named(name)?.is_some() {
            return Err(Error::NameTaken {
                name: name.to_owned(),
            });
        }
        let stack = image.stack()?;
        let ours = image.root == self.writable.root() && image.driver == DRIVER;
        let parent = image.layers.last().filter(|_| ours);
        let parent = parent.map(|layer| layer.chain_id);
        let below = parent.map(|parent| self.resolve(&parent)).transpose()?;
        let mut made = self.make_layer_dir(below.as_ref().map(|b| b.dir.chain.as_str()))?;
        let root = self.confined_root();
        if parent.is_none() {
            root.new_dir(made.dir.join("work"), 0o700)?;
        }
        if let Some(top) = stack.first() {
            dress_like(&top.dir, &root.layer_dir(made.dir.join("diff"))?)?;
        }
        let named = NamedLayer {
            name: name.to_owned(),
            id: cache_id(&random::hex(32)?)?,
            mount_id: cache_id(&made.cache_id)?,
            image: image.id,
            image_name: image.label(),
            created: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| since.as_secs()),
            source: (!ours).then(|| SourceStore {
                root: image.root.clone(),
                driver: image.driver.to_owned(),
            }),
        };
        if ours {
            let tmp = self.writable.image_dir("layerdb/tmp");
            let record = tmp.join(format!("write-set-{}", random::hex(16)?));
            let record: &Path = made.record.insert(record);
            root.new_dir(record, 0o755)?;
            root.write_new(record.join("mount-id"), 0o644, made.cache_id.as_bytes())?;
            if let Some(parent) = &parent {
                root.write_new(record.join("parent"), 0o644, parent.to_string().as_bytes())?;
                self.mark_committed(parent)?;
            }
        }
        self.publish_container(made, &named)?;
        Ok(named)
    }

    /// Makes a new layer visible; removes it if that fails.
    fn publish_container(&self, made: Made, named: &NamedLayer) -> Result<()> {
        let root = self.confined_root();
        root.sync_all(&made.dir)?;
        let path = Path::new(DIR).join(&named.name);
        let mounts = self.writable.image_dir("layerdb/mounts");
        let mount = mounts.join(named.id.as_str());
        let publish = || {
            // The record comes first: without `mounts/<id>` it is ignored, while a container
            // without a name could not be removed.
            let json = named.to_json()?;
            root.replace(self.writable.ours("tmp"), &path, 0o600, &json)?;
            match &made.record {
                Some(record) => root.publish(record, &mount),
                None => Ok(()),
            }
        };
        if let Err(error) = publish() {
            // If the removal fails, the rest is ignored, and prune finds it.
            let _ = root.remove_tree(&mount);
            let _ = root.remove_file(&path);
            return Err(error);
        }
        made.keep();
        Ok(())
    }

    /// Removes a named layer with everything in it.
    ///
    /// # Errors
    /// [`Error::UnknownNamed`]; [`Error::InUse`] while it is mounted.
    pub fn remove_container(&self, name: &str) -> Result<NamedLayer> {
        let unknown = || Error::UnknownNamed {
            name: name.to_owned(),
            root: self.writable.root().to_owned(),
        };
        let named = self.store().named_record(name)?.ok_or_else(unknown)?;
        let dir = self.writable.layer_dir(named.mount_id.as_str());
        let root = self.confined_root();
        // The lock is held until the layer is removed, so that no mount begins.
        let _in_use = lock_upper(root, &dir.join("diff"), name)?;
        let link = self.link_of(&named.mount_id);
        {
            let _readers = self.writable.exclude_readers()?;
            let mounts = self.writable.image_dir("layerdb/mounts");
            let mount = mounts.join(named.id.as_str());
            if root.look(&mount)?.is_some() {
                let tmp = self.writable.image_dir("layerdb/tmp");
                let aside = tmp.join(format!("{}-removing", named.id));
                root.rename(&mount, &aside)?;
                root.sync_names(&mount)?;
                root.remove_tree(&aside)?;
            }
            let record = Path::new(DIR).join(name);
            root.remove_file(&record)?;
            root.sync_names(&record)?;
        }
        if let Some(link) = link {
            root.remove_file(&link)?;
        }
        root.remove_tree(&dir)?;
        Ok(named)
    }
}

impl Exclusive<'_> {
    /// Removes the changes of a mount without a name; see [`crate::store::UnnamedLayer`].
    ///
    /// # Errors
    /// [`Error::UnknownNamed`]; [`Error::InUse`] while they are mounted.
    pub fn remove_unnamed(&self, id: &str) -> Result<()> {
        let root = self.confined_root();
        let dir = Path::new(temporary_upper::DIR).join(id);
        if !UnnamedLayer::is_id(id) || root.look(&dir)?.is_none() {
            return Err(Error::UnknownNamed {
                name: id.to_owned(),
                root: self.writable.root().to_owned(),
            });
        }
        // The locks are held until the directory is removed, so that no mount begins.
        let _begins = match lock_unnamed(root, &dir) {
            Err(error) if error.errno() == Some(Errno::WOULDBLOCK) => {
                return Err(Error::InUse {
                    what: format!("read-write layer {id:?}"),
                    by: "it is being mounted".to_owned(),
                });
            }
            locked => locked?,
        };
        let _in_use = lock_upper(root, &dir.join("diff"), id)?;
        let record = dir.join(unnamed_layer::ORIGIN);
        if root.look(&record)?.is_some() {
            root.remove_file(&record)?;
        }
        root.remove_tree(&dir)
    }

    /// Returns the changes of mounts without a name that are not mounted, to be removed on demand.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn unnamed_garbage(&self, in_use: InUse<'_>) -> Result<Vec<Garbage>> {
        let all = UnnamedLayer::all(self.writable.root())?;
        let dir = |layer: &UnnamedLayer| Path::new(temporary_upper::DIR).join(&layer.id);
        let unused = all.iter().filter(|layer| {
            // A mount that is just beginning has the lock, and then a record.
            lock_unnamed(self.confined_root(), &dir(layer)).is_ok()
                && in_use.layer(&layer.diff()).is_none()
        });
        Ok(unused.map(Garbage::of_unnamed).collect())
    }
}

fn lock_unnamed(root: &ConfinedDir, dir: &Path) -> Result<std::fs::File> {
    temporary_upper::lock(root, dir, FlockOperation::NonBlockingLockExclusive)
}

fn cache_id(text: &str) -> Result<CacheId> {
    CacheId::parse(text.as_bytes()).ok_or_else(|| Error::BadName {
        name: text.to_owned(),
    })
}

/// Takes the lock that every mount has on its upper (see `union::upper`); `None` if the directory
/// does not exist.
fn lock_upper(root: &ConfinedDir, diff: &Path, name: &str) -> Result<Option<OwnedFd>> {
    let Some(dir) = root.dir(diff, OFlags::RDONLY)? else {
        return Ok(None);
    };
    match rustix::fs::flock(&dir, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(dir)),
        Err(Errno::WOULDBLOCK) => Err(Error::InUse {
            what: format!("read-write layer {name:?}"),
            by: "it is mounted, unmount it first (unionfs ps shows where)".to_owned(),
        }),
        Err(errno) => Err(Error::io("lock", &root.full(diff), errno)),
    }
}
