//! Keeps objects of registries and archives whole in our own store ([`crate::store::kept`] has the
//! format), and removes them.
//!
//! An object is written beside its place, synced, and published by one rename. Then the file of names
//! leads to it, and last repositories.json gives the name to the image. So a crash leaves a directory
//! that `prune` finds, and never a name with a part of an object.

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use serde::Serialize;

use super::{Download, Exclusive, Writable};
use crate::oci::{Digest, Reference};
use crate::store::error::Result;
use crate::store::kept::{DIR, KeptNames, blob, hash};
use crate::store::random;
use crate::sys::interrupt::{self, AtWork};

/// An object that is kept whole.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Kept {
    /// The digest of the index or manifest.
    pub digest: Digest,
    /// The number of images that are there.
    pub images: usize,
    /// The number of images that the index names and that are not there.
    pub missing: usize,
}

impl Kept {
    /// Describes an object with so many images.
    pub fn new(digest: Digest, images: usize, missing: usize) -> Self {
        Self {
            digest,
            images,
            missing,
        }
    }
}

/// An object that readers do not see yet. Dropping it removes everything.
#[derive(Debug)]
#[must_use = "the object is removed when this is dropped"]
pub struct StagedKept<'e> {
    exclusive: &'e Exclusive<'e>,
    object: Digest,
    /// The directory, relative to the store's root.
    dir: PathBuf,
    published: Cell<bool>,
    /// After a signal the process ends when the directory is removed.
    _at_work: AtWork,
}

impl Writable {
    /// Returns the disk space of all objects that are kept whole, in bytes.
    pub fn kept_usage(&self) -> u64 {
        self.confined_root().disk_usage(DIR)
    }

    /// Finds a blob of this length that an object of this store has, and compares its digest. Returns its
    /// path relative to the root.
    ///
    /// # Errors
    /// [`crate::store::Error::Io`].
    pub(super) fn kept_blob(&self, digest: &Digest, size: u64) -> Result<Option<PathBuf>> {
        let root = self.confined_root();
        for object in self.store().kept_dirs()? {
            let path = blob(&object, digest);
            let there = root.look(&path)?;
            if there.is_none_or(|stat| u64::try_from(stat.st_size) != Ok(size)) {
                continue;
            }
            if let Some(file) = root.file(&path)?
                && hash(file, &root.full(&path), &mut |_| ())? == *digest
            {
                return Ok(Some(path));
            }
        }
        Ok(None)
    }

    /// Whether an object of this store has a blob of this length. Its digest is compared.
    ///
    /// # Errors
    /// [`crate::store::Error::Io`].
    pub fn has_kept_blob(&self, digest: &Digest, size: u64) -> Result<bool> {
        Ok(self.kept_blob(digest, size)?.is_some())
    }
}

impl<'e> Exclusive<'e> {
    /// Makes an empty directory for an object. The caller puts all its blobs there, and compares their
    /// digests.
    ///
    /// # Errors
    /// [`crate::store::Error::Io`].
    pub fn stage_kept(&'e self, object: &Digest) -> Result<StagedKept<'e>> {
        let staged = StagedKept {
            exclusive: self,
            object: *object,
            dir: self.writable.ours("tmp").join(random::hex(16)?),
            published: Cell::new(false),
            _at_work: interrupt::begin()?,
        };
        self.confined_root().new_dir(&staged.dir, 0o700)?;
        Ok(staged)
    }

    /// Records that an object is kept of names that mean the image, or will.
    pub(super) fn keep_names(
        &self,
        names: &[Reference],
        image: &Digest,
        object: &Digest,
    ) -> Result<()> {
        let mut kept = KeptNames::read(self.confined_root())?;
        let current = self.repositories()?;
        for name in names {
            kept.set(name, (image, object), current.get(name).ok().flatten());
        }
        self.write_kept_names(&kept)
    }

    /// Records that a name which means the image is the name of this object now. What is kept of it as
    /// another object does not count any more.
    pub(super) fn keep_only(
        &self,
        name: &Reference,
        image: &Digest,
        object: &Digest,
    ) -> Result<()> {
        let mut kept = KeptNames::read(self.confined_root())?;
        if kept.drop_others(name, image, object) {
            self.write_kept_names(&kept)?;
        }
        Ok(())
    }

    fn write_kept_names(&self, kept: &KeptNames) -> Result<()> {
        let root = self.confined_root();
        self.kept_dir()?;
        root.replace(
            self.writable.ours("tmp"),
            KeptNames::path(),
            0o600,
            &kept.to_json(),
        )
    }

    /// Makes the directory of all objects if necessary.
    fn kept_dir(&self) -> Result<()> {
        let root = self.confined_root();
        root.make_dir(DIR, 0o700)?;
        root.require_ours(DIR)
    }

    /// Gives an image another name. If a whole object is kept of `from`, by which the image was found, it
    /// is kept of the new name too. `None`: it was found by its ID.
    ///
    /// # Errors
    /// Those of [`Exclusive::tag`].
    pub fn tag_as(&self, name: &Reference, from: Option<&Reference>, id: &Digest) -> Result<()> {
        if let Some(object) = self.store().kept_object(from, id)? {
            // The image must be there.
            self.store().imagedb().config(id)?;
            self.keep_names(std::slice::from_ref(name), id, &object)?;
        }
        self.tag(name, id).map(drop)
    }

    /// Removes objects that are kept of no name. Must not be called while this process has a
    /// [`crate::store::Stores`] of the same store.
    pub(super) fn drop_unnamed_kept(&self) -> Result<()> {
        let mut going = self.store().kept_dirs()?;
        if going.is_empty() {
            return Ok(());
        }
        let needed = self.store().kept_objects(&[])?;
        going.retain(|object| !needed.contains(object));
        let mut names = KeptNames::read(self.confined_root())?;
        if names.drop_stale(&self.repositories()?) {
            self.write_kept_names(&names)?;
        }
        going.iter().try_for_each(|object| self.remove_kept(object))
    }

    /// Removes an object. Readers that have begun are waited for.
    pub(super) fn remove_kept(&self, object: &Digest) -> Result<()> {
        let root = self.confined_root();
        let aside = self.writable.ours("tmp").join(random::hex(16)?);
        let path = Path::new(DIR).join(object.hex());
        {
            let _readers = self.writable.exclude_readers()?;
            if root.look(&path)?.is_none() {
                return Ok(());
            }
            root.rename(&path, &aside)?;
            root.sync_names(&path)?;
        }
        root.remove_tree(aside)
    }
}

impl StagedKept<'_> {
    /// Returns the digest of the object.
    pub fn object(&self) -> Digest {
        self.object
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.dir.join(digest.hex())
    }

    /// Whether the blob is there already.
    ///
    /// # Errors
    /// [`crate::store::Error::Io`].
    pub fn has(&self, digest: &Digest) -> Result<bool> {
        let found = self.exclusive.confined_root().look(self.path(digest))?;
        Ok(found.is_some())
    }

    /// Makes the empty file of a blob. The caller fills it, and compares the digest.
    ///
    /// # Errors
    /// [`crate::store::Error::Io`].
    pub fn file(&self, digest: &Digest) -> Result<File> {
        self.exclusive
            .confined_root()
            .create(self.path(digest), 0o600)
    }

    /// Adds a document, whose digest is compared.
    ///
    /// # Errors
    /// [`crate::store::Error::Io`].
    pub fn document(&self, digest: &Digest, bytes: &[u8]) -> Result<()> {
        let root = self.exclusive.confined_root();
        root.write_new(self.path(digest), 0o600, bytes)
    }

    /// Adds a blob that another object of the store has; whether there is one. Its digest is compared.
    ///
    /// # Errors
    /// [`crate::store::Error::Io`].
    pub fn reuse(&self, digest: &Digest, size: u64) -> Result<bool> {
        let root = self.exclusive.confined_root();
        match self.exclusive.writable.kept_blob(digest, size)? {
            // A file system may not have links, or not so many.
            Some(path) => Ok(root.hard_link(path, self.path(digest)).is_ok()),
            None => Ok(false),
        }
    }

    /// Adds a blob that was downloaded, and whose digest was compared. The download stays.
    ///
    /// # Errors
    /// [`crate::store::Error::Io`].
    pub fn downloaded(&self, digest: &Digest, download: &Download) -> Result<()> {
        let root = self.exclusive.confined_root();
        let path = self.path(digest);
        if root.hard_link(download.relative(), &path).is_ok() {
            return Ok(());
        }
        let failed = |error: io::Error| root.failed("write", &path, &error);
        // The position of the download's file belongs to nobody.
        let from = root.open_file(download.relative(), OFlags::RDONLY, 0)?;
        let copied = io::copy(&mut &from, &mut self.file(digest)?);
        copied.map(drop).map_err(failed)
    }

    /// Makes the object visible to readers that know its digest. Blobs of the same object that are there
    /// already, and that this one lacks, stay.
    pub(super) fn publish(&self) -> Result<()> {
        let root = self.exclusive.confined_root();
        self.exclusive.kept_dir()?;
        let target = Path::new(DIR).join(self.object.hex());
        let known = root.list(&target)?;
        for digest in known
            .iter()
            .filter_map(|name| Digest::from_hex(name.to_str()?))
        {
            let size = root.look(target.join(digest.hex()))?;
            let size = size.and_then(|stat| u64::try_from(stat.st_size).ok());
            if let Some(size) = size.filter(|_| !self.has(&digest).unwrap_or(true)) {
                self.reuse(&digest, size)?;
            }
        }
        root.sync_all(&self.dir)?;
        if root.look(&target)?.is_some() {
            root.exchange(&self.dir, &target)?;
            root.sync_names(&target)?;
            return root.remove_tree(&self.dir);
        }
        root.publish(&self.dir, &target)?;
        self.published.set(true);
        Ok(())
    }
}

impl Drop for StagedKept<'_> {
    fn drop(&mut self) {
        if self.published.get() {
            return;
        }
        // What cannot be removed is found by the next command.
        if let Err(error) = self.exclusive.confined_root().remove_tree(&self.dir) {
            tracing::warn!(%error, "staging left behind");
        }
    }
}
