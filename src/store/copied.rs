//! Layers of another store, taken into ours. Called by the cli's `commit`, for a named
//! layer on an image that Docker holds.
//!
//! ```text
//!  their files + tar-split ──rebuild──► pipe ──unpack──► a staged layer of ours
//! ```
//! What arrives is the layer's tar, byte for byte, and its digest is checked.

use std::os::fd::AsFd as _;

use super::error::{Error, Result};
use super::tarball::{Limits, rebuild};
use super::writable::{Exclusive, Intake};
use super::{Image, Store};

/// Takes in the layers of an image that are missing, base first. `passed` is told how many
/// more bytes of their tars went by.
///
/// # Errors
/// [`Error::LayerMissing`] for a layer without tar-split, [`Error::ChainMismatch`] and
/// [`Error::Tar`] for a damaged one.
pub fn copy_layers(
    from: &Store,
    image: &Image,
    to: &Exclusive<'_>,
    intake: &mut Intake<'_>,
    mut passed: impl FnMut(u64),
) -> Result<()> {
    for layer in &image.layers {
        if to.has_layer(&layer.chain_id)? {
            continue;
        }
        let (source, split) = from.tar_sources(layer)?;
        let mut staged = to.stage_layer(layer.parent.as_ref())?;
        let rebuilding =
            move |out: &mut dyn std::io::Write| rebuild(split, source.as_fd(), out).map(drop);
        let unpacked = staged.unpack_from(&Limits::default(), rebuilding, &mut passed)?;
        if unpacked.diff_id != layer.diff_id {
            return Err(Error::ChainMismatch {
                path: layer.spec.path().to_owned(),
                found: format!("a layer whose tar has the digest {}", unpacked.diff_id),
                expected: layer.diff_id.to_string(),
            });
        }
        intake.layer(staged, &unpacked)?;
    }
    Ok(())
}
