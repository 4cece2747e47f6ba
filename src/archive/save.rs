//! Saves images of any store, or one of another archive ([`repack`]), as an archive: an OCI layout
//! in a tar and, unless only that is wanted, the manifest of `docker save` beside it, as Docker
//! writes it since version 25.
//!
//! Layers are rebuilt from their files and their tar-split, or are the blobs that containerd's
//! store has kept, so they have the same bytes as when they were stored, uncompressed. A layer with
//! other bytes is an error that names the damaged file.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tar::{Builder, Header};

use super::contents::{Incoming, LayerBlob};
use super::error::{Error, Result};
use super::layer_stream::LayerEntry;
use super::source::Source;
use crate::layer_tar::{self, Limits};
use crate::oci::text::excerpt;
use crate::oci::{Digest, Reference};
use crate::progress::{Counted, Progress};
use crate::store::Image;
use crate::store::image::ImageLayer;
use crate::store::image_store::Store;
use crate::store::writable::Staging;
use crate::sys::interrupt;

/// The number of bytes of a layer that are copied at a time.
const CHUNK: usize = 256 << 10;

/// The format of an archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// For `docker load` and `podman load`, and an OCI layout too.
    Docker,
    /// An OCI layout only.
    Oci,
}

/// An image to save.
#[derive(Debug)]
#[non_exhaustive]
pub struct Outgoing<'s> {
    /// The store of the image.
    pub store: &'s Store,
    /// The image.
    pub image: Image,
    /// The names of the image in the archive.
    pub names: Vec<Reference>,
}

impl<'s> Outgoing<'s> {
    /// Returns an image of `store` with its names in the archive.
    #[must_use]
    pub fn new(store: &'s Store, image: Image, names: Vec<Reference>) -> Self {
        Self {
            store,
            image,
            names,
        }
    }
}

/// An image of another archive, to be written anew.
#[derive(Debug)]
#[non_exhaustive]
pub struct Repacked<'s> {
    /// The archive.
    pub source: &'s Source,
    /// The image in it.
    pub image: &'s Incoming,
    /// The names of the image in the new archive.
    pub names: Vec<Reference>,
    /// The limits of what is expanded.
    pub limits: Limits,
}

impl<'s> Repacked<'s> {
    /// Returns an image of `source` with its names in the new archive.
    #[must_use]
    pub fn new(source: &'s Source, image: &'s Incoming, names: Vec<Reference>) -> Self {
        Self {
            source,
            image,
            names,
            limits: Limits::default(),
        }
    }
}

/// Writes an archive of one image of another archive. Its layers are decompressed one by one into a
/// file of `staging`, and compared with their digests. Otherwise as [`save`].
///
/// # Errors
/// [`Error::Write`] if `out` fails; those of reading the other archive.
pub fn repack(
    image: &Repacked<'_>,
    format: Format,
    staging: &Staging,
    out: impl Write,
    progress: &dyn Fn(Progress<'_, &Digest>),
) -> Result<()> {
    let mut archive = Archive::begin(out, progress);
    let mut sizes = Vec::with_capacity(image.image.layers.len());
    for (diff_id, blob) in image.image.diff_ids.iter().zip(&image.image.layers) {
        let size = match archive.written.get(diff_id) {
            Some(size) => *size,
            None => archive.repacked_layer(image, diff_id, blob, staging)?,
        };
        sizes.push((*diff_id, size));
    }
    archive.described(&sizes, &image.image.config, &image.names)?;
    archive.finish(format)
}

/// Writes an archive of images. Nothing is staged: the caller must not give the file its name
/// before this has succeeded.
///
/// # Errors
/// [`Error::Write`] if `out` fails; [`Error::Store`] if an image or a layer of it is damaged or cannot be read.
pub fn save(
    images: &[Outgoing<'_>],
    format: Format,
    out: impl Write,
    progress: &dyn Fn(Progress<'_, &Digest>),
) -> Result<()> {
    let mut archive = Archive::begin(out, progress);
    for outgoing in images {
        archive.image(outgoing)?;
    }
    archive.finish(format)
}

struct Archive<'p, W: Write> {
    tar: Builder<W>,
    /// The blobs that the archive contains, with their lengths.
    written: HashMap<Digest, u64>,
    /// The entries of index.json.
    index: Vec<Value>,
    /// The entries of Docker's manifest.json.
    docker: Vec<Value>,
    progress: &'p dyn Fn(Progress<'_, &Digest>),
}

fn path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn descriptor(kind: &str, digest: &Digest, size: u64) -> Value {
    json!({
        "mediaType": format!("application/vnd.oci.image.{kind}"),
        "digest": digest,
        "size": size,
    })
}

impl<'p, W: Write> Archive<'p, W> {
    fn begin(out: W, progress: &'p dyn Fn(Progress<'_, &Digest>)) -> Self {
        Self {
            tar: Builder::new(out),
            written: HashMap::new(),
            index: Vec::new(),
            docker: Vec::new(),
            progress,
        }
    }

    fn image(&mut self, outgoing: &Outgoing<'_>) -> Result<()> {
        let mut sizes = Vec::new();
        for layer in &outgoing.image.layers {
            let size = match self.written.get(&layer.diff_id) {
                Some(size) => *size,
                None => self.layer(outgoing.store, layer)?,
            };
            sizes.push((layer.diff_id, size));
        }
        let (_, config) = outgoing.store.config_bytes(&outgoing.image.id)?;
        self.described(&sizes, &config, &outgoing.names)
    }

    /// Writes the index, and for Docker its manifest.
    fn finish(mut self, format: Format) -> Result<()> {
        self.file("oci-layout", &json!({"imageLayoutVersion": "1.0.0"}))?;
        let media = "application/vnd.oci.image.index.v1+json";
        let manifests = std::mem::take(&mut self.index);
        self.file(
            "index.json",
            &json!({"schemaVersion": 2, "mediaType": media, "manifests": manifests}),
        )?;
        if format == Format::Docker {
            let images = std::mem::take(&mut self.docker);
            self.file("manifest.json", &Value::Array(images))?;
        }
        let mut out = self.tar.into_inner().map_err(Error::Write)?;
        out.flush().map_err(Error::Write)
    }

    /// Writes the configuration and the manifest of an image whose layers (with their lengths) are
    /// written, and adds it to the lists.
    fn described(
        &mut self,
        layers: &[(Digest, u64)],
        config: &[u8],
        names: &[Reference],
    ) -> Result<()> {
        let id = self.blob(config)?;
        let config_descriptor = descriptor("config.v1+json", &id, config.len() as u64);
        let paths: Vec<String> = layers.iter().map(|(layer, _)| path(layer)).collect();
        let layers: Vec<Value> = (layers.iter())
            .map(|(layer, size)| descriptor("layer.v1.tar", layer, *size))
            .collect();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config_descriptor,
            "layers": layers,
        });
        let manifest = manifest.to_string().into_bytes();
        let digest = self.blob(&manifest)?;
        let mut entry = descriptor("manifest.v1+json", &digest, manifest.len() as u64);
        for name in names {
            entry["annotations"] = json!({
                "io.containerd.image.name": name.to_string(),
                "org.opencontainers.image.ref.name": name.tag().unwrap_or("latest"),
            });
            self.index.push(entry.clone());
        }
        if names.is_empty() {
            self.index.push(entry);
        }
        let tags: Vec<String> = names.iter().map(Reference::key).collect();
        self.docker.push(json!({
            "Config": path(&id),
            "RepoTags": if tags.is_empty() { Value::Null } else { json!(tags) },
            "Layers": paths,
        }));
        Ok(())
    }

    fn header(&mut self, name: &str, size: u64) -> Result<()> {
        let mut header = Header::new_ustar();
        header.set_size(size);
        header.set_mode(0o644);
        header.set_mtime(0);
        let written = self.tar.append_data(&mut header, name, io::empty());
        written.map_err(Error::Write)
    }

    fn bytes(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        self.header(name, bytes.len() as u64)?;
        self.content(bytes.len() as u64, |out| {
            out.write_all(bytes).map_err(Error::Write)?;
            Ok(())
        })
    }

    fn file(&mut self, name: &str, value: &Value) -> Result<()> {
        self.bytes(name, value.to_string().as_bytes())
    }

    fn blob(&mut self, bytes: &[u8]) -> Result<Digest> {
        let digest = Digest::of(bytes);
        if self.written.insert(digest, bytes.len() as u64).is_none() {
            self.bytes(&path(&digest), bytes)?;
        }
        Ok(digest)
    }

    /// Writes the content of the current entry, which has `size` bytes, by calling `write`.
    fn content(&mut self, size: u64, write: impl FnOnce(&mut W) -> Result<()>) -> Result<()> {
        let out = self.tar.get_mut();
        write(out)?;
        let padding = (512 - size % 512) % 512;
        let padding = io::copy(&mut io::Read::take(io::repeat(0), padding), out);
        padding.map_err(Error::Write)?;
        Ok(())
    }

    /// Adds a layer of another archive; returns the length of its tar.
    fn repacked_layer(
        &mut self,
        image: &Repacked<'_>,
        diff_id: &Digest,
        blob: &LayerBlob,
        staging: &Staging,
    ) -> Result<u64> {
        let file = staging.file()?;
        let size = expand(image, diff_id, blob, &file, self.progress)?;
        let mut staged = &file;
        io::Seek::rewind(&mut staged).map_err(Error::Write)?;
        self.header(&path(diff_id), size)?;
        self.content(size, |out| {
            let copied = io::copy(&mut io::Read::take(staged, size), out);
            copied.map_err(Error::Write).map(drop)
        })?;
        staging.done_with(file);
        (self.progress)(Progress::Done { item: diff_id });
        self.written.insert(*diff_id, size);
        Ok(size)
    }

    /// Adds a layer's tar; returns its length.
    fn layer(&mut self, store: &Store, layer: &ImageLayer) -> Result<u64> {
        let item = &layer.diff_id;
        let size = store.layer_tar_size(layer)?;
        let progress = self.progress;
        progress(Progress::Begin {
            item,
            size,
            have: 0,
        });
        self.header(&path(item), size)?;
        self.content(size, |out| {
            let mut length = 0;
            let counted = Counted::new(out, |count| {
                length += count;
                progress(Progress::Advance { item, count });
            });
            let actual = store.write_layer_tar(layer, counted)?;
            let what = match (actual == *item, length == size) {
                (true, true) => return Ok(()),
                (false, _) => format!("its files make a tar of {actual}, not {item}"),
                (true, false) => format!("{length} bytes, not {size}"),
            };
            Err(Error::from(layer_tar::Error::Damaged {
                path: layer.place.path().display().to_string(),
                what,
            }))
        })?;
        progress(Progress::Done { item });
        self.written.insert(*item, size);
        Ok(size)
    }
}

/// Decompresses a layer's blob into a file, and compares both digests. Returns the length of the tar.
fn expand(
    image: &Repacked<'_>,
    diff_id: &Digest,
    blob: &LayerBlob,
    file: &File,
    progress: &dyn Fn(Progress<'_, &Digest>),
) -> Result<u64> {
    let source = image.source;
    let mut stream = LayerEntry::open(source, blob)?.start(diff_id, progress)?;
    let failed = |error| Error::read(source.name(), error);
    let (mut hash, mut size, mut out) = (Sha256::new(), 0u64, file);
    let mut buffer = vec![0; CHUNK];
    loop {
        interrupt::check().map_err(|error| failed(error.into()))?;
        let got = io::Read::read(&mut stream, &mut buffer).map_err(failed)?;
        if got == 0 {
            break;
        }
        size += got as u64;
        if size > image.limits.bytes {
            let what = format!("expands to more than {} bytes", image.limits.bytes);
            let entry = excerpt(blob.path.as_bytes());
            return Err(Error::entry(source.name(), &entry, what));
        }
        hash.update(&buffer[..got]);
        out.write_all(&buffer[..got]).map_err(Error::Write)?;
    }
    stream.finish(Digest::from_hash(hash))?;
    Ok(size)
}
