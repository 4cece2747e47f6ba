//! A root file system becomes an image of one layer. Called by the cli's `import`.

use std::io::Read;

use super::blob::{Hashing, Pipeline};
use super::error::ArchiveError;
use crate::store::derive::Derivation;
use crate::store::error::{Error, Result};
use crate::store::tarball::{Limits, Unpacked};
use crate::store::writable::{Exclusive, StagedLayer};
use crate::store::{Digest, Reference};

/// What an import is to be.
#[derive(Debug)]
pub struct Import<'a> {
    /// Where it comes from, for messages.
    pub from: &'a str,
    /// The image's name.
    pub name: Option<&'a Reference>,
    /// What its configuration says.
    pub derivation: &'a Derivation,
    /// What may be expanded.
    pub limits: Limits,
}

/// Takes in what `fill` puts into a staged layer as the only layer of a new image; `.wh.`
/// names in a tar are whiteouts, as in any layer. Nothing is there, and the name is whose it
/// was, until all has succeeded. Returns the image ID.
pub fn import<E: From<Error>>(
    store: &Exclusive<'_>,
    import: &Import<'_>,
    fill: impl FnOnce(&mut StagedLayer<'_>) -> std::result::Result<Unpacked, E>,
) -> std::result::Result<Digest, E> {
    let draft = import.derivation.draft(None)?;
    let mut intake = store.intake();
    let mut staged = store.stage_layer(None)?;
    let unpacked = fill(&mut staged)?;
    intake.layer(staged, &unpacked)?;
    let id = intake.image(&draft.with_layer(&[], &unpacked.diff_id))?;
    intake.finish(import.name.map(|name| (name, id)))?;
    Ok(id)
}

/// Fills a layer from a tar, compressed or not. `passed` is told how many more bytes of
/// `input` were read.
pub fn fill_from_tar(
    staged: &mut StagedLayer<'_>,
    input: impl Read + Send + 'static,
    import: &Import<'_>,
    passed: impl FnMut(u64) + Send + 'static,
) -> Result<Unpacked> {
    let failed = |error| ArchiveError::read(import.from, error);
    let mut pipeline = Pipeline::start(input, Hashing::No, passed).map_err(failed)?;
    let unpacked = staged.unpack(&mut pipeline, &import.limits);
    let unpacked = unpacked.map_err(|error| match error {
        Error::Tar(error) => Error::from(ArchiveError::entry(
            import.from,
            "the root file system",
            error.to_string(),
        )),
        other => other,
    })?;
    pipeline.finish().map_err(failed)?;
    Ok(unpacked)
}
