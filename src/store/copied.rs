//! Layers of another store, taken into ours. Called by the cli's `commit`, for a named
//! layer on an image that Docker holds.
//!
//! ```text
//!  their files + tar-split ──rebuild──► pipe ──unpack──► a staged layer of ours
//! ```
//! What arrives is the layer's tar, byte for byte, and its digest is checked.

use std::io::{BufReader, BufWriter, Read as _};
use std::os::fd::AsFd as _;

use rustix::io::Errno;

use super::error::{Error, Result};
use super::tarball::{Limits, TarError, Unpacked, rebuild, unpack};
use super::writable::{Exclusive, StagedLayer};
use super::{Image, Layer, Store};

/// Bytes that go through the pipe at a time.
const CHUNK: usize = 256 << 10;

/// Takes in the layers of an image that are missing, base first.
///
/// # Errors
/// [`Error::LayerMissing`] for a layer without tar-split, [`Error::ChainMismatch`] and
/// [`Error::Tar`] for a damaged one. Layers taken in before stay.
pub fn copy_layers(from: &Store, image: &Image, to: &Exclusive<'_>) -> Result<()> {
    for layer in &image.layers {
        if to.has_layer(&layer.chain_id)? {
            continue;
        }
        let mut staged = to.stage_layer(layer.parent.as_ref())?;
        let unpacked = copy(from, layer, &mut staged)?;
        if unpacked.diff_id != layer.diff_id {
            return Err(Error::ChainMismatch {
                path: layer.spec.path.clone(),
                found: format!("a layer whose tar has the digest {}", unpacked.diff_id),
                expected: layer.diff_id.to_string(),
            });
        }
        staged.commit(unpacked.diff_id, unpacked.size)?;
    }
    Ok(())
}

fn copy(from: &Store, layer: &Layer, staged: &mut StagedLayer<'_>) -> Result<Unpacked> {
    let path = &layer.spec.path;
    let (source, their_split) = from.tar_sources(layer)?;
    let pipe = std::io::pipe().map_err(|e| {
        let errno = Errno::from_io_error(&e).unwrap_or(Errno::IO);
        Error::io("make a pipe to copy", path, errno)
    });
    let (reader, writer) = pipe?;
    let dialect = staged.dialect();
    let (diff, split) = staged.parts();
    std::thread::scope(|scope| {
        let writer = BufWriter::with_capacity(CHUNK, writer);
        let rebuilding = scope.spawn(|| rebuild(their_split, source.as_fd(), writer));
        let mut reader = BufReader::with_capacity(CHUNK, reader);
        let unpacked = unpack(reader.by_ref(), diff, dialect, split, &Limits::default());
        // Who writes must not wait for a reader that has failed.
        drop(reader);
        match rebuilding.join() {
            Ok(Err(error @ Error::Tar(TarError::Damaged { .. } | TarError::Split { .. }))) => {
                Err(error)
            }
            _ => unpacked,
        }
    })
}
