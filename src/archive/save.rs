//! Saves images of any store as an archive: an OCI layout in a tar and, unless only that is wanted,
//! the manifest of `docker save` beside it, as Docker writes it since version 25.
//!
//! Layers are rebuilt from their files and their tar-split, or are the blobs that containerd's
//! store has kept, so they have the same bytes as when they were stored, uncompressed. A layer with
//! other bytes is an error that names the damaged file.

use std::collections::HashMap;
use std::io::{self, Write};

use serde_json::{Value, json};
use tar::{Builder, Header};

use super::error::{Error, Result};
use crate::layer_tar;
use crate::oci::{Digest, Reference};
use crate::progress::{Counted, Progress};
use crate::store::Image;
use crate::store::image::ImageLayer;
use crate::store::image_store::Store;

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
    let mut archive = Archive {
        tar: Builder::new(out),
        written: HashMap::new(),
        progress,
    };
    let (mut index, mut docker) = (Vec::new(), Vec::new());
    for outgoing in images {
        archive.image(outgoing, &mut index, &mut docker)?;
    }
    archive.file("oci-layout", &json!({"imageLayoutVersion": "1.0.0"}))?;
    let media = "application/vnd.oci.image.index.v1+json";
    archive.file(
        "index.json",
        &json!({"schemaVersion": 2, "mediaType": media, "manifests": index}),
    )?;
    if format == Format::Docker {
        archive.file("manifest.json", &Value::Array(docker))?;
    }
    let mut out = archive.tar.into_inner().map_err(Error::Write)?;
    out.flush().map_err(Error::Write)
}

struct Archive<'p, W: Write> {
    tar: Builder<W>,
    /// The blobs that the archive contains, with their lengths.
    written: HashMap<Digest, u64>,
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

impl<W: Write> Archive<'_, W> {
    fn image(
        &mut self,
        outgoing: &Outgoing<'_>,
        index: &mut Vec<Value>,
        docker: &mut Vec<Value>,
    ) -> Result<()> {
        let mut layers = Vec::new();
        for layer in &outgoing.image.layers {
            let size = match self.written.get(&layer.diff_id) {
                Some(size) => *size,
                None => self.layer(outgoing.store, layer)?,
            };
            layers.push(descriptor("layer.v1.tar", &layer.diff_id, size));
        }
        let (_, config) = outgoing.store.config_bytes(&outgoing.image.id)?;
        let config_descriptor =
            descriptor("config.v1+json", &outgoing.image.id, config.len() as u64);
        self.blob(&config)?;
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config_descriptor,
            "layers": layers,
        });
        let manifest = manifest.to_string().into_bytes();
        let digest = self.blob(&manifest)?;
        let mut entry = descriptor("manifest.v1+json", &digest, manifest.len() as u64);
        for name in &outgoing.names {
            entry["annotations"] = json!({
                "io.containerd.image.name": name.to_string(),
                "org.opencontainers.image.ref.name": name.tag().unwrap_or("latest"),
            });
            index.push(entry.clone());
        }
        if outgoing.names.is_empty() {
            index.push(entry);
        }
        let tags: Vec<String> = outgoing.names.iter().map(Reference::key).collect();
        let paths: Vec<String> = outgoing
            .image
            .layers
            .iter()
            .map(|l| path(&l.diff_id))
            .collect();
        docker.push(json!({
            "Config": path(&outgoing.image.id),
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
