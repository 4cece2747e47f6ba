//! Notes of where the layers of a stack were found and verified. A note is kept with the catalog of
//! the stack. With it the next mount need not read six files of each layer.
//!
//! A note has a line for each layer, base first: its cache ID, then inode number and change time
//! (seconds, nanoseconds) of the two directories whose files gave its place,
//! `layerdb/sha256/<chain ID>` and `<driver>/<cache ID>`. If a file in them is replaced, added or
//! removed, or another directory takes their place, the inode number or the change time differs. Then the note is
//! ignored, and the layers are searched as without a note. A file that was overwritten in place is
//! not noticed: the layers are then those that its old content named, which were verified.

use std::fmt::Write as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, OFlags, StatxFlags};

use super::error::{Error, Result};
use super::image::{self, Image};
use super::image_store::Store;
use super::layerdb::CacheId;
use super::store_set::Stores;
use crate::layer::{Dialect, LayerSpec};
use crate::oci::Digest;
use crate::oci::chain_id::chain_ids;
use crate::sys::stat::statx;

/// The store and the chain ID of the layers of a stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// The chain ID of the topmost layer.
    pub id: Digest,
    /// The root of the store.
    pub root: PathBuf,
    /// The store's driver.
    pub driver: &'static str,
}

/// A layer that was found and is not opened.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LayerLocation {
    /// The path of its directory, absolute and without symlinks.
    pub path: PathBuf,
    /// The markers that are read.
    pub dialect: Dialect,
}

/// The parts of an image that a mount needs.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Mountable<L = LayerSpec> {
    /// The image's ID.
    pub id: Digest,
    /// A label of the image for messages.
    pub label: String,
    /// The directories of the layers, top first; none for an image without layers
    /// ([`super::temporary_upper::empty_layer`]).
    pub lowers: Vec<L>,
    /// The store and the chain ID of the layers; `None` if there are none.
    pub chain: Option<Chain>,
    /// The note for the next mount; `None` if it exists already.
    pub note: Option<Vec<u8>>,
}

impl Stores {
    /// Returns the image that a user means, as [`Stores::find`] does. The layers are taken from the
    /// note that `noted` returns, if it is still valid.
    ///
    /// # Errors
    /// As [`Stores::find`].
    pub fn mountable(
        &self,
        text: &str,
        noted: impl FnOnce(&Chain) -> Option<Vec<u8>>,
    ) -> Result<Mountable> {
        let (store, id) = self.locate(text)?;
        let open = |store: &Store, path: &Path| {
            let dir = store.root.layer_dir(path).ok()?;
            let dialect = store.driver.dialect();
            Some(LayerSpec { dir, dialect })
        };
        match store.known_image(&id, text, noted, open)? {
            Some(found) => Ok(found),
            None => self.whole_image(store, id, text),
        }
    }

    /// As [`Self::mountable`], for another process that opens the layers. Those of a valid note are
    /// not opened: the directories that contain them have not changed.
    ///
    /// # Errors
    /// As [`Stores::find`].
    pub fn mountable_elsewhere(
        &self,
        text: &str,
        noted: impl FnOnce(&Chain) -> Option<Vec<u8>>,
    ) -> Result<Mountable<LayerLocation>> {
        let (store, id) = self.locate(text)?;
        let locate = |store: &Store, path: &Path| {
            Some(LayerLocation {
                path: store.root().join(path),
                dialect: store.driver.dialect(),
            })
        };
        if let Some(found) = store.known_image(&id, text, noted, locate)? {
            return Ok(found);
        }
        let found = self.whole_image(store, id, text)?;
        let lowers = found.lowers.into_iter().map(|layer| LayerLocation {
            path: layer.path().to_owned(),
            dialect: layer.dialect,
        });
        Ok(Mountable {
            id: found.id,
            label: found.label,
            lowers: lowers.collect(),
            chain: found.chain,
            note: found.note,
        })
    }

    /// Returns an image whose layers are found without a note.
    fn whole_image(&self, store: &Store, id: Digest, text: &str) -> Result<Mountable> {
        let whole = |store: &Store| {
            let image = store.image(&id)?.called(text);
            let lowers = image.stack()?;
            Ok((image, lowers))
        };
        let (store, (image, lowers)) = match whole(store) {
            // Our own store has the image from an earlier mount.
            Err(error @ Error::NotUnpacked { .. }) => {
                let has_it = |store: &&Store| store.contains(&id).unwrap_or(false);
                let mut stores = self.all().iter().filter(has_it);
                let found = stores.find_map(|store| Some((store, whole(store).ok()?)));
                found.ok_or(error)?
            }
            found => (store, found?),
        };
        let chain = image.layers.last().map(|top| Chain {
            id: top.chain_id,
            root: image.root.clone(),
            driver: image.driver,
        });
        Ok(Mountable {
            id,
            label: image.label(),
            lowers,
            chain,
            note: Some(store.note(&image).unwrap_or_default()),
        })
    }
}

impl Store {
    /// Returns the image if its note is valid, with the layers that `layer` makes of their paths
    /// below the root. Its configuration is always verified.
    fn known_image<L>(
        &self,
        id: &Digest,
        text: &str,
        noted: impl FnOnce(&Chain) -> Option<Vec<u8>>,
        layer: impl Fn(&Self, &Path) -> Option<L>,
    ) -> Result<Option<Mountable<L>>> {
        if self.records.is_some() || self.driver.own_dir().is_none() {
            return Ok(None);
        }
        let config = self.imagedb().config(id)?;
        let chains = chain_ids(&config.diff_ids);
        let Some(top) = chains.last() else {
            return Ok(None);
        };
        let chain = Chain {
            id: *top,
            root: self.root().to_owned(),
            driver: self.driver(),
        };
        let layers = noted(&chain).and_then(|note| self.noted_layers(&chains, &note, layer));
        let Some(mut lowers) = layers else {
            return Ok(None);
        };
        lowers.reverse();
        let mut names = self.names_of(id)?;
        image::put_first(&mut names, text);
        Ok(Some(Mountable {
            id: *id,
            label: image::label(&names, id),
            lowers,
            chain: Some(chain),
            note: None,
        }))
    }

    /// Returns the layers of these chain IDs, base first, by the note; `None` if it is not valid.
    fn noted_layers<L>(
        &self,
        chains: &[Digest],
        note: &[u8],
        layer: impl Fn(&Self, &Path) -> Option<L>,
    ) -> Option<Vec<L>> {
        let files = self.driver.own_dir()?;
        let dirs = Dirs::open(self)?;
        let mut lines = std::str::from_utf8(note).ok()?.lines();
        let mut layers = Vec::with_capacity(chains.len());
        for chain in chains {
            let (id, seen) = lines.next()?.split_once(' ')?;
            let id = CacheId::parse(id.as_bytes())?;
            let path = Path::new(self.driver()).join(id.as_str()).join(files);
            layers.push(layer(self, &path)?);
            // Checks the directory that is open now, which may have replaced the one checked
            // before.
            if dirs.seen(chain, &id)? != seen {
                return None;
            }
        }
        lines.next().is_none().then_some(layers)
    }

    /// Returns the note of an image's layers; `None` if the store or driver has another layout.
    pub(super) fn note(&self, image: &Image) -> Option<Vec<u8>> {
        if self.records.is_some() {
            return None;
        }
        self.driver.own_dir()?;
        let dirs = Dirs::open(self)?;
        let mut note = String::new();
        for layer in &image.layers {
            let seen = dirs.seen(&layer.chain_id, &layer.cache_id)?;
            writeln!(note, "{} {seen}", layer.cache_id).ok()?;
        }
        Some(note.into_bytes())
    }
}

/// The directories of layers, reached without symlinks.
struct Dirs {
    layerdb: OwnedFd,
    driver: OwnedFd,
}

impl Dirs {
    fn open(store: &Store) -> Option<Self> {
        let open = |path: &Path| store.root.dir(path, OFlags::PATH).ok()?;
        let driver = Path::new(store.driver());
        Some(Self {
            layerdb: open(&store.layerdb().dir.join("sha256"))?,
            driver: open(driver)?,
        })
    }

    /// Returns the present state of the two directories of a layer, in the form of a note.
    fn seen(&self, chain: &Digest, id: &CacheId) -> Option<String> {
        let record = identity(&self.layerdb, &chain.hex())?;
        let dir = identity(&self.driver, id.as_str())?;
        Some(format!("{record} {dir}"))
    }
}

fn identity(parent: &OwnedFd, name: &str) -> Option<String> {
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    let what = StatxFlags::TYPE | StatxFlags::INO | StatxFlags::CTIME;
    let st = statx(parent.as_fd(), name, flags, what).ok()?;
    let kind = FileType::from_raw_mode(st.stx_mode.into());
    let time = st.stx_ctime;
    (kind == FileType::Directory)
        .then(|| format!("{} {} {}", st.stx_ino, time.tv_sec, time.tv_nsec))
}
