//! Keeps the object of a name whole in our own store: an index with all its images, or a manifest, as it
//! is in a layout or a directory of the kind `dir:`.
//!
//! An index may name images that the archive does not have, as `docker save` writes it: these are left
//! out, each with all that only it refers to.

use std::collections::HashSet;
use std::io::{Read as _, Write as _};

use rustix::io::Errno;
use sha2::{Digest as _, Sha256};

use super::entries::matches;
use super::error::{Error, Result};
use super::source::Source;
use crate::oci::document::{self, Descriptor, Parts};
use crate::oci::text::excerpt;
use crate::oci::{self, Digest};
use crate::store::writable::{Exclusive, Kept, StagedKept};
use crate::sys::free_space::FreeSpaceWatch;
use crate::sys::interrupt;

/// The number of bytes that are copied at a time.
const CHUNK: usize = 256 << 10;

/// The names of an archive's entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Entries {
    Layout,
    Dir,
}

impl Entries {
    fn of(source: &Source) -> Result<Self> {
        let is_dir = source
            .metadata("manifest.json")?
            .is_some_and(|bytes| bytes.trim_ascii_start().starts_with(b"{"));
        Ok(if is_dir { Self::Dir } else { Self::Layout })
    }

    fn blob(self, digest: &Digest) -> String {
        match self {
            Self::Layout => format!("blobs/sha256/{}", digest.hex()),
            Self::Dir => digest.hex(),
        }
    }

    fn manifest(self, digest: &Digest) -> String {
        match self {
            Self::Layout => self.blob(digest),
            Self::Dir => format!("{}.manifest.json", digest.hex()),
        }
    }
}

/// Copies an object of an archive beside its place in the store.
pub(super) fn stage<'e>(
    store: &'e Exclusive<'e>,
    source: &Source,
    object: &Digest,
) -> Result<(StagedKept<'e>, Kept)> {
    let entries = Entries::of(source)?;
    let path = match entries {
        Entries::Layout => entries.manifest(object),
        Entries::Dir => "manifest.json".to_owned(),
    };
    let top = source.required(&path)?;
    matches(source, &path, object, &top)?;
    let mut missing = 0;
    let get = |wanted: &Descriptor| -> Result<Option<(Digest, Vec<u8>)>> {
        interrupt::check()?;
        let path = entries.manifest(&wanted.digest);
        let Some(bytes) = source.metadata(&path)? else {
            missing += 1;
            return Ok(None);
        };
        matches(source, &path, &wanted.digest, &bytes)?;
        Ok(Some((wanted.digest, bytes)))
    };
    let shown = excerpt(path.as_bytes());
    let fault = |error: oci::Error| Error::entry(source.name(), &shown, error.to_string());
    let tree = document::tree((*object, top), get, fault)?;
    let staged = store.stage_kept(object)?;
    let mut images = 0;
    for ((digest, bytes), parts) in &tree {
        if !is_whole(source, entries, parts)? {
            missing += 1;
            continue;
        }
        images += usize::from(parts.manifests.is_empty());
        let mut once = HashSet::new();
        for wanted in parts.blobs.iter().filter(|blob| once.insert(blob.digest)) {
            if !staged.has(&wanted.digest)? && !staged.reuse(&wanted.digest, wanted.size)? {
                copy(source, &entries.blob(&wanted.digest), wanted, &staged)?;
            }
        }
        if !staged.has(digest)? {
            staged.document(digest, bytes)?;
        }
    }
    Ok((staged, Kept::new(*object, images, missing)))
}

/// Whether an archive has everything that a manifest refers to.
fn is_whole(source: &Source, entries: Entries, parts: &Parts) -> Result<bool> {
    for blob in &parts.blobs {
        if source.open_entry(&entries.blob(&blob.digest))?.is_none() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Copies a blob, and compares its length and its digest.
fn copy(source: &Source, path: &str, wanted: &Descriptor, staged: &StagedKept<'_>) -> Result<()> {
    let mut entry = source.required_section(path)?;
    if entry.len() != wanted.size {
        let what = format!("{} bytes, not the {} declared", entry.len(), wanted.size);
        return Err(Error::entry(source.name(), &excerpt(path.as_bytes()), what));
    }
    let mut file = staged.file(&wanted.digest)?;
    let (mut hash, mut room) = (Sha256::new(), FreeSpaceWatch::new());
    let mut buffer = vec![0; CHUNK];
    loop {
        interrupt::check()?;
        let got = entry
            .read(&mut buffer)
            .map_err(|error| Error::read(source.name(), error))?;
        if got == 0 {
            break;
        }
        let full = |errno: Errno| Error::Write(errno.into());
        if !room.allows(&file, got as u64).map_err(full)? {
            return Err(full(Errno::NOSPC));
        }
        hash.update(&buffer[..got]);
        file.write_all(&buffer[..got]).map_err(Error::Write)?;
    }
    let actual = Digest::from_hash(hash);
    if actual == wanted.digest {
        return Ok(());
    }
    Err(Error::Digest {
        archive: source.name().to_owned(),
        entry: excerpt(path.as_bytes()),
        expected: wanted.digest,
        actual,
    })
}
