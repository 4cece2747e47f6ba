//! Where a copy goes: a registry, an OCI layout, a directory of skopeo's kind `dir:`.
//!
//! Formats: OCI image specification, image-layout.md; containers/image, directory transport 1.1.
//! A file of a directory is written under another name and renamed; the name of the image comes last.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};

use parking_lot::Mutex;
use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use serde_json::{Map, Value, json};
use ureq::http::{Method, header};

use super::super::Show;
use super::super::client::{Client, Payload};
use super::super::error::{Error, Result};
use super::super::manifest::Blob;
use super::super::pull::RawManifest;
use super::super::upload::{Content, mount, send, size_there};
use super::from::{REF_NAME, in_layout};
use super::media_type::media_type;
use super::{CopyTo, Stream};
use crate::oci::{Digest, Reference};
use crate::sys::walk;

const LAYOUT: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;
const DIR_VERSION: &str = "Directory Transport Version: 1.1\n";
/// The size limit of an index.json that is continued, in bytes.
const MAX_INDEX: u64 = 4 << 20;

/// An opened destination.
pub(super) enum To<'d> {
    Registry {
        client: Box<Client<'d>>,
        name: Reference,
        /// A repository of the same registry that has the blobs.
        mounted: Option<String>,
    },
    Layout(Folder, Option<&'d str>),
    Dir(Folder),
    Tar(Stream<'d>, Option<&'d str>),
}

impl<'d> To<'d> {
    pub(super) fn open(to: CopyTo<'d>, mounted: Option<String>, show: Show<'d>) -> Result<Self> {
        Ok(match to {
            CopyTo::Registry(name, access) => {
                let sources: Vec<String> = mounted.iter().cloned().collect();
                Self::Registry {
                    client: Client::open(name, "pull,push", &sources, access, show)?.into(),
                    name: name.clone(),
                    mounted: mounted.filter(|path| path != name.path()),
                }
            }
            CopyTo::Layout(dir, tag) => {
                let folder = Folder::of(dir)?;
                let begun = (folder.make("blobs"))
                    .and_then(|()| folder.make("blobs/sha256"))
                    .and_then(|()| folder.write("oci-layout", LAYOUT.as_bytes()));
                begun.inspect_err(|_| folder.undo())?;
                Self::Layout(folder, tag)
            }
            CopyTo::Dir(dir) => {
                let folder = Folder::of(dir)?;
                folder.write("version", DIR_VERSION.as_bytes())?;
                Self::Dir(folder)
            }
            CopyTo::LayoutArchive(out, tag) => {
                let to = Self::Tar(Stream::new(Some(tar::Builder::new(out))), tag);
                to.append("oci-layout", LAYOUT.as_bytes())?;
                to
            }
        })
    }

    /// Removes what a copy that has failed has made in a directory.
    pub(super) fn undo(&self) {
        match self {
            Self::Layout(folder, _) | Self::Dir(folder) => folder.undo(),
            Self::Registry { .. } | Self::Tar(..) => {}
        }
    }

    /// Whether blobs are written one after the other.
    pub(super) fn is_stream(&self) -> bool {
        matches!(self, Self::Tar(..))
    }

    /// Whether it is a layout, which has only documents of OCI.
    pub(super) fn is_layout(&self) -> bool {
        matches!(self, Self::Layout(..) | Self::Tar(..))
    }

    /// Whether it has a blob.
    pub(super) fn has(&self, blob: &Blob) -> Result<bool> {
        match self {
            Self::Registry {
                client, mounted, ..
            } => {
                if size_there(client, &blob.digest)?.is_some() {
                    return Ok(true);
                }
                match mounted {
                    Some(from) => mount(client, &blob.digest, from),
                    None => Ok(false),
                }
            }
            Self::Layout(folder, _) => Ok(folder.has(&in_layout(&blob.digest), blob)),
            Self::Dir(folder) => Ok(folder.has(&blob.digest.hex(), blob)),
            Self::Tar(..) => Ok(false),
        }
    }

    /// Stores a blob, whose bytes were compared.
    pub(super) fn put(&self, blob: &Blob, file: &File, passed: &dyn Fn(u64)) -> Result<()> {
        match self {
            Self::Registry { client, .. } => {
                send(client, &blob.digest, Content::File(file, blob.size), passed)
            }
            Self::Layout(folder, _) => folder.copy(&in_layout(&blob.digest), file),
            Self::Dir(folder) => folder.copy(&blob.digest.hex(), file),
            Self::Tar(stream, _) => {
                let mut stream = stream.lock();
                let Some(tar) = stream.as_mut() else {
                    return Err(failed(&io::Error::other("the archive is complete")));
                };
                let mut header = header_of(blob.size);
                let mut file = file;
                let appended = io::Seek::rewind(&mut file)
                    .and_then(|()| tar.append_data(&mut header, in_layout(&blob.digest), file));
                appended.map_err(|error| failed(&error))
            }
        }
    }

    /// Stores a manifest of an index.
    pub(super) fn manifest(&self, raw: &RawManifest) -> Result<()> {
        match self {
            Self::Registry { client, .. } => publish(client, raw, &raw.digest.to_string()),
            Self::Layout(folder, _) => folder.write(&in_layout(&raw.digest), &raw.bytes),
            Self::Dir(folder) => {
                folder.write(&format!("{}.manifest.json", raw.digest.hex()), &raw.bytes)
            }
            Self::Tar(..) => self.append(&in_layout(&raw.digest), &raw.bytes),
        }
    }

    /// Stores the manifest or index that gets the name.
    pub(super) fn name(&self, raw: &RawManifest) -> Result<()> {
        match self {
            Self::Registry { client, name, .. } => {
                let tag = name.tag().unwrap_or("latest");
                publish(client, raw, tag)
            }
            Self::Dir(folder) => folder.write("manifest.json", &raw.bytes),
            Self::Layout(folder, tag) => {
                self.manifest(raw)?;
                let known = folder.read("index.json")?;
                folder.write("index.json", &index(known.as_deref(), raw, *tag)?)
            }
            Self::Tar(stream, tag) => {
                self.manifest(raw)?;
                self.append("index.json", &index(None, raw, *tag)?)?;
                let tar = stream.lock().take();
                let ended = tar.map(tar::Builder::into_inner).transpose();
                let ended = ended.and_then(|out| out.map(|mut out| out.flush()).transpose());
                ended.map(|_| ()).map_err(|error| failed(&error))
            }
        }
    }

    fn append(&self, path: &str, bytes: &[u8]) -> Result<()> {
        let Self::Tar(stream, _) = self else {
            return Ok(());
        };
        let mut header = header_of(bytes.len() as u64);
        match stream.lock().as_mut() {
            Some(tar) => tar.append_data(&mut header, path, bytes),
            None => Err(io::Error::other("the archive is complete")),
        }
        .map_err(|error| failed(&error))
    }
}

fn header_of(size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_size(size);
    header.set_mode(0o644);
    header.set_mtime(0);
    header
}

fn failed(error: &io::Error) -> Error {
    Error::Destination {
        what: "the destination".to_owned(),
        why: error.to_string(),
    }
}

/// Puts a manifest into a registry under a tag or its digest.
fn publish(client: &Client<'_>, raw: &RawManifest, reference: &str) -> Result<()> {
    let path = client.path(&format!("manifests/{reference}"));
    let what = format!("{}, manifest {}", client.name(), raw.digest);
    let mut request = client.request(Method::PUT, &path, what)?;
    let media = media_type(&raw.media, &raw.bytes);
    request.headers.push((header::CONTENT_TYPE, media));
    request.body = Payload::Bytes(&raw.bytes);
    let response = client.ask(&request.what, || {
        let sent = client.exchange(&request);
        sent.map_err(super::super::push::contradiction)
    })?;
    let told = response.headers().get("docker-content-digest");
    let told = told.and_then(|value| Digest::parse(value.to_str().ok()?));
    match told {
        Some(actual) if actual != raw.digest => Err(Error::Digest {
            what: request.what,
            expected: raw.digest,
            actual,
        }),
        _ => Ok(()),
    }
}

/// Returns the index.json of a layout with one more image. What had the tag loses it.
fn index(known: Option<&[u8]>, raw: &RawManifest, tag: Option<&str>) -> Result<Vec<u8>> {
    let bad = |error: serde_json::Error| Error::malformed("index.json", error.to_string());
    let mut index: Map<String, Value> = match known {
        Some(bytes) => serde_json::from_slice(bytes).map_err(bad)?,
        None => Map::new(),
    };
    index.insert("schemaVersion".to_owned(), json!(2));
    let media = "application/vnd.oci.image.index.v1+json";
    index.entry("mediaType").or_insert_with(|| json!(media));
    let mut descriptor = json!({
        "mediaType": media_type(&raw.media, &raw.bytes),
        "digest": raw.digest,
        "size": raw.bytes.len(),
    });
    if let Some(tag) = tag {
        descriptor["annotations"] = json!({ REF_NAME: tag });
    }
    let entries = index.entry("manifests").or_insert_with(|| json!([]));
    let entries = entries
        .as_array_mut()
        .ok_or_else(|| Error::malformed("index.json", "its \"manifests\" is not a list"))?;
    entries.retain(|entry| {
        let known = entry["annotations"][REF_NAME].as_str();
        match tag {
            Some(_) => known != tag,
            None => known.is_some() || entry["digest"] != descriptor["digest"],
        }
    });
    entries.push(descriptor);
    serde_json::to_vec(&index).map_err(bad)
}

/// A directory that is filled. Names are looked up without following symlinks.
pub(super) struct Folder {
    dir: OwnedFd,
    /// What did not exist before, in the order in which it was made.
    made: Mutex<Vec<Made>>,
}

/// A file or directory that a copy has made.
struct Made {
    path: String,
    kind: AtFlags,
}

impl Folder {
    fn of(dir: &OwnedFd) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::openat(dir, ".", flags, Mode::empty());
        let dir = dir.map_err(|errno| failed(&errno.into()))?;
        // Other copies to the directory are possible; they keep this one from removing anything.
        let _ = rustix::fs::flock(&dir, FlockOperation::NonBlockingLockShared);
        Ok(Self {
            dir,
            made: Mutex::default(),
        })
    }

    fn make(&self, path: &str) -> Result<()> {
        match rustix::fs::mkdirat(&self.dir, path, Mode::from_raw_mode(0o755)) {
            Ok(()) => {
                self.note(path, AtFlags::REMOVEDIR);
                self.parent(&format!("{path}/x")).map(drop)
            }
            Err(rustix::io::Errno::EXIST) => self.parent(&format!("{path}/x")).map(drop),
            Err(errno) => Err(self.failed(path, errno.into())),
        }
    }

    fn note(&self, path: &str, kind: AtFlags) {
        self.made.lock().push(Made {
            path: path.to_owned(),
            kind,
        });
    }

    /// Removes what did not exist before, unless the directory is an image or a layout already, or
    /// another copy fills it.
    fn undo(&self) {
        let is_one = ["index.json", "manifest.json"]
            .iter()
            .any(|name| rustix::fs::statat(&self.dir, *name, AtFlags::SYMLINK_NOFOLLOW).is_ok());
        let alone = rustix::fs::flock(&self.dir, FlockOperation::NonBlockingLockExclusive);
        if is_one || alone.is_err() {
            return;
        }
        for made in self.made.lock().drain(..).rev() {
            if let Ok((dir, name)) = self.parent(&made.path) {
                // The failure of the copy is the one to report.
                let _ = rustix::fs::unlinkat(&dir, name, made.kind);
            }
        }
    }

    fn failed(&self, path: &str, error: io::Error) -> Error {
        Error::Destination {
            what: path.to_owned(),
            why: format!("cannot be written: {error}"),
        }
    }

    /// Opens the directory of a path, and returns it with the last name.
    fn parent<'p>(&self, path: &'p str) -> Result<(OwnedFd, &'p str)> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut dir = rustix::io::fcntl_dupfd_cloexec(&self.dir, 0)
            .map_err(|errno| self.failed(path, errno.into()))?;
        let mut names = path.split('/').peekable();
        while let Some(name) = names.next() {
            if names.peek().is_none() {
                return Ok((dir, name));
            }
            let next = rustix::fs::openat(&dir, name, flags, Mode::empty());
            dir = next.map_err(|errno| self.failed(path, errno.into()))?;
        }
        Err(self.failed(path, io::ErrorKind::InvalidInput.into()))
    }

    /// Whether a file has the content of a blob.
    fn has(&self, path: &str, blob: &Blob) -> bool {
        let Ok((dir, name)) = self.parent(path) else {
            return false;
        };
        let Ok(file) = walk::open_file_in(dir.as_fd(), name.as_ref()) else {
            return false;
        };
        file.metadata().is_ok_and(|meta| meta.len() == blob.size)
            && Digest::of_reader(file, |_| Ok(()), |error| error)
                .is_ok_and(|digest| digest == blob.digest)
    }

    fn read(&self, path: &str) -> Result<Option<Vec<u8>>> {
        use std::io::Read as _;
        let (dir, name) = self.parent(path)?;
        let file = match walk::open_file_in(dir.as_fd(), name.as_ref()) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.failed(path, error)),
        };
        let mut bytes = Vec::new();
        let read = file.take(MAX_INDEX).read_to_end(&mut bytes);
        read.map_err(|error| self.failed(path, error))?;
        Ok(Some(bytes))
    }

    fn write(&self, path: &str, bytes: &[u8]) -> Result<()> {
        self.replace(path, |file| file.write_all(bytes))
    }

    fn copy(&self, path: &str, from: &File) -> Result<()> {
        self.replace(path, |file| {
            let mut from = from;
            io::Seek::rewind(&mut from)?;
            io::copy(&mut from, file).map(drop)
        })
    }

    /// Writes a file completely, then gives it its name.
    fn replace(&self, path: &str, fill: impl FnOnce(&mut File) -> io::Result<()>) -> Result<()> {
        let failed = |error: io::Error| self.failed(path, error);
        let (dir, name) = self.parent(path)?;
        let mut random = [0; 8];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())
            .map_err(|errno| failed(errno.into()))?;
        let temporary = format!(".unionfs-{:016x}", u64::from_ne_bytes(random));
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        let mode = Mode::from_raw_mode(0o644);
        let file = rustix::fs::openat(&dir, &*temporary, flags | OFlags::CLOEXEC, mode);
        let mut file = File::from(file.map_err(|errno| failed(errno.into()))?);
        let written = fill(&mut file).and_then(|()| file.sync_all());
        let is_new = rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW).is_err();
        let renamed = written.and_then(|()| {
            rustix::fs::renameat(&dir, &*temporary, &dir, name).map_err(io::Error::from)
        });
        renamed.map_err(|error| {
            // The first failure is the one to report.
            let _ = rustix::fs::unlinkat(&dir, &*temporary, AtFlags::empty());
            failed(error)
        })?;
        if is_new {
            self.note(path, AtFlags::empty());
        }
        Ok(())
    }
}
