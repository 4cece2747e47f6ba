//! Images of an archive become images of a store of ours. Called by the cli's `load` and by
//! `registry`.

use serde::Serialize;

use super::Progress;
use super::blob::Pipeline;
use super::error::ArchiveError;
use super::manifest::{Incoming, LayerBlob, images};
use super::source::Source;
use crate::store::error::{Result, excerpt};
use crate::store::tarball::{Limits, Unpacked, unpack};
use crate::store::writable::{Exclusive, StagedLayer};
use crate::store::{Digest, Reference, chain};

/// An image that was taken in.
#[derive(Clone, Debug, Serialize)]
pub struct Loaded {
    /// Its ID.
    pub id: Digest,
    /// The names it got.
    pub names: Vec<String>,
    /// The chain IDs of layers that the store did not have.
    pub new_layers: Vec<Digest>,
}

/// Takes in every image of an archive. `names`: given to the only image instead of those
/// that the archive has. After an error the images before the bad one are there, whole; of
/// the bad one nothing is.
///
/// # Errors
/// [`ArchiveError`] naming the entry and the digest, and what the store answers.
pub fn load(
    store: &Exclusive<'_>,
    source: &Source,
    names: &[Reference],
    limits: &Limits,
    progress: &(dyn Fn(Progress<'_>) + Sync),
) -> Result<Vec<Loaded>> {
    let incoming = images(source)?;
    if !names.is_empty() && incoming.len() != 1 {
        let what = format!(
            "has {} images: a name can be given to one only",
            incoming.len()
        );
        return Err(ArchiveError::entry(source.name(), "the archive", what).into());
    }
    incoming
        .iter()
        .map(|image| {
            let names = if names.is_empty() {
                &image.names
            } else {
                names
            };
            take(store, source, image, names, limits, progress)
        })
        .collect()
}

/// Makes it an image of the store, all of it or nothing.
pub(in crate::store) fn take(
    store: &Exclusive<'_>,
    source: &Source,
    image: &Incoming,
    names: &[Reference],
    limits: &Limits,
    progress: &(dyn Fn(Progress<'_>) + Sync),
) -> Result<Loaded> {
    let mut new_layers = Vec::new();
    let outcome = layers(store, source, image, limits, progress, &mut new_layers)
        .and_then(|()| store.register_image(&image.config));
    let id = match outcome {
        Ok(id) => id,
        Err(error) => {
            // The first failure is the one to report; what stays, prune finds.
            if let Err(later) = store.discard_layers(&new_layers) {
                tracing::warn!(%later, "layers without an image stay");
            }
            return Err(error);
        }
    };
    for name in names {
        store.tag(name, &id)?;
    }
    Ok(Loaded {
        id,
        names: names.iter().map(Reference::key).collect(),
        new_layers,
    })
}

fn layers(
    store: &Exclusive<'_>,
    source: &Source,
    image: &Incoming,
    limits: &Limits,
    progress: &(dyn Fn(Progress<'_>) + Sync),
    new: &mut Vec<Digest>,
) -> Result<()> {
    let chain = chain::chain_ids(&image.diff_ids);
    let mut parent = None;
    for ((diff_id, blob), chain) in image.diff_ids.iter().zip(&image.layers).zip(&chain) {
        if store.has_layer(chain)? {
            progress(Progress::Exists { diff_id });
        } else {
            let staged = store.stage_layer(parent)?;
            one_layer(source, blob, diff_id, staged, limits, progress)?;
            new.push(*chain);
            progress(Progress::Done);
        }
        parent = Some(chain);
    }
    Ok(())
}

fn one_layer(
    source: &Source,
    blob: &LayerBlob,
    diff_id: &Digest,
    mut staged: StagedLayer<'_>,
    limits: &Limits,
    progress: &(dyn Fn(Progress<'_>) + Sync),
) -> Result<()> {
    let shown = excerpt(blob.path.as_bytes());
    let unpacked = unpack_blob(source, blob, diff_id, &mut staged, limits, progress)?;
    if unpacked.diff_id != *diff_id {
        return Err(ArchiveError::Digest {
            archive: source.name().to_owned(),
            entry: shown,
            expected: *diff_id,
            actual: unpacked.diff_id,
        }
        .into());
    }
    staged.commit(unpacked.diff_id, unpacked.size).map(drop)
}

fn unpack_blob(
    source: &Source,
    blob: &LayerBlob,
    diff_id: &Digest,
    staged: &mut StagedLayer<'_>,
    limits: &Limits,
    progress: &(dyn Fn(Progress<'_>) + Sync),
) -> Result<Unpacked> {
    let shown = || excerpt(blob.path.as_bytes());
    let entry = source.open_entry(&blob.path)?;
    let entry = entry.ok_or_else(|| ArchiveError::Missing {
        archive: source.name().to_owned(),
        entry: shown(),
    })?;
    let bytes = entry.len();
    if blob.size.is_some_and(|declared| declared != bytes) {
        let what = format!("{bytes} bytes, not the {} declared", blob.size.unwrap_or(0));
        return Err(ArchiveError::entry(source.name(), &shown(), what).into());
    }
    progress(Progress::Layer { diff_id, bytes });
    let failed = |error| ArchiveError::read(source.name(), error);
    let counter = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    let passed = {
        let counter = counter.clone();
        move |bytes| {
            counter.fetch_add(bytes, std::sync::atomic::Ordering::Relaxed);
        }
    };
    let pipeline = Pipeline::start(entry, passed).map_err(failed)?;
    let mut stream = Told {
        pipeline,
        tell: || {
            progress(Progress::Bytes(
                counter.swap(0, std::sync::atomic::Ordering::Relaxed),
            ))
        },
    };
    let dialect = staged.dialect();
    let (diff, split) = staged.parts();
    let unpacked =
        unpack(&mut stream, diff, dialect, split, limits).map_err(|error| ArchiveError::Layer {
            archive: source.name().to_owned(),
            entry: shown(),
            diff_id: *diff_id,
            source: Box::new(error),
        })?;
    let actual = stream.pipeline.finish().map_err(failed)?;
    match blob.digest {
        Some(expected) if expected != actual => Err(ArchiveError::Digest {
            archive: source.name().to_owned(),
            entry: shown(),
            expected,
            actual,
        }
        .into()),
        _ => Ok(unpacked),
    }
}

/// Reports progress from the thread that may.
struct Told<F> {
    pipeline: Pipeline,
    tell: F,
}

impl<F: FnMut()> std::io::Read for Told<F> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        (self.tell)();
        self.pipeline.read(buf)
    }
}
