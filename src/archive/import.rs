//! Imports a root file system as an image of one layer.

use std::io::Read;

use super::blob::{Hashing, Pipeline};
use super::error::{Error, Result};
use crate::layer_tar::{Limits, Unpacked};
use crate::oci::derived_config::Derivation;
use crate::oci::{Digest, Reference};
use crate::store::{
    self,
    writable::{Exclusive, StagedLayer},
};

/// The parameters of an import.
#[derive(Debug)]
#[non_exhaustive]
pub struct Import<'a> {
    /// The source of the files, for messages.
    pub from: &'a str,
    /// The image's name.
    pub name: Option<&'a Reference>,
    /// The parameters of its configuration.
    pub derivation: &'a Derivation,
    /// The limits of what is expanded.
    pub limits: Limits,
}

impl<'a> Import<'a> {
    /// Returns an import without a name, with the default limits.
    #[must_use]
    pub fn new(from: &'a str, derivation: &'a Derivation) -> Self {
        Self {
            from,
            name: None,
            derivation,
            limits: Limits::default(),
        }
    }
}

/// Makes an image whose only layer is what `fill` puts into a staged layer. `.wh.` names in a tar
/// are whiteouts, as in any layer. The image appears, and gets its name, only after everything has
/// succeeded. Returns the image ID.
///
/// # Errors
/// Those of `fill`; [`Error::Store`] if the store rejects the layer or the image, or cannot be
/// written to. The store is then unchanged.
pub fn import<E: From<Error>>(
    store: &Exclusive<'_>,
    import: &Import<'_>,
    fill: impl FnOnce(&mut StagedLayer<'_>) -> std::result::Result<Unpacked, E>,
) -> std::result::Result<Digest, E> {
    let draft = import.derivation.draft(None).map_err(Error::from)?;
    let mut intake = store.begin_import();
    let mut staged = store.stage_layer(None).map_err(Error::from)?;
    let unpacked = fill(&mut staged)?;
    intake.layer(staged, &unpacked).map_err(Error::from)?;
    let config = draft.with_layer(&[], &unpacked.diff_id);
    let id = intake.image(&config).map_err(Error::from)?;
    let named = intake.finish(import.name.map(|name| (name, id)));
    named.map_err(Error::from)?;
    Ok(id)
}

/// Fills a layer from a tar, compressed or not. `passed` gets the number of further bytes of
/// `input` that were read.
///
/// # Errors
/// [`Error::Read`] if `input` cannot be read or expanded; [`Error::Store`] if it is not a layer
/// tar, exceeds `import.limits`, or cannot be unpacked.
pub fn fill_from_tar(
    staged: &mut StagedLayer<'_>,
    input: impl Read + Send + 'static,
    import: &Import<'_>,
    passed: impl FnMut(u64) + Send + 'static,
) -> Result<Unpacked> {
    let failed = |error| Error::read(import.from, error);
    let mut pipeline = Pipeline::start(input, Hashing::No, passed).map_err(failed)?;
    let unpacked = staged.unpack(&mut pipeline, &import.limits);
    let unpacked = unpacked.map_err(|error| match error {
        store::Error::Tar(error) => {
            Error::entry(import.from, "the root file system", error.to_string())
        }
        other => other.into(),
    })?;
    pipeline.finish().map_err(failed)?;
    Ok(unpacked)
}
