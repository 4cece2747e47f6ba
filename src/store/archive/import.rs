//! A root file system becomes an image of one layer. Called by the cli's `import`.

use std::io::Read;

use super::blob::Pipeline;
use super::error::ArchiveError;
use crate::store::derive::Derivation;
use crate::store::error::{Error, Result};
use crate::store::tarball::{Limits, unpack};
use crate::store::writable::Exclusive;
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

/// Takes in a tar, compressed or not, as the only layer of a new image; `.wh.` names in it
/// are whiteouts, as in any layer. Returns the image ID.
pub fn import(
    store: &Exclusive<'_>,
    input: impl Read + Send + 'static,
    import: &Import<'_>,
) -> Result<Digest> {
    let draft = import.derivation.draft(None)?;
    let failed = |error| ArchiveError::read(import.from, error);
    let mut staged = store.stage_layer(None)?;
    let mut pipeline = Pipeline::start(input, |_| ()).map_err(failed)?;
    let dialect = staged.dialect();
    let (diff, split) = staged.parts();
    let unpacked = unpack(&mut pipeline, diff, dialect, split, &import.limits);
    let unpacked = unpacked.map_err(|error| match error {
        Error::Tar(error) => Error::from(ArchiveError::entry(
            import.from,
            "the root file system",
            error.to_string(),
        )),
        other => other,
    })?;
    pipeline.finish().map_err(failed)?;
    let layer = staged.commit(unpacked.diff_id, unpacked.size)?;
    let config = draft.with_layer(&[], &unpacked.diff_id);
    let registered = store.register_image(&config);
    if registered.is_err()
        && let Err(later) = store.discard_layers(&[layer])
    {
        tracing::warn!(%later, "a layer without an image stays");
    }
    let id = registered?;
    if let Some(name) = import.name {
        store.tag(name, &id)?;
    }
    Ok(id)
}
