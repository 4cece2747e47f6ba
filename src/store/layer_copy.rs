//! Copies layers of another store into our own.
//!
//! ```text
//!  their files + tar-split ──rebuild──► pipe ──unpack──► a staged layer of ours
//!  their blob ──decompress──►
//! ```
//! The copy is made from the layer's tar, byte for byte, whose digest is checked.

use std::io::Write;
use std::path::Path;

use super::error::{Error, Result};
use super::layer_tar_source::expect_tar;
use super::writable::{Exclusive, ImportTransaction};
use super::{Image, Store, Stores};
use crate::layer_tar::Limits;
use crate::oci::{Digest, chain_id, image_config};
use crate::progress::Progress;

/// Copies the layers of an image that our store lacks, base first.
///
/// # Errors
/// [`super::Error::LayerMissing`] for a layer without tar-split, [`super::Error::ChainMismatch`]
/// and [`super::Error::Tar`] for a damaged one.
pub fn copy_layers(
    from: &Store,
    image: &Image,
    to: &Exclusive<'_>,
    intake: &mut ImportTransaction<'_>,
    progress: &mut dyn FnMut(Progress<'_, &Digest>),
) -> Result<()> {
    for layer in &image.layers {
        let coming = Coming {
            chain: &layer.chain_id,
            parent: layer.parent.as_ref(),
            diff: &layer.diff_id,
            from: layer.place.path(),
            size: &|| from.layer_tar_size(layer).unwrap_or(0),
        };
        let write = |out: &mut dyn Write| from.write_layer_tar(layer, out);
        take_layer(to, intake, &coming, write, progress)?;
    }
    Ok(())
}

/// Copies an image whose layers are not directories, without a name. The layers come from blobs if
/// containerd has pulled and not unpacked the image, or from devices of the driver devicemapper.
/// Returns the image's ID, by which it is then found in our store.
///
/// # Errors
/// As [`Stores::find`] and [`copy_layers`].
pub fn unpack_image(
    stores: &Stores,
    text: &str,
    to: &Exclusive<'_>,
    progress: &mut dyn FnMut(Progress<'_, &Digest>),
) -> Result<Digest> {
    let (from, id) = stores.locate(text)?;
    let (path, config) = from.config_bytes(&id)?;
    let mut intake = to.begin_import();
    match from.image(&id) {
        Ok(image) => copy_layers(from, &image, to, &mut intake, progress)?,
        Err(Error::NotUnpacked { .. }) => {
            let diffs = image_config::parse(&path, &config)?.diff_ids;
            copy_blobs(from, &diffs, to, &mut intake, progress)?;
        }
        Err(error) => return Err(error),
    }
    let id = intake.image(&config)?;
    intake.finish(std::iter::empty())?;
    Ok(id)
}

/// Copies the layers with these diff IDs from their blobs.
fn copy_blobs(
    from: &Store,
    diffs: &[Digest],
    to: &Exclusive<'_>,
    intake: &mut ImportTransaction<'_>,
    progress: &mut dyn FnMut(Progress<'_, &Digest>),
) -> Result<()> {
    let chains = chain_id::chain_ids(diffs);
    let parents = std::iter::once(None).chain(chains.iter().map(Some));
    for ((diff, chain), parent) in diffs.iter().zip(&chains).zip(parents) {
        let coming = Coming {
            chain,
            parent,
            diff,
            from: from.root(),
            // Computing the size would take as long as unpacking.
            size: &|| 0,
        };
        let write = |out: &mut dyn Write| from.write_blob_tar(chain, out);
        take_layer(to, intake, &coming, write, progress)?;
    }
    Ok(())
}

/// A layer of another store.
struct Coming<'l> {
    chain: &'l Digest,
    parent: Option<&'l Digest>,
    diff: &'l Digest,
    /// The path of its source, for messages.
    from: &'l Path,
    /// A function that returns the bytes of its tar; 0 if that is not known in advance.
    size: &'l dyn Fn() -> u64,
}

/// Copies a layer whose tar `write` writes, unless our store has it.
fn take_layer(
    to: &Exclusive<'_>,
    intake: &mut ImportTransaction<'_>,
    layer: &Coming<'_>,
    write: impl FnOnce(&mut dyn Write) -> Result<Digest> + Send,
    progress: &mut dyn FnMut(Progress<'_, &Digest>),
) -> Result<()> {
    if to.has_layer(layer.chain)? {
        return Ok(());
    }
    let item = layer.diff;
    progress(Progress::Begin {
        item,
        size: (layer.size)(),
        have: 0,
    });
    let mut staged = to.stage_layer(layer.parent)?;
    let writing = |out: &mut dyn Write| write(out).map(drop);
    let passed = |count| progress(Progress::Advance { item, count });
    let unpacked = staged.unpack_from(&Limits::default(), writing, passed)?;
    expect_tar(&unpacked.diff_id, layer.diff, layer.from)?;
    intake.layer(staged, &unpacked)?;
    progress(Progress::Done { item });
    Ok(())
}
