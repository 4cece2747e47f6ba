//! The source of an archive's entries: a directory, or a tar, which is indexed once. What a
//! store keeps of an image's name is a source too, with the entries of an OCI layout.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use rustix::io::Errno;
use tar::EntryType;

use super::error::{Error, Result};
use crate::layer::OpenDir;
use crate::layer_tar::clean;
use crate::layer_tar::compression::{self, Compression};
use crate::oci::Digest;
use crate::oci::text::excerpt;
use crate::store::PulledContent;
use crate::store::confined_dir::ConfinedDir;
use crate::store::writable::Staging;
use crate::sys::free_space::FreeSpaceWatch;
use crate::sys::interrupt;

/// The directory of blobs in an OCI layout.
const BLOBS: &str = "blobs/sha256/";

/// The limit of entries of an archive: images have some hundred layers.
const MAX_ENTRIES: usize = 100_000;
/// The limit of links to an entry that are followed (old `docker save` links equal layers).
const MAX_LINKS: usize = 8;
/// The size limit of a manifest or configuration, in bytes, as in containerd and registries.
pub(super) const MAX_METADATA: u64 = 4 << 20;

/// The limit of bytes of an archive's headers, including long names: these are read while the index
/// is made, and contents are skipped.
const MAX_HEADERS: u64 = 128 << 20;

/// An image archive that can be read entry by entry, in any order.
#[derive(Debug)]
pub struct Source {
    kind: SourceKind,
    /// The name for messages.
    name: String,
}

#[derive(Debug)]
enum SourceKind {
    Dir(ConfinedDir),
    Tar {
        file: Arc<File>,
        index: HashMap<Vec<u8>, EntryLocation>,
    },
    Pulled(PulledContent),
}

#[derive(Clone, Debug)]
enum EntryLocation {
    /// Offset and length in the tar.
    At(u64, u64),
    /// A link; the other entry's name.
    Link(Vec<u8>),
}

/// A range of a file, read without moving the file's position.
#[derive(Debug)]
pub(super) struct Section {
    file: Arc<File>,
    at: u64,
    end: u64,
}

impl Section {
    pub(super) fn len(&self) -> u64 {
        self.end - self.at
    }
}

impl Read for Section {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let want = usize::try_from(self.len()).unwrap_or(usize::MAX);
        let want = want.min(buf.len());
        let got = self.file.read_at(&mut buf[..want], self.at)?;
        if got == 0 && want > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += got as u64;
        Ok(got)
    }
}

impl Source {
    /// Opens a directory or a file, compressed or not. A compressed file is decompressed into a
    /// file in `tmp`, at most `limit` bytes.
    ///
    /// # Errors
    /// [`Error::Read`] if it cannot be opened, read or expanded, also if it is larger than `limit` (EFBIG);
    /// [`Error::Store`] if a directory cannot be opened, or nothing can be written to `tmp`.
    pub fn open(path: &Path, tmp: &Staging, limit: u64) -> Result<Self> {
        Self::open_as(path, path, tmp, limit)
    }

    /// As [`Source::open`], with another path in messages.
    ///
    /// # Errors
    /// Those of [`Source::open`].
    pub fn open_as(path: &Path, shown: &Path, tmp: &Staging, limit: u64) -> Result<Self> {
        let name = format!("{shown:?}");
        if path.is_dir() {
            return Ok(Self {
                kind: SourceKind::Dir(ConfinedDir::open(path)?),
                name,
            });
        }
        let file = File::open(path).map_err(|source| Error::read(&name, source))?;
        Self::of_file(file, shown, tmp, limit)
    }

    /// As [`Source::open_as`], for a file that is open.
    ///
    /// # Errors
    /// Those of [`Source::open`].
    pub fn of_file(file: File, shown: &Path, tmp: &Staging, limit: u64) -> Result<Self> {
        let name = format!("{shown:?}");
        let failed = |source| Error::read(&name, source);
        let mut head = [0; compression::MAGIC];
        let seekable = file.metadata().map_err(failed)?.is_file();
        if seekable {
            let got = file.read_at(&mut head, 0).map_err(failed)?;
            if Compression::of(&head[..got]) == Compression::None {
                return Self::index(file, name);
            }
        }
        Self::spool(file, name, tmp, limit)
    }

    /// Uses the files of a directory, with another name in messages.
    ///
    /// # Errors
    /// [`Error::Store`] if the descriptor cannot be duplicated.
    pub fn of_dir(dir: &OpenDir, name: &str) -> Result<Self> {
        Ok(Self {
            kind: SourceKind::Dir(ConfinedDir::of(dir)?),
            name: name.to_owned(),
        })
    }

    /// Uses what a store keeps of an image's name, as an OCI layout with one entry.
    pub fn of_pulled(content: PulledContent) -> Self {
        let place = if content.is_containerds() {
            "of containerd"
        } else {
            "as it is kept"
        };
        let name = format!("{:?} {place}", content.name());
        Self {
            kind: SourceKind::Pulled(content),
            name,
        }
    }

    /// Reads an archive to its end, for example from a pipe, into a file without a name in `tmp`,
    /// at most `limit` bytes.
    ///
    /// # Errors
    /// Those of [`Source::open`].
    pub fn from_reader(
        input: impl Read + Send + 'static,
        tmp: &Staging,
        limit: u64,
    ) -> Result<Self> {
        Self::spool(
            input,
            "the archive on standard input".to_owned(),
            tmp,
            limit,
        )
    }

    fn spool(
        input: impl Read + Send + 'static,
        name: String,
        tmp: &Staging,
        limit: u64,
    ) -> Result<Self> {
        let mut left = limit;
        let failed = |source| Error::read(&name, source);
        let mut file = tmp.file()?;
        let mut input = compression::decompress(input).map_err(failed)?;
        let mut buffer = vec![0; 256 << 10];
        let mut room = FreeSpaceWatch::new();
        loop {
            interrupt::check()?;
            let got = match input.read(&mut buffer) {
                Ok(0) => break,
                Ok(got) => got,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(failed(e)),
            };
            left = left.checked_sub(got as u64).ok_or_else(|| {
                let what = format!("more than {limit} bytes: refused as a possible bomb");
                Error::entry(&name, "the archive", what)
            })?;
            let full = |errno: Errno| Error::Write(errno.into());
            if !room.allows(&file, got as u64).map_err(full)? {
                return Err(full(Errno::NOSPC));
            }
            file.write_all(&buffer[..got]).map_err(Error::Write)?;
        }
        Self::index(file, name)
    }

    fn index(mut file: File, name: String) -> Result<Self> {
        let index = index(&mut file, &name)?;
        Ok(Self {
            kind: SourceKind::Tar {
                file: Arc::new(file),
                index,
            },
            name,
        })
    }

    /// Returns the name of the archive, for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns skopeo's names of the kinds that the archive may be read as.
    ///
    /// # Errors
    /// [`Error::Store`] if a directory cannot be read.
    pub fn transports(&self) -> Result<Vec<&'static str>> {
        let has = |name: &str| Ok::<_, Error>(self.open_entry(name)?.is_some());
        let (layout, docker) = match &self.kind {
            SourceKind::Dir(_) | SourceKind::Pulled(_) => ("oci", "dir"),
            SourceKind::Tar { .. } => ("oci-archive", "docker-archive"),
        };
        let mut found = Vec::new();
        if has("index.json")? {
            found.push(layout);
        }
        // Old archives of Docker have no manifest.json.
        if has("manifest.json")? || found.is_empty() {
            found.push(docker);
        }
        Ok(found)
    }

    /// Opens an entry; `None` if it does not exist.
    pub(super) fn open_entry(&self, path: &str) -> Result<Option<Section>> {
        let Some(path) = clean(path.as_bytes()).filter(|path| !path.is_empty()) else {
            let shown = excerpt(path.as_bytes());
            return Err(Error::entry(&self.name, &shown, "leads out of the archive"));
        };
        match &self.kind {
            SourceKind::Dir(dir) => {
                let path: &std::ffi::OsStr = std::os::unix::ffi::OsStrExt::from_bytes(&path);
                self.section(dir.file(path)?)
            }
            SourceKind::Pulled(content) => {
                let hex = path.strip_prefix(BLOBS.as_bytes());
                let hex = hex.and_then(|hex| std::str::from_utf8(hex).ok());
                match hex.and_then(Digest::from_hex) {
                    Some(digest) => self.section(content.blob(&digest)?),
                    None => Ok(None),
                }
            }
            SourceKind::Tar { file, index } => {
                let mut path = path;
                for _ in 0..MAX_LINKS {
                    match index.get(&path) {
                        None => return Ok(None),
                        Some(EntryLocation::Link(to)) => path.clone_from(to),
                        Some(EntryLocation::At(at, len)) => {
                            return Ok(Some(Section {
                                file: file.clone(),
                                at: *at,
                                end: at + len,
                            }));
                        }
                    }
                }
                let what = "too many links to follow";
                Err(Error::entry(&self.name, &excerpt(&path), what))
            }
        }
    }

    /// Returns a whole file as an entry.
    fn section(&self, file: Option<File>) -> Result<Option<Section>> {
        let Some(file) = file else {
            return Ok(None);
        };
        let end = file.metadata().map_err(|e| self.failed(e))?.len();
        Ok(Some(Section {
            file: Arc::new(file),
            at: 0,
            end,
        }))
    }

    /// Opens an entry that must exist.
    pub(super) fn required_section(&self, path: &str) -> Result<Section> {
        self.open_entry(path)?.ok_or_else(|| self.missing(path))
    }

    /// Opens an entry, which must exist, for a copy of its bytes.
    #[cfg(feature = "registry")]
    pub(crate) fn reader(&self, path: &str) -> Result<impl Read + use<>> {
        self.required_section(path)
    }

    /// Reads a small entry, which must exist.
    #[cfg(feature = "registry")]
    pub(crate) fn required_entry(&self, path: &str) -> Result<Vec<u8>> {
        self.required(path)
    }

    /// Reads a small entry.
    pub(super) fn metadata(&self, path: &str) -> Result<Option<Vec<u8>>> {
        if let (SourceKind::Pulled(content), "index.json") = (&self.kind, path) {
            let entry = serde_json::json!({ "digest": content.target() });
            let index = serde_json::json!({ "schemaVersion": 2, "manifests": [entry] });
            return Ok(Some(index.to_string().into_bytes()));
        }
        let Some(mut entry) = self.open_entry(path)? else {
            return Ok(None);
        };
        if entry.len() > MAX_METADATA {
            let what = format!("larger than {MAX_METADATA} bytes: no metadata of an image");
            let shown = excerpt(path.as_bytes());
            return Err(Error::entry(&self.name, &shown, what));
        }
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).map_err(|e| self.failed(e))?;
        Ok(Some(bytes))
    }

    /// Reads a small entry that must exist.
    pub(super) fn required(&self, path: &str) -> Result<Vec<u8>> {
        self.metadata(path)?.ok_or_else(|| self.missing(path))
    }

    fn missing(&self, path: &str) -> Error {
        let digest = path.strip_prefix(BLOBS).and_then(Digest::from_hex);
        match (&self.kind, digest) {
            (SourceKind::Pulled(content), Some(digest)) => {
                let name = content.name().to_owned();
                if content.is_containerds() {
                    Error::NotPulled { name, digest }
                } else {
                    Error::NotKept { name, digest }
                }
            }
            _ => Error::Missing {
                archive: self.name.clone(),
                entry: excerpt(path.as_bytes()),
            },
        }
    }

    fn failed(&self, source: io::Error) -> Error {
        Error::read(&self.name, source)
    }
}

/// Limits the bytes that are read; seeks do not count. It bounds the memory for a long name, which
/// is read completely, for any length in its header.
struct Metered<'f> {
    file: &'f mut File,
    left: u64,
}

impl Read for Metered<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let got = self.file.read(buf)?;
        let left = self.left.checked_sub(got as u64);
        self.left = left.ok_or_else(|| {
            let what = format!("its headers take more than {MAX_HEADERS} bytes");
            io::Error::new(io::ErrorKind::InvalidData, what)
        })?;
        Ok(got)
    }
}

impl io::Seek for Metered<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}

/// Returns the location of every entry of a tar; of entries with the same name the last is valid.
fn index(file: &mut File, name: &str) -> Result<HashMap<Vec<u8>, EntryLocation>> {
    let failed = |source| Error::read(name, source);
    file.seek(SeekFrom::Start(0)).map_err(failed)?;
    let end = file.metadata().map_err(failed)?.len();
    let mut index = HashMap::new();
    let mut archive = tar::Archive::new(Metered {
        file,
        left: MAX_HEADERS,
    });
    for entry in archive.entries_with_seek().map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let Some(path) = clean(&entry.path_bytes()) else {
            continue;
        };
        let place = match entry.header().entry_type() {
            EntryType::Regular | EntryType::Continuous => {
                let (at, len) = (entry.raw_file_position(), entry.size());
                if at.checked_add(len).is_none_or(|to| to > end) {
                    let what = "the archive ends in the middle of it";
                    return Err(Error::entry(name, &excerpt(&path), what));
                }
                EntryLocation::At(at, len)
            }
            kind @ (EntryType::Symlink | EntryType::Link) => {
                let target = entry.link_name_bytes().unwrap_or_default();
                let mut full = Vec::new();
                if let (EntryType::Symlink, Some(slash)) =
                    (kind, path.iter().rposition(|b| *b == b'/'))
                {
                    full.extend_from_slice(&path[..=slash]);
                }
                full.extend_from_slice(&target);
                // A link that leads out of the archive is ignored.
                let Some(target) = clean(&full) else { continue };
                EntryLocation::Link(target)
            }
            _ => continue,
        };
        if index.len() >= MAX_ENTRIES {
            let what = format!("more than {MAX_ENTRIES} entries: no image archive");
            return Err(Error::entry(name, &excerpt(&path), what));
        }
        index.insert(path, place);
    }
    Ok(index)
}
